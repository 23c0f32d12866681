"""The pure step: what trains, what does not, and that it learns."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from egoscale_jax.data import pipeline, statistics, units
from egoscale_jax.errors import UserError
from egoscale_jax.models import vla
from egoscale_jax.train import metrics as metrics_lib
from egoscale_jax.train import optim
from egoscale_jax.train import step as step_lib
from egoscale_jax.train.sharding import path_name


def run(config, steps):
  model, batch = vla.VLA(config.model), tiny.batch(config)
  state = first = jax.jit(lambda b: step_lib.init_state(model, config, b))(batch)
  step = jax.jit(step_lib.make_train_step(model, config))
  losses = []
  for _ in range(steps):
    state, metrics = step(state, batch)
    losses.append(float(metrics["loss"]))
  assert step._cache_size() == 1, "the second step compiled again"
  return first, state, losses


def test_loss_falls_on_one_batch_and_frozen_parts_stay():
  parts = {"train_parts": ("mixer/.*", "expert/.*"), "optim.learning_rate": 1e-2, "model.expert.head_dim": 64}
  config = tiny.config(steps=600, **parts, **tiny.SHALLOW)
  first, last, losses = run(config, 60)
  assert losses[0] == losses[1], "the warm-up begins at a rate of zero, so the first update changes nothing"
  assert np.mean(losses[-5:]) < 0.6 * losses[0]
  assert int(last.step) == 60
  for (path, before), after in zip(jax.tree_util.tree_leaves_with_path(first.params), jax.tree.leaves(last.params)):
    name = path_name(path)
    if name.startswith(("vision", "language")):
      np.testing.assert_array_equal(before, after, err_msg=name)
    elif name.endswith("kernel") and "state_encoder" not in name:
      assert not np.array_equal(before, after), name
  moments = {path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(last.opt_state)}
  assert not any("vision" in name or "language" in name for name in moments)
  assert any("expert" in name for name in moments)


def test_schedule_warms_up_and_ends_at_zero():
  config = tiny.config(steps=1000)
  rate = optim.schedule(config)
  assert float(rate(0)) == 0
  assert float(rate(50)) == pytest.approx(config.optim.learning_rate)
  assert float(rate(525)) == pytest.approx(config.optim.learning_rate / 2, rel=1e-3)
  assert float(rate(1000)) == pytest.approx(0, abs=1e-9)


def test_a_pattern_that_matches_nothing_is_named():
  params = {"vision": {"kernel": np.zeros(1)}}
  with pytest.raises(UserError, match=r"config.train_parts: 'visoin/\.\*' matches no parameter"):
    optim.trainable(params, ("visoin/.*",))


def test_norms_and_biases_are_not_decayed():
  mask = optim.is_matrix({"norm": {"scale": 0, "bias": 0}, "dense": {"kernel": 0, "bias": 0}, "position": 0})
  assert mask == {"norm": {"scale": False, "bias": False}, "dense": {"kernel": True, "bias": False}, "position": True}


ENDS = np.full(62, -0.5, np.float32), np.full(62, 0.7, np.float32)
NORMALIZER = statistics.Normalizer(*ENDS, *np.ones((2, 62), bool), np.zeros(62, np.float32))


def test_a_group_without_a_label_is_not_in_the_log(tmp_path):
  config = tiny.config(**tiny.SHALLOW)
  batch, table = tiny.batch(config), units.table({0: NORMALIZER}, config.model.expert.embodiments, config.model.action_dim)
  mask = np.zeros(batch.action_mask_BxTxA.shape, bool)
  mask[..., 9:31] = True  # a robot that tells its joints alone
  guess = vla.Guess(jnp.zeros(mask.shape), *map(jnp.asarray, (batch.action_BxTxA, mask, np.zeros_like(batch.embodiment_B))))
  log = metrics_lib.Metrics(tmp_path, 0, config)
  log.step(1, {"loss": 1.0, "grad_norm": 1.0, **step_lib.unit_means(step_lib.unit_sums(table, guess))}, 0.0, pipeline.Info(8, ()))
  log.close()
  line = json.loads((tmp_path / "metrics.jsonl").read_text())
  assert line["joint_degrees"] > 0
  assert not {"wrist_mm", "wrist_degrees"} & line.keys()


def test_the_guess_is_one_step_from_where_the_velocity_was_asked(monkeypatch):
  """At t = 0.75 it is off by a quarter of the velocity's error, and so is the truth for the true velocity."""
  monkeypatch.setattr(vla.flow, "sample_time", lambda key_B, alpha, scale: jnp.full(len(key_B), 0.75))
  config = tiny.config(**tiny.SHALLOW)
  model = vla.VLA(config.model)
  params = {"params": tiny.params(vla.param_shapes(model))}
  loss, guess = jax.jit(lambda batch: vla.loss_and_guess(model, params, batch, 0, 2))(tiny.batch(config))
  square = jnp.square((guess.action_RxTxA - guess.truth_RxTxA) / 0.25)
  assert len(square) == 2 * config.batch_size == len(guess.embodiment_R)
  np.testing.assert_allclose(jnp.mean(square[guess.mask_RxTxA]), loss, rtol=1e-4)


RATES = (("vision/.*", 0.1), (".*kernel|vision/.*|mixer/.*", 1.0))


def step_config(**fields):
  return tiny.config(**{"model.expert.state_dropout": 0.0, "optim.clip_norm": 1e9, "optim.warmup": 0.0}, **tiny.SHALLOW, **fields)


@pytest.fixture(scope="module")
def steps():
  """-> a batch whose parts have different numbers of labels; a state; a step with a rate for vision, and one in four parts without."""
  config = step_config()
  batch = tiny.batch(config)
  mask = batch.action_mask_BxTxA.copy()
  mask[..., 62:] = False  # the hand's width
  mask[1::4, 2:] = False  # all of one part of four
  model = vla.VLA(config.model)
  state = step_lib.init_state(model, config, batch, tiny.params(vla.param_shapes(model)))
  state = dataclasses.replace(state, step=jnp.ones((), jnp.int32), opt_state=optax.tree.set(state.opt_state, count=jnp.ones((), jnp.int32)))
  table = units.table({0: NORMALIZER, 1: NORMALIZER}, config.model.expert.embodiments, config.model.action_dim)
  batch, made = dataclasses.replace(batch, action_mask_BxTxA=mask), []
  for fields in ({"optim.rates": RATES}, {"accumulate": 4}):
    step = jax.jit(step_lib.make_train_step(model, step_config(**fields), table))
    made.append(step.lower(state, batch).compile())
  return batch, state, *made


def test_errors_in_units_change_no_bit_and_cost_next_to_nothing(steps):
  batch, state, told, _ = steps
  model = vla.VLA(step_config().model)
  plain = jax.jit(step_lib.make_train_step(model, step_config(**{"optim.rates": RATES}))).lower(state, batch).compile()
  (want, few), (got, more) = plain(state, batch), told(state, batch)
  jax.tree.map(np.testing.assert_array_equal, want, got)  # the optimizer's first moment is the gradient
  assert {name: more.pop(name) for name in few} == few
  assert set(more) == set(units.GROUPS)
  assert all(np.isfinite(value) and value > 0 for value in more.values())
  assert told.cost_analysis()["flops"] < 1.02 * plain.cost_analysis()["flops"]


def test_parts_of_a_batch_add_up_to_the_whole(steps):
  batch, state, step, in_parts = steps
  (whole, metrics), (parts, of_parts) = step(state, batch), in_parts(state, batch)
  assert metrics.keys() == of_parts.keys()
  for name in metrics:
    if not name.startswith("update_norm"):  # rates; and Adam's first step blows up the rounding of gradients near zero
      np.testing.assert_allclose(metrics[name], of_parts[name], rtol=1e-6, err_msg=name)
  moments = [optax.tree.get(state.opt_state, "mu") for state in (whole, parts)]  # 0.1 x the gradient
  difference = jax.tree.map(jnp.subtract, *moments)
  assert optax.tree.norm(difference) < 1e-6 * optax.tree.norm(moments[0])
  for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(moments[0]), jax.tree.leaves(moments[1])):
    if path_name(path) == "0/expert/memory/key/bias":  # not rotated: it cancels in the softmax, and its gradient is nothing but rounding
      assert max(np.abs(a).max(), np.abs(b).max()) < 1e-7 * optax.tree.norm(moments[0]), path_name(path)
      continue
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(a).max() + 1e-9, err_msg=path_name(path))


def test_a_rate_is_of_its_part_alone_and_norms_are_told_a_part(steps):
  batch, state, step, in_parts = steps
  (new, metrics), (_, plain) = step(state, batch), in_parts(state, batch)
  for part in ("vision", "language", "expert"):
    np.testing.assert_allclose(metrics[f"update_norm/{part}"], plain[f"update_norm/{part}"] * (0.1 if part == "vision" else 1), rtol=1e-3)
    change = optax.tree.norm(jax.tree.map(jnp.subtract, new.params[part], state.params[part]))
    np.testing.assert_allclose(metrics[f"update_norm/{part}"], change, rtol=1e-3)
  squares = [float(value) ** 2 for name, value in metrics.items() if name.startswith("grad_norm/")]
  np.testing.assert_allclose(sum(squares), float(metrics["grad_norm"]) ** 2, rtol=1e-5)


def test_wrong_rates_are_named():
  learned = ({"vision": {"kernel": np.ones(1)}, "expert": None}, None)
  for pattern in ("expert/.*", "visoin"):  # frozen, misspelt
    with pytest.raises(UserError, match=f"config.optim.rates: '{pattern}' matches no trained parameter"):
      optim.scale_parts(learned, ((pattern, 0.1),))
  with pytest.raises(UserError, match="'vision/kernel' matches no trained parameter that an earlier"):
    optim.scale_parts(learned, (("vision/.*", 0.1), ("vision/kernel", 0.5)))
  with pytest.raises(UserError, match=r"config.optim.rates: found \('a', 0\), expected pairs"):
    optim.check_rates((("a", 0),))


def test_an_update_that_is_not_finite_is_left_out_and_counted(steps):
  batch, state, step, in_parts = steps
  weight = batch.action_weight_BxTxA.copy()
  weight[3, 0, 0] = np.inf
  bad = dataclasses.replace(batch, action_weight_BxTxA=weight)
  for take in (step, in_parts):
    after, metrics = take(state, bad)
    kept = dataclasses.replace(after, step=state.step, skipped=state.skipped, skipped_in_a_row=state.skipped_in_a_row)
    jax.tree.map(np.testing.assert_array_equal, kept, state)
    assert [int(x) for x in (after.step, after.skipped, after.skipped_in_a_row, metrics["skipped"])] == [2, 1, 1, 1]
    again, told = take(after, batch)
    assert [int(x) for x in (again.step, again.skipped, again.skipped_in_a_row)] == [3, 1, 0]
    assert int(optax.tree.get(again.opt_state, "count", filtering=lambda path, _: "adam" in str(path).lower())) == 2
    np.testing.assert_array_equal(told["learning_rate"], metrics["learning_rate"])  # the optimizer's own count has not moved
    want, _ = take(state, batch)
    jax.tree.map(np.testing.assert_array_equal, again.params, want.params)

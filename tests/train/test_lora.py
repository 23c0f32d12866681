"""Adapters and the running mean: what they are, what stays, and that everything that opens a run gets them merged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from egoscale_jax.errors import UserError
from egoscale_jax.models import vla
from egoscale_jax.train import lora, main
from egoscale_jax.train import run as run_lib
from egoscale_jax.train import step as step_lib

PATHS = (r"expert/groups/.*/(query|out|up)/kernel", r"expert/memory/key/kernel", r"expert/action_decoder/up/kernel")


def test_a_fresh_adapter_changes_nothing_and_then_adds_a_product_of_its_rank():
  params = tiny.params(vla.param_shapes(vla.VLA(tiny.config(**tiny.SHALLOW).model)))
  adapters = lora.init(params, PATHS, 2, 0)
  jax.tree.map(np.testing.assert_array_equal, lora.merge(params, adapters, 8.0), params)
  moved = tiny.params(adapters)
  merged = lora.merge(params, moved, 8.0)
  block, adapter = (tree["expert"]["groups"]["block_0"]["attention"] for tree in (params, moved))
  got = merged["expert"]["groups"]["block_0"]["attention"]
  for name, rows in (("query", 64), ("out", 64)):  # [1, D, N, H] and [1, N, H, D], D = N * H = 64
    kernel, (a, b) = block[name]["kernel"], (adapter[name]["kernel"][k] for k in "ab")
    delta = (np.asarray(got[name]["kernel"]) - kernel).reshape(rows, -1)
    np.testing.assert_allclose(delta, 8.0 * a[0] @ b[0], atol=1e-4)
    assert np.linalg.matrix_rank(delta, tol=1e-3) == 2
  key = np.asarray(merged["expert"]["memory"]["key"]["kernel"]) - params["expert"]["memory"]["key"]["kernel"]
  assert np.linalg.matrix_rank(key.reshape(len(key), -1), tol=1e-3) == 2
  np.testing.assert_array_equal(merged["vision"]["position"], params["vision"]["position"])
  with pytest.raises(UserError, match=r"config.lora.paths: 'expert/typo' matches no kernel"):
    lora.init(params, ("expert/typo",), 2, 0)


def test_only_adapters_learn_and_the_mean_follows_them():
  fields = {"lora.rank": 2, "lora.paths": PATHS, "ema": 0.5, "train_parts": (), "optim.learning_rate": 1e-2, "steps": 600}
  config = tiny.config(**fields, **tiny.SHALLOW)
  model, batch = vla.VLA(config.model), tiny.batch(config)
  shapes = jax.eval_shape(lambda b: step_lib.init_state(model, config, b), batch)
  params = tiny.params(shapes.params)
  state = step_lib.init_state(model, config, batch, params)
  assert jax.tree.structure(state) == jax.tree.structure(shapes)
  step = jax.jit(step_lib.make_train_step(model, config))
  means, losses = [state.lora], []
  for _ in range(30):
    state, metrics = step(state, batch)
    losses.append(float(metrics["loss"]))
    means.append(jax.tree.map(lambda mean, now: 0.5 * mean + 0.5 * now, means[-1], state.lora))
  assert losses[-1] < losses[0]
  jax.tree.map(np.testing.assert_array_equal, state.params, params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.average[1], means[-1])
  final = step_lib.final_params(config, state.params, state.lora, state.average)
  expected = lora.merge(params, means[-1], config.lora.alpha / 2)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), final, expected)
  assert jnp.any(final["expert"]["memory"]["key"]["kernel"] != params["expert"]["memory"]["key"]["kernel"])


def test_what_opens_a_run_gets_the_merged_parameters(shards, tiny_run, tmp_path):
  fields = {"lora.rank": 2, "lora.paths": PATHS, "ema": 0.5, "train_parts": ("mixer/.*",), "optim.learning_rate": 1e-2, "steps": 3}
  config = tiny.config(shards, init_from=str(tiny_run), **fields, **tiny.SHALLOW, **{"validation.episodes": 0})
  main.main(config, tmp_path / "run", jax.devices()[:1])
  _, before, _ = run_lib.open_run(tiny_run)
  _, after, step = run_lib.open_run(tmp_path / "run")
  assert step == 3
  changed = {
    run_lib.sharding.path_name(path)
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.tree.map(lambda a, b: np.any(a != b), before, after))
    if leaf
  }
  assert any("memory/key" in name for name in changed)
  assert any(name.startswith("mixer") for name in changed)
  assert all(name.startswith("mixer") or name.endswith("kernel") for name in changed)
  resumed = tiny.config(shards, init_from=str(tiny_run), **fields, **tiny.SHALLOW, **{"validation.episodes": 0})
  main.main(resumed, tmp_path / "run", jax.devices()[:1])  # finished: the whole state is read and left alone

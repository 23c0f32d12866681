"""The pure step: what trains, what does not, and that it learns."""

import jax
import numpy as np
import pytest
import tiny

from egoscale_jax.errors import UserError
from egoscale_jax.models import vla
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

"""Muon on the hidden matrices: which they are, what an update of theirs is, and that all else is Adam's."""

import jax
import numpy as np
import optax
import pytest
import tiny
from test_step import run

from egoscale_jax.errors import UserError
from egoscale_jax.models import vla
from egoscale_jax.train import optim

FACTOR = 2.0
# name: (shape of the matrices in it, whether there is one a block or an embodiment)
HIDDEN = {
  "vision/blocks/mlp/up/kernel": ((32, 32), True),
  "vision/merger/mlp/up/kernel": ((128, 128), False),
  "language/blocks/out/kernel": ((32, 32), True),
  "expert/memory/key/kernel": ((32, 128), False),
  "expert/groups/block_0/attention/query/kernel": ((64, 64), True),
  "expert/groups/block_0/attention/out/kernel": ((64, 64), True),
  "expert/action_encoder/with_time/kernel": ((128, 64), True),
}
OUTER = ("vision/patch_embed/kernel", "expert/action_decoder/down/kernel", "expert/state_encoder/up/kernel", "vision/position")


@pytest.fixture(scope="module")
def updates():
  """Of the second step (the first has a rate of zero), by name: Muon's, Adam's; and the rate."""
  config = tiny.config(**{"optim.muon": FACTOR, "optim.clip_norm": 1e9})
  shapes = vla.param_shapes(vla.VLA(config.model))
  learned, gradient = ((tiny.params(shapes, seed), None) for seed in (0, 1))
  found = []
  o, rate = config.optim, optim.schedule(config)
  for optimizer in (optim.make_optimizer(config), optax.nadam(rate, b1=o.b1, b2=o.b2, eps=o.eps)):
    state = optimizer.init(learned)
    for _ in range(2):
      update, state = optimizer.update(gradient, state, learned)
    found.append({optim.learned_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(update)})
  return *found, float(rate(1))


def test_an_update_of_a_matrix_turns_all_directions_alike(updates):
  muon, _, rate = updates
  for name, (shape, stacked) in HIDDEN.items():
    matrices = muon[name].reshape(-1, *shape)
    assert len(matrices) == (len(muon[name]) if stacked else 1), name
    for matrix in matrices:
      assert np.sqrt(np.mean(matrix**2)) == pytest.approx(0.2 * FACTOR * rate, rel=0.2), name
      values = np.linalg.svd(matrix, compute_uv=False)
      assert np.percentile(values, 10) > 0.5 * values.max(), name


def test_all_else_is_adams(updates):
  muon, adam, _ = updates
  alike = [name for name in adam if np.allclose(muon[name], adam[name], rtol=1e-5, atol=1e-12)]
  kernels = {name for name in adam if name.endswith("/kernel")}
  assert set(adam) - kernels <= set(alike)
  assert {name for name in alike if name in kernels} == {name for name in kernels if name.removesuffix("/kernel").endswith(optim._OUTER)}
  assert set(OUTER) <= set(alike)
  assert not set(HIDDEN) & set(alike)


def test_the_loss_falls_and_what_is_frozen_has_no_momentum():
  parts = {"train_parts": ("mixer/.*", "expert/.*"), "optim.learning_rate": 1e-2, "optim.muon": 1.0, "model.expert.head_dim": 64}
  first, last, losses = run(tiny.config(steps=600, **parts, **tiny.SHALLOW), 40)
  assert np.mean(losses[-5:]) < 0.7 * losses[0]
  moments = [optim.path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(last.opt_state)]
  assert not any("vision" in name or "language" in name for name in moments)
  np.testing.assert_array_equal(first.params["vision"]["patch_embed"]["kernel"], last.params["vision"]["patch_embed"]["kernel"])


def test_a_wrong_factor_is_named():
  for factor in (-1.0, 11.0):
    with pytest.raises(UserError, match=r"config.optim.muon: found .*, expected a factor above 0"):
      optim.make_optimizer(tiny.config(**{"optim.muon": factor}))

"""Vision and language: orders, positions and masks as tables; causality by gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from egoscale_jax.errors import UserError
from egoscale_jax.models import language, layers, vision


def test_patches_of_one_merged_block_stand_together():
  rows, cols = vision.merged_order(4, 4, 2)
  np.testing.assert_array_equal(rows[:8], [0, 0, 1, 1, 0, 0, 1, 1])
  np.testing.assert_array_equal(cols[:8], [0, 1, 0, 1, 2, 3, 2, 3])


def test_position_table_is_read_at_the_corners_and_between():
  table = np.arange(9.0)  # 3 x 3, row-major
  np.testing.assert_allclose(vision.bilinear_table(3, 3, 3) @ table, table)
  np.testing.assert_allclose(vision.bilinear_table(3, 2, 2) @ table, [0, 2, 6, 8])
  np.testing.assert_allclose(vision.bilinear_table(3, 1, 5)[:, :3] @ table[:3], [0, 0.5, 1, 1.5, 2])


def test_mrope_positions_as_in_the_table():
  #                    pad  text image ------------- text
  is_image = np.array([[0, 0, 1, 1, 1, 1, 0, 0]], bool)
  token_mask = np.array([[0, 1, 1, 1, 1, 1, 1, 1]], bool)
  positions = language.mrope_positions(jnp.asarray(is_image), jnp.asarray(token_mask), [[(2, 2)]])[:, 0]
  np.testing.assert_array_equal(positions[0, 1:], [0, 1, 1, 1, 1, 3, 4])
  np.testing.assert_array_equal(positions[1, 1:], [0, 1, 1, 2, 2, 3, 4])
  np.testing.assert_array_equal(positions[2, 1:], [0, 1, 2, 1, 2, 3, 4])


def test_two_images_count_on_from_each_other():
  is_image = np.array([[1, 1, 0, 1, 1, 0]], bool)
  positions = language.mrope_positions(jnp.asarray(is_image), jnp.ones((1, 6), bool), [[(1, 2), (1, 2)]])[:, 0]
  np.testing.assert_array_equal(positions[0], [0, 0, 2, 3, 3, 5])
  np.testing.assert_array_equal(positions[2], [0, 1, 2, 3, 4, 5])


def test_images_of_other_grids_and_an_absent_one():
  #                     1 x 2 -  text  2 x 1, absent  3 x 1 ------  text
  is_image = np.array([[1, 1, 0, 1, 1, 1, 1, 1, 0]], bool)
  token_mask = np.array([[1, 1, 1, 0, 0, 1, 1, 1, 1]], bool)
  grid = np.array([[(1, 2), (2, 1), (3, 1)]])
  positions = language.mrope_positions(jnp.asarray(is_image), jnp.asarray(token_mask), grid)[:, 0]
  there = token_mask[0]
  np.testing.assert_array_equal(positions[0, there], [0, 0, 2, 3, 3, 3, 6])
  np.testing.assert_array_equal(positions[1, there], [0, 0, 2, 3, 4, 5, 6])
  np.testing.assert_array_equal(positions[2, there], [0, 1, 2, 3, 3, 3, 6])


def test_mrope_frequencies_are_interleaved():
  position = jnp.asarray([1.0, 10.0, 100.0])[:, None, None]  # time, row, column of one token
  angle = language.mrope_angles(position, head_dim=16, theta=1.0, sections=(4, 2, 2))[0, 0]
  np.testing.assert_array_equal(angle, [1, 10, 100, 1, 10, 100, 1, 1])  # t h w t h w, then t


def test_rotation_keeps_norms_and_depends_on_the_distance_only():
  q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))
  frequency = 10.0 ** -jnp.arange(4.0)
  score = lambda i, j: float(jnp.sum(layers.rotate(q, (i * frequency)[None, None]) * layers.rotate(k, (j * frequency)[None, None])))  # noqa: E731
  assert score(3.0, 1.0) == pytest.approx(score(12.0, 10.0), abs=1e-5)
  assert abs(score(3.0, 1.0) - score(3.0, 2.0)) > 1e-4
  np.testing.assert_allclose(jnp.linalg.norm(layers.rotate(q, frequency[None, None])), jnp.linalg.norm(q), atol=1e-5)


@pytest.fixture(scope="module")
def decoder():
  sizes = dict(layers=3, width=16, heads=2, kv_heads=1, head_dim=8, mlp=16, vocab=8, rope_theta=1e4, mrope_sections=(2, 1, 1))
  model = language.Language(**sizes, remat="none", attention="xla", dtype=jnp.float32)
  position = jnp.broadcast_to(jnp.arange(6), (3, 1, 6))

  def run(params, x, token_mask):
    return model.apply(params, x, [jnp.zeros_like(x)], position, token_mask)

  x = jax.random.normal(jax.random.key(1), (1, 6, 16))
  shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, [x], position, jnp.ones((1, 6), bool)), x)
  params = tiny.params(shapes)
  return jax.jit(jax.jacrev(run, argnums=1)), params, x


def test_decoder_is_causal_and_does_not_read_padding(decoder):
  jacobian, params, x = decoder
  mask = jnp.array([[False, True, True, True, True, True]])
  reads = np.abs(jacobian(params, x, mask)[0, :, :, 0]).max(axis=(1, 3))  # [query, key]
  np.testing.assert_array_equal(reads[1:] > 0, np.tril(np.ones((6, 6), bool))[1:] & np.asarray(mask)[0])


@pytest.fixture(scope="module")
def remat():
  """name -> (loss and gradients of a decoder of two blocks, bytes that it keeps for its backward pass)."""
  sizes = dict(layers=2, width=16, heads=2, kv_heads=1, head_dim=8, mlp=64, vocab=8, rope_theta=1e4, mrope_sections=(2, 1, 1))
  x, position, there = jax.random.normal(jax.random.key(1), (2, 6, 16)), jnp.broadcast_to(jnp.arange(6), (3, 1, 6)), jnp.ones((2, 6), bool)

  def run(name):
    model = language.Language(**sizes, remat=name, attention="xla", dtype=jnp.float32)
    loss = lambda params: jnp.sum(jnp.sin(model.apply(params, x, [], position, there)))  # noqa: E731
    params = tiny.params(jax.eval_shape(lambda: model.init(jax.random.key(0), x, [], position, there)))
    kept = jax.tree.leaves(jax.eval_shape(lambda params: jax.vjp(loss, params)[1], params))
    return jax.jit(jax.value_and_grad(loss))(params), sum(leaf.size * leaf.dtype.itemsize for leaf in kept)

  return {name: run(name) for name in layers.REMAT}


def test_remat_keeps_less_in_the_tables_order(remat):
  kept = [remat[name][1] for name in layers.REMAT]
  assert kept == sorted(set(kept), reverse=True), dict(zip(layers.REMAT, kept))


def test_remat_changes_neither_loss_nor_gradients(remat):
  want_loss, want = remat["none"][0]
  for (loss, gradients), _ in remat.values():
    np.testing.assert_allclose(loss, want_loss, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradients, want)


def test_an_unknown_remat_is_named():
  with pytest.raises(UserError, match=r"config.model.remat: found 'all', expected one of none, dots, branches, full"):
    layers.scan_blocks(language.Block, 1, "all")

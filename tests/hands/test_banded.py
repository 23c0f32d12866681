"""The banded solver against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egoscale_jax.hands import banded


@pytest.mark.parametrize(("length", "size"), [(1, 3), (2, 2), (9, 1), (12, 4)])
def test_solves_like_numpy(length, size):
  """Two systems side by side."""
  rng = np.random.default_rng(length)
  full = np.zeros((length, size, length, size, 2))
  for k in range(length):  # sums of squares over four neighbours: positive, and three blocks to each side
    reach = range(k, min(k + 4, length))
    part = rng.normal(size=(len(reach), size, 5 * size, 2))
    for a, i in enumerate(reach):
      for b, j in enumerate(reach):
        full[i, :, j] += np.einsum("asl,bsl->abl", part[a], part[b])
  blocks = np.zeros((length, 4, size, size, 2))
  for d in range(4):
    for k in range(length - d):
      blocks[k, d] = full[k + d, :, k]
  right = rng.normal(size=(length, size, 2))
  with jax.enable_x64(True):
    found = banded.solve(lambda column: column["blocks"], {"blocks": jnp.asarray(blocks)}, jnp.asarray(right))
    assert found.dtype == jnp.float64
  for system in range(2):
    matrix = full[..., system].reshape(length * size, -1)
    expected = np.linalg.solve(matrix, right[..., system].ravel()).reshape(length, size)
    np.testing.assert_allclose(found[..., system], expected, rtol=1e-7, atol=1e-9)

"""The banded solver against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egoscale_jax.hands import banded


@pytest.mark.parametrize(("length", "size"), [(1, 3), (2, 2), (9, 1), (12, 4)])
def test_solves_like_numpy(length, size):
  rng = np.random.default_rng(length)
  full = np.zeros((length, size, length, size))
  for k in range(length):  # sums of squares over four neighbours: positive, and three blocks to each side
    reach = range(k, min(k + 4, length))
    part = rng.normal(size=(len(reach) * size, 5 * size)).reshape(len(reach), size, -1)
    for a, i in enumerate(reach):
      for b, j in enumerate(reach):
        full[i, :, j, :] += part[a] @ part[b].T
  blocks = np.zeros((4, length, size, size))
  for d in range(4):
    for k in range(length - d):
      blocks[d, k] = full[k + d, :, k, :]
  right = rng.normal(size=(length, size))
  with jax.enable_x64(True):
    found = banded.solve(jnp.asarray(blocks), jnp.asarray(right))
    assert found.dtype == jnp.float64
  expected = np.linalg.solve(full.reshape(length * size, -1), right.ravel()).reshape(length, size)
  np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9)

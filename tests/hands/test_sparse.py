"""The sparse solver against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egoscale_jax.hands import sparse


def arrow(rng, fingers, length, batch):
  """Chains that meet in one joint, as random positive systems: {(i, j): [batch]}, i >= j, and the same in full [batch, n, n]."""
  chains = [[0, *range(1 + f * length, 1 + (f + 1) * length)] for f in range(fingers)]
  n = 1 + fingers * length
  full = np.zeros((batch, n, n))
  for chain in chains:
    part = rng.normal(size=(batch, len(chain), len(chain) + 2))
    full[:, np.asarray(chain)[:, None], np.asarray(chain)] += part @ part.swapaxes(1, 2)
  entries = {(i, j): full[:, i, j] for chain in chains for i in chain for j in chain if j <= i}
  shuffled = rng.permutation(n)  # where the chains meet is not the first unknown
  moved = {(max(shuffled[i], shuffled[j]), min(shuffled[i], shuffled[j])): e for (i, j), e in entries.items()}
  back = np.argsort(shuffled)
  return moved, full[:, back[:, None], back]


@pytest.mark.parametrize(("fingers", "length"), [(1, 0), (3, 1), (5, 4)])
def test_solves_an_arrow_like_numpy(fingers, length):
  rng = np.random.default_rng(fingers)
  entries, full = arrow(rng, fingers, length, batch=7)
  right = rng.normal(size=(7, len(full[0])))
  with jax.enable_x64(True):
    solve = jax.jit(lambda entries, right: jnp.stack(sparse.solve(dict(zip(keys, entries)), list(right))))
    keys = list(entries)
    found = solve([jnp.asarray(e) for e in entries.values()], jnp.asarray(right.T))
    assert found.dtype == jnp.float64
  np.testing.assert_allclose(found.T, np.linalg.solve(full, right[..., None])[..., 0], rtol=1e-7, atol=1e-9)


def test_least_degree_goes_first_and_an_arrow_does_not_fill_in():
  star = {(0, 0): None} | {(i, i): None for i in range(1, 6)} | {(i, 0): None for i in range(1, 6)}
  assert sparse.elimination_order(star, 6)[:4] == [1, 2, 3, 4]  # the middle of the star first would couple all the others

"""The bounded solver against problems whose answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egoscale_jax.hands import solver


def bounded_least_squares(matrix, target, lower, upper):
  """The exact answer by trying every set of joints at a bound: the KKT point is the minimum of a convex problem."""
  best = None
  for code in range(3 ** len(lower)):
    state = [(code // 3**i) % 3 for i in range(len(lower))]
    x = np.where(np.equal(state, 1), lower, np.where(np.equal(state, 2), upper, 0.0))
    free = np.equal(state, 0)
    if free.any():
      x[free] = np.linalg.lstsq(matrix[:, free], target - matrix @ x, rcond=None)[0]
    if (x >= lower - 1e-12).all() and (x <= upper + 1e-12).all():
      cost = np.sum((matrix @ x - target) ** 2)
      if best is None or cost < best[0]:
        best = cost, x
  return best


@pytest.mark.parametrize("seed", range(6))
def test_linear_least_squares_in_a_box(seed):
  rng = np.random.default_rng(seed)
  matrix, target = rng.normal(size=(7, 4)), 3.0 * rng.normal(size=7)
  lower, upper = -rng.uniform(0.1, 1.0, 4), rng.uniform(0.1, 1.0, 4)
  with jax.enable_x64(True):
    bounds = jnp.asarray(lower), jnp.asarray(upper)
    found, cost = solver.solve(lambda x: (jnp.asarray(matrix) @ x - target, jnp.asarray(matrix)), jnp.zeros(4), *bounds, iterations=60)
  best_cost, best = bounded_least_squares(matrix, target, lower, upper)
  np.testing.assert_allclose(cost, best_cost, rtol=1e-6)
  np.testing.assert_allclose(found, best, atol=1e-4)
  assert ((best == lower) | (best == upper)).any(), "this seed closes no bound: it tests less than it says"


def test_a_start_outside_the_bounds_is_brought_in_and_a_cost_never_rises():
  def rosenbrock(x):
    def residual(x):
      return jnp.stack([10.0 * (x[1] - x[0] ** 2), 1.0 - x[0]])

    return residual(x), jax.jacfwd(residual)(x)

  bounds = jnp.array([-2.0, -2.0]), jnp.array([2.0, 2.0])
  costs = [float(solver.solve(rosenbrock, jnp.array([-9.0, 9.0]), *bounds, iterations=n)[1]) for n in (0, 1, 2, 4, 8, 16, 40)]
  assert costs == sorted(costs, reverse=True)
  assert costs[-1] < 1e-8

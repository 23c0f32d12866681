"""The solver: bounds, descent, and that what it stops at is a stationary point; all of it in double precision."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from dex3 import double, model, rest, wild_targets  # noqa: F401, the first is a fixture of all tests here

from egoscale_jax.hands import costs, solver, spline

WEIGHTS = costs.Weights(velocity=1e-4, acceleration=1e-5)
KNOT, RATE_HZ, ENOUGH = 2, 30.0, 600  # the steps of trajectories are short where fingers meet


@functools.cache
def wild_aims(frames):
  target_Px3xF = wild_targets(frames, np.random.default_rng(3))
  with jax.enable_x64(True):
    return costs.aims(model(), WEIGHTS, jnp.asarray(target_Px3xF), jnp.ones((21, frames)), 1.0)


def shaped(aims):
  """As one trajectory: an axis of one behind the frames."""
  return jax.tree.map(lambda x: x[..., None], aims)


@jax.jit
def solve_frames(aims, start, iterations):
  return solver.frames(model(), WEIGHTS, aims, rest(), start, iterations)


@jax.jit
def solve_trajectory(aims, start, iterations):
  return solver.trajectories(model(), WEIGHTS, shaped(aims), rest(), start[..., None], RATE_HZ, KNOT, iterations)


def projected(gradient, x, slack=1e-12):
  """The part of the gradient that descent could follow without leaving the box."""
  lower, upper = (np.asarray(b, np.float64).reshape(-1, *(1,) * (np.ndim(x) - 1)) for b in (model().lower_J, model().upper_J))
  gradient, x = np.asarray(gradient), np.asarray(x)
  blocked = ((x <= lower + slack) & (gradient > 0)) | ((x >= upper - slack) & (gradient < 0))
  assert blocked.any(), "no bound is closed: this tests less than it says"
  return np.where(blocked, 0.0, gradient)


def within(joints_J):
  lower, upper = (np.asarray(b, np.float64).reshape(-1, *(1,) * (np.ndim(joints_J) - 1)) for b in (model().lower_J, model().upper_J))
  return bool((np.asarray(joints_J) >= lower).all() and (np.asarray(joints_J) <= upper).all())


def outside(frames):
  """A start that no joint may have."""
  return jnp.asarray(np.where(np.arange(frames) % 2, 9.0, -9.0) * np.ones((model().num_joints, 1)))


def test_frames_stay_within_bounds_and_no_cost_rises():
  aims, start = wild_aims(40), outside(40)
  runs = [solve_frames(aims, start, n) for n in (0, 1, 2, 3, 5, 8, 20, ENOUGH)]
  assert all(within(joints) for joints, _ in runs)
  found = np.stack([cost for _, cost in runs])
  assert (np.diff(found, axis=0) <= 0).all()
  assert (found[-1] < found[0]).all()
  joints, cost = runs[-1]
  np.testing.assert_allclose(cost, costs.cost(model(), WEIGHTS, aims, rest(), list(joints)), rtol=1e-10)


def test_frames_end_at_a_stationary_point():
  aims = wild_aims(40)
  gradient = jax.jit(jax.grad(lambda q: 0.5 * jnp.sum(costs.cost(model(), WEIGHTS, aims, rest(), list(q)))))
  start = jnp.tile(jnp.asarray(rest())[:, None], (1, 40))
  joints, _ = solve_frames(aims, start, ENOUGH)
  left_F = np.abs(projected(gradient(joints), joints)).max(0) / np.abs(gradient(start)).max()
  assert left_F.max() < 1e-3
  assert np.percentile(left_F, 90) < 1e-6


def test_a_frame_does_not_know_its_neighbours():
  aims, start = wild_aims(40), jnp.tile(jnp.asarray(rest())[:, None], (1, 40))
  order = np.random.default_rng(0).permutation(40)
  mixed, _ = solve_frames(jax.tree.map(lambda x: x[..., order], aims), start, 10)
  np.testing.assert_allclose(mixed, solve_frames(aims, start, 10)[0][:, order], atol=1e-10)


def trajectory_cost(aims, coefficients_JxK):
  """The definition, written down once more: data at each frame, and each segment's (difference quotient's) derivatives, a frame each."""
  data = jnp.sum(costs.cost(model(), WEIGHTS, aims, rest(), list(spline.evaluate(coefficients_JxK[..., None], KNOT)[..., 0])))
  soft = WEIGHTS.jerk_soft
  velocity, acceleration, jerk = (jnp.diff(coefficients_JxK, n=n, axis=-1) * (RATE_HZ / KNOT) ** n for n in (1, 2, 3))
  smooth = WEIGHTS.velocity**2 * jnp.sum(velocity**2) + WEIGHTS.acceleration**2 * jnp.sum(acceleration**2)
  return data + KNOT * (smooth + WEIGHTS.jerk**2 * jnp.sum(2.0 * soft**2 * (jnp.sqrt(1.0 + (jerk / soft) ** 2) - 1.0)))


def coefficients_of(joints_JxF):
  """With two frames to a knot the coefficients follow from the frames."""
  frames = joints_JxF.shape[-1]
  matrix = np.asarray(spline.evaluate(jnp.eye(frames // KNOT + 3)[..., None], KNOT))[..., 0].T  # [F, K]
  return np.linalg.lstsq(matrix, np.asarray(joints_JxF).T, rcond=None)[0].T


def test_trajectories_stay_within_bounds_and_no_cost_rises():
  aims, start = wild_aims(40), outside(40)
  runs = [solve_trajectory(aims, start, n) for n in (0, 1, 2, 3, 5, 8, 20, ENOUGH)]
  assert all(within(joints) for joints, _ in runs)
  found = np.stack([cost[0] for _, cost in runs])[1:]  # 0: the start alone
  assert (np.diff(found) <= 0).all()
  assert found[-1] < found[0]


def test_trajectories_end_at_a_stationary_point_of_the_stated_cost():
  aims = wild_aims(40)
  start = jnp.tile(jnp.asarray(rest())[:, None], (1, 40))
  joints, cost = solve_trajectory(aims, start, ENOUGH)
  coefficients = jnp.asarray(coefficients_of(joints[..., 0]))
  value_and_gradient = jax.jit(jax.value_and_grad(lambda c: trajectory_cost(aims, c)))
  value, gradient = value_and_gradient(coefficients)
  np.testing.assert_allclose(value, cost[0], rtol=1e-8)
  _, at_start = value_and_gradient(spline.fit(start[..., None], KNOT)[..., 0])
  assert np.abs(projected(gradient, coefficients, slack=1e-9)).max() < 1e-5 * np.abs(at_start).max()


def test_a_human_that_stands_still_is_solved_as_one_frame():
  one = jax.tree.map(lambda x: jnp.repeat(x[..., :1], 40, axis=-1), wild_aims(40))
  start = jnp.tile(jnp.asarray(rest())[:, None], (1, 40))
  still, _ = solve_trajectory(one, start, ENOUGH)
  np.testing.assert_allclose(still[..., 0], solve_frames(one, start, ENOUGH)[0], atol=1e-5)

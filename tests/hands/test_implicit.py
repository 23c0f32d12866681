"""Derivatives of the solution against differences of stationary points that Newton's method finds in numpy, with a differenced Hessian."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dex3 import double, model, rest, wild_targets  # noqa: F401, the first is a fixture of all tests here

from egoscale_jax.hands import costs, implicit, keypoints, spline

WEIGHTS = costs.Weights(jerk=1e-4)  # smooth enough that a bound holds several coefficients in a row
FRAMES, KNOT, RATE_HZ, ENOUGH, STEP = 12, 2, 30.0, 1000, 1e-5


@functools.cache
def problem():
  """Targets [21, 3, F], a direction in which they move, and what a loss asks of the joints [J, F].

  Some joints end at their bounds; in every other frame the fingers begin to pinch.
  """
  rng = np.random.default_rng(3)
  target_Px3xF = wild_targets(FRAMES, rng)
  thumb, index = keypoints.TIPS[:2]
  target_Px3xF[index, :, ::2] = target_Px3xF[thumb, :, ::2] + np.asarray([[0.014], [0.012], [0.013]])
  return target_Px3xF, rng.normal(size=target_Px3xF.shape), rng.normal(size=(model().num_joints, FRAMES))


def aims_of(target_Px3xF):
  return costs.aims(model(), WEIGHTS, target_Px3xF, jnp.ones_like(target_Px3xF[:, 0]), 1.0)


def solve_frames(target_Px3xF, iterations=ENOUGH):
  start = jnp.broadcast_to(jnp.asarray(rest(), target_Px3xF.dtype)[:, None], (model().num_joints, FRAMES))
  return implicit.frames(model(), WEIGHTS, aims_of(target_Px3xF), rest(), start, iterations)


def solve_trajectory(target_Px3xF, iterations=ENOUGH):
  start = jnp.broadcast_to(jnp.asarray(rest(), target_Px3xF.dtype)[:, None, None], (model().num_joints, FRAMES, 1))
  aims = jax.tree.map(lambda x: x[..., None], aims_of(target_Px3xF))
  joints, cost = implicit.trajectories(model(), WEIGHTS, aims, rest(), start, RATE_HZ, KNOT, iterations)
  return joints[..., 0], cost


@functools.partial(jax.jit, static_argnums=0)
def differentiated(solve, target, move, asked):
  """-> ((joints, cost), their change along `move`, the gradient of a loss of both): jax.jvp and jax.grad, compiled as one."""
  found, linear = jax.linearize(solve, target)
  return found, linear(move), jax.linear_transpose(linear, target)((asked, jnp.ones_like(found[1])))[0]


def frames_cost(joints_JxF, target):
  return jnp.sum(costs.cost(model(), WEIGHTS, aims_of(target), rest(), list(joints_JxF)))


def trajectory_cost(coefficients_JxK, target):
  jerk = jnp.diff(coefficients_JxK, n=3, axis=-1) * (RATE_HZ / KNOT) ** 3
  soft = WEIGHTS.jerk_soft
  smooth = KNOT * WEIGHTS.jerk**2 * jnp.sum(2.0 * soft**2 * (jnp.sqrt(1.0 + (jerk / soft) ** 2) - 1.0))
  return smooth + frames_cost(spline.evaluate(coefficients_JxK[..., None], KNOT)[..., 0], target)


class Reference:
  """The stationary points near x of cost(x, target), with what a bound holds there held."""

  def __init__(self, cost, x, target):
    self._gradient = jax.jit(jax.grad(cost))
    lower, upper = (np.float64(bound)[:, None] for bound in (model().lower_J, model().upper_J))
    pull = np.asarray(self._gradient(x, target))
    self.held = ((x <= lower + 1e-9) & (pull > 0)) | ((x >= upper - 1e-9) & (pull < 0))
    self._free, self._x = np.flatnonzero(~self.held), x
    steps = 1e-5 * np.eye(x.size)[self._free].reshape(-1, *x.shape)
    self._hessian = np.stack([self.pull(x + step, target) - self.pull(x - step, target) for step in steps], axis=-1) / 2e-5
    self.x = self.near(target)

  def pull(self, x, target):
    return np.asarray(self._gradient(x, target)).ravel()[self._free]

  def near(self, target):
    x = self._x.copy()
    for _ in range(20):
      x.ravel()[self._free] -= np.linalg.solve(self._hessian, self.pull(x, target))
    assert np.abs(self.pull(x, target)).max() < 1e-14
    return x

  def moved(self, target, move):
    return (self.near(target + STEP * move) - self.near(target - STEP * move)) / (2 * STEP)


def check_loss(found, moved, gradient):
  """jax.grad of a loss, here of joints and cost, against jax.jvp."""
  _, move, asked = problem()
  np.testing.assert_allclose(np.sum(gradient * move), np.sum(asked * moved[0]) + np.sum(moved[1]), rtol=1e-9)


def test_frames_move_as_stationary_points_do():
  target, move, asked = problem()
  found, moved, gradient = jax.tree.map(np.asarray, differentiated(solve_frames, target, move, asked))
  reference = Reference(frames_cost, found[0], target)
  assert 5 < reference.held.sum() < 0.5 * reference.held.size
  np.testing.assert_allclose(found[0], reference.x, atol=1e-4)
  expected = reference.moved(target, move)
  np.testing.assert_allclose(moved[0], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
  assert (moved[0][reference.held] == 0).all()
  assert (moved[0][~reference.held] != 0).all()
  ahead, behind = (float(frames_cost(reference.near(target + s * STEP * move), target + s * STEP * move)) for s in (1, -1))
  np.testing.assert_allclose(moved[1].sum(), (ahead - behind) / (2 * STEP), rtol=1e-5)
  check_loss(found, moved, gradient)


def test_trajectories_move_as_stationary_points_do():
  target, move, asked = problem()
  found, moved, gradient = jax.tree.map(np.asarray, differentiated(solve_trajectory, target, move, asked))
  evaluate = np.asarray(spline.evaluate(jnp.eye(FRAMES // KNOT + 3)[..., None], KNOT))[..., 0]
  reference = Reference(trajectory_cost, np.linalg.lstsq(evaluate.T, found[0].T, rcond=None)[0].T, target)
  assert 3 < reference.held.sum() < 0.5 * reference.held.size
  np.testing.assert_allclose(found[0], reference.x @ evaluate, atol=1e-4)
  expected = reference.moved(target, move) @ evaluate
  np.testing.assert_allclose(moved[0], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
  check_loss(found, moved, gradient)


def test_single_precision_is_near_double():
  _, wanted, wanted_gradient = differentiated(solve_trajectory, *problem())
  single = [np.float32(x) for x in problem()]
  with jax.enable_x64(False):
    _, moved, gradient = differentiated(solve_trajectory, *single)
  for found, expected in ((moved[0], wanted[0]), (gradient, wanted_gradient)):
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())


def test_too_few_frames_for_the_coefficients_are_refused():
  with pytest.raises(ValueError, match="4 frames do not tell the 5 coefficients"):
    implicit._basis(4, 2)

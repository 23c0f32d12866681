"""Levenberg-Marquardt with bounds, for whole batches of frames and of trajectories; the trip count is fixed.

Both modes share their shape. An iteration computes the normal equations at the trial, keeps whichever of trial and best has the lower cost,
and makes the next trial from the best; so the equations are traced once. A joint at a bound that the descent would leave is frozen for the
step, and every trial is clipped: no joint is ever outside its limits.

Frames alone have the exact Gauss-Newton matrix of the whole hand. Trajectories have that of each finger (costs.groups): where fingers meet,
in a pinch or in a joint below the palm, it is made larger instead of full (costs.normal_equations), which costs a few more iterations, each
a tenth of the price: the factorisation of the hand's 22 x 22 blocks was two thirds of the time.

Axes: J joints, E entries of the sparse normal matrix, F frames, K spline coefficients; B trajectories, last, so that vector lanes are full;
G groups of up to N joints.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from egoscale_jax.hands import banded, costs, sparse, spline, vectors

_DAMPING = 0.3  # of the matrix' diagonal, at the start: with 1e-3 a trajectory takes three times the iterations
_DAMPING_MIN, _DAMPING_MAX = 1e-6, 1e6
_EASE, _HARDEN = 0.35, 4.0  # after a step that lowered the cost, and after one that did not


def frames(hand, weights, aims, rest_J, start_JxF, iterations):
  """Each frame on its own. -> (joints [J, F], cost [F])."""
  lower, upper = _columns(hand.lower_J, start_JxF), _columns(hand.upper_J, start_JxF)
  pattern = costs.pattern(hand, weights)

  def iterate(_, state):
    trial, best, damping = state
    found = trial, *_normal_equations(hand, weights, pattern, aims, rest_J, trial)
    better = found[1] < best[1]
    damping = jnp.clip(damping * jnp.where(better, _EASE, _HARDEN), _DAMPING_MIN, _DAMPING_MAX)
    best = tuple(jnp.where(_broadcast(better, new), new, old) for new, old in zip(found, best))
    joints, _, gradient, entries = best
    frozen = _frozen(joints, gradient, lower, upper)
    step = _sparse_step(pattern, entries, gradient, frozen, damping)
    return jnp.clip(joints + step, lower, upper), best, damping

  start = jnp.clip(start_JxF, lower, upper)
  like = jnp.zeros_like(start[0])
  nothing = start, like + jnp.inf, jnp.zeros_like(start), jnp.zeros((len(pattern), *like.shape), like.dtype)
  _, (joints, cost, _, _), _ = jax.lax.fori_loop(0, iterations + 1, iterate, (start, nothing, like + _DAMPING / _EASE))
  return joints, cost


def trajectories(hand, weights, aims, rest_J, start_JxFxB, rate_hz, knot, iterations, smooth=1.0):
  """All frames of a trajectory at once, as a spline with a knot every `knot` frames. -> (joints [J, F, B], cost [B]).

  smooth multiplies the weight of the jerk, and need not be known when the program is compiled.
  """
  lower, upper = _columns(hand.lower_J, start_JxFxB), _columns(hand.upper_J, start_JxFxB)
  groups = costs.groups(hand)
  pattern = costs.pattern(hand, weights, groups)
  smoothness = functools.partial(_smoothness, weights, rate_hz=rate_hz, knot=knot, smooth=smooth)

  def iterate(_, state):
    trial, best, damping = state
    cost_FxB, gradient, entries = _normal_equations(hand, weights, pattern, aims, rest_J, spline.evaluate(trial, knot), groups)
    smooth_cost, smooth_gradient, _ = smoothness(trial)
    found = trial, jnp.sum(cost_FxB, axis=0) + smooth_cost, spline.gather(gradient, knot) + smooth_gradient, entries
    better = found[1] < best[1]
    damping = jnp.clip(damping * jnp.where(better, _EASE, _HARDEN), _DAMPING_MIN, _DAMPING_MAX)
    best = tuple(jnp.where(_broadcast(better, new), new, old) for new, old in zip(found, best))
    coefficients, _, gradient, entries = best
    frozen = _frozen(coefficients, gradient, lower, upper)
    lags = _with_diagonal(pattern, spline.gather_pairs(entries, knot), smoothness(coefficients)[2], damping)
    step = _banded_step(groups, pattern, lags, gradient, frozen)
    return jnp.clip(coefficients + step, lower, upper), best, damping

  start = jnp.clip(spline.fit(start_JxFxB, knot), lower, upper)
  like = jnp.zeros(start_JxFxB.shape[1:], start.dtype)
  nothing = start, like[0] + jnp.inf, jnp.zeros_like(start), jnp.zeros((len(pattern), *like.shape), like.dtype)
  trial, (coefficients, cost, _, _), _ = jax.lax.fori_loop(0, iterations, iterate, (start, nothing, like[0] + _DAMPING / _EASE))
  trial_cost = jnp.sum(costs.cost(hand, weights, aims, rest_J, list(spline.evaluate(trial, knot))), axis=0) + smoothness(trial)[0]
  coefficients = jnp.where(_broadcast(trial_cost < cost, trial), trial, coefficients)
  joints = jnp.clip(spline.evaluate(coefficients, knot), lower, upper)  # clipped once more: a sum of weights may round above one
  return joints, jnp.minimum(trial_cost, cost)


def _normal_equations(hand, weights, pattern, aims, rest_J, joints_JxF, groups=None):
  """-> (cost [F], gradient [J, F], entries [E, F])."""

  def stacked(aims, joints_JxF):
    cost, gradient, matrix = costs.normal_equations(hand, weights, aims, rest_J, list(joints_JxF), groups)
    return cost, jnp.stack(gradient), jnp.stack([matrix[e] for e in pattern])

  return vectors.stored(stacked, aims, joints_JxF)


def _smoothness(weights, coefficients_JxKxB, rate_hz, knot, smooth):
  """Costs in time, a frame each: (cost [B], gradient [J, K, B], lags [4, J, K, B] of the matrix, which has no entries between joints)."""
  cost, gradient, lags = 0.0, jnp.zeros_like(coefficients_JxKxB), [jnp.zeros_like(coefficients_JxKxB) for _ in range(4)]
  for order, weight, limit in ((1, weights.velocity, np.inf), (2, weights.acceleration, np.inf), (3, weights.jerk, weights.jerk_soft)):
    if not weight:
      continue
    stencil = np.asarray([[-1, 1], [1, -2, 1], [-1, 3, -3, 1]][order - 1], np.float64) * (rate_hz / knot) ** order
    spans = coefficients_JxKxB.shape[1] - order
    derivative = sum(float(s) * coefficients_JxKxB[:, i : i + spans] for i, s in enumerate(stencil))
    loss, softened = costs.soft(derivative * derivative, limit)
    scale = knot * (weight * (smooth if order == 3 else 1.0)) ** 2
    cost = cost + scale * jnp.sum(loss, axis=(0, 1))
    pull = scale * softened
    for i, s in enumerate(stencil):
      gradient = gradient + spline.placed(float(s) * pull * derivative, i, order)
      for d in range(order + 1 - i):
        lags[d] = lags[d] + spline.placed(float(s * stencil[i + d]) * pull, i, order)
  return cost, gradient, jnp.stack(lags)


def _frozen(joints, gradient, lower, upper):
  return ((joints <= lower) & (gradient > 0)) | ((joints >= upper) & (gradient < 0))


def _sparse_step(pattern, entries_ExF, gradient_JxF, frozen_JxF, damping_F):
  """A frozen joint's row and column become those of the identity, so the others solve their own smaller system."""
  free = 1.0 - frozen_JxF.astype(gradient_JxF.dtype)
  matrix = {}
  for (i, j), entry in zip(pattern, entries_ExF):
    matrix[i, j] = entry * free[i] * (1.0 + damping_F) + (1.0 - free[i]) if i == j else entry * (free[i] * free[j])
  return jnp.stack(sparse.solve(matrix, list(-gradient_JxF * free)))


def _with_diagonal(pattern, lags_4xExKxB, smooth_4xJxKxB, damping_B):
  """Adds to the joints' own entries what smoothness asks, which has no others, and the damping.

  The damping is a part of the data's diagonal, not of the sum: what bridges a gap bends little and would hardly move.
  """
  own = np.asarray([e for e, (i, j) in enumerate(pattern) if i == j])  # sorted: of joint 0, 1, ...
  return lags_4xExKxB.at[:, own].add(smooth_4xJxKxB).at[0, own].add(damping_B[None, None] * lags_4xExKxB[0, own])


def _layout(groups, pattern, joints):
  """-> which joint stands where [N, G], and which entry [N, N, G]; where a group is smaller than N, one past the last of each."""
  index_NxG = np.full((max(map(len, groups)), len(groups)), joints)
  entry_NxNxG = np.full((len(index_NxG), *index_NxG.shape), len(pattern))
  for g, group in enumerate(groups):
    index_NxG[: len(group), g] = group
    for e, (i, j) in enumerate(pattern):
      if i in group and j in group:
        a, b = group.index(i), group.index(j)
        entry_NxNxG[a, b, g] = entry_NxNxG[b, a, g] = e
  return index_NxG, entry_NxNxG


def _banded_step(groups, pattern, lags_4xExKxB, gradient_JxKxB, frozen_JxKxB):
  """The step of all coefficients, each group a system of its own; what is frozen, or fills a group up, is a row of the identity."""
  joints, K, B = gradient_JxKxB.shape
  index_NxG, entry_NxNxG = _layout(groups, pattern, joints)
  lanes = len(groups) * B
  free_KxJxB = jnp.pad(1.0 - frozen_JxKxB.astype(gradient_JxKxB.dtype), ((0, 1), (0, 0), (0, 0))).swapaxes(0, 1)
  later = jnp.pad(free_KxJxB, ((0, 3), (0, 0), (0, 0)))
  free_Kx4xJxB = jnp.stack([later[d : d + K] for d in range(4)], axis=1)
  lags_Kx4xExB = jnp.pad(jnp.moveaxis(lags_4xExKxB, 2, 0), ((0, 0), (0, 0), (0, 1), (0, 0)))
  eye = np.eye(len(index_NxG), dtype=gradient_JxKxB.dtype)[:, :, None, None]

  def blocks_of(column):
    lags_4xExB, free_4xJxB = column
    blocks_4xNxNxGxB, free_4xNxGxB = lags_4xExB[:, entry_NxNxG], free_4xJxB[:, index_NxG]
    blocks_4xNxNxGxB = blocks_4xNxNxGxB * free_4xNxGxB[:, :, None] * free_4xNxGxB[:1, None]
    blocks_4xNxNxGxB = blocks_4xNxNxGxB.at[0].add(eye * (1.0 - free_4xNxGxB[0, None]))
    return blocks_4xNxNxGxB.reshape(4, *eye.shape[:2], lanes)

  right_KxJxB = jnp.pad(-gradient_JxKxB, ((0, 1), (0, 0), (0, 0))).swapaxes(0, 1) * free_KxJxB
  step_KxNxL = banded.solve(blocks_of, (lags_Kx4xExB, free_Kx4xJxB), right_KxJxB[:, index_NxG].reshape(K, -1, lanes))
  step_KxNxGxB = step_KxNxL.reshape(K, *index_NxG.shape, B)
  place = {j: (a, g) for g, group in enumerate(groups) for a, j in enumerate(group)}
  return jnp.stack([step_KxNxGxB[:, place[j][0], place[j][1]] for j in range(joints)])


def _columns(bound_J, like):
  return jnp.asarray(bound_J, like.dtype).reshape(-1, *(1,) * (like.ndim - 1))


def _broadcast(better_F, like):
  """[F] -> with axes of 1 before it, to select among joints [J, F], entries [E, F] or costs [F]."""
  return better_F.reshape((1,) * (like.ndim - better_F.ndim) + better_F.shape)

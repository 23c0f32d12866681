"""Levenberg-Marquardt with bounds, for whole batches of frames and of trajectories; the trip count is fixed.

Both modes share their shape. An iteration computes the normal equations at the trial, keeps whichever of trial and best has the lower cost,
and makes the next trial from the best; so the equations are traced once. A joint at a bound that the descent would leave is frozen for the
step, and every trial is clipped: no joint is ever outside its limits.

Axes: J joints, E entries of the sparse normal matrix, F frames, K spline coefficients; B trajectories.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from egoscale_jax.hands import banded, costs, sparse, spline, vectors

_DAMPING = 1e-3  # of the matrix' diagonal, at the start
_DAMPING_MIN, _DAMPING_MAX = 1e-6, 1e6
_EASE, _HARDEN = 0.2, 5.0  # after a step that lowered the cost, and after one that did not


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


def trajectories(hand, weights, aims, rest_J, start_JxBxF, rate_hz, knot, iterations, smooth=1.0):
  """All frames of a trajectory at once, as a spline with a knot every `knot` frames. -> (joints [J, B, F], cost [B]).

  smooth multiplies the weight of the jerk, and need not be known when the program is compiled.
  """
  lower, upper = _columns(hand.lower_J, start_JxBxF), _columns(hand.upper_J, start_JxBxF)
  pattern = costs.pattern(hand, weights)
  banded_step = jax.vmap(functools.partial(_banded_step, pattern), in_axes=(2, 2, 1, 1, 0), out_axes=1)

  def iterate(_, state):
    trial, best, damping = state
    data_cost, data_gradient, entries = _normal_equations(hand, weights, pattern, aims, rest_J, spline.evaluate(trial, knot))
    smooth_cost, _, _ = _smoothness(weights, trial, rate_hz, knot, smooth)
    found = trial, jnp.sum(data_cost, axis=-1) + smooth_cost, spline.gather(data_gradient, knot), entries
    better = found[1] < best[1]
    damping = jnp.clip(damping * jnp.where(better, _EASE, _HARDEN), _DAMPING_MIN, _DAMPING_MAX)
    best = tuple(jnp.where(better if new.ndim == 1 else better[None, :, None], new, old) for new, old in zip(found, best))
    coefficients, _, gradient, entries = best
    _, smooth_gradient, smooth_lags = _smoothness(weights, coefficients, rate_hz, knot, smooth)
    gradient = gradient + smooth_gradient
    frozen = _frozen(coefficients, gradient, lower, upper)
    step = banded_step(spline.gather_pairs(entries, knot), smooth_lags, gradient, frozen, damping)
    return jnp.clip(coefficients + step, lower, upper), best, damping

  start = jnp.clip(spline.fit(start_JxBxF, knot), lower, upper)
  like = jnp.zeros(start_JxBxF.shape[1:], start.dtype)
  nothing = start, like[:, 0] + jnp.inf, jnp.zeros_like(start), jnp.zeros((len(pattern), *like.shape), like.dtype)
  trial, (coefficients, cost, _, _), _ = jax.lax.fori_loop(0, iterations, iterate, (start, nothing, like[:, 0] + _DAMPING / _EASE))
  trial_cost = jnp.sum(costs.cost(hand, weights, aims, rest_J, list(spline.evaluate(trial, knot))), axis=-1)
  trial_cost = trial_cost + _smoothness(weights, trial, rate_hz, knot, smooth)[0]
  coefficients = jnp.where((trial_cost < cost)[None, :, None], trial, coefficients)
  joints = jnp.clip(spline.evaluate(coefficients, knot), lower, upper)  # clipped once more: a sum of weights may round above one
  return joints, jnp.minimum(trial_cost, cost)


def _normal_equations(hand, weights, pattern, aims, rest_J, joints_JxF):
  """-> (cost [F], gradient [J, F], entries [E, F])."""

  def stacked(aims, joints_JxF):
    cost, gradient, matrix = costs.normal_equations(hand, weights, aims, rest_J, list(joints_JxF))
    return cost, jnp.stack(gradient), jnp.stack([matrix[e] for e in pattern])

  return vectors.stored(stacked, aims, joints_JxF)


def _smoothness(weights, coefficients_JxBxK, rate_hz, knot, smooth):
  """Costs in time, a frame each: (cost [B], gradient [J, B, K], lags [4, J, B, K] of the matrix, which has no entries between joints)."""
  cost, gradient, lags = 0.0, jnp.zeros_like(coefficients_JxBxK), [jnp.zeros_like(coefficients_JxBxK) for _ in range(4)]
  for order, weight, limit in ((1, weights.velocity, np.inf), (2, weights.acceleration, np.inf), (3, weights.jerk, weights.jerk_soft)):
    if not weight:
      continue
    stencil = np.asarray([[-1, 1], [1, -2, 1], [-1, 3, -3, 1]][order - 1], np.float64) * (rate_hz / knot) ** order
    spans = coefficients_JxBxK.shape[-1] - order
    derivative = sum(s * coefficients_JxBxK[..., i : i + spans] for i, s in enumerate(stencil))
    loss, softened = costs.soft(derivative * derivative, limit)
    scale = knot * (weight * (smooth if order == 3 else 1.0)) ** 2
    cost = cost + scale * jnp.sum(loss, axis=(0, 2))
    pull = scale * softened
    for i, s in enumerate(stencil):
      gradient = gradient + spline.placed(s * pull * derivative, i, order)
      for d in range(order + 1 - i):
        lags[d] = lags[d] + spline.placed(s * stencil[i + d] * pull, i, order)
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


def _banded_step(pattern, entries_4xExK, smooth_4xJxK, gradient_JxK, frozen_JxK, damping):
  """Likewise for the coefficients of one trajectory."""
  joints = len(gradient_JxK)
  index_JxJ = np.full((joints, joints), len(pattern))
  for e, (i, j) in enumerate(pattern):
    index_JxJ[i, j] = index_JxJ[j, i] = e
  blocks = jnp.moveaxis(jnp.pad(entries_4xExK, ((0, 0), (0, 1), (0, 0)))[:, index_JxJ], 3, 1)  # [4, K, J, J]
  free_KxJ = 1.0 - frozen_JxK.T.astype(gradient_JxK.dtype)
  free_4xKxJ = jnp.stack([jnp.pad(free_KxJ[d:], ((0, d), (0, 0))) for d in range(4)])
  smooth_4xKxJ = smooth_4xJxK.swapaxes(1, 2)
  diagonal_KxJ = damping * (jnp.einsum("kjj->kj", blocks[0]) + smooth_4xKxJ[0]) * free_KxJ + (1.0 - free_KxJ)
  own_4xKxJ = (smooth_4xKxJ * free_4xKxJ * free_KxJ[None]).at[0].add(diagonal_KxJ)
  eye = jnp.eye(joints, dtype=blocks.dtype)[None, None]
  blocks = blocks * free_4xKxJ[..., :, None] * free_KxJ[None, :, None, :] + own_4xKxJ[..., None] * eye
  return banded.solve(blocks, -gradient_JxK.T * free_KxJ).T


def _columns(bound_J, like):
  return jnp.asarray(bound_J, like.dtype).reshape(-1, *(1,) * (like.ndim - 1))


def _broadcast(better_F, like):
  """[F] -> with axes of 1 before it, to select among joints [J, F], entries [E, F] or costs [F]."""
  return better_F.reshape((1,) * (like.ndim - better_F.ndim) + better_F.shape)

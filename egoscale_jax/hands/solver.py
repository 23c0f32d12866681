"""Damped Gauss-Newton (Levenberg-Marquardt) with bounds: a pure function of one problem, to be vmapped over many.

The trip count is fixed: every problem of a batch does the same work, and a frame's result does not depend on its neighbours.
"""

import jax
import jax.numpy as jnp

_DAMPING = 1e-2  # of the diagonal of the normal matrix, at the start
_DAMPING_MIN, _DAMPING_MAX = 1e-6, 1e6
_EASE, _HARDEN = 0.2, 5.0  # after a step that lowered the cost, and after one that did not


def solve(linearize, start_J, lower_J, upper_J, iterations):
  """Minimise the sum of squared residuals within [lower, upper].

  linearize: joints [J] -> (residual [R], jacobian [R, J]). Returns (joints [J] within the bounds, cost []).
  """

  def normal(joints_J):
    residual_R, jacobian_RxJ = linearize(joints_J)
    return jnp.sum(residual_R * residual_R), jacobian_RxJ.T @ residual_R, jacobian_RxJ.T @ jacobian_RxJ

  def step(_, state):
    joints_J, damping, cost, gradient_J, matrix_JxJ = state
    trial_J = jnp.clip(joints_J + _bounded_step(joints_J, lower_J, upper_J, gradient_J, matrix_JxJ, damping), lower_J, upper_J)
    trial_cost, trial_gradient_J, trial_matrix_JxJ = normal(trial_J)
    better = trial_cost < cost
    damping = jnp.clip(damping * jnp.where(better, _EASE, _HARDEN), _DAMPING_MIN, _DAMPING_MAX)
    return (
      jnp.where(better, trial_J, joints_J),
      damping,
      jnp.where(better, trial_cost, cost),
      jnp.where(better, trial_gradient_J, gradient_J),
      jnp.where(better, trial_matrix_JxJ, matrix_JxJ),
    )

  start_J = jnp.clip(start_J, lower_J, upper_J)
  state = (start_J, jnp.asarray(_DAMPING, start_J.dtype), *normal(start_J))
  joints_J, _, cost, _, _ = jax.lax.fori_loop(0, iterations, step, state)
  return joints_J, cost


def _bounded_step(joints_J, lower_J, upper_J, gradient_J, matrix_JxJ, damping):
  """The damped step of the joints that are free: one at a bound whose descent points outward stays there for this step."""
  frozen_J = ((joints_J <= lower_J) & (gradient_J > 0)) | ((joints_J >= upper_J) & (gradient_J < 0))
  free_J = 1.0 - frozen_J.astype(joints_J.dtype)
  diagonal_J = jnp.diagonal(matrix_JxJ)
  # A frozen joint's row and column become those of the identity, so the others solve their own smaller system.
  matrix = matrix_JxJ * free_J[:, None] * free_J[None, :] + jnp.diag(damping * diagonal_J * free_J + (1.0 - free_J))
  factor = jax.scipy.linalg.cho_factor(matrix, lower=True)
  return -jax.scipy.linalg.cho_solve(factor, gradient_J * free_J)

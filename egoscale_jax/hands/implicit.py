"""The solver with derivatives: retargeting inside a loss, by the implicit function theorem.

At a solution the gradient g of the cost by what is free is zero, and stays zero as the aims move: dq = -H^-1 dg, with H the exact Hessian
(Gauss-Newton's leaves out the curvature of the fingers times what is left of the error, which is large wherever a target is out of reach).
What a bound holds moves with the bound alone. The solver's iterations are not differentiated: memory does not grow with them, and the
derivative is as good as the solution has converged (docs/retargeting.md).

`custom_jvp` and not `custom_vjp`: the rule is linear in the tangents, so JAX transposes it, and one rule serves jax.jvp, jax.grad, jax.jacfwd
and jax.jacrev; each rule calls the function that it belongs to, so it can be differentiated again.

Axes as in solver.py; N unknowns of a system, which is a frame's J or a trajectory's J * K.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from egoscale_jax.hands import costs, solver, spline

_SLACK = 1e3  # times the precision: how near to a bound a coefficient was at it, after the way through the frames and back


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def frames(hand, weights, aims, rest_J, start_JxF, iterations):
  """solver.frames -> (joints [J, F], cost [F]), with derivatives by aims, rest pose and the hand's figures; none by the start."""
  return solver.frames(hand, weights, aims, rest_J, start_JxF, iterations)


@frames.defjvp
def _frames_jvp(weights, primals, tangents):
  hand, aims, rest_J, *_ = primals
  moves = tangents[:3]
  joints, _ = frames(hand, weights, *primals[1:])

  def cost(joints, hand, aims, rest_J):
    return costs.cost(hand, weights, aims, rest_J, list(joints))

  hessian_JxJxF = _hessian(jax.grad(lambda q: jnp.sum(cost(q, hand, aims, rest_J))), joints)
  step = _step(cost, joints, (hand, aims, rest_J), moves, jnp.moveaxis(hessian_JxJxF, -1, 0), slack=0.0)
  found, moved = jax.jvp(cost, (joints, hand, aims, rest_J), (step, *moves))
  return (joints, found), (step, moved)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 5, 6))
def trajectories(hand, weights, aims, rest_J, start_JxFxB, rate_hz, knot, iterations, smooth=1.0):
  """solver.trajectories -> (joints [J, F, B], cost [B]), with derivatives by aims, rest pose, `smooth` and the hand's figures.

  The matrix is dense, (J K)^2 numbers a trajectory: for a window, not for a recording. The coefficients are read off the frames, so there
  must be as many of these: knot 2 and 6 frames, at least.
  """
  return solver.trajectories(hand, weights, aims, rest_J, start_JxFxB, rate_hz, knot, iterations, smooth)


@trajectories.defjvp
def _trajectories_jvp(weights, rate_hz, knot, primals, tangents):
  hand, aims, rest_J, start, iterations, smooth = primals
  moves = (*tangents[:3], tangents[5])
  joints, _ = trajectories(hand, weights, aims, rest_J, start, rate_hz, knot, iterations, smooth)
  basis_KxF = _basis(joints.shape[1], knot)
  coefficients = jnp.einsum("jfb,fk->jkb", joints, jnp.asarray(np.linalg.pinv(basis_KxF), joints.dtype))

  def cost(coefficients, hand, aims, rest_J, smooth):
    data_FxB = costs.cost(hand, weights, aims, rest_J, list(spline.evaluate(coefficients, knot)))
    return jnp.sum(data_FxB, axis=0) + solver._smoothness(weights, coefficients, rate_hz, knot, smooth)[0]

  def bend(coefficients_K):
    return jnp.sum(solver._smoothness(weights, coefficients_K[None, :, None], rate_hz, knot, smooth)[0])

  J, K, B = coefficients.shape
  data_JxJxFxB = _hessian(jax.grad(lambda q: jnp.sum(costs.cost(hand, weights, aims, rest_J, list(q)))), joints)
  basis = jnp.asarray(basis_KxF, joints.dtype)
  hessian = jnp.einsum("kf,ijfb,lf->bikjl", basis, data_JxJxFxB, basis)
  bend_JxBxKxK = jax.vmap(jax.vmap(jax.hessian(bend), in_axes=1))(coefficients)
  hessian = hessian.at[:, np.arange(J), :, np.arange(J)].add(bend_JxBxKxK)
  slack = _SLACK * float(jnp.finfo(joints.dtype).eps)
  step = _step(cost, coefficients, (hand, aims, rest_J, smooth), moves, hessian.reshape(B, J * K, J * K), slack)
  found, moved = jax.jvp(cost, (coefficients, hand, aims, rest_J, smooth), (step, *moves))
  return (joints, found), (spline.evaluate(step, knot), moved)


def _step(cost, x, given, moves, hessian_BxNxN, slack):
  """How the solution x [..., B] of least cost(x, *given) [B] moves as `given`, the hand first, moves."""
  hand, hand_moves = given[0], moves[0]
  lower, upper = (solver._columns(bound, x) for bound in (hand.lower_J, hand.upper_J))
  lower_moves, upper_moves = (solver._columns(bound, x) for bound in (hand_moves.lower_J, hand_moves.upper_J))
  gradient = jax.grad(lambda x, *given: jnp.sum(cost(x, *given)))
  pull = gradient(x, *given)
  at_lower, at_upper = (x <= lower + slack) & (pull > 0), (x >= upper - slack) & (pull < 0)
  held = at_lower * lower_moves + at_upper * upper_moves
  _, change = jax.jvp(gradient, (x, *given), (held, *moves))
  free = 1.0 - (at_lower | at_upper).astype(x.dtype)
  free_BxN = jnp.moveaxis(free, -1, 0).reshape(x.shape[-1], -1)
  right_BxN = -jnp.moveaxis(change, -1, 0).reshape(free_BxN.shape) * free_BxN
  eye = jnp.eye(free_BxN.shape[1], dtype=x.dtype)[None]
  matrix = hessian_BxNxN * free_BxN[:, :, None] * free_BxN[:, None] + eye * (1.0 - free_BxN[:, None])
  step_BxN = jnp.linalg.solve(matrix, right_BxN[..., None])[..., 0]
  return held + jnp.moveaxis(step_BxN.reshape(-1, *x.shape[:-1]), 0, -1)


def _hessian(gradient, joints_JxF):
  """[J, J, ...] of each frame: a Hessian-vector product a joint, all frames at once."""
  joints = len(joints_JxF)
  seeds = jnp.eye(joints, dtype=joints_JxF.dtype).reshape(joints, joints, *(1,) * (joints_JxF.ndim - 1))
  seeds = jnp.broadcast_to(seeds, (joints, *joints_JxF.shape))
  return jax.vmap(lambda seed: jax.jvp(gradient, (joints_JxF,), (seed,))[1])(seeds)


@functools.cache
def _basis(frames, knot):
  """[K, F] float64: what each coefficient weighs at each frame."""
  coefficients = frames // knot + 3
  if coefficients > frames:
    raise ValueError(f"{frames} frames do not tell the {coefficients} coefficients of a spline with a knot every {knot} frames")
  found = np.zeros((coefficients, frames))
  for f in range(frames):
    found[f // knot : f // knot + spline.ORDER, f] = spline.basis(knot)[f % knot]
  return found

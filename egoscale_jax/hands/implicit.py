"""The solver with derivatives: retargeting inside a loss, by the implicit function theorem.

At a solution the gradient g of the cost by what is free is zero, and stays zero as the aims move: dq = -H^-1 dg, with H the exact Hessian
(Gauss-Newton's leaves out the curvature of the fingers times what is left of the error, which is large wherever a target is out of reach).
What a bound holds moves with the bound alone. The solver's iterations are not differentiated: memory does not grow with them, and the
derivative is as good as the solution has converged (docs/retargeting.md).

`custom_jvp` and not `custom_vjp`: the rule is linear in the tangents, so JAX transposes it, and one rule serves jax.jvp, jax.grad,
jax.jacfwd and jax.jacrev.

Axes as in solver.py; N unknowns of a system, which is a frame's J or a trajectory's J * K.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from egoscale_jax.hands import costs, solver, spline

_SLACK = 1e3  # times the precision: how near to a bound a coefficient was at it, after the way through the frames and back


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def frames(hand, weights, aims, rest_J, start_JxF, iterations):
  """solver.frames -> (joints [J, F], cost [F]), with derivatives by aims, rest pose and the hand's figures; none by the start."""
  return solver.frames(hand, weights, aims, rest_J, start_JxF, iterations)


@functools.partial(frames.defjvp, symbolic_zeros=True)
def _frames_jvp(weights, primals, tangents):
  hand, aims, rest_J, *_ = primals
  joints, _ = frames(hand, weights, *primals[1:])

  def cost(joints, hand, aims, rest_J):
    return costs.cost(hand, weights, aims, rest_J, list(joints))

  hessian_JxJxF = _hessian(lambda q: cost(q, hand, aims, rest_J), joints)
  found, step, moved = _move(cost, joints, primals[:3], tangents[:3], jnp.moveaxis(hessian_JxJxF, (0, 1), (-2, -1)), slack=0.0)
  return (joints, found), (step, moved)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 5, 6))
def trajectories(hand, weights, aims, rest_J, start_JxFxB, rate_hz, knot, iterations, smooth=1.0):
  """solver.trajectories -> (joints [J, F, B], cost [B]), with derivatives by aims, rest pose, `smooth` and the hand's figures.

  The matrix is dense, (J K)^2 numbers a trajectory: for a window, not for a recording. The coefficients are read off the frames, so there
  must be as many of these: knot 2 and 6 frames, at least.
  """
  return solver.trajectories(hand, weights, aims, rest_J, start_JxFxB, rate_hz, knot, iterations, smooth)


@functools.partial(trajectories.defjvp, symbolic_zeros=True)
def _trajectories_jvp(weights, rate_hz, knot, primals, tangents):
  hand, aims, rest_J, start, iterations, smooth = primals
  given, moves = (*primals[:3], smooth), (*tangents[:3], tangents[5])
  joints, _ = trajectories(hand, weights, aims, rest_J, start, rate_hz, knot, iterations, smooth)
  basis_KxF = _basis(joints.shape[1], knot)
  coefficients = jnp.einsum("jfb,fk->jkb", joints, jnp.asarray(np.linalg.pinv(basis_KxF), joints.dtype))

  def data(joints, hand, aims, rest_J):
    return costs.cost(hand, weights, aims, rest_J, list(joints))

  def bend(coefficients, smooth):
    return solver._smoothness(weights, coefficients, rate_hz, knot, smooth)[0]

  def cost(coefficients, hand, aims, rest_J, smooth):
    return jnp.sum(data(spline.evaluate(coefficients, knot), hand, aims, rest_J), axis=0) + bend(coefficients, smooth)

  J, K, B = coefficients.shape
  basis = jnp.asarray(basis_KxF, joints.dtype)
  hessian = jnp.einsum("kf,ijfb,lf->bikjl", basis, _hessian(lambda q: data(q, hand, aims, rest_J), joints), basis)
  of_joint = jax.hessian(lambda coefficients_K: jnp.sum(bend(coefficients_K[None, :, None], smooth)))
  hessian = hessian.at[:, np.arange(J), :, np.arange(J)].add(jax.vmap(jax.vmap(of_joint, in_axes=1))(coefficients))
  slack = _SLACK * float(jnp.finfo(joints.dtype).eps)
  found, step, moved = _move(cost, coefficients, given, moves, hessian.reshape(B, J * K, J * K), slack)
  return (joints, found), (spline.evaluate(step, knot), moved)


def _move(cost, x, given, moves, hessian_FxNxN, slack):
  """The least cost(x, *given) [F] at x [..., F], how x moves as `given` moves, the hand first in it, and how the cost does."""

  def cost_and_pull(*given):
    found, back = jax.vjp(lambda x: cost(x, *given), x)
    return found, back(jnp.ones_like(found))[0]

  (found, pull), (moved, change) = _jvp(cost_and_pull, given, moves)
  batch = found.shape
  lower, upper = given[0].lower_J, given[0].upper_J
  at_lower = (x <= solver._columns(lower, x) + slack) & (pull > 0)
  at_upper = (x >= solver._columns(upper, x) - slack) & (pull < 0)
  lower_moves, upper_moves = (solver._columns(_array(move), x) for move in (moves[0].lower_J, moves[0].upper_J))
  held, free = at_lower * lower_moves + at_upper * upper_moves, 1.0 - (at_lower | at_upper).astype(x.dtype)
  held_FxN, free_FxN, change_FxN = (jnp.moveaxis(y.reshape(-1, *batch), 0, -1) for y in (held, free, change))
  right_FxN = -(change_FxN + jnp.einsum("...ij,...j->...i", hessian_FxNxN, held_FxN)) * free_FxN
  eye = jax.lax.expand_dims(jnp.eye(free_FxN.shape[-1], dtype=x.dtype), range(len(batch)))
  matrix = hessian_FxNxN * free_FxN[..., None] * free_FxN[..., None, :] + eye * (1.0 - free_FxN[..., None])
  step_FxN = held_FxN + jnp.linalg.solve(matrix, right_FxN[..., None])[..., 0]
  step = jnp.moveaxis(step_FxN, -1, 0).reshape(x.shape)
  return found, step, moved + jnp.sum(pull * step, axis=tuple(range(x.ndim - len(batch))))


def _hessian(cost, joints_JxF):
  """[J, J, F] of cost(joints) [F]: a Hessian-vector product a joint, all frames at once."""
  gradient = jax.grad(lambda joints_JxF: jnp.sum(cost(joints_JxF)))
  joints = len(joints_JxF)
  seeds = jnp.eye(joints, dtype=joints_JxF.dtype).reshape(joints, joints, *(1,) * (joints_JxF.ndim - 1))
  seeds = jnp.broadcast_to(seeds, (joints, *joints_JxF.shape))
  return jax.vmap(lambda seed: jax.jvp(gradient, (joints_JxF,), (seed,))[1])(seeds)


def _jvp(function, given, moves):
  """jax.jvp by what moves alone: a tangent of zeros for the hand would cost its kinematics' derivative, which XLA does not drop."""
  leaves, tree = jax.tree.flatten(given)
  moves = jax.tree.leaves(moves)
  at = [i for i, move in enumerate(moves) if not isinstance(move, SymbolicZero)]

  def of(moving):
    return function(*tree.unflatten([moving.get(i, leaf) for i, leaf in enumerate(leaves)]))

  return jax.jvp(of, ({i: leaves[i] for i in at},), ({i: moves[i] for i in at},))


def _array(move):
  return jnp.zeros(move.shape) if isinstance(move, SymbolicZero) else move


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

"""Symmetric positive systems with blocks beside the diagonal, solved in time proportional to their length.

Three blocks to each side: what a cubic spline's coefficients need. (Taken three by three they are a block-tridiagonal system; eliminating
one block at a time does a third of the work.)
"""

import jax
import jax.numpy as jnp


def solve(blocks_4xKxJxJ, right_KxJ):
  """Block Cholesky. blocks[d, k]: rows of block k + d, columns of block k (d = 0 the diagonal); right [K, J] -> x [K, J]."""
  J = right_KxJ.shape[-1]
  eye = jnp.eye(J, dtype=right_KxJ.dtype)
  carried = jnp.zeros((3 * J, 3 * J), right_KxJ.dtype), jnp.zeros(3 * J, right_KxJ.dtype)

  def eliminate(carry, column):
    update, right_update = carry  # of the blocks k, k + 1, k + 2, from those before k
    blocks_4xJxJ, right_J = column
    factor = jnp.linalg.cholesky(blocks_4xJxJ[0] + update[:J, :J], symmetrize_input=False)
    inverse = jax.lax.linalg.triangular_solve(factor, eye, left_side=True, lower=True)
    # Times the inverse, not a triangular solve of all rows below: two thirds of the time on a CPU, and small blocks are well conditioned.
    below = blocks_4xJxJ[1:].reshape(3 * J, J).at[: 2 * J].add(update[J:, :J]) @ inverse.T
    y_J = inverse @ (right_J + right_update[:J])
    shifted = jnp.pad(update[J:, J:], ((0, J), (0, J))) - below @ below.T
    right_shifted = jnp.pad(right_update[J:], (0, J)) - below @ y_J
    return (shifted, right_shifted), (inverse, below, y_J)

  def substitute(after_3J, column):
    inverse, below, y_J = column
    x_J = (y_J - below.T @ after_3J) @ inverse
    return jnp.concatenate([x_J, after_3J[: 2 * J]]), x_J

  _, factored = jax.lax.scan(eliminate, carried, (blocks_4xKxJxJ.swapaxes(0, 1), right_KxJ))
  _, x_KxJ = jax.lax.scan(substitute, jnp.zeros(3 * J, right_KxJ.dtype), factored, reverse=True)
  return x_KxJ

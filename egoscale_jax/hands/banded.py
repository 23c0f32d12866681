"""Symmetric positive systems with blocks beside the diagonal, many at a time, solved in time proportional to their length.

Three blocks to each side: what a cubic spline's coefficients need. (Taken three by three they are a block-tridiagonal system; eliminating
one block at a time does a third of the work.) The blocks are small, a finger's joints, so every number is an array over the systems, which
are the last axis, and a step eliminates one block of all of them: 1 microsecond for the five fingers at one coefficient, where a Cholesky
factorisation of the whole hand's 22 x 22 blocks by LAPACK took 14.
"""

import jax
import jax.numpy as jnp


def solve(blocks_of, columns, right_KxNxL):
  """Block Cholesky of L systems. -> x [K, N, L].

  columns: a pytree of arrays [K, ...]; blocks_of(its k-th part) -> blocks [4, N, N, L]: at d the rows of block k + d, the columns of k
  (d = 0: the diagonal). A function, because the blocks of all k together take long to write and to read. right [K, N, L].
  """
  N, L = right_KxNxL.shape[1:]
  zero = jnp.zeros((3 * N, 3 * N, L), right_KxNxL.dtype)

  def eliminate(carry, column):
    update, right_update = carry  # of the blocks k, k + 1, k + 2, from those before k
    panel = blocks_of(column[0]).reshape(4 * N, N, L)
    panel = jnp.concatenate([panel[: 3 * N] + update[:, :N], panel[3 * N :]])
    right = column[1] + right_update[:N]
    factor, y = [], []
    for c in range(N):
      entries, value = panel[c:, c], right[c]
      for p, before in enumerate(factor):
        entries = entries - before[c - p :] * before[c - p][None]
        value = value - before[c - p] * y[p]
      root = jnp.sqrt(entries[0])
      factor.append(entries / root[None])  # a division: XLA computes a product again in every loop that reads it
      y.append(value / root)
    below = [entries[N - c :] for c, entries in enumerate(factor)]
    shifted = jnp.pad(update[N:, N:], ((0, N), (0, N), (0, 0))) - sum(b[:, None] * b[None] for b in below)
    right_shifted = jnp.pad(right_update[N:], ((0, N), (0, 0))) - sum(b * value[None] for b, value in zip(below, y))
    return (shifted, right_shifted), (factor, y)

  def substitute(after_3NxL, column):
    factor, y = column
    x = [None] * N
    for c in reversed(range(N)):
      value = y[c] - jnp.sum(factor[c][N - c :] * after_3NxL, axis=0)
      for q in range(c + 1, N):
        value = value - factor[c][q - c] * x[q]
      x[c] = value / factor[c][0]
    x_NxL = jnp.stack(x)
    return jnp.concatenate([x_NxL, after_3NxL[: 2 * N]]), x_NxL

  _, factored = jax.lax.scan(eliminate, (zero, zero[:, 0]), (columns, right_KxNxL))
  _, x_KxNxL = jax.lax.scan(substitute, zero[:, 0], factored, reverse=True)
  return x_KxNxL

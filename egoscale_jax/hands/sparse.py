"""Symmetric positive systems whose pattern is known when the program is traced: the entries are arrays, the batch is in their shape.

A hand's normal matrix is an arrow: fingers meet in the thumb (pinches) and in joints below the palm only. Eliminated in the right order it
fills in little, and only entries that exist are computed, in code without loops.
"""

import jax.numpy as jnp

from egoscale_jax.hands import vectors

_STORE = 6  # pivots: more are recomputed too often, fewer are written too often


def solve(matrix, right):
  """Solve matrix x = right by LDL'. matrix: {(i, j): array}, i >= j, with every diagonal entry; right: n arrays -> n arrays."""
  order = elimination_order(matrix, len(right))
  entry = {}
  for (i, j), value in matrix.items():
    entry[tuple(sorted((i, j), key=order.index, reverse=True))] = value  # first index: eliminated later
  below, inverse = {}, {}
  right = dict(enumerate(right))
  depth = dict.fromkeys(order, 0)  # pivots that an entry's row has gone through since they were stored
  for n, k in enumerate(order):
    below[k] = [i for i in order[n + 1 :] if (i, k) in entry]
    if depth[k] >= _STORE:
      entry, right, inverse = vectors.stored(lambda *a: a, entry, right, inverse)
      depth = dict.fromkeys(depth, 0)
    inverse[k] = 1.0 / entry[k, k]
    for i in below[k]:
      factor = entry[i, k] * inverse[k]
      right[i] = right[i] - factor * right[k]
      depth[i] = max(depth[i], depth[k] + 1)
      for j in below[k]:
        if order.index(j) <= order.index(i):
          update = factor * entry[j, k]
          entry[i, j] = entry[i, j] - update if (i, j) in entry else -update
  for k in reversed(order):
    right[k] = inverse[k] * (right[k] - sum((entry[i, k] * right[i] for i in below[k]), start=jnp.zeros_like(right[k])))
  return [right[k] for k in range(len(order))]


def elimination_order(matrix, n):
  """Least degree first (ties by index): the usual greedy rule, at trace time."""
  neighbours = {k: {i + j - k for i, j in matrix if k in (i, j) and i != j} for k in range(n)}
  order = []
  while neighbours:
    k = min(neighbours, key=lambda k: (len(neighbours[k]), k))
    order.append(k)
    meet = neighbours.pop(k)
    for i in meet:
      neighbours[i] = (neighbours[i] | meet) - {i, k}
  return order

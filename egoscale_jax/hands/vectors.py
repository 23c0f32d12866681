"""Vectors and rotations as tuples of arrays: one array a component, all of one shape, the batch in that shape.

Small matrices in the last axes leave a CPU's vector lanes and a GPU's threads idle. Here every operation runs over the whole batch, and XLA
fuses the chain of them into a few loops.
"""

import jax
import jax.numpy as jnp


def add(a, b):
  return tuple(x + y for x, y in zip(a, b))


def sub(a, b):
  return tuple(x - y for x, y in zip(a, b))


def scale(s, a):
  return tuple(s * x for x in a)


def dot(a, b):
  return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def length(a):
  return jnp.sqrt(dot(a, a))


def cross(a, b):
  return (a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0])


def rotate(rows, a):
  """Rotation as its three rows, times a vector."""
  return tuple(dot(row, a) for row in rows)


def compose(a, b):
  """Product of two rotations, each as its three rows."""
  columns = tuple(zip(*b))
  return tuple(tuple(dot(row, column) for column in columns) for row in a)


def plain(function, *arguments):
  """What `stored` stands in for: just the call."""
  return function(*arguments)


def stored(function, *arguments):
  """function(*arguments), computed once and kept in memory, though several later expressions read it.

  XLA's CPU compiler recomputes whatever is cheap inside every loop that reads it, and optimization_barrier does not stop it: unrolled
  normal equations took 20 times their arithmetic and 30 s to compile. The branches of a conditional are never merged with what follows
  them, so this is a conditional that always takes one branch, which the compiler cannot know. Not for vmap, which makes it a select.
  """
  x = jax.tree.leaves(arguments)[0].ravel()[0]
  always = (x < 1) | (x > 0) | (x != x)
  shapes = jax.eval_shape(function, *arguments)
  return jax.lax.cond(always, function, lambda *_: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes), *arguments)

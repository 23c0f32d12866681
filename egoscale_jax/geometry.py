"""Rotations and rigid transforms, on numpy or JAX arrays alike, any leading axes.

Conventions, said once: metres and radians; quaternions are wxyz; a pose `T_a_b` [..., 4, 4] maps points of b into a, so
`T_a_c = T_a_b @ T_b_c`; rot6d is the first two *rows* of the rotation matrix, flattened (GR00T N1.7's layout of wrist state and action).
"""

import jax
import jax.numpy as jnp
import numpy as np


def _xp(x):
  return jnp if isinstance(x, jax.Array) else np


def normalize(vector, eps=1e-12):
  """vector [..., n] over its norm; a vector shorter than eps is divided by eps, so zero stays zero with a finite gradient."""
  xp = _xp(vector)
  square = xp.sum(vector * vector, axis=-1, keepdims=True)
  return vector / xp.sqrt(xp.maximum(square, eps * eps))


def hat(vector):
  """[..., 3] -> the skew matrix [..., 3, 3] with hat(a) @ b = a x b."""
  xp = _xp(vector)
  x, y, z = vector[..., 0], vector[..., 1], vector[..., 2]
  zero = xp.zeros_like(x)
  rows = [xp.stack(row, axis=-1) for row in ((zero, -z, y), (z, zero, -x), (-y, x, zero))]
  return xp.stack(rows, axis=-2)


def so3_exp(vector):
  """Axis-angle [..., 3] (radians) -> rotation matrix [..., 3, 3]; Rodrigues, a Taylor series near zero keeps the gradient finite."""
  xp = _xp(vector)
  square = xp.sum(vector * vector, axis=-1)
  small = square < 1e-6
  safe = xp.where(small, xp.ones_like(square), square)
  angle = xp.sqrt(safe)
  a = xp.where(small, 1.0 - square / 6.0, xp.sin(angle) / angle)
  half = xp.sin(0.5 * angle) / angle  # 1 - cos = 2 sin^2(half): no digits lost at small angles in float32
  b = xp.where(small, 0.5 - square / 24.0, 2.0 * half * half)
  k = hat(vector)
  eye = xp.broadcast_to(xp.eye(3, dtype=vector.dtype), k.shape)
  k_squared = vector[..., :, None] * vector[..., None, :] - square[..., None, None] * eye
  return eye + a[..., None, None] * k + b[..., None, None] * k_squared


def so3_to_quat(rotation):
  """Rotation matrix [..., 3, 3] -> unit quaternion wxyz [..., 4] with w >= 0.

  Shepperd's method: of the four equivalent forms the one with the largest component is taken, so nothing is divided by a small number,
  at pi neither.
  """
  xp = _xp(rotation)
  m = [[rotation[..., i, j] for j in range(3)] for i in range(3)]
  w = 1.0 + m[0][0] + m[1][1] + m[2][2]
  x = 1.0 + m[0][0] - m[1][1] - m[2][2]
  y = 1.0 - m[0][0] + m[1][1] - m[2][2]
  z = 1.0 - m[0][0] - m[1][1] + m[2][2]
  wx, wy, wz = m[2][1] - m[1][2], m[0][2] - m[2][0], m[1][0] - m[0][1]
  xy, xz, yz = m[0][1] + m[1][0], m[0][2] + m[2][0], m[1][2] + m[2][1]
  forms = xp.stack([xp.stack(form, axis=-1) for form in ((w, wx, wy, wz), (wx, x, xy, xz), (wy, xy, y, yz), (wz, xz, yz, z))], axis=-2)
  largest = xp.argmax(xp.stack([w, x, y, z], axis=-1), axis=-1)
  quat = normalize(xp.take_along_axis(forms, largest[..., None, None], axis=-2)[..., 0, :])
  return xp.where(quat[..., :1] < 0, -quat, quat)


def quat_to_so3(quat):
  """Quaternion wxyz [..., 4], any norm but zero -> rotation matrix [..., 3, 3]."""
  xp = _xp(quat)
  w, x, y, z = (normalize(quat)[..., i] for i in range(4))
  rows = (
    (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
    (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
    (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
  )
  return xp.stack([xp.stack(row, axis=-1) for row in rows], axis=-2)


def so3_log(rotation):
  """Rotation matrix [..., 3, 3] -> axis-angle [..., 3], angle in [0, pi]; gradient-safe at 0, exact at pi (through the quaternion)."""
  xp = _xp(rotation)
  quat = so3_to_quat(rotation)
  w, v = quat[..., 0], quat[..., 1:]
  square = xp.sum(v * v, axis=-1)
  small = square < 1e-8
  sine = xp.sqrt(xp.where(small, xp.ones_like(square), square))
  scale = xp.where(small, 2.0 + square / 3.0, 2.0 * xp.arctan2(sine, w) / sine)
  return scale[..., None] * v


def so3_angle(rotation):
  """Rotation matrix [..., 3, 3] -> its angle in radians [...], in [0, pi]; at 0 the gradient is 0, not NaN."""
  xp = _xp(rotation)
  quat = so3_to_quat(rotation)
  square = xp.sum(quat[..., 1:] ** 2, axis=-1)
  sine = xp.where(square > 0, xp.sqrt(xp.where(square > 0, square, xp.ones_like(square))), xp.zeros_like(square))
  return 2.0 * xp.arctan2(sine, quat[..., 0])


def so3_to_rot6d(rotation):
  """Rotation matrix [..., 3, 3] -> its first two rows, flattened [..., 6] (Zhou et al., arXiv:1812.07035, transposed as in GR00T)."""
  return rotation[..., :2, :].reshape(rotation.shape[:-2] + (6,))


def rot6d_to_so3(rot6d):
  """[..., 6] (two rows, not necessarily orthonormal) -> the rotation matrix [..., 3, 3] that Gram-Schmidt makes of them."""
  xp = _xp(rot6d)
  first = normalize(rot6d[..., :3])
  second = rot6d[..., 3:]
  second = normalize(second - xp.sum(first * second, axis=-1, keepdims=True) * first)
  return xp.stack([first, second, _cross(first, second)], axis=-2)


def _cross(a, b):
  """numpy's own takes six times as long of a chunk of poses, a tenth of what a policy server adds."""
  if isinstance(a, jax.Array):
    return jnp.cross(a, b)
  return a[..., [1, 2, 0]] * b[..., [2, 0, 1]] - a[..., [2, 0, 1]] * b[..., [1, 2, 0]]


def se3(rotation, translation):
  """Rotation [..., 3, 3] and translation [..., 3] -> pose [..., 4, 4]."""
  xp = _xp(rotation)
  top = xp.concatenate([rotation, translation[..., None]], axis=-1)
  bottom = xp.broadcast_to(xp.asarray([0, 0, 0, 1], dtype=top.dtype), top.shape[:-2] + (1, 4))
  return xp.concatenate([top, bottom], axis=-2)


def se3_inverse(pose):
  """Pose T_a_b [..., 4, 4] -> T_b_a."""
  rotation = pose[..., :3, :3].swapaxes(-1, -2)
  return se3(rotation, -(rotation @ pose[..., :3, 3:])[..., 0])


def transform(pose, points):
  """T_a_b [..., 4, 4] applied to points of b [..., P, 3] -> points in a [..., P, 3]."""
  return points @ pose[..., :3, :3].swapaxes(-1, -2) + pose[..., None, :3, 3]


def project(intrinsics, points):
  """Pinhole: K [..., 3, 3], points in the camera frame (x right, y down, z forward) [..., P, 3] -> pixels [..., P, 2]; NaN behind it."""
  xp = _xp(points)
  depth = points[..., 2]
  safe = xp.where(depth > 1e-6, depth, xp.full_like(depth, xp.nan))
  pixels = points @ intrinsics.swapaxes(-1, -2)
  return pixels[..., :2] / safe[..., None]

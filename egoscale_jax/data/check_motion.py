"""How fast a pose moves and turns: the checks that the camera, a human's wrist and a robot's share."""

import numpy as np

from egoscale_jax import geometry
from egoscale_jax.data import findings

MAX_CAMERA_SPEED = 6.0  # m/s, 0.20 m a frame at 30 Hz (published); a head does 0.16 in the real samples
MAX_WRIST_SPEED = 9.0  # m/s, 0.30 m a frame at 30 Hz (published); a wrist does 0.95 in the real samples
# A head turns at up to 12 rad/s at will, and at 1.1 in the real samples; a wrist turns at up to 30 rad/s, at 5.5 in the real samples.
MAX_CAMERA_SPIN = 20.0  # rad/s, 38 degrees a frame at 30 Hz
MAX_WRIST_SPIN = 45.0  # rad/s, 86 degrees a frame at 30 Hz; at 14 Hz and below no turn is so fast, for none is longer than pi
MAX_SIZE = 1e6  # metres, pixels, a joint in whatever unit
MAX_SHEAR = 0.01  # of a rotation: how far R R^T is from one; float32 and a reader's arithmetic stay below 1e-5


def sane(array) -> np.ndarray:
  """The same in float64, NaN where it is infinite or beyond MAX_SIZE: no place, and an overflow for whoever computes with it."""
  return np.where(np.abs(array) < MAX_SIZE, array, np.nan).astype(np.float64)


def jumps(position_Fx3, rate_hz, limit):
  """-> the frames on both sides of a jump [F] bool, and the highest speed in m/s; across frames without a position the time counts too."""
  known = np.flatnonzero(np.isfinite(position_Fx3).all(axis=1))
  speed = np.linalg.norm(np.diff(position_Fx3[known].astype(np.float64), axis=0), axis=1)
  return _fast(known, speed, len(position_Fx3), rate_hz, limit)


def spins(rotation_Fx3x3, rate_hz, limit):
  """The same of turns; the highest in rad/s."""
  known = np.flatnonzero(np.isfinite(rotation_Fx3x3).all(axis=(1, 2)))
  rotation = rotation_Fx3x3[known].astype(np.float64)
  angle = geometry.so3_angle(rotation[:-1].swapaxes(1, 2) @ rotation[1:])
  return _fast(known, angle, len(rotation_Fx3x3), rate_hz, limit)


def _fast(known, moved, num_frames, rate_hz, limit):
  jump_F = np.zeros(num_frames, bool)
  if len(known) < 2:
    return jump_F, 0.0
  speed = moved * rate_hz / np.diff(known)
  fast = speed > limit
  jump_F[known[:-1][fast]] = True
  jump_F[known[1:][fast]] = True
  return jump_F, float(speed.max())


def pose(pose_Fx4x4, name, side, rate_hz, max_speed, max_spin):
  """-> valid [F] of a pose's path and its findings <name>_not_rigid, <name>_jump, <name>_spin. Missing poses are the caller's to name."""
  rotation_Fx3x3 = pose_Fx4x4[:, :3, :3].astype(np.float64)
  known_F = np.isfinite(pose_Fx4x4).all(axis=(1, 2))
  shear_F = np.zeros(len(known_F))
  shear_F[known_F] = np.abs(rotation_Fx3x3[known_F] @ rotation_Fx3x3[known_F].swapaxes(1, 2) - np.eye(3)).max(axis=(1, 2))
  bent_F = shear_F > MAX_SHEAR
  bent_F[known_F] |= np.linalg.det(rotation_Fx3x3[known_F]) < 0
  detail = f"its rotation is mirrored, or up to {shear_F.max():.3g} from orthonormal, expected a rotation within {MAX_SHEAR:g}"
  found = findings.masked(f"{name}_not_rigid", side, bent_F, detail)
  jump_F, speed = jumps(pose_Fx4x4[:, :3, 3], rate_hz, max_speed)
  found += findings.masked(f"{name}_jump", side, jump_F, f"up to {speed:.3g} m/s, expected at most {max_speed:g}")
  spin_F, spin = spins(np.where(bent_F[:, None, None], np.nan, rotation_Fx3x3), rate_hz, max_spin)
  found += findings.masked(f"{name}_spin", side, spin_F, f"turns at up to {spin:.3g} rad/s, expected at most {max_spin:g}")
  return known_F & ~(bent_F | jump_F | spin_F), found

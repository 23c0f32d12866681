"""Minimum-jerk motion of one right hand: legs from pose to pose, sampled at the frame rate.

Experts are written for a right hand only; `mirror_hand` and `mirror_thing` make the left-handed episode of them (the world's x reversed).
The simulator's world: metres, x right, y away from the person, z up, origin on the table.
"""

import dataclasses

import numpy as np

from egoscale_jax import geometry

RATE_HZ = 30
_WORLD_MIRROR = np.diag([-1.0, 1.0, 1.0, 1.0])
_HAND_MIRROR = np.diag([1.0, -1.0, 1.0, 1.0])


def minimum_jerk(u):
  """Share of the time [...] in 0..1 -> share of the way: rest to rest with the least jerk."""
  return u * u * u * (10 - 15 * u + 6 * u * u)


def orientation(yaw=0.0, pitch=0.0, roll=0.0):
  """Degrees -> R_world_wrist of a right hand; zero is palm down, fingers away from the person.

  yaw: fingers to the left; pitch: fingertips down; roll: thumb up.
  """
  turns = np.radians([[0, 0, yaw + 90.0], [0, pitch, 0], [roll, 0, 0]])
  about_z, about_y, about_x = geometry.so3_exp(turns)
  return about_z @ about_y @ about_x


def mirror_hand(T_world_wrist):
  """A right hand's wrist pose [..., 4, 4] -> the left hand's in the mirrored world."""
  return _WORLD_MIRROR @ T_world_wrist @ _HAND_MIRROR


def mirror_thing(T_world_thing):
  """An object's pose [..., 4, 4] -> its pose in the mirrored world (objects are symmetric themselves)."""
  return _WORLD_MIRROR @ T_world_thing @ _WORLD_MIRROR


@dataclasses.dataclass(frozen=True)
class Leg:
  """One minimum-jerk move from wherever the last one ended."""

  name: str
  frames: int
  T_world_wrist: np.ndarray  # where it ends, 4x4
  joints: np.ndarray  # how the fingers end, [20] radians
  lift: float = 0.0  # metres the path rises above the straight line, half way
  fingers: tuple[float, float] = (0.0, 1.0)  # share of the leg in which the fingers move
  pivot: np.ndarray | None = None  # [3]: turn about the vertical through this point instead of moving in a line


def frames_for(start, end, speed, lift=0.0):
  """Poses 4x4, mean speed in m/s -> the number of frames; a turn of the wrist by a radian counts as 8 cm."""
  distance = np.hypot(np.linalg.norm(end[:3, 3] - start[:3, 3]), 2 * lift)
  angle = geometry.so3_angle(start[:3, :3].T @ end[:3, :3])
  return max(7, round(RATE_HZ * (distance + 0.08 * angle) / speed))


def poses(start, leg, s):
  """Poses [n, 4, 4] at shares `s` [n] of the leg's way."""
  turn = start[:3, :3].T @ leg.T_world_wrist[:3, :3]
  rotation = start[:3, :3] @ geometry.so3_exp(s[:, None] * geometry.so3_log(turn))
  position = start[:3, 3] + s[:, None] * (leg.T_world_wrist[:3, 3] - start[:3, 3])
  position[:, 2] += leg.lift * 4 * s * (1 - s)
  if leg.pivot is not None:
    world_turn = leg.T_world_wrist[:3, :3] @ start[:3, :3].T
    about = geometry.so3_exp(s[:, None] * geometry.so3_log(world_turn))
    rotation = about @ start[:3, :3]
    position = leg.pivot + about @ (start[:3, 3] - leg.pivot)
  return geometry.se3(rotation, position)


def play(T_start, joints_start, legs, skip=3):
  """Legs played one after the other -> (T_world_wrist [F, 4, 4], joints [F, 20], {leg name: its last frame}).

  The first `skip` frames are cut: a minimum-jerk start is so slow that they would show a hand at rest.
  """
  path, joints, last = [T_start[None]], [joints_start[None]], {}
  frame = 0
  for leg in legs:
    u = np.arange(1, leg.frames + 1) / leg.frames
    path.append(poses(path[-1][-1], leg, minimum_jerk(u)))
    first, end = leg.fingers
    share = minimum_jerk(np.clip((u - first) / (end - first), 0, 1))[:, None]
    joints.append(joints[-1][-1] + share * (leg.joints - joints[-1][-1]))
    frame += leg.frames
    last[leg.name] = frame - skip
  return np.concatenate(path)[skip:], np.concatenate(joints)[skip:], last


def sway(rng, frames, amplitudes):
  """Smooth slow noise [frames, n], for n amplitudes: two sines each of 0.15 to 0.6 Hz."""
  time = np.arange(frames)[:, None, None] / RATE_HZ
  shape = (1, 2, len(amplitudes))
  waves = np.sin(2 * np.pi * rng.uniform(0.15, 0.6, shape) * time + rng.uniform(0, 2 * np.pi, shape))
  return 0.5 * waves.sum(axis=1) * np.asarray(amplitudes)

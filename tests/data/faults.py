"""A clean Episode of a person who looks around, filmed, and one of a robot; and how to spoil them."""

import dataclasses
import functools

import numpy as np
import recordings
import robots
import simplejpeg

from egoscale_jax import geometry
from egoscale_jax.data import schema
from egoscale_jax.hands import keypoints

FRAMES = 90
ALL = slice(0, FRAMES)


@dataclasses.dataclass(frozen=True)
class Fault:
  """damage(episode, frames: slice) -> the spoiled episode.

  `where` the finding is: "these" frames, "around" them (one more on either side may be), at both sides of their "ends", or the "whole"
  episode. `implied`: other findings that the damage brings about.
  """

  damage: callable
  name: str
  side: str = ""
  severity: str = "masked"
  where: str = "these"
  implied: tuple = ()


def looks(frames):
  """Turns of the head (pitch, yaw) in radians [F, 2]."""
  time = np.arange(frames)[:, None] / recordings.RATE
  return np.concatenate([0.08 * np.sin(4.1 * time + 1), 0.14 * np.sin(2.7 * time) + 0.05 * np.sin(7.3 * time)], axis=1)


def cameras(turns_Fx2):
  """Poses of a head that turns so, and stands."""
  turns = geometry.so3_exp(np.pad(turns_Fx2, ((0, 0), (0, 1))))
  pose = np.repeat(recordings.T_WORLD_CAMERA[None].astype(np.float64), len(turns_Fx2), axis=0)
  pose[:, :3, :3] = pose[:, :3, :3] @ turns
  return pose.astype(np.float32)


@functools.cache
def panorama(seed=0):
  """Smooth noise [360, 640] of 60..190: what is around."""
  rng = np.random.default_rng(seed)
  waves = np.fft.rfft2(rng.standard_normal((360, 640)))
  waves *= np.exp(-900 * (np.fft.fftfreq(360)[:, None] ** 2 + np.fft.rfftfreq(640) ** 2))
  noise = np.fft.irfft2(waves, s=(360, 640))
  return (125 + 65 * noise / np.abs(noise).max()).astype(np.float32)


def encode(picture_YxX):
  return simplejpeg.encode_jpeg(np.repeat(np.clip(picture_YxX, 0, 255).astype(np.uint8)[..., None], 3, axis=2), quality=90)


def seen(turn_2, seed=0):
  """The picture [180, 320] after a turn of the head (pitch, yaw), the panorama moved by parts of a pixel."""
  focal_y, focal_x = recordings.INTRINSICS[1, 1], recordings.INTRINSICS[0, 0]
  y, x = 90 - focal_y * np.tan(turn_2[0]), 160 + focal_x * np.tan(turn_2[1])
  (row, down), (column, right) = ((int(v), v - int(v)) for v in (y, x))
  part = panorama(seed)[row : row + 181, column : column + 321]
  part = (1 - down) * part[:-1] + down * part[1:]
  return (1 - right) * part[:, :-1] + right * part[:, 1:]


@functools.cache
def film(frames=FRAMES, seed=0):
  return tuple(encode(seen(turn, seed)) for turn in looks(frames))


@functools.cache
def human(frames=FRAMES):
  """A clean episode; hands as recordings.episode has them."""
  episode = recordings.episode(frames=frames, T_world_camera_Fx4x4=cameras(looks(frames)))
  return dataclasses.replace(episode, jpeg_CxF=(film(frames),))


@functools.cache
def robot(frames=120):
  """A clean episode of a robot of one arm with a hand of three joints."""
  state = robots.state(frames)
  time = np.arange(frames)[:, None] / recordings.RATE
  joints = schema.missing(frames, 2, 3)
  joints[:, 0] = 0.6 + 0.5 * np.sin(2 * time + np.arange(3))
  wrist = schema.missing(frames, 2, 4, 4)
  wrist[:, 0] = recordings.wrist_path(frames)[:, 0]
  values = np.concatenate([state[:, :7], joints[:, 0]], axis=1).astype(np.float32)
  names = (*"xyz", "qw", "qx", "qy", "qz", *"abc")
  fields = {"embodiment": "testbot", "frame": schema.Frame.BASE, "joint_names": (("a", "b", "c"), ()), "joints_Fx2xJ": joints}
  fields |= {"T_world_wrist_Fx2x4x4": wrist, "state_names": names, "state_FxS": values, "action_names": names, "action_FxA": values + 0.01}
  base = recordings.episode(frames=frames)
  return dataclasses.replace(base, **(schema.robot(frames) | fields | {"joint_targets_Fx2xJ": schema.missing(frames, 2, 3)}))


def array(field, side, change, part=()):
  """-> damage: change(values of these frames) in an array of the episode, of one side where one is named."""

  def damage(episode, frames):
    values = getattr(episode, field).copy()
    where = (frames, *(() if side is None else (keypoints.SIDES.index(side),)), *part)
    values[where] = change(values[where])
    return dataclasses.replace(episode, **{field: values})

  return damage


def hand(side, change):
  """-> damage: change(keypoints of these frames in the hand's own frame [n, 21, 3]) of one hand."""

  def damage(episode, frames):
    i = keypoints.SIDES.index(side)
    points = episode.keypoints_Fx2xPx3.astype(np.float64)
    pose = keypoints.wrist_frame(points[frames, i], side)
    local = geometry.transform(geometry.se3_inverse(pose), points[frames, i])
    points[frames, i] = geometry.transform(pose, change(local))
    return dataclasses.replace(episode, keypoints_Fx2xPx3=points.astype(np.float32))

  return damage


def camera(change):
  """-> damage: change(poses of these frames) of the first camera."""

  def damage(episode, frames):
    pose = episode.T_world_camera_CxFx4x4.copy()
    pose[0, frames] = change(pose[0, frames])
    return dataclasses.replace(episode, T_world_camera_CxFx4x4=pose)

  return damage


def pictures(change):
  """-> damage: change(JPEGs of all frames as a list, frames) of the first camera."""

  def damage(episode, frames):
    return dataclasses.replace(episode, jpeg_CxF=(tuple(change(list(episode.jpeg_F), frames)), *episode.jpeg_CxF[1:]))

  return damage


def fields(**values):
  """-> damage: the episode's fields, whatever the frames."""
  return lambda episode, frames: dataclasses.replace(episode, **values)


def check_found(fault, valid_Fx2, findings, frames, num_frames):
  """The fault is found by its name at its frames, masks them and no others, and nothing else is found that it does not imply."""
  found = [f for f in findings if f.name == fault.name and f.side == fault.side]
  assert len(found) == 1, findings
  assert found[0].severity == fault.severity
  assert found[0].detail
  assert {f.name for f in findings} <= {fault.name, *fault.implied}, findings
  told = np.zeros(num_frames, bool)
  for first, last in found[0].spans:
    told[first : last + 1] = True
  assert (found[0].first_frame, found[0].last_frame) == tuple(np.flatnonzero(told)[[0, -1]])
  assert found[0].count == told.sum() or fault.severity == "rejected"  # an episode goes as a whole for the sake of some frames
  least, most = np.zeros((2, num_frames), bool)
  least[frames] = True
  most[max(frames.start - 1, 0) : frames.stop + 1] = True
  if fault.where == "ends":
    least = most & ~np.pad(least[2:] & least[:-2] & least[1:-1], 1)
    most = least
  if fault.where == "whole":
    least[:] = most[:] = True
  assert not (least & ~told).any(), found
  assert not (told & ~(least if fault.where == "these" else most)).any(), found
  if fault.severity == "masked":
    bad_Fx2 = ~valid_Fx2 if not fault.side else ~valid_Fx2[:, [keypoints.SIDES.index(fault.side)]]
    assert bad_Fx2[told].all()
    assert fault.implied or not bad_Fx2[~told].any()
  elif fault.severity == "warning" and not fault.implied:
    assert valid_Fx2.any(axis=0).tolist() == valid_Fx2.all(axis=0).tolist()

"""Recordings for the tests: a small writer of the EgoDex format, Episodes without files, and the real samples read once a session."""

import dataclasses
import functools

import av
import h5py
import numpy as np
import simplejpeg

from egoscale_jax import geometry
from egoscale_jax.data import schema
from egoscale_jax.data.sources import egodex
from egoscale_jax.errors import UserError
from egoscale_jax.hands import keypoints

WIDTH, HEIGHT, RATE = 320, 180, 30
INTRINSICS = np.array([[150.0, 0, WIDTH / 2], [0, 151.0, HEIGHT / 2], [0, 0, 1]], np.float32)
T_WORLD_CAMERA = np.array([[1, 0, 0, 0.1], [0, -1, 0, 1.5], [0, 0, -1, 0.2], [0, 0, 0, 1.0]], np.float32)  # world y up, looking along -z


def hand_template(side):
  """Keypoints [21, 3] of an open hand in its wrist frame, metres."""
  points = [(0, 0, 0), (0.02, 0.03, -0.01), (0.05, 0.05, -0.02), (0.08, 0.06, -0.02), (0.105, 0.065, -0.02)]
  for y in (0.025, 0.005, -0.015, -0.035):
    points += [(0.09, y, 0), (0.13, y, -0.01), (0.155, y, -0.025), (0.175, y, -0.04)]
  return np.array(points) * (1, 1 if side == "right" else -1, 1)


def wrist_path(frames, seed=0):
  """Smooth poses T_world_wrist [F, 2, 4, 4] in front of the camera, up to 0.5 m/s."""
  rng = np.random.default_rng(seed)
  time = np.arange(frames)[:, None, None] / RATE
  phase = rng.uniform(0, 6, (1, 2, 3))
  position = np.array([[-0.1, 1.4, -0.3], [0.25, 1.4, -0.3]]) + 0.05 * np.sin(3 * time + phase)
  vector = np.array([[0.2, 1.3, 0.1], [-0.1, 1.5, 0.2]]) + 0.3 * np.sin(2 * time + phase[..., ::-1])
  return geometry.se3(geometry.so3_exp(vector), position)


def hand_points(frames, seed=0):
  """Keypoints [F, 2, 21, 3] in the world; fingers stay stiff, so wrist_path is their wrist frame up to the template's own."""
  template = np.stack([hand_template(side) for side in keypoints.SIDES])
  return geometry.transform(wrist_path(frames, seed), template)


def write(directory, name="pour/0", frames=40, seed=0, change=None, video_frames=None, **attributes):
  """One recording -> path of its .hdf5. change(file) may spoil the HDF5; frame i of the video is grey(i), of mean 20 + 8 i modulo 200."""
  path = directory / f"{name}.hdf5"
  path.parent.mkdir(parents=True, exist_ok=True)
  pose = wrist_path(frames, seed)
  points = hand_points(frames, seed)
  with h5py.File(path, "w") as file:
    file["camera/intrinsic"] = INTRINSICS
    file["transforms/camera"] = np.repeat(T_WORLD_CAMERA[None], frames, axis=0)
    for i, side in enumerate(keypoints.SIDES):
      for p, joint in enumerate(egodex.JOINTS):
        file[f"transforms/{side}{joint}"] = geometry.se3(pose[:, i, :3, :3], points[:, i, p]).astype(np.float32)
        file[f"confidences/{side}{joint}"] = np.full(frames, 0.5 + 0.01 * p, np.float32)
    file.attrs.update({"llm_description": "Pour the tea.", "llm_type": "reset", "session_name": f"session {name}"} | attributes)
    if change:
      change(file)
  write_video(path.with_suffix(".mp4"), frames if video_frames is None else video_frames)
  return path


@functools.cache
def texture():
  """Smooth waves [HEIGHT, WIDTH, 1] of mean 0, within 18: without them a picture would be uniform, a fault."""
  y, x = np.arange(HEIGHT)[:, None], np.arange(WIDTH)
  waves = 9 * np.sin(2 * np.pi * x / 80) * np.sin(2 * np.pi * y / 60) + 9 * np.sin(2 * np.pi * (x / 160 + y / 45))
  return np.round(waves)[..., None]


def textured(level):
  """A picture [HEIGHT, WIDTH, 3] of that mean."""
  return np.clip(level + texture(), 0, 255).astype(np.uint8).repeat(3, axis=2)


def grey(i):
  return textured(20 + 8 * i % 200)


@functools.cache
def jpeg(i):
  """Frame i of an Episode without files."""
  return simplejpeg.encode_jpeg(textured(30 + i % 190), quality=90)


def write_video(path, frames, picture=grey):
  """picture(i) -> frame i [HEIGHT, WIDTH, 3] uint8."""
  with av.open(str(path), "w") as container:
    stream = container.add_stream("mpeg4", rate=RATE)
    stream.width, stream.height, stream.pix_fmt, stream.bit_rate = WIDTH, HEIGHT, "yuv420p", 2_000_000
    for i in range(frames):
      container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(i), format="rgb24")))
    container.mux(stream.encode())


def episode(frames=40, seed=0, name="pour/0", scene="kitchen", **fields):
  """An Episode without files."""
  camera = fields.pop("T_world_camera_Fx4x4", np.repeat(T_WORLD_CAMERA[None], frames, axis=0))
  jpeg_F = tuple(jpeg(i) for i in range(frames))
  head = schema.View("head", jpeg_F, (HEIGHT, WIDTH), INTRINSICS, camera)
  values = schema.human(frames) | schema.views(head)
  values |= dict(
    id=name,
    source="egodex",
    text="Pour the tea.",
    scene=scene,
    licence="none",
    person="",
    spans=(),
    rate_hz=float(RATE),
    frame=schema.Frame.WORLD,
    keypoints_Fx2xPx3=hand_points(frames, seed).astype(np.float32),
    confidence_Fx2xP=np.full((frames, 2, 21), 0.6, np.float32),
  )
  return schema.Episode(**(values | fields))


def robot(frames=40, seed=0, name="pour/0", scene="kitchen", person="", embodiment="testbot", **fields):
  """An Episode of a robot of two hands of two joints, without files: labelled at once, for nothing is retargeted."""
  joints = np.random.default_rng(seed).uniform(0, 1, (frames, 2, 2)).astype(np.float32)
  values = schema.robot(frames) | dict(
    embodiment=embodiment,
    person=person,
    frame=schema.Frame.BASE,
    T_world_wrist_Fx2x4x4=wrist_path(frames, seed).astype(np.float32),
    joint_names=(("l0", "l1"), ("r0", "r1")),
    joints_Fx2xJ=joints,
    joint_targets_Fx2xJ=joints,
  )
  return episode(frames, seed, name, scene, **(values | fields))


def robots(count, directory="/none", first=0, frames=40, **fields):
  """{Recording: Episode} of robots, each in a scene of its own, as Cached takes them."""
  return {
    schema.Recording(f"pour/{i:03d}", (f"{directory}/pour_{i:03d}.hdf5",)): robot(frames + i, i, f"pour/{i:03d}", f"scene {i}", **fields)
    for i in range(first, first + count)
  }


def labels(frames=40, num_joints=4, seed=0, invalid=()):
  """Labels of a smooth path with random joints; `invalid`: (frame, side) pairs that are masked, or slices of frames for both sides."""
  rng = np.random.default_rng(seed)
  valid = np.ones((frames, 2), bool)
  for where in invalid:
    valid[where] = False
  mask = valid[..., None]
  return schema.Labels(
    T_world_wrist_Fx2x4x4=np.where(mask[..., None], wrist_path(frames, seed), np.nan).astype(np.float32),
    joints_Fx2xJ=np.where(mask, rng.standard_normal((frames, 2, num_joints)), np.nan).astype(np.float32),
    residual_m_Fx2=np.where(valid, 0.003, np.nan).astype(np.float32),
    valid_Fx2=valid,
  )


class Cached:
  """A source whose recordings were read before: find() and read() as data/sources have them, without decoding again."""

  SOURCE, LICENCE = egodex.SOURCE, egodex.LICENCE

  def __init__(self, results):
    self._results = results  # {Recording: Episode or UserError}

  def find(self, directory):
    return list(self._results)

  def read(self, recording, image_size):
    result = self._results[recording]
    if isinstance(result, UserError):
      raise result
    return result


@functools.cache
def read_real(shared):
  """{Recording: Episode or UserError} of the real EgoDex samples: 1080p, so decoded once."""
  results = {}
  for recording in egodex.find(shared / "recordings" / "egodex"):
    try:
      results[recording] = egodex.read(recording, 256)
    except UserError as error:
      results[recording] = error
  return results


def change_points(episode, where, value):
  points = episode.keypoints_Fx2xPx3.copy()
  points[where] = value(points[where])
  return dataclasses.replace(episode, keypoints_Fx2xPx3=points)


def bad_frames(valid_F):
  return np.flatnonzero(~valid_F).tolist()

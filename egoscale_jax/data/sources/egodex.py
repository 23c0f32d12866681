"""EgoDex (arXiv:2505.11709): `<task>/<n>.hdf5` with the poses of a headset's hand tracking, `<task>/<n>.mp4` beside it.

The file's poses are already ours: metres, joint to world, camera to world with OpenCV axes (x right, y down, z forward).

Pixels of the file count from the first pixel's *corner*, those of an Episode from its centre (mp4.py): the file's principal point is
exactly half of the image's size, the centre of the image in that convention alone.
"""

import os

import numpy as np

from egoscale_jax.data import schema
from egoscale_jax.data.sources import checks, hdf5, mp4
from egoscale_jax.errors import UserError
from egoscale_jax.hands import keypoints

SOURCE = "egodex"
LICENCE = "CC BY-NC-ND 4.0 (EgoDex, Apple)"

_BONES = ("Knuckle", "IntermediateBase", "IntermediateTip", "Tip")
# The file's names in the order of hands/keypoints.py. ARKit's Knuckle, IntermediateBase, IntermediateTip are MCP, PIP, DIP (of the thumb
# CMC, MCP, IP), as the measured lengths of the bones show. Its Metacarpal is the base of the palm's bone, none of the 21.
_FINGERS = ("Thumb", "IndexFinger", "MiddleFinger", "RingFinger", "LittleFinger")
JOINTS = ("Hand",) + tuple(f"{finger}{bone}" for finger in _FINGERS for bone in _BONES)


def find(directory) -> list[schema.Recording]:
  """Every `*.hdf5` below the directory, sorted by name; one without an mp4 beside it is found too, and read() refuses it."""
  names = checks.find(directory, ".hdf5", "*.hdf5 recordings, <task>/<n>.hdf5 with <n>.mp4 beside it")
  return [_recording(directory, name.removesuffix(".hdf5")) for name in names]


def _recording(directory, stem):
  return schema.Recording(stem.replace(os.sep, "/"), tuple(os.path.join(directory, stem + end) for end in (".hdf5", ".mp4")))


def read(recording: schema.Recording, image_size: int) -> schema.Episode:
  """-> Episode; a pose that is not finite becomes NaN keypoints of confidence 0 (camera: NaN), anything else that is wrong a UserError."""
  return read_as(recording, image_size, SOURCE, LICENCE)


def read_as(recording: schema.Recording, image_size: int, source: str, licence: str) -> schema.Episode:
  """read() for another source that is written in this format."""
  hdf5_path, mp4_path = recording.files
  if not os.path.isfile(mp4_path):
    raise UserError(f"{mp4_path}: missing: {os.path.basename(hdf5_path)} has no video beside it")
  try:
    with hdf5.opened(hdf5_path) as file:
      text = _text(file, hdf5_path)
      scene = _attribute(file, "session_name") or recording.id
      intrinsics_3x3 = _intrinsics(file, hdf5_path)
      T_world_camera_Fx4x4 = _poses(file, hdf5_path, "camera", None)
      keypoints_Fx2xPx3, confidence_Fx2xP = _hands(file, hdf5_path, len(T_world_camera_Fx4x4))
  except hdf5.CORRUPT as error:
    raise UserError(f"{hdf5_path}: not a readable HDF5 file: {checks.one_line(error)}") from error
  frames = mp4.decode(mp4_path, image_size)
  num_frames = len(frames.jpeg_F)
  if num_frames != len(T_world_camera_Fx4x4):
    poses = f"{len(T_world_camera_Fx4x4)} poses in {os.path.basename(hdf5_path)}"
    raise UserError(f"{mp4_path}: {num_frames} frames, expected as many as the {poses}")
  intrinsics_3x3 = mp4.scale_intrinsics(intrinsics_3x3, frames, hdf5_path, "camera/intrinsic", corner=0.5)
  camera = schema.View("head", frames.jpeg_F, frames.image_size, intrinsics_3x3, T_world_camera_Fx4x4)
  return schema.Episode(
    **schema.human(num_frames) | schema.views(camera),
    id=recording.id,
    source=source,
    licence=licence,
    person="",
    scene=scene,
    text=text,
    spans=(),
    rate_hz=frames.rate_hz,
    frame=schema.Frame.WORLD,
    keypoints_Fx2xPx3=keypoints_Fx2xPx3,
    confidence_Fx2xP=confidence_Fx2xP,
  )


def _attribute(file, name) -> str:
  """An attribute as text; "" where it is absent, empty or the word None, which EgoDex writes for absent."""
  value = file.attrs.get(name, "")
  text = checks.text(value if isinstance(value, bytes) else str(value))
  return "" if text == "None" else text


def _text(file, path) -> str:
  """EgoDex's rule: a reversible task filmed the second way round is described by llm_description2, all others by llm_description."""
  second = _attribute(file, "llm_type") == "reversible" and _attribute(file, "which_llm_description") == "2"
  name = "llm_description2" if second else "llm_description"
  text = _attribute(file, name)
  if not text:
    raise UserError(f"{path}: no language text: attribute {name} is missing or empty")
  return text


def _dataset(file, path, name):
  """A dataset of the file as an array of floats; UserError where it is not one."""
  array = hdf5.array(file, path, name)
  if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
    raise UserError(f"{path}: {name} is {getattr(array, 'dtype', type(array).__name__)}, expected an array of floats")
  return array


def _intrinsics(file, path):
  return checks.intrinsics(_dataset(file, path, "camera/intrinsic"), path, "camera/intrinsic")


def _poses(file, path, name, num_frames):
  """transforms/<name> -> poses [F, 4, 4] float32, a whole pose NaN where any of it is not finite."""
  name = f"transforms/{name}"
  pose_Fx4x4 = checks.floats(_dataset(file, path, name), (None, 4, 4), path, name)
  if num_frames is not None and len(pose_Fx4x4) != num_frames:
    raise UserError(f"{path}: {name} has {len(pose_Fx4x4)} frames, expected {num_frames} as transforms/camera has")
  return checks.poses(pose_Fx4x4, path, name)


def _hands(file, path, num_frames):
  """-> keypoints [F, 2, 21, 3] in the world and confidence [F, 2, 21]; a file without the group `confidences` is sure of all it has."""
  names = [f"{side}{joint}" for side in keypoints.SIDES for joint in JOINTS]
  position_Fx42x3 = np.stack([_poses(file, path, name, num_frames)[:, :3, 3] for name in names], axis=1)
  confidence_Fx42 = np.ones((num_frames, len(names)), np.float32)
  if "confidences" in file:
    confidence_Fx42 = np.stack([_confidence(file, path, name, num_frames) for name in names], axis=1)
  known_Fx42 = np.isfinite(position_Fx42x3).all(axis=-1) & np.isfinite(confidence_Fx42)
  confidence_Fx42 = np.where(known_Fx42, confidence_Fx42, np.float32(0))
  return position_Fx42x3.reshape(num_frames, 2, -1, 3), confidence_Fx42.reshape(num_frames, 2, -1)


def _confidence(file, path, name, num_frames):
  name = f"confidences/{name}"
  confidence_F = _dataset(file, path, name).astype(np.float32)
  if confidence_F.shape != (num_frames,):
    raise UserError(f"{path}: {name} has shape {confidence_F.shape}, expected ({num_frames},)")
  outside_F = (confidence_F < 0) | (confidence_F > 1)  # NaN is neither
  if outside_F.any():
    raise UserError(f"{path}: {name} is {confidence_F[outside_F][0]:.3g} at frame {int(outside_F.argmax())}, expected 0 to 1")
  return confidence_F

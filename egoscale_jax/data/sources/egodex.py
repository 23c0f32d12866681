"""EgoDex (arXiv:2505.11709): `<task>/<n>.hdf5` with the poses of a headset's hand tracking, `<task>/<n>.mp4` beside it.

The file's poses are already ours: metres, joint to world, camera to world with OpenCV axes (x right, y down, z forward).

Pixels of an Episode are OpenCV's, as those of data/transforms.py: the centre of the first pixel is (0, 0). The file counts from that
pixel's *corner*, which makes its centre (0.5, 0.5): the file's principal point is exactly half of the image's size, the centre of the image
in that convention alone. A resize by (sx, sy) is then cx' = sx * cx - 0.5, cy' = sy * cy - 0.5, fx' = sx * fx, fy' = sy * fy.
"""

import glob
import os

import av
import h5py
import numpy as np
import simplejpeg

from egoscale_jax.data import schema
from egoscale_jax.errors import UserError
from egoscale_jax.hands import keypoints

SOURCE = "egodex"
LICENCE = "CC BY-NC-ND 4.0 (EgoDex, Apple)"
JPEG_QUALITY = 92

_BONES = ("Knuckle", "IntermediateBase", "IntermediateTip", "Tip")
# The file's names in the order of hands/keypoints.py. ARKit's Knuckle, IntermediateBase, IntermediateTip are MCP, PIP, DIP (of the thumb
# CMC, MCP, IP), as the measured lengths of the bones show. Its Metacarpal is the base of the palm's bone, none of the 21.
_FINGERS = ("Thumb", "IndexFinger", "MiddleFinger", "RingFinger", "LittleFinger")
JOINTS = ("Hand",) + tuple(f"{finger}{bone}" for finger in _FINGERS for bone in _BONES)

_RIGID_TOLERANCE = 1e-3  # real files are orthonormal to 5e-6; a scaled or transposed matrix is off by far more


def find(directory) -> list[schema.Recording]:
  """Every `*.hdf5` below the directory, sorted by name; one without an mp4 beside it is found too, and read() refuses it."""
  directory = os.fspath(directory)
  if not os.path.isdir(directory):
    raise UserError(f"{directory}: no such directory, expected one with *.hdf5 recordings")
  names = sorted(glob.glob("**/*.hdf5", root_dir=directory, recursive=True))
  if not names:
    raise UserError(f"{directory}: found no *.hdf5 file at any depth, expected <task>/<n>.hdf5 with <n>.mp4 beside it")
  return [_recording(directory, os.path.splitext(name)[0]) for name in names]


def _recording(directory, stem):
  return schema.Recording(stem.replace(os.sep, "/"), tuple(os.path.join(directory, stem + end) for end in (".hdf5", ".mp4")))


CORRUPT = (OSError, RuntimeError, KeyError, ValueError)  # each seen from h5py, on files with some bytes changed


def read(recording: schema.Recording, image_size: int) -> schema.Episode:
  """-> Episode; a pose that is not finite becomes NaN keypoints of confidence 0 (camera: NaN), anything else that is wrong a UserError."""
  return read_as(recording, image_size, SOURCE, LICENCE)


def read_as(recording: schema.Recording, image_size: int, source: str, licence: str) -> schema.Episode:
  """read() for another source that is written in this format."""
  hdf5_path, mp4_path = recording.files
  if not os.path.isfile(mp4_path):
    raise UserError(f"{mp4_path}: missing: {os.path.basename(hdf5_path)} has no video beside it")
  try:
    with h5py.File(hdf5_path, "r") as file:
      text = _text(file, hdf5_path)
      scene = _attribute(file, "session_name") or recording.id
      intrinsics_3x3 = _intrinsics(file, hdf5_path)
      T_world_camera_Fx4x4 = _poses(file, hdf5_path, "camera", None)
      keypoints_Fx2xPx3, confidence_Fx2xP = _hands(file, hdf5_path, len(T_world_camera_Fx4x4))
  except CORRUPT as error:
    raise UserError(f"{hdf5_path}: not a readable HDF5 file: {_one_line(error)}") from error
  jpeg_F, rate_hz, (width, height), image_size_yx = _decode(mp4_path, image_size)
  if len(jpeg_F) != len(T_world_camera_Fx4x4):
    poses = f"{len(T_world_camera_Fx4x4)} poses in {os.path.basename(hdf5_path)}"
    raise UserError(f"{mp4_path}: {len(jpeg_F)} frames, expected as many as the {poses}")
  return schema.Episode(
    id=recording.id,
    source=source,
    text=text,
    scene=scene,
    licence=licence,
    rate_hz=rate_hz,
    jpeg_F=jpeg_F,
    image_size=image_size_yx,
    intrinsics_3x3=scale_intrinsics(intrinsics_3x3, (width, height), image_size_yx, hdf5_path),
    T_world_camera_Fx4x4=T_world_camera_Fx4x4,
    keypoints_Fx2xPx3=keypoints_Fx2xPx3,
    confidence_Fx2xP=confidence_Fx2xP,
  )


def scale_intrinsics(intrinsics_3x3, video_size, image_size, path):
  """K of the file for a video of (width, height) -> K of an Episode for its JPEGs of (height, width); the two conventions are on top."""
  width, height = video_size
  cx, cy = intrinsics_3x3[:2, 2]
  if not (0 < cx < width and 0 < cy < height):
    found = f"its principal point at ({cx:.1f}, {cy:.1f})"
    raise UserError(f"{path}: camera/intrinsic has {found}, expected it inside the {width} x {height} video")
  scale = np.array([image_size[1] / width, image_size[0] / height, 1.0])
  shift = np.array([[0, 0, -0.5], [0, 0, -0.5], [0, 0, 0]])
  return (scale[:, None] * intrinsics_3x3.astype(np.float64) + shift).astype(np.float32)


def fit(width: int, height: int, image_size: int) -> tuple[int, int]:
  """Size of a video -> (height, width) of its JPEG frames: the shorter side at most image_size, never enlarged."""
  scale = min(1.0, image_size / min(width, height))
  return round(height * scale), round(width * scale)


def _one_line(error) -> str:
  return " ".join(str(error).split())


def _attribute(file, name) -> str:
  """An attribute as text; "" where it is absent, empty or the word None, which EgoDex writes for absent."""
  value = file.attrs.get(name, "")
  text = " ".join((value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)).split())
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
  """A dataset of the file as an array; UserError where it is not one."""
  if not isinstance(file.get(name), h5py.Dataset):
    raise UserError(f"{path}: {name} is missing")
  array = file[name][()]
  if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
    raise UserError(f"{path}: {name} is {getattr(array, 'dtype', type(array).__name__)}, expected an array of floats")
  return array


def _intrinsics(file, path):
  k_3x3 = _dataset(file, path, "camera/intrinsic")
  if k_3x3.shape != (3, 3):
    raise UserError(f"{path}: camera/intrinsic has shape {k_3x3.shape}, expected (3, 3)")
  if not np.isfinite(k_3x3).all():
    raise UserError(f"{path}: camera/intrinsic is not finite")
  if k_3x3[0, 0] <= 0 or k_3x3[1, 1] <= 0 or not np.allclose(k_3x3[2], (0, 0, 1)):
    raise UserError(f"{path}: camera/intrinsic is {k_3x3.tolist()}, expected fx, fy > 0 and the last row 0 0 1")
  return k_3x3


def _poses(file, path, name, num_frames):
  """transforms/<name> -> poses [F, 4, 4] float32, a whole pose NaN where any of it is not finite."""
  name = f"transforms/{name}"
  pose_Fx4x4 = _dataset(file, path, name).astype(np.float32)
  if pose_Fx4x4.ndim != 3 or pose_Fx4x4.shape[1:] != (4, 4):
    raise UserError(f"{path}: {name} has shape {pose_Fx4x4.shape}, expected (frames, 4, 4)")
  if num_frames is not None and len(pose_Fx4x4) != num_frames:
    raise UserError(f"{path}: {name} has {len(pose_Fx4x4)} frames, expected {num_frames} as transforms/camera has")
  finite_F = np.isfinite(pose_Fx4x4).all(axis=(1, 2))
  rotation_Fx3x3 = np.where(finite_F[:, None, None], pose_Fx4x4[:, :3, :3], np.eye(3)).astype(np.float64)  # huge ones must not overflow
  error_F = np.abs(rotation_Fx3x3 @ rotation_Fx3x3.swapaxes(1, 2) - np.eye(3)).max(axis=(1, 2))
  bad_F = ~(error_F <= _RIGID_TOLERANCE) | ~(np.linalg.det(rotation_Fx3x3) > 0)  # so that a NaN is bad
  if bad_F.any():
    frame = int(bad_F.argmax())
    raise UserError(
      f"{path}: {name} at frame {frame} is no rotation: off orthonormal by {error_F[frame]:.2g}, expected < {_RIGID_TOLERANCE}"
    )
  bad_F = finite_F & (np.abs(pose_Fx4x4[:, 3] - (0, 0, 0, 1)).max(axis=1) > _RIGID_TOLERANCE)
  if bad_F.any():
    frame = int(bad_F.argmax())
    raise UserError(f"{path}: {name} at frame {frame} has the last row {pose_Fx4x4[frame, 3].tolist()}, expected 0 0 0 1 (transposed?)")
  return np.where(finite_F[:, None, None], pose_Fx4x4, np.float32(np.nan))


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


def _decode(path, image_size):
  """-> (JPEG of every frame, frames a second, (width, height) of the video, (height, width) of the JPEGs)."""
  try:
    with av.open(path) as container:
      if not container.streams.video:
        raise UserError(f"{path}: has no video stream")
      stream = container.streams.video[0]
      stream.thread_type = "NONE"  # prepare() runs one process a core; a decoder's own threads would only fight over them
      if not stream.average_rate:
        raise UserError(f"{path}: tells no frame rate")
      size = fit(stream.width, stream.height, image_size)
      jpeg_F = tuple(_jpeg(frame, number, size, path) for number, frame in enumerate(container.decode(stream)))
      if not jpeg_F:
        raise UserError(f"{path}: holds no frame")
      return jpeg_F, float(stream.average_rate), (stream.width, stream.height), size
  except (av.FFmpegError, OSError) as error:
    raise UserError(f"{path}: not a decodable video: {_one_line(error)}") from error


def _jpeg(frame, number, size, path) -> bytes:
  if frame.is_corrupt:
    raise UserError(f"{path}: frame {number} is corrupt")
  rgb = frame.reformat(width=size[1], height=size[0], format="rgb24", interpolation="AREA").to_ndarray()
  return simplejpeg.encode_jpeg(np.ascontiguousarray(rgb), quality=JPEG_QUALITY, colorspace="RGB", colorsubsampling="420")

"""Checks that several readers share: each names the file, the field, what was found and what was expected."""

import json
import os
import stat

import numpy as np

from egoscale_jax import geometry
from egoscale_jax.errors import UserError

RIGID_TOLERANCE = 1e-3  # real files are orthonormal to 5e-6; a scaled or transposed matrix is off by far more
MAX_FRAMES = 2_000_000  # 18 hours at 30 Hz; a count beyond it is damaged or hostile
MAX_METRES = 1e5  # farther from the origin nothing was measured: missing
_HUGE = 1e30  # would overflow float32: damage, read as missing
MAX_JSON_BYTES = 64_000_000


def one_line(error) -> str:
  return " ".join(str(error).split())[:300] or type(error).__name__


def readable(path):
  """UserError where the path is no file that may be opened and holds something."""
  try:
    if not stat.S_ISREG(os.stat(path).st_mode):  # to open a pipe would wait for ever
      raise UserError(f"{path}: is no file")
    with open(path, "rb") as file:
      if file.read(1):
        return
  except (OSError, ValueError) as error:
    raise UserError(f"{path}: cannot be opened: {getattr(error, 'strerror', None) or error}") from error
  raise UserError(f"{path}: is empty")


def find(directory, ends, expected: str, folders: bool = False) -> list[str]:
  """Names, relative and with /, of all files (or folders) below a directory that end so, sorted; UserError where there is none.

  Links to folders are not followed. A folder that may not be listed is among the names, for read() to refuse it by name.
  """
  directory = os.fspath(directory)
  if not os.path.isdir(directory):
    raise UserError(f"{directory}: no such directory, expected one with {expected}")
  names, closed = [], []
  for root, below, files in os.walk(directory, onerror=lambda error: closed.append(error.filename)):
    matching = [name for name in (below if folders else files) if name.endswith(ends)]
    names += [os.path.join(root, name) for name in matching]
    if folders:
      below[:] = [name for name in below if name not in matching]
  if not names and not closed:
    raise UserError(f"{directory}: found none at any depth, expected {expected}")
  return sorted(os.path.relpath(name, directory).replace(os.sep, "/") for name in names + closed)


def read_json(path, kind=dict):
  """The object or list in a JSON file."""
  readable(path)
  if os.path.getsize(path) > MAX_JSON_BYTES:
    raise UserError(f"{path}: {os.path.getsize(path)} bytes, expected at most {MAX_JSON_BYTES}")
  try:
    with open(path, encoding="utf-8") as file:
      content = json.load(file)
  except (ValueError, OSError, RecursionError) as error:
    raise UserError(f"{path}: not JSON: {one_line(error)}") from error
  if not isinstance(content, kind):
    raise UserError(f"{path}: holds a {type(content).__name__}, expected a {kind.__name__}")
  return content


def field(mapping: dict, name: str, kinds, path, where=""):
  """mapping[name] of one of the types; UserError where it is absent or another."""
  kinds = kinds if isinstance(kinds, tuple) else (kinds,)
  value = mapping.get(name)
  if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
    found = "is missing" if name not in mapping else f"is {value!r:.60}"
    raise UserError(f"{path}: {where}{name} {found}, expected {' or '.join(k.__name__ for k in kinds)}")
  return value


def inside(root, name: str, path, what: str) -> str:
  """root/name; UserError where a name taken from the data leaves the root. Links on the disk may: Hugging Face's cache is made of them."""
  full = os.path.normpath(os.path.join(root, name))
  if os.path.isabs(name) or "\0" in name or not full.startswith(os.path.join(os.path.normpath(root), "")):
    raise UserError(f"{path}: {what} is {name!r:.80}, which leaves {root}")
  return full


def number(value, low, high, path, name) -> float:
  """A finite number from low to high."""
  if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating) or not low <= value <= high:
    raise UserError(f"{path}: {name} is {value!r:.60}, expected a number from {low:g} to {high:g}")
  return float(value)


def text(value) -> str:
  """Bytes or a string on one line; "" for what is neither."""
  if isinstance(value, bytes):
    value = value.decode("utf-8", "replace")
  return " ".join(value.split()) if isinstance(value, str) else ""


def floats(array, shape, path, name) -> np.ndarray:
  """An array of numbers of a shape (None: any length there), as float64."""
  try:
    array = np.asarray(array)
  except ValueError as error:
    raise UserError(f"{path}: {name} is ragged, expected numbers of the shape {_told(shape)}") from error
  if array.dtype.kind not in "fiub":
    raise UserError(f"{path}: {name} is {array.dtype}, expected numbers")
  if array.ndim != len(shape) or any(n is not None and n != m for n, m in zip(shape, array.shape)):
    raise UserError(f"{path}: {name} has shape {array.shape}, expected {_told(shape)}")
  with np.errstate(invalid="ignore"):  # a signalling NaN is a NaN
    array = array.astype(np.float64)
  return np.where(np.abs(array) < _HUGE, array, np.nan)


def _told(shape):
  return "(" + ", ".join("frames" if n is None else str(n) for n in shape) + ("," if len(shape) == 1 else "") + ")"


def intrinsics(array, path, name) -> np.ndarray:
  """K [3, 3], float64: finite, fx, fy > 0, last row 0 0 1."""
  k_3x3 = floats(array, (3, 3), path, name)
  if not np.isfinite(k_3x3).all():
    raise UserError(f"{path}: {name} is not finite")
  if k_3x3[0, 0] <= 0 or k_3x3[1, 1] <= 0 or not np.allclose(k_3x3[2], (0, 0, 1)):
    raise UserError(f"{path}: {name} is {k_3x3.tolist()}, expected fx, fy > 0 and the last row 0 0 1")
  return k_3x3


def poses(pose_Nx4x4, path, name) -> np.ndarray:
  """Poses [N, 4, 4] float32, a whole pose NaN where any of it is not finite; UserError where one is no rigid motion."""
  pose_Nx4x4 = np.asarray(pose_Nx4x4).astype(np.float32)
  finite_N = (np.abs(pose_Nx4x4) < MAX_METRES).all(axis=(1, 2))  # NaN is not
  rotation_Nx3x3 = np.where(finite_N[:, None, None], pose_Nx4x4[:, :3, :3], np.eye(3)).astype(np.float64)  # huge ones must not overflow
  error_N = np.abs(rotation_Nx3x3 @ rotation_Nx3x3.swapaxes(1, 2) - np.eye(3)).max(axis=(1, 2))
  bad_N = ~(error_N <= RIGID_TOLERANCE) | ~(np.linalg.det(rotation_Nx3x3) > 0)  # so that a NaN is bad
  if bad_N.any():
    frame = int(bad_N.argmax())
    raise UserError(
      f"{path}: {name} at frame {frame} is no rotation: off orthonormal by {error_N[frame]:.2g}, expected < {RIGID_TOLERANCE}"
    )
  bad_N = finite_N & (np.abs(pose_Nx4x4[:, 3] - (0, 0, 0, 1)).max(axis=1) > RIGID_TOLERANCE)
  if bad_N.any():
    frame = int(bad_N.argmax())
    raise UserError(f"{path}: {name} at frame {frame} has the last row {pose_Nx4x4[frame, 3].tolist()}, expected 0 0 0 1 (transposed?)")
  return np.where(finite_N[:, None, None], pose_Nx4x4, np.float32(np.nan))


def poses_of_quat(position_Nx3, quat_wxyz_Nx4, path, name) -> np.ndarray:
  """Positions and unit quaternions wxyz -> poses [N, 4, 4] float32; NaN where any of a pose is not finite."""
  finite_N = (np.abs(position_Nx3) < MAX_METRES).all(axis=1) & np.isfinite(quat_wxyz_Nx4).all(axis=1)
  norm_N = np.linalg.norm(np.where(finite_N[:, None], quat_wxyz_Nx4, (1.0, 0, 0, 0)), axis=1)
  off_N = ~(np.abs(norm_N - 1) < 1e-2)
  if off_N.any():
    frame = int(off_N.argmax())
    raise UserError(f"{path}: {name} at frame {frame} has a quaternion of norm {norm_N[frame]:.3g}, expected 1")
  pose = geometry.se3(geometry.quat_to_so3(np.where(finite_N[:, None], quat_wxyz_Nx4, (1.0, 0, 0, 0))), np.asarray(position_Nx3))
  return np.where(finite_N[:, None, None], pose, np.nan).astype(np.float32)


def keypoints(point_Fx21x3, confidence_Fx21=None):
  """Points of one hand -> float32, a whole point NaN where any of it is, and the confidence: 0 there, else as given or 1."""
  known = (np.abs(point_Fx21x3) < MAX_METRES).all(axis=-1)  # NaN is not
  confidence = np.ones(known.shape) if confidence_Fx21 is None else np.asarray(confidence_Fx21)
  known &= np.isfinite(confidence)
  points = np.where(known[..., None], point_Fx21x3, np.nan).astype(np.float32)
  return points, np.where(known, confidence, 0).astype(np.float32)

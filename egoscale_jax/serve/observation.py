"""What a client sends: a table of fields, which the metadata tells and every observation is held against.

Poses `T_base_wrist` map the wrist frame of hands/keypoints.py into the robot's base frame (any frame that stands still; the wrists of an
answer are in the same one). Metres, radians, seconds; left hand, then right.
"""

import dataclasses

import numpy as np
import simplejpeg

from egoscale_jax.data import actions
from egoscale_jax.errors import UserError
from egoscale_jax.policy import Chunk, Executing, Request

IMAGE, PROMPT, WRIST, JOINTS, CAMERA, TIME, SEED = "image/", "prompt", "state/wrist", "state/joints", "state/camera", "time", "seed"
LAST_WRIST, LAST_JOINTS, FROZEN, RAMP = "executing/wrist", "executing/joints", "executing/frozen", "executing/ramp"
FLOATS = ("float32", "float64")
SIDE, PIXELS = 16, 4096 * 4096  # of a picture, the least and the most: a small JPEG may claim more than memory holds
CHARACTERS = 4096  # of an instruction
LARGEST = 1e6  # metres, radians: far from what float32 cannot hold
_ORTHONORMAL = 1e-3  # float32 poses that were multiplied a while are within 1e-5


@dataclasses.dataclass(frozen=True)
class Field:
  name: str
  kind: tuple[str, ...]  # dtypes of an array; else "uint8" pictures, "str", "int" or "float"
  shape: tuple  # a str is a length that the client chooses
  required: bool
  meaning: str


@dataclasses.dataclass(frozen=True)
class Observation:
  images: list[np.ndarray]
  text: str
  T_base_wrist_2x4x4: np.ndarray  # float64
  joints_2xJ: np.ndarray  # float64
  T_base_camera_4x4: np.ndarray | None
  time_s: float  # of the client's clock
  seed: int
  last: (
    tuple[np.ndarray, np.ndarray] | None
  )  # T_base_wrist [K, 2, 4, 4] and joints [K, 2, J] that are being executed, from the next step on
  frozen: int
  ramp: int

  def request(self, embodiment, has_state) -> Request:
    """What the policy takes; has_state: proprioception too. All is seen from the wrists or from the camera, if that is given: then the
    base frame is the client's own affair."""
    state = executing = None
    if has_state:
      camera = np.eye(4) if self.T_base_camera_4x4 is None else self.T_base_camera_4x4
      state = actions.make_state(camera, self.T_base_wrist_2x4x4, self.joints_2xJ)
    if self.last is not None:
      wrist, joints = self.last
      chunk = Chunk(np.linalg.inv(self.T_base_wrist_2x4x4) @ wrist, joints, ())
      executing = Executing(chunk, self.frozen, self.ramp)
    return Request(self.images, self.text, state, embodiment, self.seed, executing)


def fields(cameras, joints: int, has_camera: bool) -> tuple[Field, ...]:
  """Of a policy. has_camera: it was trained with proprioception that is seen from the camera."""
  return (
    *(Field(IMAGE + name, ("uint8",), ("height", "width", 3), True, "RGB of any size, or the bytes of a JPEG") for name in cameras),
    Field(PROMPT, ("str",), (), True, "the instruction"),
    Field(WRIST, FLOATS, (2, 4, 4), True, "T_base_wrist now, metres"),
    Field(JOINTS, FLOATS, (2, joints), True, "joints now, radians"),
    *([Field(CAMERA, FLOATS, (4, 4), True, "T_base_camera of the first camera, metres; x right, y down, z forward")] if has_camera else []),
    Field(TIME, ("float",), (), False, "seconds, of the client's clock; time_s of the answer counts from it; 0 if absent"),
    Field(SEED, ("int",), (), False, "of the sampled chunk; 0 if absent"),
    Field(LAST_WRIST, FLOATS, ("steps", 2, 4, 4), False, "T_base_wrist of the steps of the last chunk that are left, the next one first"),
    Field(LAST_JOINTS, FLOATS, ("steps", 2, joints), False, "joints of these steps"),
    Field(FROZEN, ("int",), (), False, "how many of them will be over when the answer is there: they come back as they are"),
    Field(RAMP, ("int",), (), False, "further steps that fade from the last chunk to the new one; 0 if absent"),
  )


def read(table: tuple[Field, ...], values, horizon: int) -> Observation:
  """The values of a message -> Observation; UserError naming the field."""
  if not isinstance(values, dict):
    raise UserError(f"message: found {type(values).__name__}, expected the map of an observation")
  names = [field.name for field in table]
  for name in values:
    if name not in names:
      raise UserError(f"{str(name)[:60]}: unknown, expected {', '.join(names)}")
  missing = [field.name for field in table if field.required and field.name not in values]
  if missing:
    raise UserError(f"{missing[0]}: missing")
  found = {field.name: _checked(field, values[field.name]) for field in table if field.name in values}
  images = [value for name, value in found.items() if name.startswith(IMAGE)]
  return Observation(
    images,
    found[PROMPT],
    found[WRIST],
    found[JOINTS],
    found.get(CAMERA),
    found.get(TIME, 0.0),
    found.get(SEED, 0),
    *_executing(found, horizon),
  )


def _executing(found, horizon):
  """-> last, frozen, ramp."""
  given = [name for name in (LAST_WRIST, LAST_JOINTS, FROZEN) if name in found]
  if not given:
    if RAMP in found:
      raise UserError(f"{RAMP}: found without {LAST_WRIST}, {LAST_JOINTS} and {FROZEN}")
    return None, 0, 0
  if len(given) < 3:
    raise UserError(f"{given[0]}: found alone, expected {LAST_WRIST}, {LAST_JOINTS} and {FROZEN} together")
  wrist, joints, frozen, ramp = found[LAST_WRIST], found[LAST_JOINTS], found[FROZEN], found.get(RAMP, 0)
  if len(wrist) != len(joints) or not 1 <= len(wrist) <= horizon:
    raise UserError(f"{LAST_WRIST}: found {len(wrist)} steps and {len(joints)} of joints, expected the same number, 1 to {horizon}")
  if frozen + ramp > len(wrist):
    raise UserError(f"{FROZEN}: found {frozen}, with {RAMP} {ramp}, expected together at most the {len(wrist)} steps of {LAST_WRIST}")
  return (wrist, joints), frozen, ramp


def _checked(field, value):
  if field.name.startswith(IMAGE):
    return _picture(field.name, value)
  if field.kind == ("str",):
    if not isinstance(value, str) or len(value) > CHARACTERS:
      raise UserError(f"{field.name}: found {_told(value)}, expected a string of at most {CHARACTERS} characters")
    return value
  return _array(field, value) if field.kind == FLOATS else _number(field, value)


def _number(field, value):
  """A number, a numpy scalar or an array of one."""
  array = np.asarray(value) if isinstance(value, int | float | np.generic | np.ndarray) and not isinstance(value, bool | np.bool_) else None
  whole = field.kind == ("int",)
  if array is None or array.size != 1 or array.dtype.kind not in ("iu" if whole else "iuf") or not np.isfinite(array).all():
    raise UserError(f"{field.name}: found {_told(value)}, expected {'a whole number' if whole else 'a finite number'}")
  number = array.item()
  if whole and not 0 <= number < 2**32:
    raise UserError(f"{field.name}: found {number}, expected 0 to {2**32 - 1}")
  return number


def _array(field, value):
  shape = value.shape if isinstance(value, np.ndarray) else None
  fits = shape is not None and len(shape) == len(field.shape) and all(isinstance(n, str) or n == m for n, m in zip(field.shape, shape))
  if not fits or value.dtype.name not in field.kind:
    raise UserError(f"{field.name}: found {_told(value)}, expected {' or '.join(field.kind)} [{', '.join(map(str, field.shape))}]")
  with np.errstate(invalid="ignore"):  # NaN with a signal: refused below
    array = value.astype(np.float64)
  good = np.abs(array) <= LARGEST  # of NaN it is not
  if not good.all():
    at = np.argwhere(~good)[0].tolist()
    raise UserError(f"{field.name}: found {array[tuple(at)]} at {at}, expected finite numbers")
  if shape[-2:] == (4, 4):
    _check_poses(field.name, array)
  return array


def _check_poses(name, pose):
  rotation = pose[..., :3, :3]
  off = np.abs(rotation @ rotation.swapaxes(-1, -2) - np.eye(3)).max(initial=0.0)
  turned = np.linalg.det(rotation) > 0
  if not (off < _ORTHONORMAL and turned.all() and (pose[..., 3, :] == (0, 0, 0, 1)).all()):
    raise UserError(f"{name}: found no pose, expected a rotation (off by {off:.2g}), metres, and 0 0 0 1 in the last row")


def _picture(name, value):
  if isinstance(value, bytes):
    try:
      height, width, _, _ = simplejpeg.decode_jpeg_header(value)
      value = simplejpeg.decode_jpeg(value, colorspace="RGB") if height * width <= PIXELS else np.zeros((height, width, 0), np.uint8)
    except ValueError as error:
      raise UserError(f"{name}: found {len(value)} bytes, expected a JPEG: {' '.join(str(error).split())[:100]}") from error
  good = isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3 and value.shape[-1] == 3
  if not (good and min(value.shape[:2]) >= SIDE and value.shape[0] * value.shape[1] <= PIXELS):
    sizes = f"sides of at least {SIDE} and at most {PIXELS} pixels in all"
    raise UserError(f"{name}: found {_told(value)}, expected uint8 [height, width, 3] with {sizes}, or the bytes of a JPEG")
  return value


def _told(value):
  if isinstance(value, np.ndarray):
    return f"{value.dtype} {list(value.shape)}"
  return f"{type(value).__name__} {value!r}"[:80] if isinstance(value, int | float | str | np.generic) else type(value).__name__

"""VITRA-1M (arXiv:2510.21571): hands of Ego4D, EPIC-Kitchens, Ego-Exo4D and Something-Something videos, a pickled `.npy` an episode.

Facts are of the data set's own guide (microsoft/VITRA, data/data.md and visualization/visualize_core.py): `extrinsics` map world to
camera; the picture that `intrinsics` are of is 2 cx x 2 cy pixels large, and the video may be of another size; joints are 21 in metres, in
the order of hands/keypoints.py; `kept_frames` tells where a hand was reconstructed; a text is of one hand and counts the episode's frames.

The video `<video_name>.mp4` (or .MP4, .webm) is looked for beside the annotation, and in `videos/` beside it and beside its folder.
Videos are not part of the data set and have licences of their own.

A pickle may run any code, so nothing of Python's or numpy's own unpickling of objects is used: see Unpickler.
"""

import io
import os
import pickle
import struct
import tokenize

import numpy as np

from egoscale_jax import geometry
from egoscale_jax.data import schema
from egoscale_jax.data.sources import checks, mp4
from egoscale_jax.errors import UserError
from egoscale_jax.hands import keypoints

SOURCE = "vitra"
LICENCE = "MIT (VITRA annotations); the video's own licence beside it"
MAX_BYTES = 500_000_000  # an episode has some 100 kB
VIDEO_ENDS = (".mp4", ".MP4", ".webm")
_ASPECT = 0.05  # K's picture and the video may differ in shape by so much: videos are resized to multiples of 16


def find(directory) -> list[schema.Recording]:
  """Every `*.npy` below the directory, sorted."""
  names = checks.find(directory, ".npy", "episodic_annotations/*.npy and the videos that they name")
  return [schema.Recording(os.path.splitext(name)[0], (os.path.join(directory, name), os.fspath(directory))) for name in names]


def read(recording: schema.Recording, image_size: int) -> schema.Episode:
  """-> Episode in the world frame of the annotation."""
  path, root = recording.files
  info = _load(path)
  T_camera_world = checks.poses(checks.floats(_array(info, "extrinsics", path), (None, 4, 4), path, "extrinsics"), path, "extrinsics")
  num_frames = len(T_camera_world)
  points, confidence = zip(*(_hand(info, side, num_frames, path) for side in keypoints.SIDES))
  spans = tuple(span for side in keypoints.SIDES for span in _spans(info, side, num_frames, path))
  name = checks.field(info, "video_name", str, path)
  start = _start(info, num_frames, path)
  frames = mp4.decode(_video(path, root, name), image_size, start, num_frames)
  camera = schema.View("head", frames.jpeg_F, frames.image_size, _intrinsics(info, frames, path), geometry.se3_inverse(T_camera_world))
  return schema.Episode(
    **schema.human(num_frames) | schema.views(camera),
    id=recording.id,
    source=SOURCE,
    licence=LICENCE,
    person="",
    scene=checks.text(name),  # episodes of one video show one place
    text=_text(info, spans, path),
    spans=tuple(schema.Span(s.text, s.start_s / frames.rate_hz, s.end_s / frames.rate_hz, s.side) for s in spans),
    rate_hz=frames.rate_hz,
    frame=schema.Frame.WORLD,
    keypoints_Fx2xPx3=np.stack(points, axis=1),
    confidence_Fx2xP=np.stack(confidence, axis=1),
  )


class Array:
  """Stands for numpy's ndarray in the pickle: its state is read here, as bytes of numbers or a list, and by nobody else."""

  value = None

  def __setstate__(self, state):
    _, shape, dtype, fortran, data = state
    if not isinstance(dtype, Dtype) or not all(type(n) is int and 0 <= n < 2**40 for n in shape):
      raise pickle.UnpicklingError("an array with an odd state")
    if dtype.name == "O":
      if not isinstance(data, list) or len(data) != int(np.prod(shape, dtype=np.int64)):
        raise pickle.UnpicklingError("an array of objects with an odd state")
      self.value = data
    else:
      self.value = np.frombuffer(bytes(data), np.dtype(dtype.name)).reshape(shape, order="F" if fortran else "C")


class Dtype:
  """Stands for numpy's dtype: numbers, booleans, texts and objects alone."""

  def __init__(self, name, *_):
    if not isinstance(name, str) or name[:1] not in "fiubUO" or not name[1:].isdigit():
      raise pickle.UnpicklingError(f"an array of {name!r:.40}")
    self.name = "O" if name[0] == "O" else name

  def __setstate__(self, state):
    if state[1] == ">" and self.name != "O":
      self.name = ">" + self.name


def _scalar(dtype, data):
  return np.frombuffer(data, np.dtype(dtype.name))[0].item()


def _from_buffer(data, dtype, shape, order, axis_order=None):
  """What newer numpy writes with pickle protocol 5."""
  array = Array()
  array.__setstate__((1, tuple(shape), dtype, order == "F", data))
  if order == "K":
    array.value = array.value.transpose(axis_order)
  return array


_NUMPY = {"ndarray": Array, "dtype": Dtype, "_reconstruct": lambda *_: Array(), "scalar": _scalar, "_frombuffer": _from_buffer}
_MODULES = ("numpy", *(f"numpy.{core}.{module}" for core in ("core", "_core") for module in ("multiarray", "numeric")))
# Pickle's instructions that build objects in other ways, ask for extensions or for what is outside of the file.
_REFUSED = ["INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"]


class _Admitted(dict):
  """Pickle's instructions by their number."""

  def __missing__(self, number):
    raise pickle.UnpicklingError(f"it holds the pickle instruction {number}, which is not admitted")


class Unpickler(pickle._Unpickler):
  """Admits numbers, texts, lists, tuples, dicts, sets and numpy arrays of these.

  Python's own implementation and not C's, which allocates a table as large as an index in the file says.
  """

  dispatch = _Admitted({op: f for op, f in pickle._Unpickler.dispatch.items() if op not in {getattr(pickle, name)[0] for name in _REFUSED}})

  def load_bytearray8(self):
    """Pickle's own allocates the length that the file claims before it reads."""
    self.append(self.read(min(struct.unpack("<Q", self.read(8))[0], MAX_BYTES)))

  dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

  def find_class(self, module, name):
    if module in _MODULES and name in _NUMPY:
      return _NUMPY[name]
    raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is neither an array nor a plain container")


_CORRUPT = (OSError, ValueError, KeyError, EOFError, IndexError, TypeError, AttributeError, OverflowError, MemoryError, RecursionError)
_CORRUPT += (
  pickle.UnpicklingError,
  struct.error,
  tokenize.TokenError,
  SyntaxError,
  AssertionError,
)  # each seen from pickle or numpy on files with some bytes changed


def _load(path) -> dict:
  """The one dict that the .npy holds."""
  checks.readable(path)
  if os.path.getsize(path) > MAX_BYTES:
    raise UserError(f"{path}: {os.path.getsize(path)} bytes, expected at most {MAX_BYTES}")
  with open(path, "rb") as file:
    content = io.BytesIO(file.read())
  try:
    version = np.lib.format.read_magic(content)
    if version not in ((1, 0), (2, 0)):
      raise UserError(f"{path}: .npy of version {version[0]}.{version[1]}, expected 1.0 or 2.0")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(content)
    if shape != () or dtype.kind != "O":
      raise UserError(f"{path}: holds an array of {dtype} and shape {shape}, expected one dict of VITRA")
    info = Unpickler(content).load()
  except _CORRUPT as error:
    raise UserError(f"{path}: not a readable VITRA annotation: {checks.one_line(error)}") from error
  info = info.value if isinstance(info, Array) else info
  info = info[0] if isinstance(info, list) and len(info) == 1 else info
  if not isinstance(info, dict):
    raise UserError(f"{path}: holds a {type(info).__name__}, expected one dict of VITRA")
  return info


def _array(mapping, name, path):
  value = mapping.get(name)
  if not isinstance(value, Array | list | tuple) or (isinstance(value, Array) and value.value is None):
    raise UserError(f"{path}: {name} {'is missing' if name not in mapping else 'is no array'}")
  return value.value if isinstance(value, Array) else value


def _hand(info, side, num_frames, path):
  """-> points [F, 21, 3] in the world and confidence [F, 21]: 1 where the hand was kept, NaN and 0 where not, or where there is no hand."""
  if not info.get(side):
    return checks.keypoints(schema.missing(num_frames, 21, 3))
  hand = checks.field(info, side, dict, path)
  kept_F = checks.floats(_array(hand, "kept_frames", path), (num_frames,), path, f"{side}/kept_frames") != 0
  name = f"{side}/joints_worldspace"
  points = checks.floats(_array(hand, "joints_worldspace", path), (num_frames, 21, 3), path, name)
  return checks.keypoints(np.where(kept_F[:, None, None], points, np.nan))


def _spans(info, side, num_frames, path):
  """[(text, (first frame, last))] -> Spans that still count frames."""
  entries = checks.field(info, "text", dict, path).get(side) or []
  for entry in entries if isinstance(entries, list | tuple) else [entries]:
    if not (isinstance(entry, list | tuple) and len(entry) == 2 and isinstance(entry[0], str)):
      raise UserError(f"{path}: text/{side} holds {entry!r:.60}, expected (text, (first frame, last frame))")
    start, end = (0, num_frames) if entry[1] is None else checks.floats(entry[1], (2,), path, f"text/{side}")
    if not 0 <= start <= end <= num_frames:
      raise UserError(f"{path}: text/{side} is of the frames {start:g} to {end:g}, expected them within 0 to {num_frames}")
    if checks.text(entry[0]):
      yield schema.Span(checks.text(entry[0]), float(start), float(max(end, start + 1)), side)


def _text(info, spans, path):
  """What the hands do, of the one that the episode was cut for first: `anno_type` tells it."""
  if not spans:
    raise UserError(f"{path}: no language text: text is empty for both hands")
  primary = info.get("anno_type") if info.get("anno_type") in keypoints.SIDES else spans[0].side
  order = sorted({s.side for s in spans}, key=lambda side: side != primary)
  return " ".join(f"{side.capitalize()} hand: {' '.join(s.text for s in spans if s.side == side)}" for side in order)


def _start(info, num_frames, path) -> int:
  numbers = checks.floats(_array(info, "video_decode_frame", path), (num_frames,), path, "video_decode_frame")
  start = numbers[0] if num_frames else 0
  if not (0 <= start < checks.MAX_FRAMES and np.array_equal(numbers, start + np.arange(num_frames))):
    raise UserError(f"{path}: video_decode_frame does not count {num_frames} frames of the video, one after the other")
  return int(start)


def _video(path, root, name):
  """The video's path; a name that leads out of the folder is refused."""
  stem = os.path.splitext(name)[0] if name.endswith(VIDEO_ENDS) else name
  here = os.path.dirname(path)
  folders = [here, os.path.join(here, "videos"), os.path.join(os.path.dirname(here), "videos"), os.path.join(root, "videos"), root]
  for folder in folders:
    for end in VIDEO_ENDS:
      full = checks.inside(folder, stem + end, path, "video_name")
      if os.path.exists(full):
        return full
  raise UserError(f"{path}: its video {stem}.mp4 is not beside it, nor in videos/ beside it or its folder")


def _intrinsics(info, frames, path):
  """K of a picture of 2 cx x 2 cy pixels, scaled to the video's size."""
  k_3x3 = checks.intrinsics(_array(info, "intrinsics", path), path, "intrinsics")
  width, height = 2 * k_3x3[:2, 2]
  if not (width > 1 and height > 1):
    raise UserError(f"{path}: intrinsics has its principal point at ({width / 2:.1f}, {height / 2:.1f}), expected the centre of a picture")
  scale = np.array([frames.size[0] / width, frames.size[1] / height])
  if abs(scale[0] / scale[1] - 1) > _ASPECT:
    raise UserError(f"{path}: intrinsics are of a {width:.0f} x {height:.0f} picture, the video is {frames.size[0]} x {frames.size[1]}")
  return mp4.scale_intrinsics(np.diag([*scale, 1.0]) @ k_3x3, frames, path, "intrinsics", corner=0.5)

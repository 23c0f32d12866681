"""Keypoints of any estimator: `<name>.npz` beside `<name>.mp4`, for users of HaMeR, WiLoR, HaWoR, MediaPipe or a tracker of their own.

Arrays of the .npz, written by np.savez without objects (F frames, as many as the video has; left hand first; missing is NaN, never 0):

  version         1
  keypoints       [F, 2, 21, 3] metres: wrist, then thumb, index, middle, ring, little, each from base to tip (MANO's and MediaPipe's order)
  frame           "world": keypoints are in a frame that stands still in the room; "camera": in the camera's (x right, y down, z forward)
  T_world_camera  [F, 4, 4] the camera's pose, which maps camera to world. Needed for "world". With "camera" it takes the keypoints to the
                  world; a camera on a tripod has F times the identity. "camera" without it can be looked at, but makes no labels.
  intrinsics      [3, 3] pinhole, pixels of the video as it is on disk, the centre of the first pixel at (0, 0)
  text            what is done, a sentence
 and where there are any:
  confidence      [F, 2, 21] or [F, 2], 0 to 1
  span_text [N], span_s [N, 2]   finer texts and their start and end in seconds
  person, scene, licence, estimator   texts; without `scene` a recording is a scene of its own

  np.savez("pour.npz", version=1, keypoints=points, frame="camera", T_world_camera=np.tile(np.eye(4), (len(points), 1, 1)),
           intrinsics=[[600, 0, 319.5], [0, 600, 239.5], [0, 0, 1]], text="Pour the tea.", licence="CC BY 4.0")
"""

import os
import tokenize
import zipfile
import zlib

import numpy as np

from egoscale_jax import geometry
from egoscale_jax.data import schema
from egoscale_jax.data.sources import checks, mp4
from egoscale_jax.errors import UserError

SOURCE = "landmarks"
LICENCE = "not told by the recording"
VERSION = 1
MAX_BYTES = 4_000_000_000  # unpacked; a zip's header may claim, and its content expand to, any size

CORRUPT = (
  OSError,
  ValueError,
  KeyError,
  EOFError,
  zipfile.BadZipFile,
  zlib.error,
  NotImplementedError,
  MemoryError,
  RuntimeError,
  SyntaxError,
  tokenize.TokenError,  # of a damaged header
)


def find(directory) -> list[schema.Recording]:
  """Every `*.npz` below the directory, sorted; one without an mp4 beside it is found too, and read() refuses it."""
  names = checks.find(directory, ".npz", "<name>.npz with <name>.mp4 beside it")
  stems = [os.path.splitext(name)[0] for name in names]
  return [schema.Recording(stem, tuple(os.path.join(directory, stem + end) for end in (".npz", ".mp4"))) for stem in stems]


def read(recording: schema.Recording, image_size: int) -> schema.Episode:
  """-> Episode in the world where the camera's pose is known, else in the camera's frame; UserError for all else that is wrong."""
  path, mp4_path = recording.files
  arrays = _load(path)
  frame = _frame(arrays, path)
  points_Fx2x21x3 = checks.floats(_get(arrays, "keypoints", path), (None, 2, 21, 3), path, "keypoints")
  num_frames = len(points_Fx2x21x3)
  _no_zeros(points_Fx2x21x3, path)
  if not os.path.exists(mp4_path):
    raise UserError(f"{mp4_path}: missing: {os.path.basename(path)} has no video beside it")
  frames = mp4.decode(mp4_path, image_size)
  if len(frames.jpeg_F) != num_frames:
    raise UserError(f"{path}: keypoints has {num_frames} frames, expected {len(frames.jpeg_F)} as {os.path.basename(mp4_path)} has")
  T_world_camera = _camera(arrays, path, num_frames, frame)
  if frame is schema.Frame.CAMERA and "T_world_camera" in arrays:
    points_Fx2x21x3 = geometry.transform(T_world_camera[:, None].astype(np.float64), points_Fx2x21x3)
    frame = schema.Frame.WORLD
  points, confidence = checks.keypoints(points_Fx2x21x3, _confidence(arrays, path, num_frames))
  k_3x3 = mp4.scale_intrinsics(_get(arrays, "intrinsics", path), frames, path, "intrinsics")
  return schema.Episode(
    **schema.human(num_frames) | schema.views(schema.View("head", frames.jpeg_F, frames.image_size, k_3x3, T_world_camera)),
    id=recording.id,
    source=SOURCE,
    licence=_text(arrays, "licence", path) or LICENCE,
    person=_text(arrays, "person", path),
    scene=_text(arrays, "scene", path) or recording.id,
    text=_text(arrays, "text", path, needed=True),
    spans=_spans(arrays, path),
    rate_hz=frames.rate_hz,
    frame=frame,
    keypoints_Fx2xPx3=points,
    confidence_Fx2xP=confidence,
  )


def _load(path):
  """All arrays of the file; no pickled object is ever read."""
  checks.readable(path)
  try:
    with zipfile.ZipFile(path) as archive:
      size = sum(info.file_size for info in archive.infolist())
    if size > MAX_BYTES:
      raise UserError(f"{path}: unpacks to {size} bytes, expected at most {MAX_BYTES}")
    with np.load(path, allow_pickle=False) as archive:
      arrays = {name: archive[name] for name in archive.files}
  except CORRUPT as error:
    raise UserError(f"{path}: not a readable .npz of plain arrays: {checks.one_line(error)}") from error
  foreign = sorted(name for name, value in arrays.items() if not isinstance(value, np.ndarray))
  if foreign:
    raise UserError(f"{path}: {foreign[0]!r:.60} is no array")
  version = _get(arrays, "version", path)
  if np.shape(version) != () or version != VERSION:
    raise UserError(f"{path}: version is {checks.one_line(version)}, expected {VERSION}, the one that this reader knows")
  return arrays


def _get(arrays, name, path):
  if name not in arrays:
    raise UserError(f"{path}: {name} is missing")
  return arrays[name]


def _frame(arrays, path):
  told = _text(arrays, "frame", path)
  if told not in (schema.Frame.WORLD, schema.Frame.CAMERA):
    found = f"is {told!r:.40}" if "frame" in arrays else "is missing"
    raise UserError(f'{path}: frame {found}, expected "world" or "camera": without it nobody knows where the keypoints are')
  return schema.Frame(told)


def _camera(arrays, path, num_frames, frame):
  """[F, 4, 4]; the identity where the frame is the camera's own."""
  if "T_world_camera" not in arrays:
    if frame is schema.Frame.WORLD:
      raise UserError(f'{path}: T_world_camera is missing, expected it since frame is "world"')
    return np.tile(np.eye(4, dtype=np.float32), (num_frames, 1, 1))
  pose = checks.floats(arrays["T_world_camera"], (num_frames, 4, 4), path, "T_world_camera")
  return checks.poses(pose, path, "T_world_camera")


def _confidence(arrays, path, num_frames):
  if "confidence" not in arrays:
    return None
  given = arrays["confidence"]
  whole_hand = np.ndim(given) == 2
  confidence = checks.floats(given, (num_frames, 2) if whole_hand else (num_frames, 2, 21), path, "confidence")
  outside = (confidence < 0) | (confidence > 1)  # NaN is neither
  if outside.any():
    raise UserError(f"{path}: confidence is {confidence[outside][0]:.3g} at frame {np.argwhere(outside)[0][0]}, expected 0 to 1")
  return np.repeat(confidence[..., None], 21, axis=2) if whole_hand else confidence


def _no_zeros(points_Fx2x21x3, path):
  zero_Fx2 = (points_Fx2x21x3 == 0).all(axis=(2, 3))
  if zero_Fx2.any():
    frame, side = np.argwhere(zero_Fx2)[0]
    raise UserError(f"{path}: keypoints are all 0 at frame {frame}, {('left', 'right')[side]} hand, expected NaN where a hand is missing")


def _text(arrays, name, path, needed=False):
  value = arrays.get(name, np.array(""))
  if value.shape != () or value.dtype.kind not in "US":
    raise UserError(f"{path}: {name} is {value.dtype} of shape {value.shape}, expected one text")
  text = checks.text(value.item())
  if needed and not text:
    raise UserError(f"{path}: {name} is missing or empty")
  return text


def _spans(arrays, path):
  if "span_text" not in arrays:
    return ()
  texts = np.atleast_1d(arrays["span_text"])
  if texts.dtype.kind not in "US" or texts.ndim != 1:
    raise UserError(f"{path}: span_text is {texts.dtype} of shape {texts.shape}, expected texts [N]")
  times = checks.floats(_get(arrays, "span_s", path), (len(texts), 2), path, "span_s")
  if not (np.isfinite(times).all() and (times[:, 0] < times[:, 1]).all()):
    raise UserError(f"{path}: span_s holds a span that does not end after it starts")
  return tuple(schema.Span(checks.text(t), float(a), float(b)) for t, (a, b) in zip(texts.tolist(), times))

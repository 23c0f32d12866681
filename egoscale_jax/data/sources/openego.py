"""OpenEgo (physicalinc/openego): a folder an episode with `joints.hdf5`, `annotation.json`, `metadata.hdf5` and, if there, `video.mp4`.

The videos are those of the data sets that OpenEgo took its episodes from, and do not come with it: without one the hands are read alone,
with the rate and the size of the pictures from `metadata.hdf5`.

`joints.hdf5`: `left_hand`, `right_hand` [F, 21, 3] metres in the frame of the camera, whose own pose is not there: such an episode can be
looked at, and makes no labels (doctor.py). `<side>_visibility` [F], `intrinsics` [3, 3].

The order of the joints is measured and not read: `joint_names` of the HO-Cap episodes is a list with three joints of the thumb and a palm
centre, while the lengths of the bones show four and no palm (wrist, then five fingers of four, as hands/keypoints.py); episodes made from
EgoDex are shifted by a joint. So both orders are tried on the lengths of a human hand, and an episode that fits neither is refused.
"""

import os

import numpy as np

from egoscale_jax.data import schema
from egoscale_jax.data.sources import checks, hdf5, mp4
from egoscale_jax.errors import UserError
from egoscale_jax.hands import keypoints

SOURCE = "openego"
LICENCE = "of the data set that OpenEgo took the episode from"
# Place in the file of each of our keypoints; -1: not there. The second is what `joint_names` says: no base of the thumb, a palm last.
ORDERS = {"of hands/keypoints.py": tuple(range(21)), "of joint_names": (0, -1, *range(1, 20))}
# Metres, generous: wrist to each knuckle, and the three bones of a finger from the knuckle on (the thumb's first from its base).
_PALM, _BONE = (0.05, 0.13), (0.010, 0.065)


def find(directory) -> list[schema.Recording]:
  """Every folder with a `joints.hdf5`, sorted."""
  names = [os.path.dirname(name) for name in checks.find(directory, "joints.hdf5", "<episode>/joints.hdf5 with video.mp4 beside it")]
  files = ("joints.hdf5", "video.mp4", "annotation.json", "metadata.hdf5")
  return [schema.Recording(name or ".", tuple(os.path.join(directory, name, file) for file in files)) for name in names]


def read(recording: schema.Recording, image_size: int) -> schema.Episode:
  """-> Episode in the frame of the camera."""
  path, mp4_path, annotation_path, metadata_path = recording.files
  checks.readable(path)
  try:
    with hdf5.opened(path) as file:
      hands = [_hand(file, side, path) for side in keypoints.SIDES]
      k_3x3 = _array(file, "intrinsics", (3, 3), path)
  except hdf5.CORRUPT as error:
    raise UserError(f"{path}: not a readable HDF5 file: {checks.one_line(error)}") from error
  if len(hands[0]) != len(hands[1]):
    raise UserError(f"{path}: left_hand has {len(hands[0])} frames and right_hand {len(hands[1])}, expected the same")
  num_frames = len(hands[0])
  points, confidence = checks.keypoints(_ordered(np.stack(hands, axis=1), path))
  text, spans = _texts(annotation_path)
  there = os.path.exists(mp4_path)
  frames = mp4.decode(mp4_path, image_size) if there else _without_video(metadata_path, num_frames, image_size)
  if len(frames.jpeg_F) != num_frames:
    raise UserError(f"{mp4_path}: {len(frames.jpeg_F)} frames, expected {num_frames} as joints.hdf5 has")
  still = np.tile(np.eye(4, dtype=np.float32), (num_frames, 1, 1))  # the camera seen from itself
  k_3x3 = mp4.scale_intrinsics(k_3x3, frames, path, "intrinsics")
  return schema.Episode(
    **schema.human(num_frames) | schema.views(schema.View("head", frames.jpeg_F, frames.image_size, k_3x3, still)),
    id=recording.id,
    source=SOURCE,
    licence=LICENCE,
    person="",
    scene=recording.id,
    text=text,
    spans=spans,
    rate_hz=frames.rate_hz,
    frame=schema.Frame.CAMERA,
    keypoints_Fx2xPx3=points,
    confidence_Fx2xP=confidence,
  )


def _without_video(path, num_frames, image_size) -> mp4.Frames:
  """Pictures that are not there, of the rate and the size that the metadata tells."""
  checks.readable(path)
  try:
    with hdf5.opened(path) as file:
      told = {name: hdf5.array(file, path, name) for name in ("fps", "width", "height")}
  except hdf5.CORRUPT as error:
    raise UserError(f"{path}: not a readable HDF5 file: {checks.one_line(error)}") from error
  fps, width, height = (checks.number(value.item() if value.size == 1 else None, 1, 1e4, path, name) for name, value in told.items())
  return mp4.Frames((b"",) * num_frames, fps, (int(width), int(height)), mp4.fit(int(width), int(height), image_size))


def _array(file, name, shape, path):
  return checks.floats(hdf5.array(file, path, name), shape, path, name)


def _hand(file, side, path):
  """[F, 21, 3], NaN where the hand is not visible; the file has zeros there."""
  points = _array(file, f"{side}_hand", (None, 21, 3), path)
  seen_F = _array(file, f"{side}_hand_visibility", (len(points),), path) > 0
  return np.where((seen_F & (points != 0).any(axis=(1, 2)))[:, None, None], points, np.nan)


def _ordered(points_Fx2x21x3, path):
  """The points in our order; UserError where the lengths fit neither of the two orders that are known."""
  fitting = []
  for places in ORDERS.values():
    padded = np.concatenate([points_Fx2x21x3, np.full_like(points_Fx2x21x3[:, :, :1], np.nan)], axis=2)  # place -1
    ordered = padded[:, :, list(places)]
    if _fits(ordered):
      fitting.append(ordered)
  if not np.isfinite(points_Fx2x21x3).any():
    raise UserError(f"{path}: neither hand is visible at any frame")
  if len(fitting) != 1:
    raise UserError(f"{path}: the joints' distances are those of no human hand in metres, in neither order known: {', '.join(ORDERS)}")
  return fitting[0]


def _fits(points_Fx2x21x3) -> bool:
  """Whether the median bones of each hand that is there are a human's: knuckles one palm from the wrist, short bones beyond them."""
  for side in range(2):
    points_Fx21x3 = points_Fx2x21x3[:, side]
    points_Fx21x3 = points_Fx21x3[np.isfinite(points_Fx21x3[:, keypoints.WRIST]).all(axis=1)]
    if not len(points_Fx21x3):
      continue
    palm = np.median(np.linalg.norm(points_Fx21x3[:, list(keypoints.KNUCKLES)] - points_Fx21x3[:, :1], axis=-1), axis=0)
    bones = [(a, b) for a, b in keypoints.BONES if a and np.isfinite(points_Fx21x3[:, [a, b]]).all()]
    length = np.array([np.median(np.linalg.norm(points_Fx21x3[:, b] - points_Fx21x3[:, a], axis=-1)) for a, b in bones])
    if not ((palm > _PALM[0]) & (palm < _PALM[1])).all() or not ((length > _BONE[0]) & (length < _BONE[1])).all():
      return False
  return True


def _texts(path):
  """-> (the task, the actions as Spans)."""
  content = checks.read_json(path)
  text = checks.text(checks.field(content, "task", str, path))
  spans = []
  for action in checks.field(content, "actions", list, path) if "actions" in content else []:
    if not isinstance(action, dict):
      raise UserError(f"{path}: actions holds {action!r:.60}, expected an object")
    start, end = (checks.number(action.get(f"{n}_timestamp"), 0, 1e6, path, f"actions/{n}_timestamp") for n in ("start", "end"))
    actors = [side for side in keypoints.SIDES if f"{side}_hand" in str(action.get("actors"))]
    label = checks.text(action.get("label"))
    if label and start < end:
      spans.append(schema.Span(label, start, end, actors[0] if len(actors) == 1 else ""))
  if not text:
    raise UserError(f"{path}: no language text: task is empty")
  return text, tuple(spans)

"""Plain video, without any label: `<name>.mp4`, and one `video.json` that tells of the camera and of whose hands these are. Labels of low
quality (docs/video.md says how low): MediaPipe finds the hands, the size of the person's hand gives the distance. The doctor warns of every
such episode (`monocular`), and its confidences are at most CONFIDENCE. Better estimators (HaMeR, WiLoR, HaWoR) go through `landmarks`.

video.json beside the videos, or --columns=FILE; paths in it are relative to it:

  "model": "hand_landmarker.task"     MediaPipe's model, which its package does not bring (sources/landmarker.py: where it is documented)
  "palm_m": 0.09                      metres from the crease of the wrist to the knuckle of the middle finger, measured on the person
  "intrinsics": [fx, fy, cx, cy]      pinhole, pixels of the video as it is on disk, the centre of the first pixel at (0, 0); or
  "horizontal_fov_deg": 78.0          the angle that the picture's width spans, its centre in the middle, pixels square
  "camera": "still"                   on a tripod; or "poses": <name>.npy beside each video, [F, 4, 4], which maps camera (x right, y down,
                                      z forward) to world. Left out: nobody knows how it moved, the hands can be looked at and label nothing
  "text": "Pour the tea."             what is done; needed
  "person", "scene", "licence"        without `scene` a video is a scene of its own
  "videos": {"kitchen/pour": {"text": "Pour the tea.", "palm_m": 0.081}}     of one video, by its name without .mp4: any of these but model

A hand that is not found, is not sure to be a left or a right one (MIN_SCORE), or fits nowhere in front of the camera is missing.
"""

import os
import tokenize

import numpy as np

from egoscale_jax import geometry
from egoscale_jax.data import schema
from egoscale_jax.data.sources import checks, landmarker, monocular, mp4
from egoscale_jax.errors import UserError

SOURCE = "video"
LICENCE = "not told by the video"
FILE = "video.json"
# A score is how sure MediaPipe is that the hand is a left or a right one. In five EgoDex episodes 82 of 1319 hands lie nearer to the
# person's other hand; from 0.8 on 47 of 1208, from 0.9 on 10 of 1029.
MIN_SCORE = 0.8
CONFIDENCE = 0.5  # times the score: below a headset's tracker (0.5 to 0.64 in EgoDex), above check_hand.MIN_CONFIDENCE
PALM_METRES = (0.04, 0.2)  # as check_hand has it
_TEXTS = ("text", "person", "scene", "licence")
_OF_VIDEO = {*_TEXTS, "intrinsics", "horizontal_fov_deg", "camera", "palm_m"}
_LENS = ("intrinsics", "horizontal_fov_deg")
# What np.load raises for damaged files; a Warning only where warnings are errors.
CORRUPT = (OSError, ValueError, EOFError, SyntaxError, OverflowError, TypeError, KeyError, MemoryError, tokenize.TokenError, Warning)
_CAMERAS = ("still", "poses")


def find(directory, config_path="") -> list[schema.Recording]:
  """Every `*.mp4` below the directory, sorted; UserError for what is wrong with the config, before any video is opened."""
  names = [name.removesuffix(".mp4") for name in checks.find(directory, ".mp4", "<name>.mp4")]
  path = os.fspath(config_path) or os.path.join(directory, FILE)
  config = _load(path)
  unknown = sorted(set(config.get("videos", {})) - set(names))
  if unknown:
    raise UserError(f"{path}: videos names {unknown[0]!r:.80}, expected one of those below {directory}, as {names[0]!r:.80}")
  found = []
  for name in names:
    stem = os.path.join(directory, name)
    poses = (f"{stem}.npy",) if _told(config, name, path).get("camera") == "poses" else ()
    found.append(schema.Recording(name, (f"{stem}.mp4", path, *poses)))
  return found


def read(recording: schema.Recording, image_size: int, estimate=landmarker.estimate) -> schema.Episode:
  """-> Episode in the world where the camera stands still or its poses are given, else in the camera's frame.

  estimate(mp4 path, model path, mp4.Frames) -> monocular.Marks.
  """
  path, config_path, *poses_path = recording.files
  config = _load(config_path)
  told = _told(config, recording.id, config_path)
  checks.readable(path)
  frames = mp4.decode(path, image_size)
  k_3x3 = _intrinsics(told, frames, config_path)
  small_k_3x3 = mp4.scale_intrinsics(k_3x3, frames, config_path, "intrinsics")
  T_world_camera = _camera(poses_path, len(frames.jpeg_F))
  points_Fx2x21x3, confidence_Fx2 = _hands(estimate(path, _model(config, config_path), frames), k_3x3, told["palm_m"], frames.rate_hz, path)
  points, confidence = checks.keypoints(
    geometry.transform(T_world_camera[:, None].astype(np.float64), points_Fx2x21x3), np.repeat(confidence_Fx2[..., None], 21, axis=2)
  )
  return schema.Episode(
    **schema.human(len(frames.jpeg_F)) | schema.views(schema.View("head", frames.jpeg_F, frames.image_size, small_k_3x3, T_world_camera)),
    id=recording.id,
    source=SOURCE,
    licence=checks.text(told.get("licence")) or LICENCE,
    person=checks.text(told.get("person")),
    scene=checks.text(told.get("scene")) or recording.id,
    text=checks.text(told["text"]),
    spans=(),
    rate_hz=frames.rate_hz,
    frame=schema.Frame.WORLD if "camera" in told else schema.Frame.CAMERA,
    keypoints_Fx2xPx3=points,
    confidence_Fx2xP=confidence,
  )


def _load(path) -> dict:
  """The config, its keys and the model's file checked."""
  if not os.path.exists(path):
    raise UserError(f"{path}: no such file, expected a JSON with model, palm_m, intrinsics, camera, text: see data/sources/video.py")
  config = checks.read_json(path)
  _known(config, {"model", "videos"} | _OF_VIDEO, path, "")
  for name, part in checks.field({"videos": {}} | config, "videos", dict, path).items():
    checks.field({name: part}, name, dict, path, "videos/")
    _known(part, _OF_VIDEO, path, f"videos/{name}/")
  _model(config, path)
  return config


def _known(mapping, keys, path, where):
  unknown = [key for key in mapping if key not in keys]
  if unknown:
    raise UserError(f"{path}: unknown key {where}{unknown[0]}, expected one of {', '.join(sorted(keys))}")


def _model(config, path) -> str:
  if "model" not in config:
    raise UserError(f"{path}: model is missing, expected the path of MediaPipe's hand_landmarker.task ({landmarker.DOCUMENTED})")
  model = os.path.join(os.path.dirname(path), checks.field(config, "model", str, path))
  if not os.path.isfile(model):
    raise UserError(f"{model}: no such model, expected MediaPipe's hand_landmarker.task ({landmarker.DOCUMENTED})")
  return model


def _told(config, name, path) -> dict:
  """What the config says of one video: its own part over the rest, every value checked but those that need the picture."""
  part = config.get("videos", {}).get(name, {})
  lens = {key for key in _LENS if key in part}  # one of them takes the other's place
  told = {key: value for key, value in config.items() if key in _OF_VIDEO and not (lens and key in _LENS)} | part
  where = f"videos/{name}/" if part else ""
  for key in _TEXTS:
    if key in told:
      checks.field(told, key, str, path, where)
  if not checks.text(told.get("text")):
    raise UserError(f"{path}: {where}text is missing or empty, expected what is done in {name}")
  if "palm_m" not in told:
    raise UserError(
      f"{path}: palm_m is missing, expected metres from wrist to middle knuckle: one camera cannot tell a small hand from a far one"
    )
  checks.number(told["palm_m"], *PALM_METRES, path, f"{where}palm_m")
  if "camera" in told and told["camera"] not in _CAMERAS:
    raise UserError(
      f'{path}: {where}camera is {told["camera"]!r:.40}, expected "still" or "poses", or none where nobody knows how it moved'
    )
  given = [key for key in _LENS if key in told]
  if len(given) != 1:
    raise UserError(
      f"{path}: {where}{' and '.join(given) or 'intrinsics'} {'are both there' if given else 'is missing'}, expected {' or '.join(_LENS)}"
    )
  return told


def _intrinsics(told, frames, path) -> np.ndarray:
  """K of the video as it is on disk."""
  width, height = frames.size
  if "intrinsics" in told:
    fx, fy, cx, cy = checks.floats(told["intrinsics"], (4,), path, "intrinsics")
  else:
    fov = np.radians(checks.number(told["horizontal_fov_deg"], 10, 170, path, "horizontal_fov_deg"))
    fx = fy = width / 2 / np.tan(fov / 2)
    cx, cy = (width - 1) / 2, (height - 1) / 2
  return checks.intrinsics([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], path, "intrinsics")


def _camera(poses_path, num_frames) -> np.ndarray:
  """[F, 4, 4]; the identity where it stands still, and where the frame is its own."""
  if not poses_path:
    return np.tile(np.eye(4, dtype=np.float32), (num_frames, 1, 1))
  (path,) = poses_path
  checks.readable(path)
  try:
    mapped = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: a header may claim any size
    pose = checks.floats(mapped, (num_frames, 4, 4), path, "camera poses")
  except CORRUPT as error:
    raise UserError(f"{path}: no .npy of plain numbers: {checks.one_line(error)}") from error
  return checks.poses(pose, path, "camera poses")


def _hands(marks, k_3x3, palm_m, rate_hz, path):
  """-> points [F, 2, 21, 3] in the camera and confidence [F, 2]; UserError where the whole video has none."""
  sure_Fx2 = marks.score_Fx2 >= MIN_SCORE
  pixel = np.where(sure_Fx2[..., None, None], marks.pixel_Fx2x21x2, np.nan)
  points = monocular.place(monocular.Marks(pixel, marks.depth_Fx2x21, marks.score_Fx2), k_3x3, palm_m, rate_hz)
  if not np.isfinite(points).any():
    found = f"found {(marks.score_Fx2 > 0).sum()} hands, {sure_Fx2.sum()} of them sure, none that fits"
    raise UserError(f"{path}: no hand in {len(points)} frames ({found}), expected a person's hands in the picture")
  return points, CONFIDENCE * marks.score_Fx2

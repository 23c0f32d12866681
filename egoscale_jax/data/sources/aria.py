"""Project Aria with Machine Perception Services: hands and headset as csv, pictures as an mp4 that the user makes of the VRS file.

  mps_<name>_vrs/hand_tracking/hand_tracking_results.csv   21 landmarks a hand, metres, in the frame of the device; confidence -1 is no hand
  mps_<name>_vrs/slam/closed_loop_trajectory.csv           the device in the world, about 1 kHz, quaternions in the order of the columns
  mps_<name>_vrs/slam/online_calibration.jsonl             the cameras on the device; pinhole or Aria's fisheye (FisheyeRadTanThinPrism)
  <name>.mp4, <name>.json                                  beside that folder; for a folder of another name: <folder>.mp4, <folder>.json

VRS is read by projectaria_tools alone (its `vrs_to_mp4` makes the mp4). The json tells what an mp4 cannot:

  {"timestamps_us": [..], "text": "Pour the tea."}         the device's time of every frame, and what is done; and where they apply
  "camera": "camera-rgb"    its label in the calibration   "rotated": 90 where the pictures were turned clockwise by so many degrees
  "intrinsics": [fx, fy, cx, cy]  of pictures that were made pinhole already; without it the calibration's lens is undone here
  "person", "scene", "licence"

The Episode has the rate of the hands. Facts are of the MPS documentation (facebookresearch.github.io/projectaria_tools) and its readers.

HOT3D's sequences (<sequence>/mps/slam, then <sequence>/mps.mp4 and mps.json) are read so where hand tracking of MPS was run on their VRS.
Their own hands are not: mano_hand_pose_trajectory.jsonl needs the MANO model, whose licence lets nobody pass it on, and
umetrack_hand_pose_trajectory.jsonl the skinned hand in umetrack_hand_user_profile.json.
"""

import json
import os
import warnings

import numpy as np

from egoscale_jax import geometry
from egoscale_jax.data import schema
from egoscale_jax.data.sources import checks, fisheye, mp4
from egoscale_jax.errors import UserError
from egoscale_jax.hands import keypoints

SOURCE = "aria"
LICENCE = "not told by the recording"
HANDS = "hand_tracking_results.csv"
# Aria's landmark of each of our keypoints; it has no base of the thumb (-1), and its 20 is the centre of the palm.
LANDMARKS = (5, -1, 6, 7, 0, 8, 9, 10, 1, 11, 12, 13, 2, 14, 15, 16, 3, 17, 18, 19, 4)
_TRAJECTORY_S = 0.01  # a pose farther in time from a frame is not of it
_MAX_BYTES = 4_000_000_000


def find(directory) -> list[schema.Recording]:
  """Every folder with hand_tracking/hand_tracking_results.csv, sorted."""
  names = checks.find(directory, HANDS, f"mps_<name>_vrs/hand_tracking/{HANDS}")
  roots = sorted({os.path.dirname(os.path.dirname(name)) for name in names})
  found = []
  for name in roots:
    root = os.path.join(os.fspath(directory), name) if name else os.path.abspath(directory)
    base = os.path.basename(root)
    stem = os.path.join(os.path.dirname(root), base.removeprefix("mps_").removesuffix("_vrs"))
    parts = (f"hand_tracking/{HANDS}", "slam/closed_loop_trajectory.csv", "slam/online_calibration.jsonl")
    found.append(schema.Recording(name or base, (*(os.path.join(root, part) for part in parts), f"{stem}.mp4", f"{stem}.json")))
  return found


def read(recording: schema.Recording, image_size: int) -> schema.Episode:
  """-> Episode in the world of the trajectory, one frame a row of the hands' file."""
  hands_path, trajectory_path, calibration_path, mp4_path, json_path = recording.files
  time_s, points_Nx2x21x3, confidence_Nx2 = _hands(hands_path)
  pose_s, T_world_device = _trajectory(trajectory_path)
  for file, use in (
    (mp4_path, "the pictures, made of the VRS file"),
    (json_path, f"the time of every frame of {os.path.basename(mp4_path)}"),
  ):
    if not os.path.exists(file):
      raise UserError(f"{file}: missing, expected {use}: see data/sources/aria.py")
  told = checks.read_json(json_path)
  video_s = checks.floats(checks.field(told, "timestamps_us", list, json_path), (None,), json_path, "timestamps_us") * 1e-6
  grid_s, rate_hz = _grid(time_s, video_s, hands_path, json_path)
  at_hands = _nearest(pose_s, T_world_device, time_s, _TRAJECTORY_S)
  world = geometry.transform(at_hands[:, None].astype(np.float64), points_Nx2x21x3)
  rows = _near(time_s, grid_s)
  there = (np.abs(time_s[rows] - grid_s) <= 0.5 / rate_hz)[:, None]
  confidence = np.where(there, confidence_Nx2[rows], np.nan)
  points, confidence = checks.keypoints(world[rows], np.repeat(confidence[..., None], 21, axis=2))
  camera = _camera(calibration_path, told, json_path)
  frames, k_3x3 = _pictures(mp4_path, json_path, told, camera, _near(video_s, grid_s), len(video_s), image_size)
  T_world_camera = _nearest(pose_s, T_world_device, grid_s, _TRAJECTORY_S) @ camera["T_device_camera"]
  text = checks.text(told.get("text"))
  if not text:
    raise UserError(f"{json_path}: no language text: text is missing or empty")
  return schema.Episode(
    **schema.human(len(grid_s))
    | schema.views(schema.View(camera["label"], frames.jpeg_F, frames.image_size, k_3x3, T_world_camera.astype(np.float32))),
    id=recording.id,
    source=SOURCE,
    licence=checks.text(told.get("licence")) or LICENCE,
    person=checks.text(told.get("person")),
    scene=checks.text(told.get("scene")) or recording.id,
    text=text,
    spans=(),
    rate_hz=rate_hz,
    frame=schema.Frame.WORLD,
    keypoints_Fx2xPx3=points,
    confidence_Fx2xP=confidence,
  )


def _csv(path, names, kind=float, gaps=False):
  """Columns of a csv with a header, by their names -> [N, len(names)]; gaps: an empty field is NaN."""
  checks.readable(path)
  if os.path.getsize(path) > _MAX_BYTES:
    raise UserError(f"{path}: {os.path.getsize(path)} bytes, expected at most {_MAX_BYTES}")
  try:
    with open(path, encoding="utf-8") as file:
      header = file.readline(100_000).strip().split(",")
      missing = [name for name in names if name not in header]
      if missing:
        raise UserError(f"{path}: the column {missing[0]} is missing, expected a csv of Project Aria MPS")
      converters = {"converters": lambda text: float(text or "nan")} if gaps else {}
      with warnings.catch_warnings(action="ignore"):  # of an empty table, which is told below
        columns = [header.index(name) for name in names]
        table = np.loadtxt(file, delimiter=",", usecols=columns, dtype=kind, ndmin=2, comments=None, **converters)
  except (ValueError, OSError, IndexError, MemoryError) as error:
    raise UserError(f"{path}: not a readable csv: {checks.one_line(error)}") from error
  if not len(table):
    raise UserError(f"{path}: holds no row")
  return table


def _times(column, path):
  """tracking_timestamp_us -> seconds, which must grow."""
  time_s = checks.floats(column, (None,), path, "tracking_timestamp_us") * 1e-6
  if not (np.diff(time_s) > 0).all():
    raise UserError(f"{path}: tracking_timestamp_us does not grow after row {int((~(np.diff(time_s) > 0)).argmax())}")
  return time_s


def _hands(path):
  """-> seconds [N], points in the device's frame [N, 2, 21, 3] in our order, confidence [N, 2]; NaN where there is no hand."""
  names = ["tracking_timestamp_us", *(f"{side}_tracking_confidence" for side in keypoints.SIDES)]
  names += [f"t{axis}_{side}_landmark_{i}_device" for side in keypoints.SIDES for i in range(21) for axis in "xyz"]
  table = _csv(path, names, gaps=True)
  confidence = np.where((table[:, 1:3] >= 0) & (table[:, 1:3] <= 1), table[:, 1:3], np.nan)
  points = table[:, 3:].reshape(-1, 2, 21, 3)
  points = np.concatenate([points, np.full_like(points[:, :, :1], np.nan)], axis=2)[:, :, list(LANDMARKS)]
  return _times(table[:, 0], path), np.where(np.isnan(confidence)[..., None, None], np.nan, points), confidence


def _trajectory(path):
  """-> seconds [N], T_world_device [N, 4, 4]."""
  if len(np.unique(_csv(path, ["graph_uid"], str))) > 1:
    raise UserError(f"{path}: has several graph_uid, each a world of its own, expected one")
  part = lambda kind, axes: [f"{kind}{axis}_world_device" for axis in axes]  # noqa: E731
  table = _csv(path, ["tracking_timestamp_us", *part("t", "xyz"), *part("q", "wxyz")])
  return _times(table[:, 0], path), checks.poses_of_quat(table[:, 1:4], table[:, 4:], path, "world_device")


def _near(time_s, wanted_s):
  """Index of the nearest time."""
  after = np.clip(np.searchsorted(time_s, wanted_s), 1, len(time_s) - 1) if len(time_s) > 1 else np.zeros(len(wanted_s), int)
  return after - (np.abs(time_s[after - 1] - wanted_s) <= np.abs(time_s[after] - wanted_s)) if len(time_s) > 1 else after


def _nearest(time_s, poses, wanted_s, limit_s):
  index = _near(time_s, wanted_s)
  return np.where((np.abs(time_s[index] - wanted_s) <= limit_s)[:, None, None], poses[index], np.float32(np.nan))


def _grid(time_s, video_s, hands_path, json_path):
  """-> times at the hands' rate that the video has too, and that rate."""
  if len(time_s) < 2 or len(video_s) < 2 or not (np.diff(video_s) > 0).all():
    raise UserError(f"{json_path}: timestamps_us has {len(video_s)} times, expected two or more that grow, one a frame")
  step = float(np.median(np.diff(time_s)))
  margin = max(step, float(np.median(np.diff(video_s)))) / 2
  count = (time_s[-1] - time_s[0]) / step + 1
  checks.number(1 / step, 0.1, 1000, hands_path, "the rate of tracking_timestamp_us")
  checks.number(count, 1, checks.MAX_FRAMES, hands_path, "the count of frames by tracking_timestamp_us")
  grid_s = time_s[0] + step * np.arange(round(count))
  grid_s = grid_s[(grid_s >= video_s[0] - margin) & (grid_s <= video_s[-1] + margin)]
  if not len(grid_s):
    raise UserError(
      f"{json_path}: timestamps_us are of {video_s[0]:.1f} to {video_s[-1]:.1f} s, the hands of {time_s[0]:.1f} to {time_s[-1]:.1f} s"
    )
  return grid_s, 1 / step


def _camera(path, told, json_path):
  """The camera of the middle line of the calibration: {label, T_device_camera of the pictures, projection, params, size}."""
  label = checks.field({"camera": "camera-rgb"} | told, "camera", str, json_path)
  turns = {0: 0, 90: 1, 180: 2, 270: 3}.get(told.get("rotated", 0) if not isinstance(told.get("rotated"), bool | list | dict) else None)
  if turns is None:
    raise UserError(f"{json_path}: rotated is {told['rotated']!r:.20}, expected 0, 90, 180 or 270")
  checks.readable(path)
  try:
    with open(path, encoding="utf-8") as file:
      lines = [line for line in file if line.strip()]
    content = json.loads(lines[len(lines) // 2])
    number, camera = next((i, c) for i, c in enumerate(content["CameraCalibrations"]) if c["Label"] == label)
    # [w, [x, y, z]]: parseSe3dFromJson of projectaria_tools, core/calibration/loader/SensorCalibrationJson.cpp.
    w, (x, y, z) = camera["T_Device_Camera"]["UnitQuaternion"]
    place = checks.floats([[*camera["T_Device_Camera"]["Translation"], w, x, y, z]], (1, 7), path, "T_Device_Camera")
    name, params = camera["Projection"]["Name"], checks.floats(camera["Projection"]["Params"], (None,), path, "Params")
    # [width, height] in the order of the cameras; none before version 1.1.0 of the trajectories (core/mps/OnlineCalibrationsReader.cpp).
    size = checks.floats(content["ImageSizes"][number], (2,), path, f"ImageSizes of {label}") if "ImageSizes" in content else None
  except StopIteration as error:
    raise UserError(f"{path}: has no camera {label!r:.40}") from error
  except (ValueError, KeyError, TypeError, OSError, IndexError, RecursionError) as error:
    raise UserError(f"{path}: not an online_calibration.jsonl of MPS: {type(error).__name__} {checks.one_line(error)}") from error
  if not (np.isfinite(params).all() and np.isfinite(place).all() and (size is None or (size >= 1).all())):
    raise UserError(f"{path}: {label} has a lens, a place or a size that is not finite or not positive")
  T_device_sensor = checks.poses_of_quat(place[:, :3], place[:, 3:], path, "T_Device_Camera")[0]
  turn = np.linalg.matrix_power(np.array([[0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), turns)  # sensor from turned axes
  return {"label": label, "T_device_camera": T_device_sensor @ turn, "turn": turn[:3, :3], "name": name, "params": params, "size": size}


def _pictures(mp4_path, json_path, told, camera, numbers, count, image_size):
  """-> (Frames of the numbers, K): pinhole as the user says, else the lens of the calibration is undone."""
  if "intrinsics" in told:
    frames = mp4.decode(mp4_path, image_size)
  elif camera["name"] == fisheye.NAME and len(camera["params"]) == fisheye.PARAMS:
    lens = fisheye.Lens(camera["params"], camera["size"], camera["turn"], image_size)
    frames = mp4.decode(mp4_path, image_size, lens=lens)
  else:
    raise UserError(f"{json_path}: intrinsics is missing: the lens {camera['name']!r:.40} of the calibration is not known here")
  if len(frames.jpeg_F) != count:
    raise UserError(f"{mp4_path}: {len(frames.jpeg_F)} frames, expected {count} as timestamps_us of {os.path.basename(json_path)}")
  if "intrinsics" in told:
    fx, fy, cx, cy = checks.floats(told["intrinsics"], (4,), json_path, "intrinsics")
    k_3x3 = mp4.scale_intrinsics([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], frames, json_path, "intrinsics")
  else:
    k_3x3 = fisheye.pinhole(frames.image_size[0]).astype(np.float32)
  return mp4.Frames(tuple(frames.jpeg_F[i] for i in numbers), frames.rate_hz, frames.size, frames.image_size), k_3x3

"""Which columns of a robot's data set are wrist, hand, gripper, camera and language: a small JSON file, `egoscale.json`, a data set.

LeRobot and RLDS data sets hold vectors whose meaning, unit and frame of reference they do not tell. The file is in the data set, in the
folder that is read, or anywhere with `egoscale prepare --columns=FILE`; configs/columns holds examples. All keys may be left out:

  "embodiment": "gr1"            default: what the data set says of its robot; "human" where keypoints are given
  "licence", "person", "scene"   texts; without `scene` every episode is one of its own
  "rate_hz": 5.0                 where the data set tells none
  "text": "language_instruction" column of the instruction, texts or indices of the data set's tasks
  "frame": "base"                of every pose below: "world", "base" or "camera"; needed as soon as there is one
  "state": ["observation.state"], "action": ["action"]   columns kept as they are
  "cameras": {"observation.images.ego": {"name": "head", "intrinsics": [fx, fy, cx, cy], "T_world_camera": POSE or 4 x 4 numbers}}
             the first is what a policy sees; intrinsics of the pictures as recorded; axes x right, y down, z forward
  "left": {..}, "right": {..}    of each hand:
    "wrist": POSE, "wrist_target": POSE     where it is, where it was sent; with "T_tool_wrist" 4 x 4 (or "identity"), which takes the
                                            axes of hands/keypoints.py to the recorded tool's
    "joints": SLICE, "joint_targets": SLICE a gripper is a hand of one joint
    "keypoints": SLICE of 63 numbers, metres, order of hands/keypoints.py; "confidence": SLICE of 21 or 1

SLICE = {"column": "observation.state", "start": 7, "end": 13, "names": [...]}; start, end and names may be left out.
POSE = SLICE and "pose": one of POSES; metres and radians; the pose maps the tool (or camera) into the frame.
"""

import itertools
import os

import numpy as np

from egoscale_jax import geometry
from egoscale_jax.data import schema
from egoscale_jax.data.sources import checks, mp4
from egoscale_jax.errors import UserError
from egoscale_jax.hands import keypoints

FILE = "egoscale.json"
_TEXTS = ("embodiment", "licence", "person", "scene", "text", "frame")
_KEYS = {*_TEXTS, "rate_hz", "state", "action", "cameras", *keypoints.SIDES}
_HAND_KEYS = {"wrist", "wrist_target", "joints", "joint_targets", "keypoints", "confidence", "T_tool_wrist"}


def _euler(rpy):
  """Roll, pitch, yaw about the fixed axes x, y, z, in this order."""
  x, y, z = (geometry.so3_exp(rpy[:, i : i + 1] * np.eye(3)[i]) for i in range(3))
  return z @ y @ x


# Layout of a pose -> how many numbers it has, and its rotation from those after xyz.
POSES = {
  "xyz_quat_wxyz": (7, lambda r: geometry.quat_to_so3(r)),
  "xyz_quat_xyzw": (7, lambda r: geometry.quat_to_so3(r[:, [3, 0, 1, 2]])),
  "xyz_rotvec": (6, geometry.so3_exp),
  "xyz_rpy": (6, _euler),
  "xyz_rot6d_rows": (9, geometry.rot6d_to_so3),
  "matrix": (16, None),
}


def find(given, folders) -> dict:
  """The config at `given`, where that is not empty, else in the first of the folders that has one, else {}."""
  path = given or beside(folders)
  return load(path) if path else {}


def beside(folders) -> str:
  """The config in the first of the folders that has one, else ""."""
  return next((path for path in (os.path.join(folder, FILE) for folder in folders) if os.path.exists(path)), "")


def load(path) -> dict:
  """The file's content, its keys and texts checked."""
  content = checks.read_json(path)
  _known(content, _KEYS, path, "")
  for name in _TEXTS:
    if name in content:
      checks.field(content, name, str, path)
  if "frame" in content and content["frame"] not in (frame.value for frame in schema.Frame if frame is not schema.Frame.NONE):
    raise UserError(f'{path}: frame is {content["frame"]!r:.40}, expected "world", "base" or "camera"')
  for name in ("state", "action"):
    if not isinstance(content.get(name, []), list) or not all(isinstance(column, str) for column in content.get(name, [])):
      raise UserError(f"{path}: {name} is {content[name]!r:.60}, expected a list of columns")
  for side in keypoints.SIDES:
    if side in content:
      _known(checks.field(content, side, dict, path), _HAND_KEYS, path, f"{side}/")
  for camera in checks.field(content, "cameras", dict, path).values() if "cameras" in content else []:
    if not isinstance(camera, dict):
      raise UserError(f"{path}: cameras holds {camera!r:.40}, expected an object a camera")
    _known(camera, {"name", "intrinsics", "T_world_camera"}, path, "cameras/")
  return content


def _known(mapping, keys, path, where):
  for key in mapping:
    if key not in keys:
      raise UserError(f"{path}: unknown key {where}{key}, expected one of {', '.join(sorted(keys))}")


def from_modality(path) -> dict:
  """The config that GR00T's modality.json amounts to: cameras, text, and the joints of hands and grippers."""
  content, config = checks.read_json(path), {}
  videos = checks.field(content, "video", dict, path) if "video" in content else {}
  config["cameras"] = {_key(spec, f"observation.images.{name}", path): {"name": name} for name, spec in videos.items()}
  annotations = checks.field(content, "annotation", dict, path) if "annotation" in content else {}
  for name, spec in list(annotations.items())[:1]:
    config["text"] = _key(spec, f"annotation.{name}", path)
  for group, column, key in (("state", "observation.state", "joints"), ("action", "action", "joint_targets")):
    for name, spec in checks.field(content, group, dict, path).items() if group in content else []:
      side, _, part = name.partition("_")
      if side in keypoints.SIDES and part in ("hand", "gripper"):
        slices = {bound: spec.get(bound) for bound in ("start", "end")} if isinstance(spec, dict) else {}
        config.setdefault(side, {})[key] = {"column": _key(spec, column, path), **slices}
  return config


def _key(spec, default, path):
  if not isinstance(spec, dict):
    raise UserError(f"{path}: holds {spec!r:.40}, expected an object")
  return checks.field({"original_key": default} | spec, "original_key", str, path)


class Table:
  """The columns of one episode: `numbers(name)` -> float64 [F, n], `names[name]` -> n names or None; `path` is what errors name."""

  def __init__(self, path, frames, numbers, names):
    self.path, self.frames, self.numbers, self.names = path, frames, numbers, names

  def slice(self, spec, where):
    """A SLICE -> (numbers [F, n], n names)."""
    if not isinstance(spec, dict):
      raise UserError(f"{self.path}: {where} is {spec!r:.40}, expected an object with a column")
    column = checks.field(spec, "column", str, self.path, f"{where}/")
    values = self.numbers(column)
    start, end = spec.get("start", 0), spec.get("end", values.shape[1])
    if type(start) is not int or type(end) is not int or not 0 <= start < end <= values.shape[1]:
      raise UserError(f"{self.path}: {where} is {column}[{start}:{end}], expected a part of its {values.shape[1]} numbers")
    names = spec.get("names") or self._names(column, values.shape[1])[start:end]
    if not isinstance(names, list | tuple) or len(names) != end - start or not all(isinstance(name, str) for name in names):
      raise UserError(f"{self.path}: {where}/names is {names!r:.60}, expected {end - start} texts")
    return values[:, start:end], tuple(names)

  def _names(self, column, width):
    names = self.names.get(column)
    return names if names and len(names) == width else [f"{column}_{i}" for i in range(width)]

  def whole(self, columns):
    """Columns one beside the other -> (names, [F, n] float32)."""
    parts = [self.slice({"column": column}, column) for column in columns]
    if not parts:
      return (), schema.missing(self.frames, 0)
    return sum((names for _, names in parts), ()), np.concatenate([values for values, _ in parts], axis=1).astype(np.float32)

  def pose(self, spec, where):
    """A POSE, or 4 x 4 numbers that hold for all frames -> [F, 4, 4] float32."""
    if isinstance(spec, list):
      pose = checks.poses(checks.floats(spec, (4, 4), self.path, where)[None], self.path, where)
      return np.repeat(pose, self.frames, axis=0)
    values, _ = self.slice(spec, where)
    layout = spec.get("pose")
    if not isinstance(layout, str) or layout not in POSES:
      raise UserError(f"{self.path}: {where}/pose is {layout!r:.40}, expected one of {', '.join(POSES)}")
    count, rotation = POSES[layout]
    if values.shape[1] != count:
      raise UserError(f"{self.path}: {where} has {values.shape[1]} numbers, expected {count} for {layout}")
    if rotation is None:
      return checks.poses(values.reshape(-1, 4, 4), self.path, where)
    if "quat" in layout:
      quat = values[:, 3:] if layout.endswith("wxyz") else values[:, [6, 3, 4, 5]]
      return checks.poses_of_quat(values[:, :3], quat, self.path, where)
    finite = np.isfinite(values).all(axis=1)
    rotations = rotation(np.where(finite[:, None], values[:, 3:], 1.0))
    return checks.poses(np.where(finite[:, None, None], geometry.se3(rotations, values[:, :3]), np.nan), self.path, where)


def frame(config, path) -> schema.Frame:
  """The frame of the poses; where a pose is configured without one, nobody could tell it."""
  posed = [f"{side}/{name}" for side in keypoints.SIDES for name in ("wrist", "wrist_target", "keypoints") if name in config.get(side, {})]
  posed += [f"cameras/{name}/T_world_camera" for name, camera in config.get("cameras", {}).items() if "T_world_camera" in camera]
  if posed and "frame" not in config:
    raise UserError(f'{path}: frame is missing, expected "world", "base" or "camera": without it nobody knows what {posed[0]} is seen from')
  return schema.Frame(config["frame"]) if posed else schema.Frame.NONE


def fields(config, table: Table) -> dict:
  """The fields of an Episode that are not of its cameras and texts."""
  sides = [config.get(side, {}) for side in keypoints.SIDES]
  human = any("keypoints" in side for side in sides)
  result = schema.robot(table.frames) | {"frame": frame(config, table.path), "person": config.get("person", "")}
  result["state_names"], result["state_FxS"] = table.whole(config.get("state", []))
  result["action_names"], result["action_FxA"] = table.whole(config.get("action", []))
  for name, key in (("T_world_wrist_Fx2x4x4", "wrist"), ("T_world_wrist_target_Fx2x4x4", "wrist_target")):
    for i, side in enumerate(sides):
      if key in side:
        result[name][:, i] = _wrist(side, key, table, keypoints.SIDES[i])
  result |= _joints(sides, table)
  if human:
    result |= {"embodiment": schema.HUMAN} | _keypoints(sides, table)
  return result


def _wrist(side, key, table, name):
  T_world_tool = table.pose(side[key], f"{name}/{key}")
  T_tool_wrist = side.get("T_tool_wrist")
  if T_tool_wrist is None:
    raise UserError(f'{table.path}: {name}/T_tool_wrist is missing, expected 4 x 4 numbers or "identity": whose axes has {name}/{key}?')
  if T_tool_wrist == "identity":
    return T_world_tool
  return T_world_tool @ table.pose(T_tool_wrist, f"{name}/T_tool_wrist")


def _joints(sides, table):
  """Joints and their targets of both hands, NaN up to the wider one's count."""
  read = {(i, key): table.slice(s[key], f"{keypoints.SIDES[i]}/{key}") for i, s in enumerate(sides) for key in _JOINTS if key in s}
  names = tuple(next((read[i, key][1] for key in _JOINTS if (i, key) in read), ()) for i in range(2))
  result = {"joint_names": names}
  for key, field in _JOINTS.items():
    result[field] = schema.missing(table.frames, 2, max(map(len, names)))
    for i in range(2):
      if (i, key) in read:
        values = read[i, key][0]
        if values.shape[1] != len(names[i]):
          raise UserError(f"{table.path}: {keypoints.SIDES[i]}/{key} has {values.shape[1]} numbers, expected {len(names[i])} as joints")
        result[field][:, i, : len(names[i])] = values
  return result


_JOINTS = {"joints": "joints_Fx2xJ", "joint_targets": "joint_targets_Fx2xJ"}


def _keypoints(sides, table):
  points, confidence = schema.missing(table.frames, 2, 21, 3), np.zeros((table.frames, 2, 21), np.float32)
  for i, side in enumerate(sides):
    if "keypoints" not in side:
      continue
    name = keypoints.SIDES[i]
    values, _ = table.slice(side["keypoints"], f"{name}/keypoints")
    if values.shape[1] != 63:
      raise UserError(f"{table.path}: {name}/keypoints has {values.shape[1]} numbers, expected 63")
    given = None
    if "confidence" in side:
      given, _ = table.slice(side["confidence"], f"{name}/confidence")
      if given.shape[1] not in (1, 21):
        raise UserError(f"{table.path}: {name}/confidence has {given.shape[1]} numbers, expected 21 or 1")
      if ((given < 0) | (given > 1)).any():
        raise UserError(f"{table.path}: {name}/confidence is outside of 0 to 1")
      given = np.broadcast_to(given, (table.frames, 21))
    points[:, i], confidence[:, i] = checks.keypoints(values.reshape(-1, 21, 3), given)
  return {"keypoints_Fx2xPx3": points, "confidence_Fx2xP": confidence}


def view(config, key, frames, table: Table) -> schema.View:
  """A camera of the config, with what is known of it."""
  where = f"cameras/{key}"
  k_3x3 = None
  if "intrinsics" in config:
    fx, fy, cx, cy = checks.floats(config["intrinsics"], (4,), table.path, f"{where}/intrinsics")
    k_3x3 = mp4.scale_intrinsics([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], frames, table.path, f"{where}/intrinsics")
  pose = table.pose(config["T_world_camera"], f"{where}/T_world_camera") if "T_world_camera" in config else None
  name = checks.field({"name": key.removeprefix("observation.images.")} | config, "name", str, table.path, f"{where}/")
  return schema.View(name, frames.jpeg_F, frames.image_size, k_3x3, pose)


def runs(texts) -> list[tuple[str, int, int]]:
  """A text a frame -> (text, first frame, last + 1) of each stretch of the same."""
  edges = [0, *(i for i in range(1, len(texts)) if texts[i] != texts[i - 1]), len(texts)]
  return [(texts[a], a, b) for a, b in itertools.pairwise(edges) if texts[a]]

"""EgoVerse (GaTech-RL2/EgoVerse): a Zarr v3 group `<episode>.zarr` an episode, of a human or a robot, read through the zarr library.

Facts are of the data set's own guide (CONTRIBUTING_DATA.md): poses are xyz + quaternion wxyz. Of a human they are in the world of the
headset's SLAM; `obs_head_pose` is the camera, x right, y down, z forward; `<side>.obs_keypoints` are 21 x 3 in the order of
hands/keypoints.py. Of a robot they are in its base's frame, the end effector's axes x right, y down, z forward. `total_frames` is the
length: arrays may be padded past it. 1e9, and a hand of zeros, stand for what is missing. `intrinsics` is {camera: 3 x 4}; `annotations`
are JSON texts with frames.
"""

import functools
import json
import os
import warnings

import numpy as np

from egoscale_jax.data import schema
from egoscale_jax.data.sources import checks, mp4
from egoscale_jax.errors import UserError
from egoscale_jax.hands import keypoints

SOURCE = "egoverse"
LICENCE = "by access request (EgoVerse)"
FORMAT = 3
MAX_CHUNK = 200_000_000  # numbers: a chunk is unpacked whole, and its shape is what the file says
_IMAGES = "images."
# The wrist's axes of hands/keypoints.py in an end effector's: x forward, y to the left, z up, out of the back of a hand held palm down.
T_TOOL_WRIST = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], np.float32)


def find(directory) -> list[schema.Recording]:
  """Every folder `*.zarr` below the directory, sorted."""
  names = checks.find(directory, ".zarr", "<episode>.zarr folders", folders=True)
  return [schema.Recording(name.removesuffix(".zarr"), (os.path.join(directory, name),)) for name in names]


def read(recording: schema.Recording, image_size: int) -> schema.Episode:
  """-> Episode of a human in the world, or of a robot in its base's frame."""
  path = recording.files[0]
  arrays, attrs = _open(path)
  num_frames = int(checks.number(attrs.get("total_frames"), 1, checks.MAX_FRAMES, path, "total_frames"))
  rate_hz = checks.number(attrs.get("fps"), 0.1, 1000, path, "fps")
  embodiment = checks.field(attrs, "embodiment", str, path)
  human = embodiment.startswith("human")
  values = schema.human(num_frames) if human else schema.robot(num_frames) | {"embodiment": embodiment}
  values |= _hands(arrays, num_frames, path) if human else _robot(arrays, num_frames, path)
  values["person"] = checks.text(attrs.get("operator"))
  text = checks.text(attrs.get("task_description")) or checks.text(attrs.get("task_name")).replace("_", " ")
  if not text:
    raise UserError(f"{path}: no language text: task_description and task_name are missing or empty")
  return schema.Episode(
    **values | schema.views(*_views(arrays, attrs, human, num_frames, image_size, path)),
    id=recording.id,
    source=SOURCE,
    licence=LICENCE,
    scene=checks.text(attrs.get("scene")) or recording.id,
    text=text,
    spans=tuple(_spans(arrays, num_frames, rate_hz, path)),
    rate_hz=rate_hz,
    frame=schema.Frame.WORLD if human else schema.Frame.BASE,
  )


def _open(path):
  """-> ({name: array}, attributes)."""
  meta = checks.read_json(os.path.join(path, "zarr.json"))
  if meta.get("zarr_format") != FORMAT or meta.get("node_type") != "group":
    raise UserError(
      f"{path}: zarr_format {meta.get('zarr_format')!r:.20} of a {meta.get('node_type')!r:.20}, expected a group of version 3"
    )
  attrs = checks.field(meta, "attributes", dict, f"{path}/zarr.json")
  names = [name for name in sorted(os.listdir(path)) if os.path.isdir(os.path.join(path, name))]
  return {name: path for name in names}, attrs


def _read(arrays, name, num_frames, shape, path, kind="fiu"):
  """The first frames of an array (None: all), whose further dimensions and kind of numbers are as told."""
  array = _zarr(lambda zarr: zarr.open_array(os.path.join(path, name), mode="r", zarr_format=FORMAT), path, name)
  if array.ndim != 1 + len(shape) or array.shape[1:] != shape or (num_frames or 0) > array.shape[0]:
    wanted = f"({num_frames or 'N'} or more{''.join(f', {n}' for n in shape)})"
    raise UserError(f"{path}: {name} has shape {array.shape}, expected {wanted}")
  for block in (array.chunks, array.shards or ()):
    if any(n <= 0 for n in block) or np.prod([float(n) for n in block]) > MAX_CHUNK:
      raise UserError(f"{path}: {name} has chunks of {block}, expected at most {MAX_CHUNK} numbers")
  if array.shape[0] > checks.MAX_FRAMES or not (kind == "O" or array.dtype.kind in kind):
    raise UserError(f"{path}: {name} is {array.dtype} of length {array.shape[0]}, expected numbers of at most {checks.MAX_FRAMES} frames")
  return _zarr(lambda _: np.asarray(array[:num_frames]), path, name)


def _zarr(call, path, name):
  """What the library answers; on damaged files it answers with exceptions of any kind, and every one is the recording's fault."""
  import zarr

  try:
    with warnings.catch_warnings(), zarr.config.set(_careful_codecs()):
      warnings.simplefilter("ignore")  # texts and bytes are not yet in the standard of version 3
      return call(zarr)
  except Exception as error:
    raise UserError(f"{path}: {name} is not readable: {type(error).__name__}: {checks.one_line(error)}") from error


@functools.cache
def _careful_codecs() -> dict:
  """zarr's settings under which a chunk of texts or bytes is refused that claims more items than it has room for.

  numcodecs 0.16 allocates what the chunk's first four bytes claim, up to 34 GB, before it looks at the rest.
  """
  import zarr.codecs
  import zarr.registry

  settings = {}
  for name, base in (("vlen-bytes", zarr.codecs.VLenBytesCodec), ("vlen-utf8", zarr.codecs.VLenUTF8Codec)):

    class Careful(base):
      def _decode_sync(self, chunk_bytes, chunk_spec):
        return super()._decode_sync(_checked(chunk_bytes, chunk_spec), chunk_spec)

      async def _decode_single(self, chunk_bytes, chunk_spec):
        return await super()._decode_single(_checked(chunk_bytes, chunk_spec), chunk_spec)

    zarr.registry.register_codec(name, Careful, qualname=f"egoscale.{name}")
    settings[f"codecs.{name}"] = f"egoscale.{name}"
  return settings


def _checked(chunk_bytes, chunk_spec):
  """The same chunk; ValueError where its count of items is not that of its shape."""
  claimed = int.from_bytes(chunk_bytes.as_numpy_array()[:4].tobytes(), "little")
  if claimed != np.prod(chunk_spec.shape, dtype=np.int64):
    raise ValueError(f"a chunk claims {claimed} items, its shape is {chunk_spec.shape}")
  return chunk_bytes


def _poses(arrays, name, num_frames, path):
  """xyz + wxyz -> [F, 4, 4]; NaN where the file has 1e9 or zeros, or not the array."""
  if name not in arrays:
    return schema.missing(num_frames, 4, 4)
  values = _read(arrays, name, num_frames, (7,), path).astype(np.float64)
  values[(values == 0).all(axis=1) | ~(np.abs(values) < checks.MAX_METRES).all(axis=1)] = np.nan
  return checks.poses_of_quat(values[:, :3], values[:, 3:], path, name)


def _hands(arrays, num_frames, path):
  result = {"keypoints_Fx2xPx3": schema.missing(num_frames, 2, 21, 3), "confidence_Fx2xP": np.zeros((num_frames, 2, 21), np.float32)}
  there = [side for side in keypoints.SIDES if f"{side}.obs_keypoints" in arrays]
  if not there:
    raise UserError(f"{path}: left.obs_keypoints and right.obs_keypoints are missing: a wrist alone makes no hand")
  for side in there:
    values = _read(arrays, f"{side}.obs_keypoints", num_frames, (63,), path).reshape(num_frames, 21, 3)
    values = np.where((values == 0).all(axis=(1, 2), keepdims=True), np.nan, values.astype(np.float64))
    i = keypoints.SIDES.index(side)
    result["keypoints_Fx2xPx3"][:, i], result["confidence_Fx2xP"][:, i] = checks.keypoints(values)
  return result


def _robot(arrays, num_frames, path):
  """Wrists, grippers, and all numbers as state and action."""
  result = {"joint_names": tuple(("gripper",) if f"{side}.obs_gripper" in arrays else () for side in keypoints.SIDES)}
  width = max(map(len, result["joint_names"]))
  for field, target, pose, gripper in (("", "", "obs_ee_pose", "obs_gripper"), ("_target", "_targets", "cmd_ee_pose", "cmd_gripper")):
    wrists = [_poses(arrays, f"{side}.{pose}", num_frames, path) @ T_TOOL_WRIST for side in keypoints.SIDES]
    result[f"T_world_wrist{field}_Fx2x4x4"] = np.stack(wrists, axis=1)
    joints = schema.missing(num_frames, 2, width)
    for i, side in enumerate(keypoints.SIDES):
      if f"{side}.{gripper}" in arrays and width:
        joints[:, i] = _told(_read(arrays, f"{side}.{gripper}", num_frames, (1,), path))
    result["joint_targets_Fx2xJ" if target else "joints_Fx2xJ"] = joints
  sizes = {"ee_pose": 7, "gripper": 1, "joints": None}
  for field, letter, prefix in (("state", "S", "obs"), ("action", "A", "cmd")):
    names, columns = [], [schema.missing(num_frames, 0)]
    for name in (f"{side}.{prefix}_{part}" for side in keypoints.SIDES for part in sizes):
      if name in arrays:
        size = sizes[name.split("_", 1)[1]] or _width(arrays, name, path)
        values = checks.floats(_read(arrays, name, num_frames, (size,), path), (num_frames, size), path, name)
        columns.append(_told(values).astype(np.float32))
        names += [f"{name}_{i}" for i in range(size)]
    result |= {f"{field}_names": tuple(names), f"{field}_Fx{letter}": np.concatenate(columns, axis=1)}
  return result


def _told(values):
  """NaN where the file has 1e9, which stands for a missing value."""
  return np.where(np.abs(values) < checks.MAX_METRES, values, np.nan)


def _width(arrays, name, path):
  array = _zarr(lambda zarr: zarr.open_array(os.path.join(path, name), mode="r", zarr_format=FORMAT), path, name)
  return int(checks.number(array.shape[1] if array.ndim == 2 else None, 1, 100, path, f"{name}'s number of joints"))


def _views(arrays, attrs, human, num_frames, image_size, path):
  """The front camera first; of a human it is where the head is."""
  names = sorted((name for name in arrays if name.startswith(_IMAGES)), key=lambda name: ("front" not in name, name))
  if not names:
    raise UserError(f"{path}: images.front_1 is missing, expected the pictures of one camera at least")
  known = attrs.get("intrinsics") if isinstance(attrs.get("intrinsics"), dict) else {}
  for name in names:
    encoded = _read(arrays, name, num_frames, (), path, kind="O")
    frames = mp4.pictures(encoded.tolist(), image_size, path, name)
    k_3x3, camera = None, name.removeprefix(_IMAGES)
    if camera in known:
      k_3x4 = checks.floats(known[camera], (3, 4), path, f"intrinsics/{camera}")
      k_3x3 = mp4.scale_intrinsics(k_3x4[:, :3], frames, path, f"intrinsics/{camera}")
    pose = _poses(arrays, "obs_head_pose", num_frames, path) if human and name == names[0] else None
    yield schema.View(camera, frames.jpeg_F, frames.image_size, k_3x3, pose)


def _spans(arrays, num_frames, rate_hz, path):
  if "annotations" not in arrays:
    return
  for cell in _read(arrays, "annotations", None, (), path, kind="O").tolist():
    try:
      entry = json.loads(cell)
      text, start, end = checks.text(entry["text"]), entry["start_idx"], entry["end_idx"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
      raise UserError(f"{path}: annotations holds {cell!r:.60}, expected JSON with text, start_idx, end_idx") from error
    if type(start) is not int or type(end) is not int or not 0 <= start <= end <= num_frames:
      raise UserError(f"{path}: annotations has a text of the frames {start!r:.20} to {end!r:.20}, expected them within 0 to {num_frames}")
    if text and start < end:
      yield schema.Span(text, start / rate_hz, end / rate_hz)

"""Episodes of any source -> a LeRobot data set of version 3.0, which data/sources/lerobot.py reads back to the bit.

Pictures go into the tables as the JPEG that they are (`image` features), so nothing is encoded twice. What LeRobot has no name for goes
into columns that `meta/egoscale.json` explains (data/sources/columns.py) and, what is of an episode as a whole, into `egoscale/..` columns
of meta/episodes. Facts of the format are of the data sets that lerobot 0.4 writes.
"""

import functools
import json
import os
import shutil

import numpy as np

from egoscale_jax import progress
from egoscale_jax.data import prepare, schema, workers
from egoscale_jax.errors import UserError
from egoscale_jax.hands import keypoints

FILE_BYTES = 100_000_000  # of a table before the next one is begun
_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_CHUNK = 1000
_HANDS = {  # our field -> (column, kind of it in the config)
  "T_world_wrist_Fx2x4x4": ("observation.wrist", "wrist"),
  "T_world_wrist_target_Fx2x4x4": ("action.wrist", "wrist_target"),
  "joints_Fx2xJ": ("observation.joints", "joints"),
  "joint_targets_Fx2xJ": ("action.joints", "joint_targets"),
  "keypoints_Fx2xPx3": ("observation.keypoints", "keypoints"),
  "confidence_Fx2xP": ("observation.confidence", "confidence"),
}


def export(source, input_dir, output_dir, num_workers=1, image_size=256, config_path="") -> tuple[int, list[str]]:
  """-> how many episodes were written, and a line for each that could not be. The output appears whole or not at all."""
  output_dir = os.path.abspath(os.fspath(output_dir))
  if os.path.lexists(output_dir):
    raise UserError(f"{output_dir}: exists, expected the name of a new folder")
  recordings = prepare.find(source, input_dir, config_path)
  partial, left_out = f"{output_dir}.partial-{os.getpid()}", []
  read = functools.partial(source.read, image_size=image_size)
  try:
    writer = Writer(partial)
    with progress.bar(len(recordings), "export", "episode") as bar:
      for recording, episode in workers.read_all(read, recordings, num_workers):
        problem = str(episode) if isinstance(episode, UserError) else writer.differs(episode)
        if problem:
          left_out.append(problem if isinstance(episode, UserError) else f"{recording.files[0]}: {problem}")
        else:
          writer.add(episode)
        bar.update()
    if not writer.rows:
      raise UserError(f"no usable episode in {os.fspath(input_dir)}: {len(recordings)} found; the first: {left_out[0]}")
    writer.finish()
    os.rename(partial, output_dir)
  except OSError as error:
    raise UserError(f"{output_dir}: cannot be written: {error.strerror or error}") from error
  finally:
    if os.path.isdir(partial):
      shutil.rmtree(partial)
  return len(writer.rows), left_out


class Writer:
  """Tables a file at a time, a row group an episode; what all episodes must share is that of the first."""

  def __init__(self, root):
    self._root, self.rows, self._tasks, self._first, self._stats = root, [], {}, None, {}
    self._frames, self._file, self._open, self._bytes = 0, 0, None, 0
    os.makedirs(os.path.join(root, "meta", "episodes", "chunk-000"))

  def differs(self, episode) -> str:
    """In what an episode differs from the first that cannot differ within a data set, or what it lacks; "" where it may be added."""
    for camera, jpegs in zip(episode.camera_names, episode.jpeg_CxF):
      if missing := sum(not jpeg for jpeg in jpegs):
        return f"camera {camera}: {missing} of {len(jpegs)} pictures are missing, expected one a frame"
    told = _shared(episode)
    for name, value in told.items():
      if self._first is not None and value != self._first[1][name]:
        return f"{name} is {value!r:.80}, expected {self._first[1][name]!r:.80} as the first episode has; export them apart"
    return ""

  def add(self, episode):
    if self._first is None:
      self._first = episode, _shared(episode)
    table = self._table(episode)
    place = {"data/chunk_index": self._file // _CHUNK, "data/file_index": self._file % _CHUNK}
    self._write(table)
    texts = sorted({text for text in _task_texts(episode)})
    self.rows.append(
      {"episode_index": len(self.rows), "tasks": texts, "length": episode.num_frames, **place}
      | {"dataset_from_index": self._frames, "dataset_to_index": self._frames + episode.num_frames}
      | {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
      | _whole(episode)
    )
    self._frames += episode.num_frames

  def _table(self, episode):
    """The columns of an episode as a pyarrow table."""
    import pyarrow

    frames, index = episode.num_frames, len(self.rows)
    numbers = {name: values for name, values, _ in _numbers(episode)}
    for name, values in numbers.items():
      self._count(name, values)
    data = {name: pyarrow.FixedSizeListArray.from_arrays(v.ravel(), v.shape[1]) for name, v in numbers.items()}
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    for camera, jpegs in zip(episode.camera_names, episode.jpeg_CxF):
      data[f"observation.images.{camera}"] = pyarrow.array([{"bytes": jpeg, "path": None} for jpeg in jpegs], kind)
    tasks = [self._tasks.setdefault(text, len(self._tasks)) for text in _task_texts(episode)]
    plain = {"frame_index": np.arange(frames), "episode_index": np.full(frames, index), "index": self._frames + np.arange(frames)}
    plain |= {"task_index": np.array(tasks)}
    data |= {"timestamp": pyarrow.array((np.arange(frames) / episode.rate_hz).astype(np.float32))}
    return pyarrow.table(data | {name: pyarrow.array(values.astype(np.int64)) for name, values in plain.items()})

  def _count(self, name, values):
    """Moments for stats.json: of the frames where the number is known."""
    known, wide = np.isfinite(values), values.astype(np.float64)
    part = np.stack([known.sum(axis=0), np.where(known, wide, 0).sum(axis=0), np.where(known, wide**2, 0).sum(axis=0)])
    part = [*part, np.where(known, wide, np.inf).min(axis=0), np.where(known, wide, -np.inf).max(axis=0)]
    if name in self._stats:
      old = self._stats[name]
      part = [*(a + b for a, b in zip(old[:3], part[:3])), np.minimum(old[3], part[3]), np.maximum(old[4], part[4])]
    self._stats[name] = part

  def _write(self, table):
    import pyarrow.parquet

    if self._open is None:
      path = os.path.join(self._root, _DATA.format(chunk_index=self._file // _CHUNK, file_index=self._file % _CHUNK))
      os.makedirs(os.path.dirname(path), exist_ok=True)
      self._open, self._bytes = pyarrow.parquet.ParquetWriter(path, table.schema), 0
    self._open.write_table(table, row_group_size=max(len(table), 1))
    self._bytes += table.nbytes
    if self._bytes >= FILE_BYTES:
      self._close()

  def _close(self):
    if self._open is not None:
      self._open.close()
      self._open, self._file = None, self._file + 1

  def finish(self):
    """meta/: info.json, tasks, episodes, stats, and egoscale.json."""
    import pyarrow
    import pyarrow.parquet

    self._close()
    meta, episode = os.path.join(self._root, "meta"), self._first[0]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(self.rows), os.path.join(meta, "episodes", "chunk-000", "file-000.parquet"))
    pyarrow.parquet.write_table(_tasks_table(self._tasks), os.path.join(meta, "tasks.parquet"))
    info = {
      "codebase_version": "v3.0",
      "robot_type": episode.embodiment,
      "total_episodes": len(self.rows),
      "total_frames": self._frames,
      "total_tasks": len(self._tasks),
      "chunks_size": _CHUNK,
      "data_files_size_in_mb": FILE_BYTES // 1_000_000,
      "video_files_size_in_mb": 200,
      "fps": int(episode.rate_hz) if episode.rate_hz == int(episode.rate_hz) else episode.rate_hz,
      "splits": {"train": f"0:{len(self.rows)}"},
      "data_path": _DATA,
      "video_path": None,
      "features": _features(episode),
    }
    for name, content in (("info", info), ("stats", _stats_json(self._stats)), ("egoscale", _config(episode))):
      with open(os.path.join(meta, f"{name}.json"), "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)


def _shared(e) -> dict:
  """What a data set has once."""
  return {
    "embodiment": e.embodiment,
    "frame": e.frame.value,
    "rate_hz": e.rate_hz,
    "cameras": e.camera_names,
    "image sizes": e.image_size_C,
    "state_names": e.state_names,
    "action_names": e.action_names,
    "joint_names": e.joint_names,
  }


def _numbers(e):
  """(column, values [F, n] float32, names or None) of all that is numbers and that the episode's kind has."""
  for name, values, names in (("observation.state", e.state_FxS, e.state_names), ("action", e.action_FxA, e.action_names)):
    if values.shape[1]:
      yield name, values, names
  for field, (column, _) in _HANDS.items():
    for i, side in enumerate(keypoints.SIDES):
      if _has(e, field, i):
        names = e.joint_names[i] if "joint" in field else None
        values = getattr(e, field)[:, i]
        yield f"{column}.{side}", (values[:, : len(names)] if names else values).reshape(e.num_frames, -1), names
  for c, camera in enumerate(e.camera_names):
    if e.frame is not schema.Frame.NONE:
      yield f"observation.camera.{camera}", e.T_world_camera_CxFx4x4[c].reshape(-1, 16), None


def _has(e, field, side) -> bool:
  """Whether a data set of this kind has the field: by what the episode is and not by what is missing in it."""
  if field in ("keypoints_Fx2xPx3", "confidence_Fx2xP"):
    return e.embodiment == schema.HUMAN
  if "wrist" in field:
    return e.embodiment != schema.HUMAN and e.frame is not schema.Frame.NONE
  return bool(e.joint_names[side])


def _config(e) -> dict:
  """meta/egoscale.json."""
  config = {"embodiment": e.embodiment} | ({} if e.frame is schema.Frame.NONE else {"frame": e.frame.value})
  for field, (column, kind) in _HANDS.items():
    for i, side in enumerate(keypoints.SIDES):
      if _has(e, field, i):
        spec = {"column": f"{column}.{side}"} | ({"pose": "matrix"} if "wrist" in kind else {})
        config.setdefault(side, {})[kind] = spec
        if "wrist" in kind:
          config[side]["T_tool_wrist"] = "identity"
  config["state"], config["action"] = ["observation.state"] * bool(e.state_names), ["action"] * bool(e.action_names)
  posed = e.frame is not schema.Frame.NONE
  config["cameras"] = {
    f"observation.images.{camera}": {"name": camera}
    | ({"T_world_camera": {"column": f"observation.camera.{camera}", "pose": "matrix"}} if posed else {})
    for camera in e.camera_names
  }
  return config


def _features(e) -> dict:
  features = {name: {"dtype": "float32", "shape": [v.shape[1]], "names": list(names) if names else None} for name, v, names in _numbers(e)}
  for camera, (height, width) in zip(e.camera_names, e.image_size_C):
    shape = {"shape": [height, width, 3], "names": ["height", "width", "channels"]}
    features[f"observation.images.{camera}"] = {"dtype": "image", **shape}
  features["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
  for name in ("frame_index", "episode_index", "index", "task_index"):
    features[name] = {"dtype": "int64", "shape": [1], "names": None}
  return features


def _task_texts(e) -> list[str]:
  """A text a frame: the first of the finer ones that are under way, else the instruction."""
  texts = [e.text] * e.num_frames
  for span in reversed(e.spans):
    for frame in range(max(round(span.start_s * e.rate_hz), 0), min(round(span.end_s * e.rate_hz), e.num_frames)):
      texts[frame] = span.text
  return texts


def _whole(e) -> dict:
  """`egoscale/..` columns of meta/episodes: what is of an episode as a whole."""
  spans = [[s.text, s.start_s, s.end_s, s.side] for s in e.spans]
  intrinsics = [[None if np.isnan(v) else float(v) for v in k.ravel()] for k in e.intrinsics_Cx3x3]
  texts = {"text": e.text, "person": e.person, "scene": e.scene, "licence": e.licence, "id": f"{e.source}/{e.id}"}
  texts |= {"spans": json.dumps(spans), "intrinsics": json.dumps(intrinsics)}
  return {f"egoscale/{name}": text for name, text in texts.items()}


def _tasks_table(tasks):
  """The texts are pandas' index, which is how lerobot finds them."""
  import pyarrow

  text = "__index_level_0__"
  column = lambda name, field, kind, numpy: {  # noqa: E731
    "name": name,
    "field_name": field,
    "pandas_type": kind,
    "numpy_type": numpy,
    "metadata": None,
  }
  pandas = {
    "index_columns": [text],
    "column_indexes": [],
    "columns": [column("task_index", "task_index", "int64", "int64"), column(None, text, "unicode", "object")],
    "pandas_version": "2.2.0",
  }
  table = pyarrow.table({"task_index": pyarrow.array(list(tasks.values()), pyarrow.int64()), text: list(tasks)})
  return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def _stats_json(stats) -> dict:
  """min, max, mean, std, count of each column; null where no frame has the number."""
  result = {}
  for name, (count, total, square, low, high) in stats.items():
    mean = np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)
    std = np.sqrt(np.maximum(np.divide(square, count, out=np.full(len(count), np.nan), where=count > 0) - mean**2, 0))
    tables = {"min": low, "max": high, "mean": mean, "std": std}
    result[name] = {key: [None if not np.isfinite(v) else float(v) for v in values] for key, values in tables.items()}
    result[name]["count"] = [int(count.max())]
  return result

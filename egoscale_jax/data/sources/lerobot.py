"""LeRobot data sets of version 2.0, 2.1 and 3.0, told apart by `codebase_version` in meta/info.json.

  2.x: data/chunk-*/episode_*.parquet, videos/chunk-*/<key>/episode_*.mp4, meta/tasks.jsonl
  3.0: files that hold many episodes; meta/episodes/*.parquet tells the rows and the seconds of each, meta/tasks.parquet the tasks

Which columns mean what is in `meta/egoscale.json` (columns.py). Without it GR00T's `meta/modality.json` is understood: its video, its
first annotation, and the slices `left_hand`, `right_hand`, `left_gripper`, `right_gripper` as joints; wrist poses it does not tell. Without
both, state and action are kept as they are. What info.json claims and the disk does not have is not believed: files count.
"""

import dataclasses
import functools
import json
import os
import re

import numpy as np

from egoscale_jax.data import schema
from egoscale_jax.data.sources import checks, columns, parquet, video
from egoscale_jax.errors import UserError

SOURCE = "lerobot"
LICENCE = "not told by the data set"
VERSIONS = ("v2.0", "v2.1", "v3.0")
_EPISODE = re.compile(r"episode_(\d{1,9})\.parquet$")
_PLACE = re.compile(r"\{(\w+)(?::0?(\d{1,2})d)?\}")  # of the templates of paths; str.format would look into objects
_CLOCK = 0.5  # of a frame, that a step between timestamps may be off


@dataclasses.dataclass(frozen=True)
class Meta:
  """What is of a data set and not of an episode."""

  root: str
  info: dict
  config: dict
  tasks: dict[int, str]
  names: dict[str, list]  # of the numbers in a column, where info.json tells them
  rows: dict[int, dict]  # version 3.0: an episode's place

  @property
  def path(self):
    return os.path.join(self.root, "meta", "info.json")


def find(directory, config_path="") -> list[schema.Recording]:
  """Every episode of every data set below the directory; a data set whose list cannot be read is one Recording, which read() refuses."""
  names = checks.find(directory, "info.json", "LeRobot data sets, <name>/meta/info.json")
  roots = [os.path.dirname(os.path.dirname(name)) for name in names if name == "meta/info.json" or name.endswith("/meta/info.json")]
  if not roots:
    raise UserError(f"{directory}: found no meta/info.json at any depth, expected LeRobot data sets")
  found = []
  for name in roots:
    root = os.path.join(directory, name) if name else os.fspath(directory)
    try:
      episodes = _episodes(_meta(root, os.fspath(directory), os.fspath(config_path)))
    except UserError:
      episodes = [0]  # to be refused by read(), so that the other data sets go on
    files = (os.path.join(root, "meta", "info.json"), os.fspath(directory), os.fspath(config_path))
    found += [schema.Recording(f"{name or os.path.basename(os.path.abspath(root))}/episode_{i:06d}", files) for i in episodes]
  return found


def read(recording: schema.Recording, image_size: int) -> schema.Episode:
  """-> Episode; poses where a config tells their frame, else state, action and the hands' joints alone."""
  info_path, directory, config_path = recording.files
  root, index = os.path.dirname(os.path.dirname(info_path)), int(recording.id.rsplit("_", 1)[1])
  meta = _meta(root, directory, config_path)
  config, place = meta.config, _place(meta, index)
  path, rows = _rows(meta, place, index)
  rate_hz = checks.number(config.get("rate_hz", meta.info.get("fps")), 0.1, 1000, info_path, "fps")
  _check_clock(rows, rate_hz, path)
  table = columns.Table(path, len(rows), functools.partial(parquet.numbers, rows, path=path), meta.names)
  text, spans = _texts(meta, rows, place, rate_hz, path)
  values = columns.fields(config, table)
  values.setdefault("embodiment", config.get("embodiment") or checks.text(meta.info.get("robot_type")) or "unknown")
  return schema.Episode(
    **values | schema.views(*_views(meta, rows, place, table, image_size)),
    id=recording.id,
    source=SOURCE,
    licence=config.get("licence", LICENCE),
    scene=config.get("scene", recording.id),
    text=text,
    spans=spans,
    rate_hz=rate_hz,
  )


def _meta(root, directory, config_path) -> Meta:
  """Read once for all episodes of a data set, as long as its files stay the same."""
  files = [os.path.join(directory, columns.FILE), config_path]
  for folder, _, names in os.walk(os.path.join(root, "meta")):
    files += [os.path.join(folder, name) for name in names if not name.endswith("stats.json")]
  stats = [(path, os.stat(path)) for path in sorted(files) if os.path.exists(path)]
  return _read_meta(root, directory, config_path, tuple((path, stat.st_mtime_ns, stat.st_size) for path, stat in stats))


@functools.lru_cache(maxsize=8)
def _read_meta(root, directory, config_path, _):
  info_path = os.path.join(root, "meta", "info.json")
  info = checks.read_json(info_path)
  if info.get("codebase_version") not in VERSIONS:
    raise UserError(f"{info_path}: codebase_version is {info.get('codebase_version')!r:.40}, expected {', '.join(VERSIONS)}")
  features = checks.field(info, "features", dict, info_path)
  names = {key: _feature_names(feature) for key, feature in features.items() if isinstance(feature, dict)}
  third = info["codebase_version"] == "v3.0"
  tasks = _tasks_parquet(root) if third else _tasks_jsonl(root)
  return Meta(root, info, _config(root, directory, config_path, features), tasks, names, _places(root) if third else {})


def _feature_names(feature):
  """Names of the numbers of a column: a list, or lists in an object as {"motors": [..]}; None where there are none."""
  names = feature.get("names")
  if isinstance(names, dict):
    names = [name for part in names.values() if isinstance(part, list) for name in part]
  return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def _config(root, directory, config_path, features) -> dict:
  """egoscale.json, else what modality.json tells; state and action where neither names them."""
  modality = os.path.join(root, "meta", "modality.json")
  config = columns.find(config_path, [os.path.join(root, "meta"), directory])
  if not config and os.path.exists(modality):
    config = columns.from_modality(modality)
  defaults = {"state": ["observation.state"], "action": ["action"]}
  return {key: [name for name in names if name in features] for key, names in defaults.items()} | config


def _tasks_jsonl(root) -> dict[int, str]:
  path, tasks = os.path.join(root, "meta", "tasks.jsonl"), {}
  checks.readable(path)
  try:
    with open(path, encoding="utf-8") as file:
      for line in filter(str.strip, file):
        entry = json.loads(line)
        tasks[checks.field(entry, "task_index", int, path)] = checks.text(checks.field(entry, "task", str, path))
  except (ValueError, OSError, AttributeError, RecursionError) as error:
    raise UserError(f"{path}: not JSON lines of tasks: {checks.one_line(error)}") from error
  return tasks


def _tasks_parquet(root) -> dict[int, str]:
  """The text is the index that pandas stored as a column."""
  path = os.path.join(root, "meta", "tasks.parquet")
  table = parquet.table(path)
  column = next((name for name in ("task", "__index_level_0__") if name in table.column_names), None)
  if column is None or "task_index" not in table.column_names:
    raise UserError(f"{path}: has the columns {', '.join(table.column_names)}, expected task_index and task")
  numbers, texts = table.column("task_index").to_pylist(), table.column(column).to_pylist()
  return {number: checks.text(text) for number, text in zip(numbers, texts) if isinstance(number, int)}


def _places(root) -> dict[int, dict]:
  """Version 3.0: the row of meta/episodes of each episode, without its statistics."""
  folder, places = os.path.join(root, "meta", "episodes"), {}
  for name in checks.find(folder, ".parquet", "meta/episodes/chunk-*/file-*.parquet"):
    path = os.path.join(folder, name)
    table = parquet.table(path, wanted=lambda column: not column.startswith("stats/"))
    for row in table.to_pylist():
      places[checks.field(row, "episode_index", int, path)] = row
  return places


def _episodes(meta: Meta) -> list[int]:
  if meta.rows:
    return sorted(meta.rows)
  data = os.path.join(meta.root, "data")
  found = [_EPISODE.search(name) for name in checks.find(data, ".parquet", "data/chunk-*/episode_*.parquet")]
  return sorted({int(match[1]) for match in found if match})


def _place(meta, index) -> dict:
  """Where an episode is: the numbers that the templates of paths name."""
  if meta.info["codebase_version"] == "v3.0":
    if index not in meta.rows:
      raise UserError(f"{meta.path}: meta/episodes has no episode {index}")
    return meta.rows[index]
  size = checks.number(meta.info.get("chunks_size", 1000), 1, 1e9, meta.path, "chunks_size")
  return {"episode_index": index, "episode_chunk": int(index // size)}


def _file(meta, template, place, default) -> str:
  """The path that a template of info.json names; one that leaves the data set is refused."""
  text = checks.field({template: default} | meta.info, template, str, meta.path)

  def fill(match):
    value = place.get(match[1])
    if not isinstance(value, int | str):
      raise UserError(f"{meta.path}: {template} is {text!r:.100}, whose {match[1]} is {value!r:.40}")
    return f"{value:0{match[2] or 0}d}" if isinstance(value, int) else value

  return checks.inside(meta.root, _PLACE.sub(fill, text), meta.path, template)


def _rows(meta, place, index):
  """-> (the file, the table of the episode's frames in order)."""
  if meta.info["codebase_version"] == "v3.0":
    numbers = {name: place.get(f"data/{name}") for name in ("chunk_index", "file_index")}
    path = _file(meta, "data_path", numbers, "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet")
    rows = parquet.table(path, episode=index)
    if len(rows) != place.get("length", len(rows)):
      raise UserError(f"{path}: holds {len(rows)} frames of episode {index}, expected {place['length']} as meta/episodes tells")
  else:
    path = _file(meta, "data_path", place, "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet")
    rows = parquet.table(path)
  if not len(rows):
    raise UserError(f"{path}: holds no frame of episode {index}")
  return path, rows


def _check_clock(rows, rate_hz, path):
  """Timestamps go up by a frame at a time; they need not begin at 0."""
  if "timestamp" not in rows.column_names:
    return
  step = np.diff(parquet.numbers(rows, "timestamp", path)[:, 0]) * rate_hz
  bad = ~(np.abs(step - 1) < _CLOCK)
  if bad.any():
    frame = int(bad.argmax())
    raise UserError(f"{path}: timestamp goes on by {step[frame]:.3g} frames after frame {frame}, expected 1 at {rate_hz:g} Hz")


def _texts(meta, rows, place, rate_hz, path):
  """-> (instruction, spans): texts of the column, or of the tasks that its numbers mean; spans where it changes on the way."""
  column = meta.config.get("text") or "task_index"
  if column in rows.column_names:
    told = rows.column(column).to_pylist()
    if any(not isinstance(value, str) and value not in meta.tasks for value in told):
      raise UserError(f"{path}: {column} holds {next(v for v in told if v not in meta.tasks)!r:.40}, which is no text and no task")
    told = [checks.text(value if isinstance(value, str) else meta.tasks[value]) for value in told]
  elif "text" in meta.config:
    raise UserError(f"{path}: the text's column {column} is missing, found {', '.join(rows.column_names)}")
  else:
    tasks = place.get("tasks")
    told = [checks.text(tasks[0])] if isinstance(tasks, list) and tasks else []
  stretches = columns.runs(told)
  if not stretches:
    raise UserError(f"{path}: no language text: {column} is missing or empty")
  spans = [schema.Span(text, a / rate_hz, b / rate_hz) for text, a, b in stretches]
  return stretches[0][0], tuple(spans) if len(spans) > 1 else ()


def _views(meta, rows, place, table, image_size) -> list[schema.View]:
  """The cameras of the config, else those that info.json names and the disk has."""
  features = meta.info["features"]
  kinds = {key: feature.get("dtype") for key, feature in features.items() if isinstance(feature, dict)}
  config, views = meta.config.get("cameras") or {}, []
  for key in config or [key for key, kind in kinds.items() if kind in ("video", "image")]:
    if kinds.get(key) == "image":
      frames = video.pictures(_pictures(rows, key, meta, table.path), image_size, table.path, key)
    elif not config and meta.rows and f"videos/{key}/chunk_index" not in place:
      continue
    else:
      path, start = _video(meta, place, key)
      if not config and not os.path.exists(path):
        continue
      frames = video.decode(path, image_size, start or 0, None if start is None else table.frames)
      if len(frames.jpeg_F) != table.frames:
        raise UserError(f"{path}: {len(frames.jpeg_F)} frames, expected {table.frames} as {os.path.basename(table.path)} has")
    views.append(columns.view(config.get(key, {}), key, frames, table))
  if not views:
    raise UserError(f"{meta.path}: no camera: none of its videos is on the disk and it holds no images")
  return views


def _video(meta, place, key):
  """-> (path, the episode's first frame in it; None: all of the file)."""
  if meta.info["codebase_version"] != "v3.0":
    template = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    return _file(meta, "video_path", place | {"video_key": key}, template), None
  numbers = {name: place.get(f"videos/{key}/{name}") for name in ("chunk_index", "file_index")} | {"video_key": key}
  path = _file(meta, "video_path", numbers, "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4")
  rate = checks.number(meta.info.get("fps"), 0.1, 1000, meta.path, "fps")
  begin = checks.number(place.get(f"videos/{key}/from_timestamp"), 0, 1e7, meta.path, f"meta/episodes: videos/{key}/from_timestamp")
  return path, round(begin * rate)


def _pictures(rows, key, meta, path):
  """Bytes of the pictures of an `image` column, which are in the table or in files beside it."""
  if key not in rows.column_names:
    raise UserError(f"{path}: {key} is missing")
  for cell in rows.column(key).to_pylist():
    if isinstance(cell, dict) and cell.get("bytes"):
      yield cell["bytes"]
    elif isinstance(cell, dict) and isinstance(cell.get("path"), str):
      file = checks.inside(meta.root, cell["path"], path, key)
      checks.readable(file)
      with open(file, "rb") as opened:
        yield opened.read()
    else:
      raise UserError(f"{path}: {key} holds {cell!r:.40}, expected a picture")

"""LeRobot data sets of version 2.0, 2.1 and 3.0, told apart by `codebase_version` in meta/info.json.

  2.x: data/chunk-*/episode_*.parquet, videos/chunk-*/<key>/episode_*.mp4, meta/tasks.jsonl
  3.0: files that hold many episodes; meta/episodes/*.parquet tells the rows and the seconds of each, meta/tasks.parquet the tasks

Which columns mean what is in `meta/egoscale.json` (columns.py). Without it GR00T's `meta/modality.json` is understood: its video, its
first annotation, and the slices `left_hand`, `right_hand`, `left_gripper`, `right_gripper` as joints; wrist poses it does not tell. Without
both, state and action are kept as they are. What info.json claims and the disk does not have is not believed: files count.
"""

import functools
import json
import os
import re

import numpy as np

from egoscale_jax.data import schema
from egoscale_jax.data.sources import checks, columns, lerobot_meta, mp4, parquet
from egoscale_jax.errors import UserError

SOURCE = "lerobot"
LICENCE = "not told by the data set"
_PLACE = re.compile(r"\{(\w+)(?::0?(\d{1,2})d)?\}")  # of the templates of paths; str.format would look into objects
_CLOCK = 0.5  # of a frame, that a step between timestamps may be off


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
      episodes = lerobot_meta.episodes(lerobot_meta.read(root, os.fspath(directory), os.fspath(config_path)))
    except UserError:
      episodes = [0]  # to be refused by read(), so that the other data sets go on
    files = (os.path.join(root, "meta", "info.json"), os.fspath(directory), os.fspath(config_path))
    stem = name or os.path.basename(os.path.abspath(root))
    config = "" if config_path else lerobot_meta.config_beside(root, os.fspath(directory))
    found += [schema.Recording(f"{stem}/episode_{i:06d}", files, config) for i in episodes]
  return found


def read(recording: schema.Recording, image_size: int) -> schema.Episode:
  """-> Episode; poses where a config tells their frame, else state, action and the hands' joints alone."""
  info_path, directory, config_path = recording.files
  root, index = os.path.dirname(os.path.dirname(info_path)), int(recording.id.rsplit("_", 1)[1])
  meta = lerobot_meta.read(root, directory, config_path)
  config, place = meta.config, _place(meta, index)
  path, rows = _rows(meta, place, index)
  rate_hz = checks.number(config.get("rate_hz", meta.info.get("fps")), 0.1, 1000, info_path, "fps")
  _check_clock(rows, rate_hz, path)
  table = columns.Table(path, len(rows), functools.partial(parquet.numbers, rows, path=path), meta.names)
  text, spans = _texts(meta, rows, place, rate_hz, path)
  told = {"licence": config.get("licence") or LICENCE, "scene": config.get("scene") or recording.id, "text": text, "spans": spans}
  values = columns.fields(config, table) | told
  values.setdefault("embodiment", config.get("embodiment") or checks.text(meta.info.get("robot_type")) or "unknown")
  values |= schema.views(*_views(meta, rows, place, table, image_size)) | _exported(place, meta)
  return schema.Episode(**values, id=recording.id, source=SOURCE, rate_hz=rate_hz)


def _exported(place, meta) -> dict:
  """What data/export_lerobot.py keeps of an episode as a whole, and LeRobot has no place for."""
  values = {name: place[f"egoscale/{name}"] for name in ("text", "person", "scene", "licence") if f"egoscale/{name}" in place}
  try:
    if "egoscale/spans" in place:
      spans = json.loads(place["egoscale/spans"])
      values["spans"] = tuple(schema.Span(str(text), float(a), float(b), str(side)) for text, a, b, side in spans)
  except (ValueError, TypeError, RecursionError) as error:
    raise UserError(f"{meta.path}: meta/episodes: egoscale/spans is {place['egoscale/spans']!r:.60}, expected JSON") from error
  for name, value in values.items():
    if name != "spans" and not (isinstance(value, str) and (value or name == "person")):
      raise UserError(f"{meta.path}: meta/episodes: egoscale/{name} is {value!r:.60}, expected a text")
  return values


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
  text = checks.field({template: default} | {k: v for k, v in meta.info.items() if v is not None}, template, str, meta.path)

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
    foreign = [value for value in told if not isinstance(value, str) and not (isinstance(value, int) and value in meta.tasks)]
    if foreign:
      raise UserError(f"{path}: {column} holds {foreign[0]!r:.40}, which is no text and no task")
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
      frames = mp4.pictures(_pictures(rows, key, meta, table.path), image_size, table.path, key)
    elif not config and meta.rows and f"videos/{key}/chunk_index" not in place:
      continue
    else:
      path, start = _video(meta, place, key)
      if not config and not os.path.exists(path):
        continue
      frames = mp4.decode(path, image_size, start or 0, None if start is None else table.frames)
      if len(frames.jpeg_F) != table.frames:
        raise UserError(f"{path}: {len(frames.jpeg_F)} frames, expected {table.frames} as {os.path.basename(table.path)} has")
    views.append(columns.view(config.get(key, {}) | _intrinsics(place, len(views), meta), key, frames, table))
  if not views:
    raise UserError(f"{meta.path}: no camera: none of its videos is on the disk and it holds no images")
  return views


def _intrinsics(place, camera, meta) -> dict:
  """Those that data/export_lerobot.py keeps, nine numbers a camera or null, as columns.py has them."""
  if "egoscale/intrinsics" not in place:
    return {}
  try:
    k = json.loads(place["egoscale/intrinsics"])[camera]
    return {} if None in k else {"intrinsics": [k[0], k[4], k[2], k[5]]}
  except (ValueError, TypeError, IndexError, RecursionError) as error:
    raise UserError(f"{meta.path}: meta/episodes: egoscale/intrinsics is {place['egoscale/intrinsics']!r:.60}, expected JSON") from error


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

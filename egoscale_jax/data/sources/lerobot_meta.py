"""What is of a LeRobot data set as a whole: info.json, its config, its tasks and, in version 3.0, the places of its episodes."""

import dataclasses
import functools
import json
import os
import re

from egoscale_jax.data.sources import checks, columns, parquet
from egoscale_jax.errors import UserError

VERSIONS = ("v2.0", "v2.1", "v3.0")
_EPISODE = re.compile(r"episode_(\d{1,9})\.parquet$")


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


def read(root, directory, config_path) -> Meta:
  """Read once for all episodes of a data set, as long as its files stay the same."""
  files = [os.path.join(directory, columns.FILE), config_path]
  for folder, _, names in os.walk(os.path.join(root, "meta")):
    files += [os.path.join(folder, name) for name in names if not name.endswith("stats.json")]
  stats = [(path, os.stat(path)) for path in sorted(files) if os.path.exists(path)]
  return _read_meta(root, directory, config_path, tuple((path, stat.st_mtime_ns, stat.st_size) for path, stat in stats))


def config_beside(root, directory) -> str:
  """The file that says what the columns mean, where none is given: egoscale.json, else modality.json, else ""."""
  modality = os.path.join(root, "meta", "modality.json")
  return columns.beside(_folders(root, directory)) or (modality if os.path.exists(modality) else "")


def _folders(root, directory):
  return os.path.join(root, "meta"), directory


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
  config = columns.find(config_path, _folders(root, directory))
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


def episodes(meta: Meta) -> list[int]:
  if meta.rows:
    return sorted(meta.rows)
  data = os.path.join(meta.root, "data")
  found = [_EPISODE.search(name) for name in checks.find(data, ".parquet", "data/chunk-*/episode_*.parquet")]
  return sorted({int(match[1]) for match in found if match})

"""Statistics of a run, one for each adapter slot: embodiments that share a slot share a hand, an adapter and a normaliser.

`{slot: Statistics}` is made once, at the start of a run, from the states that `prepare` leaves beside the shards, and kept with the run.
"""

import json
import os

from egoscale_jax.data import jsonfile, manifest, mixture, statistics
from egoscale_jax.errors import UserError

VERSION = 3


def gather(config) -> dict[int, statistics.Statistics]:
  """Of all folders of the config's mixture; UserError where an embodiment has no slot, or two hands share one."""
  states = {}
  paths = {path for folder in mixture.folders(config).values() for path in (folder["shards"], folder["pairs"]) if path}
  for path in sorted(paths):
    for embodiment, told in manifest.load(path)["statistics"].items():
      if embodiment not in config.data.slots:
        raise UserError(f"config.data.slots: no slot for the embodiment {embodiment!r} of {path}, found {sorted(config.data.slots)}")
      file = os.path.join(path, told["file"])
      try:
        with open(file, "rb") as opened:
          state = statistics.Accumulator.from_bytes(opened.read(), file)
      except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror or error}") from error
      states.setdefault(config.data.slots[embodiment], []).append(state)
  return {int(slot): statistics.merged(several) for slot, several in sorted(states.items())}


def of_run(config) -> dict[int, statistics.Statistics]:
  """Those of the file config.data.statistics, else `gather`; UserError where the file's are of other joints."""
  own, path = gather(config), config.data.statistics
  if not path:
    return own
  given = load(path)
  for slot, table in own.items():
    if slot not in given or given[slot].joint_names != table.joint_names:
      found = f"{len(given[slot].joint_names)} joints from {given[slot].joint_names[0]}" if slot in given else f"slots {sorted(given)}"
      expected = f"slot {slot} with {len(table.joint_names)} joints from {table.joint_names[0]}"
      raise UserError(f"config.data.statistics={path}: found {found}, expected {expected}")
  return given


def save(slots: dict[int, statistics.Statistics], path):
  with open(path, "w", encoding="utf-8") as file:
    json.dump({"version": VERSION, "slots": {str(slot): stats.to_json() for slot, stats in slots.items()}}, file)


def load(path) -> dict[int, statistics.Statistics]:
  content = jsonfile.read(path, VERSION, "statistics of a run")["slots"]
  return {int(slot): statistics.from_json(table) for slot, table in content.items()}

"""`egoscale doctor`: recordings of a source are read and checked, and a list of what is wrong is written, which `prepare --exclude` reads.

The file: {version, source, input, episodes: [{id, status, error, frames, seconds, findings: [{name, severity, side, count, first_frame,
last_frame, first_s, last_s, detail}]}], exclude: [id]}. `exclude` holds those that cannot be read or that the checks reject; a person may
add to it and take away.
"""

import functools
import json
import os

from egoscale_jax import progress
from egoscale_jax.data import doctor, jsonfile, manifest, prepare, workers
from egoscale_jax.errors import UserError

VERSION = 1


def examine(source, input_dir, num_workers=1, image_size=64, columns="") -> dict:
  """source: a module of data/sources. Labels are not made: what retargeting finds, prepare() tells."""
  recordings = prepare.find(source, input_dir, columns)
  entries = []
  with progress.bar(len(recordings), "doctor", "episode") as bar:
    for recording, episode in workers.read_all(functools.partial(source.read, image_size=image_size), recordings, num_workers):
      if isinstance(episode, UserError):
        entries.append(manifest.entry(recording, error=str(episode)))
      else:
        entries.append(_with_seconds(manifest.entry(recording, episode, findings=doctor.check(episode)[1]), episode.rate_hz))
      bar.update()
  exclude = [e["id"] for e in entries if e["status"] == manifest.REJECTED]
  return {"version": VERSION, "source": source.SOURCE, "input": os.fspath(input_dir), "episodes": entries, "exclude": exclude}


def _with_seconds(entry, rate_hz):
  for finding in entry["findings"]:
    finding |= {"first_s": round(finding["first_frame"] / rate_hz, 3), "last_s": round(finding["last_frame"] / rate_hz, 3)}
  return entry


def save(found, path):
  try:
    with open(path, "w", encoding="utf-8") as file:
      json.dump(found, file, indent=1, ensure_ascii=False)
      file.write("\n")
  except OSError as error:
    raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error


def load(path) -> frozenset[str]:
  """The ids to leave out."""
  ids = jsonfile.read(path, VERSION, "list of exclusions").get("exclude")
  if not isinstance(ids, list) or not all(isinstance(name, str) for name in ids):
    raise UserError(f"{path}: exclude is {ids!r:.60}, expected a list of ids")
  return frozenset(ids)


def lines(found) -> list[str]:
  """For a person: one line a finding, one a recording that is left out, and the counts."""
  told = []
  for entry in found["episodes"]:
    for f in entry["findings"]:
      when = f"{f['count']} frames, {f['first_s']} to {f['last_s']} s"
      told.append(f"{f['severity']} {entry['id']}: {' '.join(filter(None, (f['name'], f['side'])))}, {when}: {f['detail']}")
    if entry["error"] and not entry["findings"]:
      told.append(f"unreadable {entry['id']}: {entry['error']}")
  clean = sum(not e["findings"] and not e["error"] for e in found["episodes"])
  return [*told, f"{len(found['episodes'])} episodes: {clean} clean, {len(found['exclude'])} to exclude"]

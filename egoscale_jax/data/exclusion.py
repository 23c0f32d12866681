"""`egoscale doctor`: recordings of a source are read and checked, and a list of what is wrong is written, which `prepare --exclude` reads.

The file: {version, source, input, episodes: [{id, status, error, frames, seconds, rate_hz, fingerprint, findings: [{name, severity, side,
count, first_frame, last_frame, first_s, last_s, spans: [[first, last frame]], detail}]}], exclude: [id]}. `exclude` holds those that cannot
be read or that the checks reject; a person may add to it and take away.
"""

import dataclasses
import functools
import json
import os

from egoscale_jax import progress
from egoscale_jax.data import doctor, findings, jsonfile, labels, leaks, manifest, prepare, schema, workers
from egoscale_jax.errors import UserError
from egoscale_jax.hands import hand, keypoints, retarget

VERSION = 1


def examine(source, input_dir, num_workers=1, image_size=64, columns="", hand_name=None) -> dict:
  """source: a module of data/sources; hand_name: a hand that humans are retargeted to, for the findings of labels.py (seconds a minute of
  video); without one no labels are made.
  """
  recordings = prepare.find(source, input_dir, columns)
  hands = tuple(hand.load(hand_name, side) for side in keypoints.SIDES) if hand_name else None
  entries = []
  with progress.bar(len(recordings), "doctor", "episode") as bar:
    for recording, episode in workers.read_all(functools.partial(source.read, image_size=image_size), recordings, num_workers):
      if isinstance(episode, UserError):
        entries.append(manifest.entry(recording, error=str(episode)))
      else:
        entry = manifest.entry(recording, episode, findings=_findings(episode, hands))
        entries.append(entry | {"rate_hz": episode.rate_hz, "fingerprint": leaks.fingerprint(episode)})
      bar.update()
  by_id = {entry["id"]: entry for entry in entries}
  for name, finding in leaks.copies(entries):
    by_id[name]["findings"].append(dataclasses.asdict(finding))
  for entry in entries:
    _tell_seconds(entry)
  exclude = [e["id"] for e in entries if e["status"] == manifest.REJECTED]
  return {"version": VERSION, "source": source.SOURCE, "input": os.fspath(input_dir), "episodes": entries, "exclude": exclude}


def _findings(episode, hands):
  """The doctor's and, where there are hands to retarget a human to, those of the labels."""
  valid_Fx2, found = doctor.check(episode)
  if hands is None or episode.embodiment != schema.HUMAN or any(finding.severity == findings.REJECTED for finding in found):
    return found
  result, more = labels.label(episode, hands, valid_Fx2, functools.partial(retarget.retarget, rate_hz=episode.rate_hz))
  return found + more + doctor.check_valid(result.valid_Fx2, episode.rate_hz)


def _tell_seconds(entry):
  for finding in entry["findings"]:
    first_s, last_s = (round(finding[key] / entry["rate_hz"], 3) for key in ("first_frame", "last_frame"))
    finding |= {"first_s": first_s, "last_s": last_s}


def save(found, path):
  try:
    with open(path, "w", encoding="utf-8") as file:
      json.dump(found, file, indent=1, ensure_ascii=False)
      file.write("\n")
  except OSError as error:
    raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error


def load(path) -> frozenset[str]:
  """The ids to leave out."""
  ids = jsonfile.read(path, VERSION, "list of exclusions", "egoscale doctor --output", "check the recordings again").get("exclude")
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
  count = len(found["episodes"])
  return [*told, f"{count} episode{'s' * (count != 1)}: {clean} clean, {len(found['exclude'])} to exclude"]

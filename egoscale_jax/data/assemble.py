"""Finished parts -> split, subsets, statistics, index and manifest: seconds, whatever the hours, since no picture is read.

Everything here is written anew when parts are added, the manifest last; the parts' files are only read.
"""

import contextlib
import dataclasses
import hashlib
import os

import numpy as np

from egoscale_jax.data import builder, clips, labeller, manifest, shards, split, statistics, workers
from egoscale_jax.errors import UserError

STATISTICS = "statistics.json"
_REJECTED = f"rejected.{manifest.FILE}"
_GROUP = 16  # parts: a state is up to 100 MB, whatever it holds


def assemble(output_dir, settings: builder.Settings, parts: int, excluded, head: dict, num_workers=1) -> dict:
  """-> the manifest, which is written; UserError where no episode is usable. excluded: ids to leave out, although the files have them."""
  contents = [builder.load(output_dir, number) for number in range(parts)]
  entries = [entry | {"part": number} for number, content in enumerate(contents) for entry in content["entries"]]
  before = manifest.load_earlier(output_dir)
  _restore_split(entries, before, excluded)
  notes = split.assign(entries, settings.validation, settings.seed)
  if before and (before["parts"], before["excluded"]) == (parts, head["excluded"]):
    notes = before["notes"]  # of the draw, which was then
  kept = [e for e in entries if e["status"] == manifest.KEPT]
  if not any(e["split"] == shards.TRAIN for e in kept):
    raise _nothing_usable(head, entries, output_dir)
  twentieth = split.twentieths(entries, settings.seed)
  embodiments = sorted({e["embodiment"] for e in kept})
  sketches, table = _statistics(output_dir, settings, contents, kept, before, num_workers)
  manifest.set_aside(output_dir)
  table.save(os.path.join(output_dir, STATISTICS))
  licence = "; ".join(sorted({e["licence"] for e in kept}))
  for kind in (shards.CLIPS, shards.EPISODES):
    files = [content["files"][os.path.relpath(kind.path(output_dir, n), output_dir)] for n, content in enumerate(contents)]
    shards.write_metadata(output_dir, kind, shards.features(kind, len(settings.joints.names[0])), files, licence)
  shards.save_index(_index(kept, twentieth, embodiments), output_dir)
  content = head | {
    "hand": settings.joints.hand,
    "embodiments": embodiments,
    "parts": parts,
    "statistics": sketches,
    "statistics_sha256": shards.checksum(os.path.join(output_dir, STATISTICS))["sha256"],
    "index_sha256": shards.checksum(shards.index_path(output_dir))["sha256"],
    "subsets": split.subsets(entries, twentieth, settings.seed, settings.source),
    "episodes": entries,
    "totals": manifest.totals(entries),
    "notes": notes,
  }
  manifest.save(content, output_dir)
  _remove_old(output_dir, {told["file"] for told in sketches.values()})
  return manifest.load(output_dir)


def _remove_old(output_dir, current):
  """What only the manifest before named."""
  old = [os.path.join("statistics", name) for name in os.listdir(os.path.join(output_dir, "statistics"))]
  for name in [name for name in old if name not in current] + [manifest.BEFORE, _REJECTED]:
    with contextlib.suppress(FileNotFoundError):
      os.remove(os.path.join(output_dir, name))


def _restore_split(entries, before, excluded):
  """What an earlier manifest drew stays drawn; what is excluded now is in no split."""
  earlier = {e["id"]: e["split"] for e in before["episodes"]} if before else {}
  for e in entries:
    if e["status"] == manifest.KEPT:
      drawn = earlier.get(e["id"])
      e["split"] = manifest.EXCLUDED if e["id"] in excluded else drawn if drawn in shards.SPLITS else None


def _index(kept, twentieth, embodiments) -> np.ndarray:
  rows = np.zeros(len(kept), shards.INDEX)
  for row, e in zip(rows, kept):
    row["part"], row["clips"], row["frames"], row["rate_hz"] = e["part"], e["clips"], e["frames"], e["rate_hz"]
    row["split"] = shards.SPLITS.index(e["split"]) if e["split"] in shards.SPLITS else shards.LEFT_OUT
    row["twentieth"] = twentieth.get(e["id"], 0)
    row["embodiment"], row["task"] = embodiments.index(e["embodiment"]), shards.task_hash(e["text"])
  return rows


@dataclasses.dataclass(frozen=True)
class _Group:
  """Some parts, whose statistics one process makes."""

  output_dir: str
  joints: labeller.Joints
  parts: dict[int, list[tuple[str, str | None]]]  # of each, in the order of its records: an episode's id, and its embodiment if it counts


def _statistics(output_dir, settings, contents, kept, before, num_workers) -> tuple[dict[str, dict], statistics.Statistics]:
  """Of the training episodes, one state an embodiment -> {embodiment: {file, sha256}}, and the table of all together.

  Episodes that are in the state of an earlier manifest are not read again, unless one of them is no training episode any more.
  """
  merged, counted = _earlier(output_dir, before, {e["id"] for e in kept if e["split"] == shards.TRAIN})
  wanted = {e["id"]: e["embodiment"] for e in kept if e["split"] == shards.TRAIN and e["id"] not in counted}
  groups = []
  for first in range(0, len(contents), _GROUP):
    parts = {}
    for number in range(first, min(first + _GROUP, len(contents))):
      ids = [e["id"] for e in contents[number]["entries"] if e["status"] == manifest.KEPT]
      if any(name in wanted for name in ids):
        parts[number] = [(name, wanted.get(name)) for name in ids]
    if parts:
      groups.append(_Group(output_dir, settings.joints, parts))
  for _, states in workers.run(_accumulate, groups, num_workers if len(groups) > 1 else 1, lambda group: group.output_dir):
    if isinstance(states, UserError):
      raise states
    for name, data in states.items():
      state = statistics.Accumulator.from_bytes(data, output_dir)
      if name in merged:
        merged[name].merge(state)
      else:
        merged[name] = state
  told = {}
  os.makedirs(os.path.join(output_dir, "statistics"), exist_ok=True)
  for number, (name, state) in enumerate(sorted(merged.items())):
    data = state.to_bytes()
    digest = hashlib.sha256(data).hexdigest()
    path = os.path.join("statistics", f"{number}-{digest[:12]}.statistics")  # a new name, so that the manifest before stays whole
    builder.write_bytes(os.path.join(output_dir, path), data)
    told[name] = {"file": path, "sha256": digest}
  for e in kept:
    e["counted"] = e["split"] == shards.TRAIN
  return told, statistics.merged([merged[name] for name in sorted(merged)])


def _earlier(output_dir, before, train):
  """-> the states of the manifest before and the ids of the episodes in them; neither, where one of these is not in `train`."""
  counted = {e["id"] for e in before["episodes"] if e.get("counted")} if before else set()
  if not counted or not counted <= train:
    return {}, set()
  states = {}
  for name, told in before["statistics"].items():
    path = os.path.join(output_dir, told["file"])
    try:
      with open(path, "rb") as file:
        states[name] = statistics.Accumulator.from_bytes(file.read(), path)
    except OSError as error:
      raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
  return states, counted


def _accumulate(group: _Group) -> dict[str, bytes]:
  """-> {embodiment: state of its episodes of the group}, from the records without pictures."""
  accumulators = {}
  for number, episodes in group.parts.items():
    records = shards.Records(group.output_dir, shards.EPISODES, [0] * number + [len(episodes)])
    for row, (_, embodiment) in enumerate(episodes):
      if embodiment is None:
        continue
      try:
        labels = clips.read_labels(records[row])[1]
      except ValueError as error:
        raise UserError(str(error)) from error
      if embodiment not in accumulators:
        accumulators[embodiment] = statistics.Accumulator(group.joints.hand, group.joints.names)
      accumulators[embodiment].add(labels)
  return {name: accumulator.to_bytes() for name, accumulator in accumulators.items()}


def _nothing_usable(head, entries, output_dir) -> UserError:
  """Leaves the manifest under another name, so that nobody takes the output for data -> the error that names it."""
  path = os.path.join(output_dir, _REJECTED)
  unread = sum("frames" not in e for e in entries)
  manifest.save(head | {"episodes": entries, "totals": manifest.totals(entries), "notes": []}, output_dir, _REJECTED)
  counts = f"{len(entries)} found, {unread} not readable, {len(entries) - unread} refused by the checks"
  first = next((e["error"] for e in entries if e["error"]), "all are excluded")
  return UserError(f"no usable episode in {head['input']}: {counts}; {path} names each, the first is {first}")

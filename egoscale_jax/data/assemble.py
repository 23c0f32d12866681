"""Finished parts -> split, subsets, statistics, index and manifest: seconds, whatever the hours, since no picture is read.

Everything here is written anew when parts are added, the manifest last; the parts' files are only read.
"""

import os

import numpy as np

from egoscale_jax.data import builder, clips, manifest, shards, split, statistics
from egoscale_jax.errors import UserError

STATISTICS = "statistics.json"


def assemble(output_dir, settings: builder.Settings, parts: int, excluded, head: dict) -> dict:
  """-> the manifest, which is written; UserError where no episode is usable. excluded: ids to leave out, although the files have them."""
  contents = [builder.load(output_dir, number) for number in range(parts)]
  entries = [entry | {"part": number} for number, content in enumerate(contents) for entry in content["entries"]]
  _restore_split(entries, output_dir, excluded)
  notes = split.assign(entries, settings.validation, settings.seed)
  kept = [e for e in entries if e["status"] == manifest.KEPT]
  if not any(e["split"] in shards.SPLITS for e in kept):
    raise _nothing_usable(head, entries, output_dir)
  twentieth = split.twentieths(entries, settings.seed)
  embodiments = sorted({e["embodiment"] for e in kept})
  sketches = _statistics(output_dir, settings, contents, kept)
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
  return manifest.load(output_dir)


def _restore_split(entries, output_dir, excluded):
  """What an earlier manifest drew stays drawn; what is excluded now is in no split."""
  earlier = {}
  if os.path.isfile(os.path.join(output_dir, manifest.FILE)):
    earlier = {e["id"]: e["split"] for e in manifest.load(output_dir)["episodes"]}
  for e in entries:
    if e["status"] == manifest.KEPT:
      before = earlier.get(e["id"])
      e["split"] = manifest.EXCLUDED if e["id"] in excluded else before if before in shards.SPLITS else None


def _index(kept, twentieth, embodiments) -> np.ndarray:
  rows = np.zeros(len(kept), shards.INDEX)
  for row, e in zip(rows, kept):
    row["part"], row["clips"], row["frames"], row["rate_hz"] = e["part"], e["clips"], e["frames"], e["rate_hz"]
    row["split"] = shards.SPLITS.index(e["split"]) if e["split"] in shards.SPLITS else shards.LEFT_OUT
    row["twentieth"] = twentieth.get(e["id"], 0)
    row["embodiment"], row["task"] = embodiments.index(e["embodiment"]), shards.task_hash(e["text"])
  return rows


def _statistics(output_dir, settings, contents, kept) -> dict[str, dict]:
  """Of the training episodes, one state an embodiment and the table of all together -> {embodiment: {file, sha256}}."""
  merged = {}
  for number, content in enumerate(contents):
    train = {e["id"] for e in kept if e["part"] == number and e["split"] == shards.TRAIN}
    if train == set(content["train"]):
      states = {name: _load(output_dir, path) for name, path in content["statistics"].items()}
    else:  # the split is not the one that the part guessed
      states = _again(output_dir, settings, content, number, train)
    for name, state in states.items():
      if name in merged:
        merged[name].merge(state)
      else:
        merged[name] = state
  told = {}
  os.makedirs(os.path.join(output_dir, "statistics"), exist_ok=True)
  for number, (name, state) in enumerate(sorted(merged.items())):
    path = os.path.join("statistics", f"{number}.statistics")
    builder.write_bytes(os.path.join(output_dir, path), state.to_bytes())
    told[name] = {"file": path, "sha256": shards.checksum(os.path.join(output_dir, path))["sha256"]}
  table = statistics.merged([merged[name] for name in sorted(merged)])
  table.save(os.path.join(output_dir, STATISTICS))
  return told


def _load(output_dir, path):
  path = os.path.join(output_dir, path)
  try:
    with open(path, "rb") as file:
      return statistics.Accumulator.from_bytes(file.read(), path)
  except OSError as error:
    raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


def _again(output_dir, settings, content, number, train):
  """A part's statistics of other episodes than it took, from its episode records."""
  path = shards.EPISODES.path(output_dir, number)
  kept = [e for e in content["entries"] if e["status"] == manifest.KEPT]
  records = shards.Records(output_dir, shards.EPISODES, [0] * number + [len(kept)])
  accumulators = {}
  for row, e in enumerate(kept):
    if e["id"] in train:
      try:
        labels = clips.read_labels(records[row])[1]
      except ValueError as error:
        raise UserError(f"{path}: {error}") from error
      builder.add(accumulators, e["embodiment"], labels, settings.joints)
  return accumulators


def _nothing_usable(head, entries, output_dir) -> UserError:
  """Leaves the manifest under another name, so that nobody takes the output for data -> the error that names it."""
  path = os.path.join(output_dir, f"rejected.{manifest.FILE}")
  unread = sum("frames" not in e for e in entries)
  manifest.save(head | {"episodes": entries, "totals": manifest.totals(entries), "notes": []}, output_dir, f"rejected.{manifest.FILE}")
  counts = f"{len(entries)} found, {unread} not readable, {len(entries) - unread} refused by the checks"
  first = next((e["error"] for e in entries if e["error"]), "all are excluded")
  return UserError(f"no usable episode in {head['input']}: {counts}; {path} names each, the first is {first}")

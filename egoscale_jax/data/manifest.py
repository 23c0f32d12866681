"""manifest.json beside the shards: what was read, what was left out and why.

Keys: version, package, source, input, excluded [id], hand, image_size, stride, images, codec, seed, validation, embodiments, parts,
statistics {embodiment: {file, sha256}}, statistics_sha256, index_sha256, subsets (data/split.py), episodes [one dict an episode, of
`entry`], totals {kept, rejected, frames, hours, clips {split: n}, masked {"<finding> <side>": {frames, episodes}}}, notes.
"""

import collections
import dataclasses
import json
import os

import numpy as np

from egoscale_jax.data import jsonfile
from egoscale_jax.errors import UserError

FILE = "manifest.json"
BEFORE = "before.manifest.json"  # while what it tells of is replaced
PLAN = "plan.json"  # what a build began with
VERSION = 2
KEPT, REJECTED = "kept", "rejected"
LEAKS = "left out"  # the `split` of an episode that ties a training scene or person to a held-out one
EXCLUDED = "excluded"  # the `split` of an episode that is in the files and that a later list leaves out


def entry(recording, episode=None, labels=None, findings=(), error="") -> dict:
  """One episode's entry; an error, or a finding that rejects, makes it rejected. `split` is filled in when all are known."""
  rejections = [f"{recording.files[0]}: {f.name}: {f.detail}" for f in findings if f.severity == "rejected"]
  error = error or "; ".join(rejections)
  result = {"id": recording.id, "status": REJECTED if error else KEPT, "split": None, "error": error or None}
  if episode is not None:
    seconds = episode.num_frames / episode.rate_hz
    result |= {"frames": episode.num_frames, "seconds": round(seconds, 3), "text": episode.text, "scene": episode.scene}
    result |= {"embodiment": episode.embodiment, "person": episode.person, "licence": episode.licence}
  if labels is not None:
    result["valid"] = [round(float(fraction), 4) for fraction in labels.valid_Fx2.mean(axis=0)]  # left, right
    residual = labels.residual_m_Fx2[np.isfinite(labels.residual_m_Fx2)]  # a robot has none: nothing was retargeted
    result["residual_m"] = round(float(residual.mean()), 5) if residual.size else None
  result["findings"] = [dataclasses.asdict(finding) for finding in findings]
  return result


def totals(entries) -> dict:
  """Sums over the entries that are in a split."""
  kept = [e for e in entries if e["status"] == KEPT and e["split"] not in (None, LEAKS, EXCLUDED)]
  clips = collections.Counter()
  for e in kept:
    clips[e["split"]] += e["clips"]
  masked = collections.defaultdict(lambda: {"frames": 0, "episodes": 0})
  for finding in (f for e in kept for f in e["findings"] if f["severity"] == "masked"):
    row = masked[f"{finding['name']} {finding['side']}".strip()]
    row["frames"] += finding["count"]
    row["episodes"] += 1
  return {
    "kept": len(kept),
    "rejected": sum(e["status"] == REJECTED for e in entries),
    "frames": sum(e["frames"] for e in kept),
    "hours": round(sum(e["seconds"] for e in kept) / 3600, 6),
    "clips": dict(sorted(clips.items())),
    "masked": dict(sorted(masked.items())),
  }


def save(manifest: dict, output_dir, name: str = FILE):
  path = os.path.join(output_dir, name)
  with open(f"{path}.tmp", "w", encoding="utf-8") as file:
    json.dump({"version": VERSION} | manifest, file, indent=1, ensure_ascii=False)
    file.write("\n")
    file.flush()
    os.fsync(file.fileno())
  os.replace(f"{path}.tmp", path)


def load(output_dir) -> dict:
  """The manifest of prepared data; UserError where there is none, one of another version, or where the data is not whole."""
  check(output_dir)
  return jsonfile.read(os.path.join(output_dir, FILE), VERSION, "manifest")


def set_aside(output_dir):
  """Before the index is replaced: from here on nobody reads the folder, until a new manifest is saved."""
  path = os.path.join(output_dir, FILE)
  if os.path.isfile(path):
    os.replace(path, os.path.join(output_dir, BEFORE))


def load_earlier(output_dir) -> dict | None:
  """The manifest of the build before, also where the one after was stopped in the middle."""
  for name in (FILE, BEFORE):
    path = os.path.join(output_dir, name)
    if os.path.isfile(path):
      return jsonfile.read(path, VERSION, "manifest")
  return None


def check(output_dir):
  """UserError where a build was begun and has not come to its manifest."""
  if os.path.isfile(os.path.join(output_dir, PLAN)) and not os.path.isfile(os.path.join(output_dir, FILE)):
    raise UserError(f"{output_dir}: is not finished, expected {FILE}: start the same `egoscale prepare` again, it goes on")

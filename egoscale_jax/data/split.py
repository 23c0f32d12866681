"""Who trains and who is held out, and the nested subsets of the training hours; both are columns of the index, never files.

A person or a scene is on one side only: episodes that share either go together. What is drawn stays as it is when recordings are added;
a new episode that ties a training scene to a held-out person (or the other way round) is left out, and told.
"""

import collections
import hashlib

from egoscale_jax.data import manifest
from egoscale_jax.data.shards import SPLITS, TRAIN, TWENTIETHS, VALIDATION

SUBSETS = (1, 2, 4, 10, 20)  # twentieths, as the paper's 1,000 to 20,000 hours (section 3.3)


def is_validation(scene: str, validation: float, seed: int) -> bool:
  """Drawn from the scene's name alone, the same in every run and on every machine."""
  return _draw(scene, seed) < validation


def _draw(name, seed) -> float:
  """0 <= x < 1."""
  return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:6]) / 2**48


def assign(entries: list[dict], validation: float, seed: int) -> list[str]:
  """Fills in `split` of the kept entries that have none -> notes on what was out of the ordinary.

  Where the draw leaves a split of new data empty, the group nearest to it goes there; most of the hours are never held out.
  """
  side = {}  # node -> split, of what was drawn before
  for e in entries:
    if e["status"] == manifest.KEPT and e["split"] in SPLITS:
      side |= dict.fromkeys(_nodes(e), e["split"])
  fresh = [e for e in entries if e["status"] == manifest.KEPT and e["split"] is None]
  groups = _groups(fresh)
  splits, notes = _draw_groups(groups, validation, seed, alone=not side)
  for group, drawn in zip(groups, splits):
    told = {side[node] for e in group for node in _nodes(e) if node in side}
    if len(told) < 2:
      for e in group:
        e["split"] = next(iter(told), drawn)
    else:
      notes += _untie(group, dict(side))
  return notes


def _nodes(entry):
  return [("scene", entry["scene"]), *([("person", entry["person"])] if entry["person"] else [])]


def _groups(entries) -> list[list[dict]]:
  """Entries that are tied by scenes and persons, each group and all groups in the order of the scenes' names."""
  parent = {}

  def root(node):
    while parent.setdefault(node, node) != node:
      parent[node] = node = parent[parent[node]]
    return node

  for e in entries:
    first, *rest = _nodes(e)
    for node in rest:
      parent[root(node)] = root(first)
  groups = collections.defaultdict(list)
  for e in sorted(entries, key=lambda e: (e["scene"], e["id"])):
    groups[root(("scene", e["scene"]))].append(e)
  return list(groups.values())


def _draw_groups(groups, validation, seed, alone) -> tuple[list[str], list[str]]:
  """-> the split of every group by the name of its first scene, and notes. alone: no data was drawn before."""
  names = [group[0]["scene"] for group in groups]
  held_out = {name for name in names if is_validation(name, validation, seed)}
  seconds = {name: sum(e["seconds"] for e in group) for name, group in zip(names, groups)}
  most = [name for name in names if 2 * seconds[name] > sum(seconds.values())] if alone and len(names) > 1 else []
  notes, nearest = [], sorted(set(names) - set(most), key=lambda name: (_draw(name, seed), name))
  if held_out & set(most):
    held_out -= set(most)
    notes.append(f"{most[0]} and what is tied to it fell to validation, and is more than half of the hours: it was put to train")
  if not alone or not names:
    pass
  elif len(names) == 1:
    held_out = set()
    scenes = {e["scene"] for e in groups[0]}
    what = f"one scene only ({names[0]})" if len(scenes) == 1 else f"{len(scenes)} scenes are tied together by their persons"
    notes.append(f"{what}: all of it is train, there is no validation split")
  elif validation and not held_out:
    held_out = {nearest[0]}
    notes.append(f"no scene of {len(names)} fell to validation at a share of {validation}: {nearest[0]} was put there")
  elif len(held_out) == len(names):
    held_out.remove(nearest[-1])
    notes.append(f"all {len(names)} scenes fell to validation at a share of {validation}: {nearest[-1]} was put to train")
  return [VALIDATION if name in held_out else TRAIN for name in names], notes


def _untie(group, side) -> list[str]:
  """A group that ties both sides: each episode goes where its scene and person are; one that has a foot on either is left out."""
  notes = []
  for e in group:
    told = {side[node] for node in _nodes(e) if node in side}
    if len(told) == 2:
      e["split"] = manifest.LEAKS
      notes.append(f"{e['id']}: left out: it ties a training scene or person to a held-out one ({e['scene']}, {e['person']})")
      continue
    e["split"] = next(iter(told), TRAIN)
    side |= dict.fromkeys(_nodes(e), e["split"])
  return notes


def twentieths(entries: list[dict], seed: int) -> dict[str, int]:
  """{id of a training entry: 0 .. 19}: of each, so many of the hours as near as whole episodes allow; the order is a hash of the id."""
  train = [e for e in entries if e["split"] == TRAIN]
  train.sort(key=lambda e: (_draw(f"twentieth:{e['id']}", seed), e["id"]))
  total, before, result = sum(e["seconds"] for e in train), 0.0, {}
  for e in train:
    result[e["id"]] = min(int(TWENTIETHS * before / total), TWENTIETHS - 1)
    before += e["seconds"]
  return result


def subsets(entries: list[dict], twentieth: dict[str, int], seed: int, source: str) -> list[dict]:
  """For the manifest: {twentieths, seed, hours, episodes, sources}, each subset within the next."""
  rows = []
  for n in SUBSETS:
    inside = [e for e in entries if e["split"] == TRAIN and twentieth[e["id"]] < n]
    hours = round(sum(e["seconds"] for e in inside) / 3600, 6)
    rows.append({"twentieths": n, "seed": seed, "hours": hours, "episodes": len(inside), "sources": {source: len(inside)}})
  return rows

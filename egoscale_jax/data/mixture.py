"""Several data sets as one endless stream of records, in shares that hold over any stretch of it.

Ordinals (data/order.py) are dealt to the components by a table of `PERIOD` entries: each has as many of them as its share, spread as evenly
as a golden-ratio sequence does, so that every batch, every process and every hundred records have the shares, not only their expectation.
The n-th ordinal of a component is the n-th of its own endless shuffle, so each of its clips comes once an epoch, whatever else is mixed in.
"""

import dataclasses
import hashlib
import json
import math
import os

import numpy as np

from egoscale_jax.data import manifest, order, shards
from egoscale_jax.errors import UserError

PERIOD = 1 << 16
_GOLDEN = (5**0.5 - 1) / 2
UNIT = 2  # rows of an aligned pair: the human's, the robot's
_CANDIDATES = 16  # human episodes at least that a robot's clip draws from, so that the same two do not always meet


@dataclasses.dataclass(frozen=True)
class Component:
  """The training clips of one embodiment in one folder, or of pairs of two."""

  name: str
  weight: float  # not yet a share
  hours: float
  episodes: int
  frames: int
  rate_hz: float
  split: shards.Split
  partners: shards.Split | None = None  # of the human, where `split` is the robot's
  partner_of: np.ndarray | None = None  # [clips of split, K, 2]: to draw from, numbers [from, to) in `partners`; see _partners
  task_of: np.ndarray | None = None  # [clips of split], where there are partners

  def find(self, ordinal: int, member: int, seed: int, skip: int = 0) -> tuple[shards.Split, int]:
    """-> the split and the number in it of a member of a unit; skip: so many clips further on, where those before could not be read.

    The other member of a pair does not know of it: so it stays one of the same task.
    """
    number = order.shuffled(ordinal, len(self.split), seed)
    if self.partners is None:
      return self.split, (number + skip) % len(self.split)
    if member == 1:
      same = np.flatnonzero(self.task_of == self.task_of[number]) if skip else [number]
      return self.split, int(same[(np.searchsorted(same, number) + skip) % len(same)])
    row = self.partner_of[number]
    first, end = (int(n) for n in row[(order.drawn(ordinal, len(row), seed + 1) + skip) % len(row)])
    return self.partners, first + (order.drawn(ordinal, end - first, seed + 2) + skip) % (end - first)


@dataclasses.dataclass(frozen=True)
class Mixture:
  """Components and how the ordinals are dealt; unit: rows that one ordinal fills."""

  components: tuple[Component, ...]
  table_P: np.ndarray  # int16, the component of each ordinal modulo PERIOD
  rank_P: np.ndarray  # int32, how many before it in the period have the same component
  count_N: np.ndarray  # of the period
  unit: int

  def __call__(self, ordinal: int, member: int) -> tuple[int, int]:
    """-> (component, its own ordinal); the members of a unit share it where they are a pair."""
    period, place = divmod(ordinal, PERIOD)
    component = int(self.table_P[place])
    own = period * int(self.count_N[component]) + int(self.rank_P[place])
    return component, own if self.components[component].partners is not None else own * self.unit + member

  @property
  def shares_N(self) -> np.ndarray:
    return self.count_N / PERIOD

  def lines(self, examples: int, windows: int) -> list[str]:
    """A table for a person: what a run of so many examples takes from each component."""
    weights = np.array([c.weight for c in self.components])
    head = f"{'data':<32}{'hours':>10}{'episodes':>10}{'asked':>8}{'dealt':>8}{'epochs':>9}{'passes':>9}{'Hz':>6}"
    lines = [head]
    for c, asked, dealt in zip(self.components, weights / weights.sum(), self.shares_N):
      drawn = examples * dealt
      epochs, passes = drawn / (windows * self.unit_of(c) * len(c.split)), drawn / (self.unit_of(c) * c.frames)
      lines.append(f"{c.name:<32}{c.hours:>10.3f}{c.episodes:>10}{asked:>8.2%}{dealt:>8.2%}{epochs:>9.2f}{passes:>9.3f}{c.rate_hz:>6.0f}")
    return lines

  def unit_of(self, component) -> int:
    return 1 if component.partners is None else self.unit


def deal(components, unit: int) -> Mixture:
  weights = np.array([c.weight for c in components], np.float64)
  # Largest remainders, at least one each: a component that was asked for is never dealt out of the period.
  ideal = weights / weights.sum() * PERIOD
  count = np.maximum(np.floor(ideal).astype(np.int64), 1)
  for i in np.argsort(count - ideal)[: max(PERIOD - count.sum(), 0)]:
    count[i] += 1
  count[np.argmax(count)] -= count.sum() - PERIOD
  sequence = np.arange(PERIOD) * _GOLDEN % 1.0
  table_P = np.empty(PERIOD, np.int16)
  table_P[np.argsort(sequence, kind="stable")] = np.repeat(np.arange(len(count)), count)
  rank_P = np.zeros(PERIOD, np.int32)
  for i in range(len(count)):
    rank_P[table_P == i] = np.arange(count[i])
  return Mixture(tuple(components), table_P, rank_P, count, unit)


def folders(config) -> dict[str, dict]:
  """{name: {shards, weight, pairs}} of a config: its mixture, or the one folder config.data.shards."""
  data = config.data
  if not data.mixture:
    if not data.shards:
      raise UserError("config.data.shards: found nothing, expected the output directory of `egoscale prepare`")
    return {os.path.basename(os.path.normpath(data.shards)): {"shards": data.shards, "weight": 1.0, "pairs": ""}}
  if data.shards:
    raise UserError("config.data.shards and config.data.mixture: found both, expected one of them")
  result = {}
  for name, given in data.mixture.items():
    unknown = sorted(set(given) - {"shards", "weight", "pairs"})
    if unknown or not given.get("shards"):
      raise UserError(f"config.data.mixture.{name}: found {sorted(given)}, expected shards and, if any, weight and pairs")
    weight = given.get("weight", 1.0)
    if not 0 < weight < np.inf:
      raise UserError(f"config.data.mixture.{name}.weight: found {weight}, expected a number above 0")
    result[name] = {"shards": given["shards"], "weight": weight, "pairs": given.get("pairs", "")}
  return result


def fingerprint(config) -> str:
  """What tells prepared data apart, wherever it lies: the manifests, with the image size, every episode and the hashes of the files."""
  digest = hashlib.sha256()
  for folder in folders(config).values():
    for path in filter(None, (folder["shards"], folder["pairs"])):
      content = {key: value for key, value in manifest.load(path).items() if key != "input"}
      digest.update(json.dumps(content, sort_keys=True).encode())
  return digest.hexdigest()


def make(config) -> Mixture:
  """weight of a component: hours ** (1 / temperature) * the folder's weight * its embodiment's (config.data.embodiments)."""
  data = config.data
  if not data.temperature > 0:
    raise UserError(f"config.data.temperature: found {data.temperature}, expected above 0 (1: by hours; inf: by the weights alone)")
  unit = UNIT if any(f["pairs"] for f in folders(config).values()) else 1
  if config.batch_size % unit:
    raise UserError(f"config.batch_size: found {config.batch_size}, expected an even number, since aligned pairs are in the mixture")
  components = []
  for name, folder in folders(config).items():
    components += _pairs(name, folder, data) if folder["pairs"] else _plain(name, folder, data)
  return deal(components, unit)


def _plain(name, folder, data):
  index, embodiments, records = _open(folder["shards"])
  result = []
  for number, embodiment in enumerate(embodiments):
    chosen = _training(index, data) & (index["embodiment"] == number)
    if chosen.any():
      ids = shards.clip_ids(index, chosen)
      weight, told = _weigh(index, chosen, folder, data, embodiment)
      result.append(Component(f"{name} ({embodiment})", weight, *told, shards.Split(records, ids)))
  if not result:
    raise UserError(f"{folder['shards']}: has no training episode")
  return result


def _open(path):
  content = manifest.load(path)
  index = shards.load_index(path)
  return index, content["embodiments"], shards.Records(path, shards.CLIPS, shards.lengths(index, "clips"))


def _training(index, data):
  if not 1 <= data.twentieths <= shards.TWENTIETHS:
    raise UserError(f"config.data.twentieths: found {data.twentieths}, expected 1 to {shards.TWENTIETHS} of the training hours")
  return (index["split"] == shards.SPLITS.index(shards.TRAIN)) & (index["twentieth"] < data.twentieths)


def _weigh(index, chosen, folder, data, embodiment):
  """-> weight, (hours, episodes, frames, rate)."""
  frames = int(index["frames"][chosen].sum())
  hours = float((index["frames"][chosen] / index["rate_hz"][chosen].astype(np.float64)).sum() / 3600)
  further = data.embodiments.get(embodiment, 1.0)
  if not 0 < further < math.inf:
    raise UserError(f"config.data.embodiments.{embodiment}: found {further}, expected more than 0: to leave it out, leave its shards out")
  weight = hours ** (1 / data.temperature) * folder["weight"] * further
  return weight, (hours, int(chosen.sum()), frames, float(np.median(index["rate_hz"][chosen])))


def _pairs(name, folder, data):
  """One component: robot clips of `shards`, each with the human clips of `pairs` of the same task at about the same progress."""
  index, embodiments, records = _open(folder["shards"])
  other, _, other_records = _open(folder["pairs"])
  chosen, human = _training(index, data), _training(other, data)
  lonely = chosen & ~np.isin(index["task"], other["task"][human])
  if lonely.any():
    entries = [e for e in manifest.load(folder["shards"])["episodes"] if e["status"] == manifest.KEPT]
    first = entries[int(np.flatnonzero(lonely)[0])]
    raise UserError(
      f"config.data.mixture.{name}: {int(lonely.sum())} robot episodes of {folder['shards']} have no human one of the same text in"
      f" {folder['pairs']}, the first is {first['id']} ({first['text']!r:.60})"
    )
  human &= np.isin(other["task"], index["task"][chosen])
  ids, human_ids = shards.clip_ids(index, chosen), shards.clip_ids(other, human)
  weight, told = _weigh(index, chosen, folder, data, embodiments[int(index["embodiment"][chosen][0])])
  partners = _partners(index[chosen], other[human])
  task_of = np.repeat(index["task"][chosen], index["clips"][chosen])
  splits = shards.Split(records, ids), shards.Split(other_records, human_ids)
  component = Component(f"{name} (pairs)", weight, *told, *splits, partners, task_of)
  return [component]


def _partners(robots, humans) -> np.ndarray:
  """-> [robot clips, K, 2]: for each, the clips [from, to) of K human episodes of its task that lie at its own progress.

  The robot episodes of a task deal its human ones out among themselves, from which K follows: each human episode has a robot one, and so
  has each of its clips, also where one demonstration stands beside a hundred.
  """
  of_task = {task: (np.flatnonzero(robots["task"] == task), np.flatnonzero(humans["task"] == task)) for task in np.unique(robots["task"])}
  k = max(_CANDIDATES, *(-(-len(human) // len(robot)) for robot, human in of_task.values()))
  first = np.cumsum(humans["clips"], dtype=np.int64) - humans["clips"]
  rank = np.empty(len(robots), np.int64)
  for robot, _ in of_task.values():
    rank[robot] = np.arange(len(robot))
  rows = []
  for robot, turn in zip(robots, rank):
    same = of_task[robot["task"]][1]
    candidates = same[(turn * k + np.arange(k)) % len(same)]  # repeated where there are fewer
    clips, parts = humans["clips"][candidates].astype(np.int64), int(robot["clips"])
    for clip in range(parts):
      ends = (clip * clips // parts, -(-(clip + 1) * clips // parts))
      rows.append(first[candidates, None] + np.stack(ends, axis=1))
  return np.asarray(rows, np.uint32)

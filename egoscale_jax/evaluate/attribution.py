"""Which training data helps a target: similarity of gradients at a checkpoint.

A small step of gradient descent on a group's data changes the target's validation loss, to first order, by -rate x (group's gradient .
target's gradient). So a group's *effect* is that product, over the target's with itself: 1 is as good as training on the target, 0 no help,
below 0 it does harm. It says what the next step does at this checkpoint, not what a run without the group would have become.

Every batch has its own episodes, so batches are independent, and products are of different batches only: without the bias that a
gradient's noise has with itself. Intervals are 95 % of a bootstrap over the batches of the group and of the target. Memory: as many
gradients as the target has batches, and two more.
"""

import collections
import dataclasses
import zlib

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from egoscale_jax import progress
from egoscale_jax.data import clips, examples, manifest, mixture, shards
from egoscale_jax.errors import UserError

SOURCES, TASKS = "source", "task"
MOST_TASKS = 40  # those with the most hours; the others are one group
LEAST_BATCHES = 3  # with fewer there is no interval
DRAWS = 2000
LEVEL = (2.5, 97.5)


class Folder:
  """The episodes of prepared data, by the rows of its index."""

  def __init__(self, path):
    content, self.index = manifest.load(path), shards.load_index(path)
    self.name, self.embodiments = path, content["embodiments"]
    self.texts = [e.get("text") or "" for e in content["episodes"] if e["status"] == manifest.KEPT]
    self.first = np.cumsum(self.index["clips"], dtype=np.int64) - self.index["clips"]
    self.clips = shards.Records(path, shards.CLIPS, shards.lengths(self.index, "clips"))

  def rows(self, split, twentieths=shards.TWENTIETHS):
    chosen = self.index["split"] == shards.SPLITS.index(split)
    return np.flatnonzero(chosen & (self.index["twentieth"] < twentieths) if split == shards.TRAIN else chosen)

  def hours(self, row):
    return float(self.index["frames"][row] / np.float64(self.index["rate_hz"][row]) / 3600)


@dataclasses.dataclass(frozen=True)
class Group:
  """Episodes: (folder, row of its index), each."""

  kind: str
  name: str
  episodes: tuple[tuple[Folder, int], ...]

  @property
  def hours(self):
    return sum(folder.hours(row) for folder, row in self.episodes)

  def folds(self, count):
    """The episodes in at most `count` parts, dealt in the order of a hash."""
    order = sorted(self.episodes, key=lambda e: (zlib.crc32(f"{e[0].name}/{e[1]}".encode()), e[0].name, e[1]))
    return [order[i::count] for i in range(min(count, len(order)))]


def groups(config) -> list[Group]:
  """Of a run's training data: a folder's embodiment is a source, an instruction a task."""
  found = {SOURCES: collections.defaultdict(list), TASKS: collections.defaultdict(list)}
  for name, given in mixture.folders(config).items():
    for path in filter(None, (given["shards"], given["pairs"])):
      folder = Folder(path)
      for row in folder.rows(shards.TRAIN, config.data.twentieths):
        embodiment = folder.embodiments[int(folder.index["embodiment"][row])]
        title = f"{name} ({embodiment}{', pairs' if path == given['pairs'] else ''})"
        found[SOURCES][title].append((folder, int(row)))
        found[TASKS][" ".join(folder.texts[row].split())].append((folder, int(row)))
  made = {kind: [Group(kind, name, tuple(episodes)) for name, episodes in of.items()] for kind, of in found.items()}
  tasks = sorted(made[TASKS], key=lambda group: (-group.hours, group.name))
  rest = tuple(episode for group in tasks[MOST_TASKS:] for episode in group.episodes)
  others = [Group(TASKS, f"({len(tasks) - MOST_TASKS} other tasks)", rest)] if rest else []
  return made[SOURCES] + tasks[:MOST_TASKS] + others


def target(path) -> Group:
  folder = Folder(path)
  rows = folder.rows(shards.VALIDATION)
  if len(rows) < 2:
    raise UserError(f"{path}: found {len(rows)} held-out episodes, expected at least 2: the target's gradient is of its validation split")
  return Group("target", path, tuple((folder, int(row)) for row in rows))


def batch(assembler, fold, size, seed, number):
  """Windows at random over the clips of a fold's episodes, the same for the same arguments. position_B: of the noise."""
  rng = np.random.default_rng([seed, number])
  weights = np.array([folder.index["clips"][row] for folder, row in fold], np.float64)
  windows = []
  for place in rng.choice(len(fold), size, p=weights / weights.sum()):
    folder, row = fold[place]
    record = int(folder.first[row]) + int(rng.integers(folder.index["clips"][row]))
    try:
      clip = clips.read_clip(folder.clips[record])
    except ValueError as error:
      raise UserError(str(error)) from error
    windows.append(examples.Window(clip, int(rng.integers(clip.num_images))))
  made = assembler.allocate(size)
  for row, window in enumerate(windows):
    assembler.decode(window, made, row)
  return assembler.fill(made, windows, (number * size + np.arange(size)).astype(np.int32))


def rank(loss, learned, assembler, goal, found, batches, size, seed=0) -> dict:
  """loss(learned, batch, seed) -> scalar; learned: a tree, of which gradients are taken. goal, found: `target`, `groups`; size: of a batch.

  -> {target, batches, batch_size, groups: [row]}, of each kind the most helpful first. row: kind, name, hours, episodes, batches, effect,
  effect_95, cosine, rank; None where there are too few batches.
  """
  if batches < LEAST_BATCHES:
    raise UserError(f"--batches: found {batches}, expected at least {LEAST_BATCHES}")
  if size < 1:
    raise UserError(f"--batch_size: found {size}, expected at least 1")

  @jax.jit
  def gradient(learned, batch, seed):
    return jax.flatten_util.ravel_pytree(jax.grad(loss)(learned, batch, seed))[0].astype(jnp.float32)

  def gradients(group, seed):
    for number, fold in enumerate(group.folds(batches)):
      yield gradient(learned, batch(assembler, fold, size, seed, number), seed)

  # Another seed than the groups': noise that both share would make them alike.
  goal_MxP = jnp.stack(list(gradients(goal, seed + 1)))
  gram = np.asarray(goal_MxP @ goal_MxP.T, np.float64)
  own = _between(gram)
  if not own > 0:
    raise UserError(
      f"{goal.name}: its gradient cannot be told from zero with {len(gram)} batches of {size}, expected a larger --batch_size"
    )
  rows = []
  with progress.bar(len(found), "attribute", "group") as bar:
    for group in found:
      rows.append(_row(group, *_products(goal_MxP, gradients(group, seed)), own))
      bar.update()
  told = {"target": goal.name, "target_episodes": len(goal.episodes), "batches": batches, "batch_size": size}
  return told | {"groups": [row for kind in (SOURCES, TASKS) for row in _ranked(rows, kind)]}


def _products(goal_MxP, gradients):
  """-> [K, M] products of a group's batches and the target's; the group's own, of different batches (NaN: it has one only)."""
  rows, squares, total = [], 0.0, 0.0
  for vector in gradients:
    rows.append(np.asarray(goal_MxP @ vector, np.float64))
    squares, total = squares + float(vector @ vector), total + vector
  k = len(rows)
  return np.stack(rows), (float(total @ total) - squares) / (k * (k - 1)) if k > 1 else float("nan")


def _between(gram_MxM):
  """Mean product of different batches."""
  m = len(gram_MxM)
  return (gram_MxM.sum() - np.trace(gram_MxM)) / (m * (m - 1))


def _row(group, product_KxM, own_square, target_square):
  k, m = product_KxM.shape
  effect = product_KxM.mean() / target_square
  interval = None
  if min(k, m) >= LEAST_BATCHES:
    rng = np.random.default_rng(0)  # the same draws of the target's batches for all groups: its luck moves them together
    columns, rows = rng.integers(0, m, (DRAWS, m)), rng.integers(0, k, (DRAWS, k))
    drawn = product_KxM[rows[:, :, None], columns[:, None, :]].mean(axis=(1, 2)) / target_square
    interval = [float(v) for v in np.percentile(drawn, LEVEL)]
  cosine = float(product_KxM.mean() / np.sqrt(target_square * own_square)) if own_square > 0 else None
  told = {"kind": group.kind, "name": group.name, "hours": group.hours, "episodes": len(group.episodes), "batches": k}
  return told | {"effect": float(effect), "effect_95": interval, "cosine": cosine}


def _ranked(rows, kind):
  chosen = sorted((row for row in rows if row["kind"] == kind), key=lambda row: (-row["effect"], row["name"]))
  return [{"rank": i + 1, **row} for i, row in enumerate(chosen)]


def lines(told) -> list[str]:
  """A table for a person."""
  found = [f"effect on the validation loss of {told['target']} ({told['target_episodes']} episodes); 1: as training on it, below 0: harm"]
  found.append(f"{'':<8}{'rank':>4}{'effect':>9}{'95 %':>20}{'cosine':>8}{'hours':>9}{'episodes':>10}  name")
  for row in told["groups"]:
    interval = "{:.3f} to {:.3f}".format(*row["effect_95"]) if row["effect_95"] else "too few episodes"
    cosine = f"{row['cosine']:.2f}" if row["cosine"] is not None else "-"
    head = f"{row['kind']:<8}{row['rank']:>4}{row['effect']:>9.3f}{interval:>20}{cosine:>8}"
    found.append(f"{head}{row['hours']:>9.3f}{row['episodes']:>10}  {row['name']}")
  return found

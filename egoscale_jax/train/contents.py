"""What is in a checkpoint: its leaves and their norms, what moved between two, and its parameters alone as a work directory.

A leaf's name is its path in the saved state: "params/vision/blocks/mlp/up/kernel", "opt_state/1/0/mu/...". Values are read a group of
leaves at a time, so a host that cannot hold the whole checkpoint can still look into it. colabs/05_checkpoint.ipynb shows all of it.
"""

import dataclasses
import json
import pathlib
import re
import shutil

import jax
import numpy as np

from egoscale_jax.errors import UserError
from egoscale_jax.models import vla
from egoscale_jax.train import checkpoint, sharding
from egoscale_jax.train import run as run_lib

GROUP_BYTES = 2**30  # of values on the host at a time; a larger leaf is read alone
CARRIED = ("tokenizer.json", "statistics.json", run_lib.HANDS, run_lib.REFERENCE)  # of a work directory: what a part of it needs too


@dataclasses.dataclass(frozen=True)
class Leaf:
  """Of a saved state; no value of it has been read."""

  name: str
  shape: tuple[int, ...]
  dtype: np.dtype

  @property
  def size(self):
    return int(np.prod(self.shape, dtype=np.int64))

  @property
  def bytes(self):
    return self.size * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Norm:
  """Of a leaf or of all leaves of a part: how many numbers, their root mean square, the largest, and how many are not finite."""

  size: int
  rms: float
  largest: float
  not_finite: int


@dataclasses.dataclass(frozen=True)
class Moved:
  """Of two leaves, or of all leaves of a part: |second - first|, and the norms."""

  size: int
  first: float
  second: float
  difference: float

  @property
  def share(self):
    """Of the first norm; inf where that is zero and something moved."""
    return self.difference / self.first if self.first else (np.inf if self.difference else 0.0)


def steps(workdir):
  """-> the steps of a work directory's checkpoints, oldest first."""
  folder = pathlib.Path(workdir) / "checkpoints"
  return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())


def leaves(workdir, step=None):
  """-> [Leaf] of a checkpoint (default: the newest that is sound), in the order of their names; reads the description only."""
  found = checkpoint.described(workdir, _step(workdir, step))
  return [Leaf(name, tuple(leaf.shape), np.dtype(leaf.dtype)) for name, leaf in sorted(found.items())]


def values(workdir, pattern=".*", step=None):
  """Yields (name, array on the host) of the leaves whose whole name matches the regular expression; UserError where none does."""
  step = _step(workdir, step)
  every = leaves(workdir, step)
  wanted = [leaf for leaf in every if re.fullmatch(pattern, leaf.name)]
  if not wanted:
    raise UserError(f"{workdir}: {pattern!r} matches no leaf of step {step}, expected a name such as {every[0].name!r}")
  for group in _groups(wanted):
    found = checkpoint.read(workdir, step, [leaf.name for leaf in group])
    for leaf in group:
      yield leaf.name, found.pop(leaf.name)


def norms(workdir, pattern="params/.*", step=None):
  """-> {name: Norm} of the leaves that match."""
  return {name: _norm(value) for name, value in values(workdir, pattern, step)}


def part_norms(found, depth=2):
  """{name: Norm} -> {the first `depth` words of the names: Norm of all that begin so}; 2: "params/vision"."""
  parts = {}
  for name, norm in found.items():
    parts.setdefault(_part(name, depth), []).append(norm)
  return {
    part: Norm(
      (size := sum(norm.size for norm in group)),
      float(np.sqrt(sum(norm.size * norm.rms**2 for norm in group) / max(size, 1))),
      max(norm.largest for norm in group),
      sum(norm.not_finite for norm in group),
    )
    for part, group in parts.items()
  }


def compare(first, second, pattern="params/.*", first_step=None, second_step=None):
  """Two work directories, or two steps of one -> {name: Moved}; UserError where a leaf is in one alone or has another shape."""
  steps_2 = _step(first, first_step), _step(second, second_step)
  shapes = [
    {leaf.name: leaf.shape for leaf in leaves(workdir, step) if re.fullmatch(pattern, leaf.name)}
    for workdir, step in zip((first, second), steps_2)
  ]
  for name in sorted(shapes[0].keys() | shapes[1].keys()):
    found, expected = shapes[1].get(name, "nothing"), shapes[0].get(name, "nothing")
    if found != expected:
      raise UserError(f"{second}: {name}: found {found}, expected {expected} as in {first}; the two have other models")
  pairs = zip(values(first, pattern, steps_2[0]), values(second, pattern, steps_2[1]))
  return {name: _moved(a, b) for (name, a), (_, b) in pairs}


def part_moves(found, depth=2):
  """{name: Moved} -> {the first `depth` words of the names: Moved of all that begin so}."""
  parts = {}
  for name, moved in found.items():
    parts.setdefault(_part(name, depth), []).append(moved)
  total = lambda group, field: float(np.sqrt(sum(getattr(moved, field) ** 2 for moved in group)))  # noqa: E731
  return {
    part: Moved(sum(m.size for m in group), *(total(group, field) for field in ("first", "second", "difference")))
    for part, group in parts.items()
  }


def take_parameters(workdir, output, averaged=True, step=None):
  """The parameters alone, adapters merged in, as a work directory at the same step: without optimizer state a third of the size.

  averaged: the running mean of a run with config.ema, which is what the policy and the next stage read; False: those under training. The
  policy, the next stage, the server and `egoscale convert` open it; a run cannot go on from it.
  """
  workdir, output, step = pathlib.Path(workdir), pathlib.Path(output), _step(workdir, step)
  if output.exists() and (not output.is_dir() or any(output.iterdir())):
    raise UserError(f"{output}: found something there, expected a new or an empty folder")
  config = run_lib.read_config(workdir)
  model = vla.VLA(config.model)
  shapes = vla.param_shapes(model)
  shardings = sharding.param_shardings(shapes, sharding.make_mesh(config, jax.devices()[:1]))
  params = run_lib.final_params(workdir, shapes, shardings, step, averaged)
  output.mkdir(parents=True, exist_ok=True)
  with checkpoint.manager(output, keep=1) as checkpoints:
    checkpoint.save(checkpoints, step, {"params": params})
    checkpoints.wait_until_finished()
  checkpoint.write_sums(output, step)
  for name in CARRIED:
    if (workdir / name).is_dir():
      shutil.copytree(workdir / name, output / name)
    elif (workdir / name).is_file():
      shutil.copyfile(workdir / name, output / name)
  told = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
  told["ema"], told["lora"]["rank"] = 0.0, 0  # merged: here is none any more
  checkpoint.write_json(output / "config.json", told)  # last: from then on it is a work directory


def _step(workdir, step):
  if step is None:
    return checkpoint.latest_step(workdir)
  there = steps(workdir)
  if step not in there:
    raise UserError(f"{workdir}: found no checkpoint of step {step}, expected one of {there}")
  return step


def _part(name, depth):
  return "/".join(name.split("/")[:depth])


def _groups(wanted):
  """Yields lists of leaves that come to at most GROUP_BYTES, or are one."""
  group, size = [], 0
  for leaf in wanted:
    if group and size + leaf.bytes > GROUP_BYTES:
      yield group
      group, size = [], 0
    group.append(leaf)
    size += leaf.bytes
  yield group


def _norm(value):
  flat = np.asarray(value, np.float64).reshape(-1)
  finite = flat[np.isfinite(flat)]
  return Norm(
    flat.size,
    float(np.sqrt(np.mean(np.square(finite)))) if finite.size else 0.0,
    float(np.abs(finite).max(initial=0.0)),
    int(flat.size - finite.size),
  )


def _moved(first, second):
  first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
  return Moved(first.size, *(float(np.linalg.norm(value.reshape(-1))) for value in (first, second, second - first)))

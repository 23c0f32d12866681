"""Checkpoints: the only file that knows Orbax.

A save is written beside its final name and renamed, so a kill in the middle leaves the one before. What else a resume, the next stage,
the policy or a colab needs stands in the work directory (run.py).
"""

import json
import pathlib

import jax
import orbax.checkpoint as ocp

from egoscale_jax.errors import UserError
from egoscale_jax.train.sharding import path_name


def manager(workdir, keep=None):
  """An Orbax CheckpointManager on workdir/checkpoints; saves are asynchronous. `keep`: the newest so many stay; None: nothing is saved."""
  path = pathlib.Path(workdir).resolve() / "checkpoints"
  options = ocp.CheckpointManagerOptions(max_to_keep=keep, read_only=keep is None, save_interval_steps=1 if keep else 0)
  return ocp.CheckpointManager(path, item_handlers=ocp.PyTreeCheckpointHandler(), options=options)


def save(checkpoints, step, state):
  checkpoints.save(step, args=ocp.args.PyTreeSave(state))


def restore(checkpoints, step, shapes, shardings):
  """The state of `step`, or a part of it, on any mesh. `shapes` and `shardings` are trees like it; a mismatch is a UserError with paths."""
  found = checkpoints.item_metadata(step).tree
  compare(shapes, {name: found[name] for name in _names(shapes) if name in found}, f"{checkpoints.directory}/{step}")
  target = jax.tree.map(lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes, shardings)
  restore_args = ocp.checkpoint_utils.construct_restore_args(target)
  return checkpoints.restore(step, args=ocp.args.PyTreeRestore(target, restore_args=restore_args, partial_restore=True))


def restore_params(workdir, shapes, shardings):
  """Only the parameters of a work directory's newest checkpoint: how a stage hands over to the next."""
  step = latest_step(workdir)
  with manager(workdir) as checkpoints:
    return restore(checkpoints, step, {"params": shapes}, {"params": shardings})["params"]


def latest_step(workdir):
  """Newest complete checkpoint of a work directory; UserError if there is none."""
  path = pathlib.Path(workdir).resolve() / "checkpoints"
  if not path.is_dir():
    raise UserError(f"{workdir}: found no checkpoints, expected a work directory of `egoscale train`")
  with manager(workdir) as checkpoints:
    step = checkpoints.latest_step()
  if step is None:
    raise UserError(f"{path}: found no complete checkpoint")
  return step


def _names(tree):
  """Top-level keys of a dict or a dataclass."""
  return sorted({path_name(path).split("/")[0] for path, _ in jax.tree_util.tree_leaves_with_path(tree)})


def compare(expected, found, where):
  """UserError with the first paths that differ between two trees of things with a shape."""
  flat = lambda tree: {path_name(p): tuple(leaf.shape) for p, leaf in jax.tree_util.tree_leaves_with_path(tree) if hasattr(leaf, "shape")}  # noqa: E731
  expected, found = flat(expected), flat(found)
  lines = [
    f"{name}: found {found.get(name, 'nothing')}, expected {expected.get(name, 'nothing')}"
    for name in sorted(expected.keys() | found.keys())
    if expected.get(name) != found.get(name)
  ]
  if lines:
    more = f" (and {len(lines) - 3} more)" if len(lines) > 3 else ""
    raise UserError(f"{where} does not fit the config: " + "; ".join(lines[:3]) + more)


def write_json(path, value):
  """Atomic."""
  path = pathlib.Path(path)
  partial = path.with_name(path.name + ".partial")
  partial.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
  partial.replace(path)

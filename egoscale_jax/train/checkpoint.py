"""Checkpoints: the only file that knows Orbax.

A save is written beside its final name and renamed, so a kill in the middle leaves the one before. What else a resume, the next stage,
the policy or a colab needs stands in the work directory (run.py).
"""

import concurrent.futures
import errno
import json
import pathlib
import re
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp

from egoscale_jax.errors import UserError
from egoscale_jax.train import checksums, distributed
from egoscale_jax.train.sharding import path_name

DAMAGED = "damaged"  # in a work directory: checkpoints that were not as they had been written
_THREADS = 8  # at least as many as Orbax saves with: each may fail by itself
_FULL = re.compile(r"No space left|Disk quota exceeded|RESOURCE_EXHAUSTED|File too large")


def manager(workdir, keep=None):
  """An Orbax CheckpointManager on workdir/checkpoints; saves are asynchronous. `keep`: the newest so many stay; None: nothing is saved."""
  path = pathlib.Path(workdir).resolve() / "checkpoints"
  options = ocp.CheckpointManagerOptions(max_to_keep=keep, read_only=keep is None, save_interval_steps=1 if keep else 0)
  return ocp.CheckpointManager(path, item_handlers=ocp.PyTreeCheckpointHandler(), options=options)


def save(checkpoints, step, state):
  checkpoints.save(step, args=ocp.args.PyTreeSave(state))


def restore(checkpoints, step, shapes, shardings):
  """The state of `step`, or a part of it, on any mesh. `shapes` and `shardings` are trees like it; a mismatch is a UserError with paths."""
  if not (pathlib.Path(checkpoints.directory) / str(step)).is_dir():
    advice = "a run that goes on keeps the newest config.keep_checkpoints; wait for its end, or keep more"
    raise UserError(f"{checkpoints.directory}/{step}: no such checkpoint, or not any more: {advice}")
  found = checkpoints.item_metadata(step).tree
  compare(shapes, {name: found[name] for name in _names(shapes) if name in found}, f"{checkpoints.directory}/{step}")
  target = jax.tree.map(lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes, shardings)
  restore_args = ocp.checkpoint_utils.construct_restore_args(target)
  return checkpoints.restore(step, args=ocp.args.PyTreeRestore(target, restore_args=restore_args, partial_restore=True))


def described(workdir, step):
  """-> {path: its shape and dtype} of every array of a checkpoint; no value is read."""
  with manager(workdir) as checkpoints:
    tree = checkpoints.item_metadata(step).tree
  return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree) if hasattr(leaf, "shape")}


def read(workdir, step, names):
  """-> {name: numpy array} of those leaves of `described`, and of no others."""
  with manager(workdir) as checkpoints:
    wanted = jax.tree_util.tree_map_with_path(
      lambda path, leaf: leaf if path_name(path) in names else None, checkpoints.item_metadata(step).tree
    )
    args = jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype), wanted)
    found = checkpoints.restore(step, args=ocp.args.PyTreeRestore(wanted, restore_args=args, partial_restore=True))
  return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(found)}


def latest_step(workdir):
  """Newest checkpoint of a work directory that is complete and as it was written; UserError if there is none."""
  path = pathlib.Path(workdir).resolve() / "checkpoints"
  if not path.is_dir():
    raise UserError(f"{workdir}: found no checkpoints, expected a work directory of `egoscale train`")
  step = resumable_step(workdir, set_aside=False)
  if step is None:
    raise UserError(f"{path}: found no complete checkpoint")
  return step


def resumable_step(workdir, set_aside=True):
  """-> newest checkpoint that is complete and as it was written, or None where there are none; UserError where all are damaged.

  Process 0 reads them and names those that are not; set_aside: it moves them to workdir/damaged, since their steps are saved again.
  """
  folder = pathlib.Path(workdir) / "checkpoints"

  def find():
    steps = [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
    sound, faults = checksums.newest_sound(workdir, steps)
    if steps and sound is None:
      raise UserError(f"{next(iter(faults.values()))}; no other checkpoint is as it was written")
    for step, fault in faults.items():
      print(f"checkpoint {step} is damaged: {fault}; going back to {sound}", flush=True)
      if set_aside:
        (pathlib.Path(workdir) / DAMAGED).mkdir(exist_ok=True)
        (folder / str(step)).rename(_unused(pathlib.Path(workdir) / DAMAGED / str(step)))
        checksums.file_of(workdir, step).unlink()
    return -1 if sound is None else sound

  step = distributed.from_first(find)
  return None if step == -1 else step


def _unused(path):
  return next(p for n in range(1000) if not (p := path.with_name(path.name + f".{n}" * bool(n))).exists())


def write_sums(workdir, step):
  """Of a checkpoint that is complete; those of checkpoints that are gone leave."""
  path = checksums.file_of(workdir, step)
  found = checksums.of_folder(pathlib.Path(workdir) / "checkpoints" / str(step))
  path.parent.mkdir(exist_ok=True)
  write_json(path, found)
  for other in path.parent.glob("*.json"):
    if not (pathlib.Path(workdir) / "checkpoints" / other.stem).is_dir():
      other.unlink()


class Saver:
  """A context: the checkpoints of a run that is in training, saved beside it. A disk that is full costs a checkpoint and not the run."""

  def __init__(self, workdir, keep):
    self.workdir, self.keep, self.manager = pathlib.Path(workdir), keep, manager(workdir, keep)
    self._saving, self._failed, self._thread = None, None, concurrent.futures.ThreadPoolExecutor(1)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._thread.shutdown()
    self.manager.close()

  def save(self, step, state):
    """Begins it; what is on the device is copied before this returns."""
    self._settle()
    need = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    free = distributed.from_first(lambda: _free_mib(self.workdir))
    if need >> 20 > free:
      self._failed = step
      distributed.say(f"checkpoint {step} is not saved: {self.workdir} has {free} MiB left, it takes {need >> 20}; the run goes on")
      return
    self._saving = step
    with self._full_disk():
      save(self.manager, step, state)

  def poll(self):
    """Once a step: has a save come to its end?"""
    if self._saving is not None and not self.manager.is_saving_in_progress():
      self._settle()

  def finish(self, step):
    """Waits for all; UserError if `step` is not saved."""
    self._settle()
    self._thread.submit(lambda: None).result()
    if self._failed is not None and self._failed == step:
      raise UserError(f"{self.workdir}/checkpoints: step {step} could not be saved, the disk is full; the checkpoints before it are whole")

  def _settle(self):
    if self._saving is not None:
      with self._full_disk():
        self.manager.wait_until_finished()
    if self._saving is not None and distributed.is_first():
      self._thread.submit(self._sum, self._saving)
    self._saving = None

  def _full_disk(self):
    return _FullDisk(self)

  def _sum(self, step):
    """In a thread of its own."""
    try:
      write_sums(self.workdir, step)
    except OSError as error:
      print(f"checkpoint {step}: its checksums cannot be written: {error}", flush=True)


class _FullDisk:
  """A context that catches a save's failure where the disk is full, in one process; of several one alone may have failed, and all end."""

  def __init__(self, saver):
    self.saver = saver

  def __enter__(self):
    return self

  def __exit__(self, kind, error, _):
    if error is None or jax.process_count() > 1 or not _is_full(error):
      return False
    saver, step = self.saver, self.saver._saving
    saver._failed, saver._saving = step, None
    _close_failed(saver.manager)
    for path in (saver.workdir / "checkpoints").glob(f"{step}.orbax-checkpoint-tmp*"):
      shutil.rmtree(path, ignore_errors=True)
    saver.manager = manager(saver.workdir, saver.keep)
    print(f"checkpoint {step} is not saved: {saver.workdir}: the disk is full; the run goes on", flush=True)
    return True


def _close_failed(checkpoints):
  """Waits for all threads of a save that failed. Each tells its failure once, to whoever waits next: in the same manager to the next save,
  which would be told to have failed, and a thread that still writes would make anew what is removed.
  """
  for _ in range(_THREADS):
    try:
      checkpoints.close()
      return
    except Exception as error:
      if not _is_full(error):
        raise
  checkpoints.close()


def _is_full(error):
  """Orbax and TensorStore wrap it: the number of the error, or its words, anywhere in the chain."""
  while error is not None:
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or _FULL.search(str(error)):
      return True
    error = error.__cause__ or error.__context__
  return False


def _free_mib(workdir):
  usage = shutil.disk_usage(workdir)
  return min(usage.free >> 20, 2**31 - 1) if usage.total else 2**31 - 1  # some network file systems tell nothing


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

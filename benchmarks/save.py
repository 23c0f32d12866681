"""How long a save holds up training: what the loop waits for an asynchronous one, against the time of a synchronous one.

  python benchmarks/save.py [--saves=5] [--config.KEY=VALUE ...]

The state of configs/small.py (100 M parameters with both moments: 1.2 GB) and its true train step, on a batch of two without data, on this
machine's CPU. The loop is that of train/main.py: `save`, which waits for the save before if it has not ended, and `poll` after every step.
Synchronous: `save`, and waiting until the checkpoint has its final name, without its checksums. Both by turns, on the same disk.
"""

import argparse
import functools
import os
import pathlib
import statistics
import tempfile
import time

os.environ["JAX_PLATFORMS"] = "cpu"

import jax

from egoscale_jax import config as config_lib
from egoscale_jax.data import pipeline, spec
from egoscale_jax.models import vla
from egoscale_jax.train import checkpoint, run, sharding
from egoscale_jax.train import step as step_lib

ROOT = pathlib.Path(__file__).resolve().parents[1]
TINY = ("batch_size=2", "flow_draws=1")


def prepared(config):
  """-> (compiled train step, a batch, a state)."""
  mesh = sharding.make_mesh(config, jax.devices()[:1])
  model, shapes = vla.VLA(config.model, mesh.abstract_mesh), spec.batch_shapes(config, run.make_prompt(config).length)
  init = functools.partial(step_lib.init_state, model, config)
  state_shapes = jax.eval_shape(init, shapes)
  shardings = sharding.state_shardings(state_shapes, mesh)
  step = step_lib.jit_train_step(model, config, shardings, mesh, shapes).lower(state_shapes, shapes).compile()
  state = jax.jit(init, out_shardings=shardings)(vla.blank_batch(config.model, 1))
  return step, sharding.to_global(pipeline.fake_batch(shapes), mesh), state


class Loop:
  """The steps of a run, timed: `seconds` of each, and `blocked` by saves."""

  def __init__(self, step, batch, state, saver):
    self.take, self.batch, self.state, self.saver, self.step, self.seconds = step, batch, state, saver, 0, []

  def run(self, steps, save_first=False, until_saved=False):
    """-> seconds that `save` and `poll` took, and those in which their thread ran; none of them is a step's, for which is waited."""
    blocked, ran, left = 0.0, 0.0, steps
    while left > 0 or (until_saved and self.saver.manager.is_saving_in_progress()):
      began = time.perf_counter()
      self.state, values = self.take(self.state, self.batch)
      jax.block_until_ready((self.state, values))
      self.step += 1
      stepped, before = time.perf_counter(), time.thread_time()
      self.seconds.append(stepped - began)
      if save_first and left == steps:
        self.saver.save(self.step, self.state)
      self.saver.poll()
      blocked, ran = blocked + time.perf_counter() - stepped, ran + time.thread_time() - before
      left -= 1
    return blocked, ran

  def synchronous(self):
    """-> seconds of a save that is waited for."""
    self.run(1)
    self.saver.finish(self.step)  # the checksums of the one before
    began = time.perf_counter()
    self.saver.save(self.step, self.state)
    self.saver.manager.wait_until_finished()
    return time.perf_counter() - began


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--saves", type=int, default=5)
  arguments, overrides = parser.parse_known_args()
  config = config_lib.parse([f"--config={ROOT}/configs/small.py", *(f"--config.{field}" for field in TINY), *overrides])
  step, batch, state = prepared(config)
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  print(f"{count / 1e6:.1f} M parameters, state {size / 1e9:.2f} GB, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
  with tempfile.TemporaryDirectory() as folder, checkpoint.Saver(folder, keep=1) as saver:
    loop = Loop(step, batch, state, saver)
    del state
    loop.run(2, save_first=True, until_saved=True)  # whatever the first save sets up
    waited, blocked, ran, alone, beside = [], [], [], [], []
    for _ in range(arguments.saves):
      waited.append(loop.synchronous())
      saver.finish(loop.step)
      loop.seconds.clear()
      loop.run(2)
      alone += loop.seconds
      loop.seconds.clear()
      for told, seconds in zip((blocked, ran), loop.run(2, save_first=True, until_saved=True)):
        told.append(seconds)
      beside += loop.seconds[1:]
      print(
        f"synchronous {waited[-1]:.3f} s; blocked {blocked[-1]:.3f} s, of which it ran {ran[-1]:.3f}; load {os.getloadavg()[0]:.1f}",
        flush=True,
      )
  print(f"synchronous {told_as(waited)} s, {size / 1e6 / statistics.median(waited):.0f} MB/s")
  print(f"blocked     {told_as(blocked)} s: {statistics.median(blocked) / statistics.median(waited):.1%} of it, median against median")
  print(f"            of which the loop's thread ran {told_as(ran)} s: {statistics.median(ran) / statistics.median(waited):.1%}")
  print(f"a step      {told_as(alone)} s alone, {told_as(beside)} s while a save is written")


def told_as(seconds):
  return f"{statistics.median(seconds):.3f} ({min(seconds):.3f} to {max(seconds):.3f})"


if __name__ == "__main__":
  main()

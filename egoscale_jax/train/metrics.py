"""metrics.jsonl: one line a step, so that two runs can be compared bit by bit; a console line and TensorBoard's numbers an interval.

Every process fetches the numbers, which are the same on all of them; process 0 writes them. What cannot be written for want of space waits,
and the run goes on.
"""

import json
import math
import pathlib
import sys
import time

import jax
import tqdm

from egoscale_jax.errors import UserError
from egoscale_jax.models import flops
from egoscale_jax.train import chips, distributed, goodput, optim, tensorboard, weights_and_biases


class Metrics:
  """Lines after `first_step` are dropped on opening: a resume writes them again. use_at_a_second: of the function of that name."""

  def __init__(self, workdir, first_step, config, use_at_a_second=0.0):
    self.every, self.batch_size, self.steps, self.limit = config.log_every, config.batch_size, config.steps, config.skip_limit
    self.use_at_a_second = use_at_a_second
    self.writer = Writer(pathlib.Path(workdir), first_step, config) if distributed.is_first() else None
    self.bar = tqdm.tqdm(total=config.steps, initial=first_step, unit="step", disable=None if self.writer else True, smoothing=0.05)
    self.warm = False  # the first step of a start waits for much: its time is nobody's
    self._begin()

  def _begin(self):
    self.losses, self.wait, self.start = [], 0.0, time.perf_counter()
    self.last = self.start

  def step(self, step, values, data_wait, info):
    """`values`: device scalars of a step, fetched here; info: pipeline.Info. Too many skipped in a row are a UserError with the step."""
    values = {name: float(value) for name, value in jax.device_get(values).items()}
    self._check(step, values)
    now = time.perf_counter()
    seconds, self.last = max(now - self.last - data_wait, 0.0) if self.warm else 0.0, now
    self.warm = True
    self.losses.append(values["loss"])
    self.wait += data_wait
    for told in info.unreadable:
      self.bar.write(f"unreadable: {told}", file=sys.stderr)
    if self.writer is None:
      return
    # What is not finite is a skipped update's, or the mean of a group that has no label in the batch.
    line = {"step": step, **{name: value for name, value in values.items() if math.isfinite(value)}, "episodes": info.episodes}
    line["seconds"] = round(seconds, 6)
    self.writer.goodput.add(seconds)
    if info.unreadable:
      line["unreadable"] = list(info.unreadable)
    if step % self.every == 0 or step == self.steps:
      line |= self._interval(step)
      self.writer.write(line, tell=True)
      self._begin()
    else:
      self.writer.write(line)
    self.bar.update(step - self.bar.n)

  def _check(self, step, values):
    row = int(values.get("skipped_in_a_row", 0))
    if row:
      found = f"loss {values['loss']}, gradient norm {values['grad_norm']}"
      if row > self.limit:
        raise UserError(f"step {step}: {found}, update {row} in a row that is not finite, config.skip_limit = {self.limit}")
      distributed.say(f"step {step}: {found}: left out, {row} in a row, {int(values['skipped'])} in all")

  def _interval(self, step):
    """The figures of an interval, and its console line."""
    seconds = (time.perf_counter() - self.start) / len(self.losses)
    figures = {
      "examples_per_second": self.batch_size / seconds,
      "step_seconds": seconds,
      "data_wait": self.wait / len(self.losses) / seconds,
      "goodput": self.writer.goodput.share(),
    }
    if self.use_at_a_second:
      figures["model_flop_utilization"] = self.use_at_a_second / seconds
    used = f"  MFU {figures['model_flop_utilization']:.1%}" if self.use_at_a_second else ""
    left = time.strftime("%H:%M:%S", time.gmtime(seconds * (self.steps - step)))
    self.bar.write(
      f"step {step}/{self.steps}  loss {sum(self.losses) / len(self.losses):.4f}  {figures['examples_per_second']:.0f} examples/s"
      f"  step {1e3 * seconds:.0f} ms{used}  data wait {figures['data_wait']:.0%}  goodput {figures['goodput']:.0%}  left {left}"
    )
    return figures

  def validation(self, step, figures):
    if self.writer is not None:
      self.writer.write({"step": step, "validation": figures}, tell=True)
      if figures["points"]:
        self.bar.write(
          f"step {step}/{self.steps}  validation: action MSE {figures['action_mse']:.4f}, {figures['share_of_better_baseline']:.2f} times"
          f" the better baseline's; flow loss {figures['flow_loss']:.4f}"
        )
    self._begin()

  def validated(self):
    """Is the step at which this start began validated? On all processes."""
    return bool(distributed.from_first(lambda: int(self.writer.validated)))

  def close(self):
    self.bar.close()
    if self.writer is not None:
      self.writer.close()


class Writer:
  """The files of process 0: metrics.jsonl, tensorboard/, and what goodput.py keeps; and Weights & Biases."""

  def __init__(self, workdir, first_step, config):
    path = workdir / "metrics.jsonl"
    kept = [line for line in complete_lines(path) if json.loads(line)["step"] <= first_step]
    partial = path.with_name("metrics.jsonl.partial")
    partial.write_text("".join(kept), encoding="utf-8")
    partial.replace(path)
    self.file, self.pending, self.told = path.open("ab", buffering=0), b"", False
    lines = [json.loads(line) for line in kept]
    self.validated = any(line["step"] == first_step and "validation" in line for line in lines)
    self.goodput = goodput.Goodput(workdir, lines)
    self.events = [tensorboard.Events(workdir / "tensorboard", first_step)]
    if config.wandb:
      self.events.append(weights_and_biases.Events(config, workdir, self.goodput.started))

  def write(self, line, tell=False):
    """tell: to TensorBoard and Weights & Biases too."""
    self.pending += json.dumps(line).encode() + b"\n"
    try:
      # Without a buffer the return value is what got through, so no line is ever written twice or in half.
      while self.pending:
        self.pending = self.pending[self.file.write(self.pending) :]
      for events in self.events if tell else ():
        events.scalars(line["step"], dict(_numbers(line)))
      self.told = False
    except OSError as error:
      if not self.told:
        print(f"metrics: cannot be written: {error.strerror}; they wait, and the run goes on", flush=True)
      self.told = True

  def close(self):
    self.file.close()
    for events in self.events:
      events.close()


def _numbers(line, prefix=""):
  for name, value in line.items():
    if isinstance(value, dict):
      yield from _numbers(value, f"{name}/")
    elif name != "step" and isinstance(value, int | float):
      yield prefix + name, value


def use_at_a_second(run):
  """run.Run -> the model-FLOP use of a step that takes a second; 0.0 where it is not known: other chips than chips.py has, and adapters."""
  peak = chips.peak_flops(run.mesh.devices.flat[0].device_kind)
  if not peak or run.config.lora.rank:
    return 0.0
  mask = optim.trainable(run.state_shapes.params, run.config.train_parts)
  example = flops.training(run.config, [part for part, tree in mask.items() if any(jax.tree.leaves(tree))])
  return example * run.config.batch_size / run.mesh.size / peak


def complete_lines(path):
  """A kill may have cut the last line in two: only whole lines count."""
  if not path.exists():
    return []
  return [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]

"""metrics.jsonl: one line a step, so that two runs can be compared bit by bit; a console line an interval."""

import json
import math
import pathlib
import time

import jax
import tqdm

from egoscale_jax.errors import UserError


class Metrics:
  """Lines after `first_step` are dropped on opening: a resume writes them again."""

  def __init__(self, workdir, first_step, config):
    path = pathlib.Path(workdir) / "metrics.jsonl"
    kept = [line for line in complete_lines(path) if json.loads(line)["step"] <= first_step]
    partial = path.with_name("metrics.jsonl.partial")
    partial.write_text("".join(kept), encoding="utf-8")
    partial.replace(path)
    self.file = path.open("a", encoding="utf-8")
    self.bar = tqdm.tqdm(total=config.steps, initial=first_step, unit="step", disable=None, smoothing=0.05)
    self.every, self.batch_size, self.steps = config.log_every, config.batch_size, config.steps
    self._begin()

  def _begin(self):
    self.losses, self.wait, self.start = [], 0.0, time.perf_counter()

  def step(self, step, values, data_wait, info):
    """`values`: device scalars of a step, fetched here; info: pipeline.Info. A loss that is not finite ends the run, naming the step."""
    values = {name: float(value) for name, value in jax.device_get(values).items()}
    if not math.isfinite(values["loss"]) or not math.isfinite(values["grad_norm"]):
      raise UserError(f"step {step}: loss is {values['loss']}, gradient norm {values['grad_norm']}; the last checkpoint is sound")
    values = {name: value for name, value in values.items() if not math.isnan(value)}  # no label of that group in the batch
    self.losses.append(values["loss"])
    self.wait += data_wait
    line = {"step": step, **values, "episodes": info.episodes}
    if info.unreadable:
      line["unreadable"] = list(info.unreadable)
      self.bar.write("\n".join(f"unreadable: {told}" for told in info.unreadable))
    if step % self.every == 0 or step == self.steps:
      seconds = (time.perf_counter() - self.start) / len(self.losses)
      line |= {
        "examples_per_second": self.batch_size / seconds,
        "step_seconds": seconds,
        "data_wait": self.wait / len(self.losses) / seconds,
      }
      left = time.strftime("%H:%M:%S", time.gmtime(seconds * (self.steps - step)))
      self.bar.write(
        f"step {step}/{self.steps}  loss {sum(self.losses) / len(self.losses):.4f}  {line['examples_per_second']:.0f} examples/s"
        f"  step {1e3 * seconds:.0f} ms  data wait {line['data_wait']:.0%}  left {left}"
      )
      self._begin()
    self._write(line)
    self.bar.update(step - self.bar.n)

  def validation(self, step, figures):
    self._write({"step": step, "validation": figures})
    if figures["points"]:
      self.bar.write(
        f"step {step}/{self.steps}  validation: action MSE {figures['action_mse']:.4f}, {figures['share_of_better_baseline']:.2f} of the"
        f" better baseline's; flow loss {figures['flow_loss']:.4f}"
      )
    self._begin()

  def _write(self, line):
    self.file.write(json.dumps(line) + "\n")
    self.file.flush()

  def close(self):
    self.file.close()
    self.bar.close()


def complete_lines(path):
  """A kill may have cut the last line in two: only whole lines count."""
  if not path.exists():
    return []
  return [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]

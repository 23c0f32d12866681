"""What a run tells of itself: skipped updates, goodput over restarts, TensorBoard, a full disk, model-FLOP use, a profile."""

import json
import struct
import sys
import time
import types

import jax
import jax.numpy as jnp
import pytest
import tiny
from tensorboardX.proto import event_pb2

from egoscale_jax.data import pipeline
from egoscale_jax.errors import UserError
from egoscale_jax.train import chips, main, metrics, profile

INFO = pipeline.Info(8, ())


def values(loss=1.0, in_a_row=0):
  return {"loss": loss, "grad_norm": 2.0, "grad_norm/vision": 1.5, "skipped": in_a_row, "skipped_in_a_row": in_a_row}


def lines(workdir):
  return [json.loads(line) for line in metrics.complete_lines(workdir / "metrics.jsonl")]


def events(path):
  """Every event of a file, its lengths as TensorFlow's record format has them."""
  data, found = path.read_bytes(), []
  while data:
    (length,) = struct.unpack("<Q", data[:8])
    found.append(event_pb2.Event.FromString(data[12 : 12 + length]))
    data = data[16 + length :]
  return found


def test_more_skipped_in_a_row_than_the_limit_end_the_run_with_the_step_named(tmp_path, capsys):
  log = metrics.Metrics(tmp_path, 0, tiny.config(skip_limit=2))
  log.step(1, values(), 0.0, INFO)
  for step in (2, 3):
    log.step(step, values(float("nan"), step - 1), 0.0, INFO)
  assert "step 3: loss nan, gradient norm 2.0: left out, 2 in a row, 2 in all" in capsys.readouterr().out
  with pytest.raises(UserError, match=r"step 4: loss nan.*update 3 in a row that is not finite, config.skip_limit = 2"):
    log.step(4, values(float("nan"), 3), 0.0, INFO)
  log.close()
  assert [line.get("loss") for line in lines(tmp_path)] == [1.0, None, None]
  assert [line["skipped"] for line in lines(tmp_path)] == [0, 1, 2]


def test_goodput_counts_what_was_kept_and_the_time_that_the_run_was_down(tmp_path, monkeypatch):
  clock = [1000.0]
  monkeypatch.setattr(time, "time", lambda: clock[0])
  monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

  def train(first_step, last_step):
    log = metrics.Metrics(tmp_path, first_step, tiny.config(steps=10, log_every=1))
    for step in range(first_step + 1, last_step + 1):
      clock[0] += 3.0
      log.step(step, values(), 1.0, INFO)
    log.close()

  train(0, 6)  # the first step of a start counts nothing, the others 2 s of their 3
  assert lines(tmp_path)[-1]["goodput"] == pytest.approx(5 * 2 / 18)
  clock[0] += 82.0  # down
  train(4, 10)  # steps 5 and 6 were lost
  told = lines(tmp_path)
  assert [line["step"] for line in told] == list(range(1, 11))
  assert told[-1]["goodput"] == pytest.approx((3 * 2 + 5 * 2) / (18 + 82 + 18))
  assert told[-1]["data_wait"] == pytest.approx(1 / 3)


def test_tensorboard_has_the_numbers_of_every_interval_and_a_restart_hides_what_comes_again(tmp_path):
  config = tiny.config(steps=4, log_every=2)
  log = metrics.Metrics(tmp_path, 0, config, use_at_a_second=0.5)
  for step in range(1, 5):
    log.step(step, values(step), 0.0, INFO)
  log.validation(4, {"points": 0, "flow_loss": 0.25})
  log.close()
  (path,) = (tmp_path / "tensorboard").iterdir()
  first, start, *rest = events(path)
  assert first.file_version == "brain.Event:2"
  assert (start.step, start.session_log.status) == (1, event_pb2.SessionLog.START)
  found = {(event.step, value.tag): value.simple_value for event in rest for value in event.summary.value}
  assert found[2, "loss"] == 2
  assert found[4, "loss"] == 4
  assert found[4, "grad_norm/vision"] == 1.5
  assert found[4, "validation/flow_loss"] == 0.25
  assert (3, "loss") not in found
  assert found[4, "model_flop_utilization"] == pytest.approx(0.5 / found[4, "step_seconds"], rel=1e-5)


def test_a_full_disk_keeps_the_lines_for_later(tmp_path, capsys):
  log = metrics.Metrics(tmp_path, 0, tiny.config(log_every=100, steps=100))
  file = log.writer.file

  class Full:
    room = 7

    def write(self, data):
      if not self.room:
        raise OSError(28, "No space left on device")
      written, self.room = file.write(data[: self.room]), 0
      return written

  log.writer.file = Full()
  for step in (1, 2):
    log.step(step, values(), 0.0, INFO)
  assert capsys.readouterr().out.count("No space left on device; they wait, and the run goes on") == 1
  log.writer.file = file
  log.step(3, values(), 0.0, INFO)
  log.close()
  assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]


def test_peaks_are_of_the_device_that_jax_names():
  peaks = {"TPU v5 lite": 197, "TPU v5": 459, "TPU v5p": 459, "TPU v6 lite": 918, "NVIDIA H100 80GB HBM3": 989, "cpu": 0}
  assert {name: chips.peak_flops(name) / 1e12 for name in peaks} == peaks
  assert chips.peak_flops("NVIDIA H100 PCIe") == 0, "a slower one than its namesake"


def test_a_profile_is_of_the_steps_asked_for(tmp_path, monkeypatch):
  calls = []
  monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append("start"))
  monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
  with profile.Profile(tmp_path, (2, 3)) as profiler:
    for step in range(1, 5):
      profiler.before(step)
      calls.append(step)
      profiler.after(step, jnp.zeros(()))
  assert calls == [1, "start", 2, 3, "stop", 4]
  with profile.Profile(tmp_path, (1, 9)) as profiler:
    profiler.before(1)
  assert calls[-2:] == ["start", "stop"], "a run that ends in between leaves its profile too"


def test_weights_and_biases_has_the_same_numbers_and_goes_on_as_the_same_run(tmp_path, monkeypatch):
  """By a stand-in for the package, which is not installed with this one."""
  calls = []

  class Run:
    def log(self, values, step):
      calls.append((step, values))

    def finish(self):
      calls.append("finish")

  package = types.ModuleType("wandb")
  package.Error, package.init = OSError, lambda **given: calls.append(given) or Run()
  monkeypatch.setitem(sys.modules, "wandb", package)
  for first in (0, 2):
    (tmp_path / "try").mkdir(exist_ok=True)
    log = metrics.Metrics(tmp_path / "try", first, tiny.config(steps=4, log_every=2, wandb="egoscale"))
    for step in range(first + 1, first + 3):
      log.step(step, values(step), 0.0, INFO)
    log.close()
  first, (step, told), _, again, _, end = calls
  assert (first["project"], first["name"], first["resume"], first["dir"]) == ("egoscale", "try", "allow", str(tmp_path / "try"))
  assert first["config"]["optim"]["learning_rate"] == 1e-3
  assert again["id"] == first["id"]
  assert (step, told["loss"], told["grad_norm/vision"], end) == (2, 2.0, 1.5, "finish")


def test_weights_and_biases_without_the_package_is_refused_before_anything_is_made(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(UserError, match=r"config.wandb: needs the package wandb.*pip install wandb"):
    main.main(tiny.config(tmp_path, wandb="egoscale"), tmp_path / "run")
  assert not (tmp_path / "run").exists()

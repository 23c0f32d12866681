"""kill -9 in the middle of training, start again: the numbers after it are those of an uninterrupted run, bit for bit."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tiny

from egoscale_jax.data import pipeline
from egoscale_jax.errors import UserError
from egoscale_jax.train import checkpoint, main, run, sharding


def losses(workdir):
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return {line["step"]: (line["loss"], line["grad_norm"]) for line in lines if "loss" in line}


def untimed(workdir):
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  times = ("seconds", "examples_per_second", "step_seconds", "data_wait", "goodput")
  return [{name: value for name, value in line.items() if name not in times} for line in lines]


@pytest.fixture(scope="module")
def killed(shards, tmp_path_factory):
  """A run of tiny.RUN, killed after step 10 with a checkpoint of step 8; validation changes no number and is left out here."""
  folder = tmp_path_factory.mktemp("killed")
  workdir, log = folder / "run", folder / "log"
  with open(log, "w") as file:
    process = tiny.train(shards, workdir, file, **{"validation.episodes": 0})
    while not (workdir / "checkpoints" / "8").is_dir() or len(losses(workdir)) < 10:
      assert process.poll() is None, log.read_text()
      time.sleep(0.02)
    process.kill()
    process.wait()
  assert max(losses(workdir)) < 24, "the run ended before it could be killed"
  return workdir


def test_killed_run_continues_bit_for_bit(shards, tiny_run, killed, tmp_path):
  """Against `tiny_run`, which ran in another process and was not killed."""
  workdir = shutil.copytree(killed, tmp_path / "again")
  with open(tmp_path / "log", "w") as log:
    assert tiny.train(shards, workdir, log, **{"validation.episodes": 0}).wait(300) == 0, (tmp_path / "log").read_text()
  assert "from step" in (tmp_path / "log").read_text()
  expected = losses(tiny_run)
  assert sorted(expected) == list(range(1, 25))
  assert losses(workdir) == expected
  assert len(set(expected.values())) == 24, "every step has its own numbers"


KILLED_IN_VALIDATION = """
import os, pathlib, signal, sys, time
from egoscale_jax import cli
from egoscale_jax.evaluate import validation

def run(*_, **__):
  for _ in range(600):
    if (pathlib.Path(sys.argv[2].removeprefix("--workdir=")) / "checkpoints" / "24").is_dir():
      os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)

validation.Validation.run = run
cli.main(sys.argv[1:])
"""


def test_a_step_is_saved_before_its_validation_which_a_kill_only_puts_off(shards, tiny_run, killed, tmp_path):
  """metrics.jsonl then has the lines of a run that was not killed, each once and in the same order, but for the times."""
  workdir = shutil.copytree(killed, tmp_path / "again")
  command = [sys.executable, "-c", KILLED_IN_VALIDATION, "train", f"--workdir={workdir}", *tiny.flags(shards, tiny.RUN)]
  done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": "error"}, check=False)
  assert done.returncode == -signal.SIGKILL, done.stderr
  figures = main.main(tiny.config(shards, **tiny.RUN), workdir, jax.devices()[:1])
  assert figures["points"] > 0
  assert figures == untimed(workdir)[-1]["validation"]
  assert untimed(workdir) == untimed(tiny_run)


@pytest.mark.parametrize(
  "sizes", [pytest.param((1, 1, 1), marks=pytest.mark.slow), pytest.param((2, 2, 1), marks=pytest.mark.slow), (1, 4, 2)]
)
def test_a_killed_run_goes_on_with_other_devices(shards, tiny_run, killed, tmp_path, monkeypatch, sizes):
  """On 1, 4 and 8: the very examples of a run from step 1, and its losses within 1e-5."""
  mesh = {f"mesh.{axis}": size for axis, size in zip(sharding.AXES, sizes)}
  config = tiny.config(shards, **{**tiny.RUN, **mesh, "validation.episodes": 0})
  workdir, seen = shutil.copytree(killed, tmp_path / "again"), []
  to_global = sharding.to_global

  def noted(batch, mesh):
    seen.append(jax.tree.map(np.copy, batch))
    return to_global(batch, mesh)

  monkeypatch.setattr(sharding, "to_global", noted)
  main.main(config, workdir, jax.devices()[: math.prod(sizes)])
  first = 24 - len(seen)
  assert first in (8, 16), "it begins at a checkpoint"
  begun = run.start(config, workdir, jax.devices()[: math.prod(sizes)])
  whole = [jax.tree.map(np.copy, batch) for batch in pipeline.train_batches(config, begun.prompt, begun.statistics, 0)]
  assert len({tuple(batch.position_B) for batch in whole}) == 24
  for got, want in zip(seen, whole[first:], strict=True):
    jax.tree.map(np.testing.assert_array_equal, got, want)
  expected, got = losses(tiny_run), losses(workdir)
  np.testing.assert_allclose([got[step][0] for step in range(1, 25)], [expected[step][0] for step in range(1, 25)], rtol=1e-5)


def test_a_finished_run_is_left_alone_and_another_config_is_refused(shards, tiny_run, tmp_path):
  before = (tiny_run / "metrics.jsonl").read_text().splitlines()
  main.main(tiny.config(shards, **tiny.RUN), tiny_run, jax.devices()[:1])
  assert (tiny_run / "metrics.jsonl").read_text().splitlines() == before
  with pytest.raises(UserError, match=r"holds another run: config.optim.learning_rate: found 0.5, the run began with 0.001"):
    main.main(tiny.config(shards, **tiny.RUN, **{"optim.learning_rate": 0.5}), tiny_run, jax.devices()[:1])
  moved = tmp_path / "moved"
  shutil.copytree(shards, moved)
  run.start(tiny.config(moved, **tiny.RUN), tiny_run, jax.devices()[:1])
  content = json.loads((moved / "manifest.json").read_text())
  (moved / "manifest.json").write_text(json.dumps({**content, "image_size": 32}))
  with pytest.raises(UserError, match="holds other data than the run"):
    run.start(tiny.config(moved, **tiny.RUN), tiny_run, jax.devices()[:1])
  run.start(tiny.config(shards, **{**tiny.RUN, "log_every": 7}), tiny_run, jax.devices()[:1])  # what changes no number may change


def test_the_next_stage_takes_the_parameters_and_nothing_else(shards, tiny_run, tmp_path):
  config = tiny.config(shards, steps=1, init_from=str(tiny_run), train_parts=("expert/.*",), **tiny.SHALLOW, **{"validation.episodes": 0})
  main.main(config, tmp_path / "next", jax.devices()[:1])
  _, params, step = run.open_run(tmp_path / "next")
  _, before, _ = run.open_run(tiny_run)
  assert step == 1
  assert sorted(path.name for path in (tmp_path / "next" / "hands").iterdir()) == ["sharpa_wave_left.xml", "sharpa_wave_right.xml"]
  jax.tree.map(np.testing.assert_array_equal, params["vision"], before["vision"])


def test_a_checkpoint_of_another_model_is_named_by_path(shards, tiny_run, tmp_path):
  config = tiny.config(shards, init_from=str(tiny_run), **tiny.SHALLOW, **{"model.expert.output": 48})
  with pytest.raises(UserError, match=r"does not fit the config: params/expert/action_decoder/\S+: found \(.*\), expected \("):
    main.main(config, tmp_path / "other", jax.devices()[:1])
  with pytest.raises(UserError, match="found no checkpoints"):
    checkpoint.latest_step(tmp_path / "nowhere")

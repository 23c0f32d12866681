"""Several processes, one run: 2 x 4 CPU devices over gloo, started by launch/local_pod.sh, against one process."""

import contextlib
import json
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny
from conftest import ROOT

from egoscale_jax.train import checkpoint, checksums, metrics, run

# A step of its own for every kind of noise; no validation but where it is what is tested.
RUN = {
  **tiny.RUN,
  "batch_size": 8,
  "steps": 20,
  "checkpoint_every": 5,
  "validate_every": 20,
  "model.dropout": 0.0,
  "validation.episodes": 0,
}
PATIENCE = 1200  # seconds for any run: a machine may be busy, and none of these tests is of speed
ENVIRONMENT = {**os.environ, "PYTHONWARNINGS": "error", "EGOSCALE_PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}


def pod(shards, workdir, log, devices=4, **overrides):
  """-> Popen of launch/local_pod.sh."""
  command = [ROOT / "launch" / "local_pod.sh", f"--workdir={workdir}", *tiny.flags(shards, {**RUN, **overrides})]
  return subprocess.Popen(command, env={**ENVIRONMENT, "JAX_NUM_CPU_DEVICES": str(devices)}, stdout=log, stderr=subprocess.STDOUT)


def one(shards, workdir, log, devices=1, **overrides):
  command = [sys.executable, "-m", "egoscale_jax.cli", "train", f"--workdir={workdir}", *tiny.flags(shards, {**RUN, **overrides})]
  return subprocess.Popen(command, env={**ENVIRONMENT, "JAX_NUM_CPU_DEVICES": str(devices)}, stdout=log, stderr=subprocess.STDOUT)


def losses(workdir):
  """Of the whole lines: {step: (loss, gradient norm)}."""
  lines = [json.loads(line) for line in metrics.complete_lines(workdir / "metrics.jsonl")]
  return {line["step"]: (line["loss"], line["grad_norm"]) for line in lines if "loss" in line}


def processes(workdir):
  """The Python processes of a pod, by the work directory that only their command has."""
  found = []
  for folder in pathlib.Path("/proc").glob("[0-9]*"):
    with contextlib.suppress(OSError):  # it has ended meanwhile
      command = (folder / "cmdline").read_bytes().split(b"\0")
      if b"egoscale_jax.cli" in command and f"--workdir={workdir}".encode() in command:
        found.append(int(folder.name))
  return sorted(found)


def test_two_processes_take_the_steps_of_one_and_validate_as_one(shards, tiny_run, tmp_path):
  """Against `tiny_run`, which one process took."""
  log, two = tmp_path / "log", {**tiny.RUN, "validation.episodes": tiny.SIZES["validation.episodes"]}
  with open(log, "w") as file:
    assert pod(shards, tmp_path / "two", file, devices=1, **two).wait(PATIENCE) == 0, log.read_text()
  want, got = losses(tiny_run), losses(tmp_path / "two")
  assert sorted(got) == sorted(want) == list(range(1, 25))
  np.testing.assert_allclose(list(got.values()), list(want.values()), rtol=1e-5)
  figures = [json.loads(metrics.complete_lines(workdir / "metrics.jsonl")[-1])["validation"] for workdir in (tiny_run, tmp_path / "two")]
  assert figures[0]["points"] == figures[1]["points"] > 0
  np.testing.assert_allclose(figures[1]["action_mse"], figures[0]["action_mse"], rtol=1e-4)
  checkpoint.resumable_step(tmp_path / "two")
  run.open_run(tmp_path / "two")  # of two processes, read by one


def test_one_host_with_another_config_is_refused_by_all(shards, tmp_path):
  with socket.create_server(("127.0.0.1", 0)) as server:
    address = f"127.0.0.1:{server.getsockname()[1]}"
  members, logs = [], [tmp_path / "log0", tmp_path / "log1"]
  for i, log in enumerate(logs):
    us = {"EGOSCALE_COORDINATOR": address, "JAX_COORDINATOR_BIND_ADDRESS": address, "EGOSCALE_PROCESSES": "2", "EGOSCALE_PROCESS": str(i)}
    command = [sys.executable, "-m", "egoscale_jax.cli", "train", f"--workdir={tmp_path}/run"]
    command += tiny.flags(shards, {**RUN, "optim.learning_rate": 0.5 if i else 0.001})
    with open(log, "w") as file:
      members.append(subprocess.Popen(command, env={**ENVIRONMENT, **us, "JAX_NUM_CPU_DEVICES": "1"}, stdout=file, stderr=file))
  assert [member.wait(PATIENCE) for member in members] == [1, 1], logs[0].read_text() + logs[1].read_text()
  for i, log in enumerate(logs):
    told = f"process {i} of 2: config.optim.learning_rate: process 0 has 0.001, process 1 has 0.5, expected the same on all processes"
    assert told in log.read_text()
  assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_any_mesh_takes_the_same_steps(shards, tmp_path):
  """20 steps in float32, within 1e-5: one device; eight over fsdp; 2 x 2 x 2, also in parts; two processes of four.

  Without dropout, which parts of a batch draw for themselves.
  """
  log, fields = tmp_path / "log", {"model.dropout": 0.0, "model.expert.state_dropout": 0.0}
  cube = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}
  meshes = {"eight": {"mesh.data": 1, "mesh.fsdp": 8}, "cube": cube, "parts": {**cube, "accumulate": 2}}
  with open(log, "w") as file:
    assert one(shards, tmp_path / "one", file, **fields).wait(PATIENCE) == 0, log.read_text()
    for name, mesh in meshes.items():
      assert one(shards, tmp_path / name, file, devices=8, **fields, **mesh).wait(PATIENCE) == 0, log.read_text()
    assert pod(shards, tmp_path / "pod", file, **fields, **{"mesh.data": 1, "mesh.fsdp": 8}).wait(PATIENCE) == 0, log.read_text()
  want = np.array(list(losses(tmp_path / "one").values()))
  assert len(want) == 20
  for name in (*meshes, "pod"):
    got = np.array(list(losses(tmp_path / name).values()))
    print(name, np.abs(got / want - 1).max(axis=0))
    np.testing.assert_allclose(got[:, 0], want[:, 0], rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_sigterm_to_all_or_to_one_ends_both_at_the_same_step_with_all_saved(shards, tmp_path):
  """Preempted twice, first all processes and then one of them alone, as when one host of a pod goes: both say 75, and no bit is lost."""
  fields, workdir = {"steps": 60, "checkpoint_every": 1000, "validate_every": 60}, tmp_path / "run"
  with open(tmp_path / "whole.log", "w") as file:
    assert pod(shards, tmp_path / "whole", file, devices=1, **fields).wait(PATIENCE) == 0, (tmp_path / "whole.log").read_text()
  for asked in ("all", "one"):
    log, before = tmp_path / f"{asked}.log", max(losses(workdir), default=0)
    with open(log, "w") as file:
      process = pod(shards, workdir, file, devices=1, **fields)
      while max(losses(workdir), default=0) < before + 2:
        assert process.poll() is None, log.read_text()
        time.sleep(0.02)
      began = time.monotonic()
      if asked == "all":
        process.terminate()  # the launcher, which hands it on
      else:
        os.kill(processes(workdir)[1], signal.SIGTERM)
      assert process.wait(PATIENCE) == 75, log.read_text()
    seconds, step = time.monotonic() - began, max(losses(workdir))
    print(f"SIGTERM to {asked}: step {step}, {seconds:.1f} s")
    assert before < step < 60
    told = re.findall(r"preempted at step (\d+): all is saved", log.read_text())
    assert told == [str(step)] * 2, "each process says it, and the step is the same"
    assert checkpoint.resumable_step(workdir) == step
    assert checksums.fault(workdir, step) == ""
    assert checksums.file_of(workdir, step).is_file()
    assert seconds < 30
  with open(tmp_path / "last.log", "w") as file:
    assert pod(shards, workdir, file, devices=1, **fields).wait(PATIENCE) == 0, (tmp_path / "last.log").read_text()
  assert losses(workdir) == losses(tmp_path / "whole")


@pytest.mark.slow
def test_twenty_kills_of_one_process_change_no_bit(shards, tmp_path):
  """kill -9 of one of two processes at a random moment: both end, with a code that is not 0, and the next start goes on."""
  fields = {"steps": 80, "checkpoint_every": 2, "validate_every": 80, "keep_checkpoints": 2}
  log, killed, draw = tmp_path / "log", tmp_path / "killed", random.Random(0)
  with open(log, "w") as file:
    assert pod(shards, tmp_path / "whole", file, devices=1, **fields).wait(PATIENCE) == 0, log.read_text()
    reached = []
    for _ in range(20):
      process, before = pod(shards, killed, file, devices=1, **fields), max(losses(killed), default=0)
      if draw.random() < 0.75:  # else at any moment of its start
        while max(losses(killed), default=0) <= before and process.poll() is None:
          time.sleep(0.05)
      time.sleep(draw.uniform(0, 1.5))
      assert process.poll() is None, "the run ended before it could be killed\n" + log.read_text()
      if victims := processes(killed):
        os.kill(draw.choice(victims), signal.SIGKILL)
      else:
        process.terminate()  # no process yet
      assert process.wait(PATIENCE) != 0, log.read_text()
      reached.append(max(losses(killed), default=0))
    print("killed at", reached)
    assert pod(shards, killed, file, devices=1, **fields).wait(PATIENCE) == 0, log.read_text()
  assert losses(killed) == losses(tmp_path / "whole")

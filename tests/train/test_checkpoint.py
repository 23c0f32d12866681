"""Checkpoints: any mesh reads them, a damaged one is named and left, a full disk costs one and not the run, SIGTERM saves the step."""

import gc
import json
import os
import shutil
import signal
import subprocess
import time

import jax
import numpy as np
import pytest
import tiny
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from egoscale_jax.errors import UserError
from egoscale_jax.train import checkpoint, checksums, metrics


def state(step, devices=8):
  """A tree over so many devices."""
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("fsdp",))
  values = {"kernel": np.arange(64, dtype=np.float32).reshape(8, 8) + step, "step": np.int32(step)}
  return jax.device_put(values, {"kernel": NamedSharding(mesh, P("fsdp")), "step": NamedSharding(mesh, P())})


def saved(workdir, steps, keep=3):
  with checkpoint.Saver(workdir, keep) as saver:
    for step in steps:
      saver.save(step, state(step))
    saver.finish(steps[-1])


def read(workdir, step, devices=8):
  like = state(0, devices)
  with checkpoint.manager(workdir) as checkpoints:
    return checkpoint.restore(checkpoints, step, like, jax.tree.map(lambda x: x.sharding, like))


def flip_a_bit(workdir, step):
  """In the middle of the largest file: an array's."""
  file = max((path for path in (workdir / "checkpoints" / str(step)).rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 4
  file.write_bytes(content)
  return file


def test_one_four_and_eight_devices_read_what_eight_wrote(tmp_path):
  saved(tmp_path, [1])
  for devices in (1, 4, 8):
    found = read(tmp_path, 1, devices)
    np.testing.assert_array_equal(found["kernel"], state(1)["kernel"])
    assert len(found["kernel"].sharding.device_set) == devices


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(tmp_path, capsys):
  saved(tmp_path, [1, 2, 3, 4])
  assert sorted(path.stem for path in (tmp_path / "checksums").iterdir()) == ["2", "3", "4"], "keep 3: sums of what is gone are gone"
  assert checkpoint.resumable_step(tmp_path) == 4
  assert capsys.readouterr().out == ""
  file = flip_a_bit(tmp_path, 4)
  (tmp_path / "checkpoints" / "3" / "_CHECKPOINT_METADATA").unlink()
  assert checkpoint.latest_step(tmp_path) == 2, "whoever only reads goes back too"
  assert (tmp_path / "checkpoints" / "4").is_dir(), "and moves nothing"
  assert checkpoint.resumable_step(tmp_path) == 2
  lines = capsys.readouterr().out.splitlines()[-2:]
  assert str(file) in lines[0]
  assert "checkpoint 4 is damaged" in lines[0]
  assert "3/_CHECKPOINT_METADATA: found nothing, expected" in lines[1]
  assert sorted(path.name for path in (tmp_path / "damaged").iterdir()) == ["3", "4"]
  saved(tmp_path, [3, 4])  # their steps come again
  assert checkpoint.resumable_step(tmp_path) == 4
  np.testing.assert_array_equal(read(tmp_path, 4)["kernel"], state(4)["kernel"])


def test_all_damaged_is_an_error_and_without_sums_a_complete_one_is_taken(tmp_path):
  saved(tmp_path, [1])
  checksums.file_of(tmp_path, 1).rename(tmp_path / "aside")
  assert checkpoint.resumable_step(tmp_path) == 1
  (tmp_path / "aside").rename(checksums.file_of(tmp_path, 1))
  flip_a_bit(tmp_path, 1)
  with pytest.raises(UserError, match="no other checkpoint is as it was written"):
    checkpoint.resumable_step(tmp_path)
  assert (tmp_path / "checkpoints" / "1").is_dir()


def test_no_room_for_a_save_costs_no_checkpoint(tmp_path, capsys, monkeypatch):
  usage = shutil.disk_usage(tmp_path)
  with checkpoint.Saver(tmp_path, 1) as saver:
    saver.save(1, state(1))
    saver.poll()
    monkeypatch.setattr(checkpoint, "_free_mib", lambda workdir: -1)
    saver.save(2, state(2))
    assert "checkpoint 2 is not saved" in capsys.readouterr().out
    with pytest.raises(UserError, match="step 2 could not be saved"):
      saver.finish(2)
    monkeypatch.undo()
    assert usage.total
    assert checkpoint.resumable_step(tmp_path) == 1
    saver.save(3, state(3))
    saver.finish(3)
  assert checkpoint.resumable_step(tmp_path) == 3


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax leaves a coroutine of a failed save behind
@pytest.mark.parametrize("left", [8192, 0], ids=["arrays fail", "all of its threads fail"])
def test_a_disk_that_fills_up_during_a_save_costs_no_checkpoint(tmp_path, capsys, monkeypatch, left):
  """A file system of its own where one may be mounted. left: bytes; with none, several threads fail, none of them the next save."""
  disk = tmp_path / "disk"
  disk.mkdir()
  if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
    pytest.skip("no file system may be mounted here")
  monkeypatch.setattr(checkpoint, "_free_mib", lambda workdir: 1000)  # what is told beforehand was wrong
  try:
    with checkpoint.Saver(disk, 2) as saver:
      saver.save(1, state(1))
      saver.finish(1)
      with open(disk / "filler", "wb") as filler:
        filler.write(bytes(shutil.disk_usage(disk).free - left))
      saver.save(2, state(2))
      with pytest.raises(UserError, match="step 2 could not be saved, the disk is full"):
        saver.finish(2)
      assert "checkpoint 2 is not saved" in capsys.readouterr().out
      assert checkpoint.resumable_step(disk) == 1
      assert [path.name for path in (disk / "checkpoints").iterdir()] == ["1"], "what was begun is gone"
      (disk / "filler").unlink()
      saver.save(3, state(3))
      saver.finish(3)
    assert checkpoint.resumable_step(disk) == 3
  finally:
    subprocess.run(["umount", "-l", disk], check=True)
    gc.collect()  # here, where its warning is awaited


def test_sigterm_saves_the_step_and_the_next_start_goes_on(shards, tiny_run, tmp_path):
  workdir, log = tmp_path / "run", tmp_path / "log"
  told = lambda: [json.loads(line) for line in metrics.complete_lines(workdir / "metrics.jsonl")]  # noqa: E731
  with open(log, "w") as file:
    process = tiny.train(shards, workdir, file, checkpoint_every=1000)
    while not told():
      assert process.poll() is None, log.read_text()
      time.sleep(0.02)
    os.kill(process.pid, signal.SIGTERM)
    began = time.monotonic()
    assert process.wait(60) == 75, log.read_text()
    seconds = time.monotonic() - began
    step = max(line["step"] for line in told())
    assert checkpoint.resumable_step(workdir) == step < 24
    assert checksums.file_of(workdir, step).is_file()
    assert f"preempted at step {step}: all is saved in {workdir}" in log.read_text()
    assert seconds < 30
    assert tiny.train(shards, workdir, file, checkpoint_every=1000).wait(200) == 0, log.read_text()
  want = [json.loads(line) for line in metrics.complete_lines(tiny_run / "metrics.jsonl")]
  for line, other in zip(told(), want, strict=True):
    assert line["step"] == other["step"]
    assert line.get("loss") == other.get("loss")
    assert line.get("validation") == other.get("validation")

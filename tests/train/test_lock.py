"""Two runs on one work directory: the second is refused in a line, unless the first is gone, however it went."""

import errno
import fcntl
import subprocess
import sys

import jax
import pytest
import tiny

from egoscale_jax.errors import UserError
from egoscale_jax.train import lock, main

HOLD = """
import sys, time
from egoscale_jax.train import lock
with lock.alone(sys.argv[1]):
  print(flush=True)
  time.sleep(600)
"""


def test_the_second_run_is_refused_until_the_first_one_is_gone(shards, tmp_path):
  workdir = tmp_path / "run"
  config = tiny.config(shards, **{**tiny.RUN, "validation.episodes": 0, "mesh.data": 3})  # of two devices: refused, but only after the lock
  holder = subprocess.Popen([sys.executable, "-c", HOLD, workdir], stdout=subprocess.PIPE)
  assert holder.stdout.readline() == b"\n"
  with pytest.raises(UserError, match=rf"^--workdir={workdir}: another `egoscale train` is at this run, expected one at a time$"):
    main.main(config, workdir, jax.devices()[:2])
  assert [path.name for path in workdir.iterdir()] == ["lock"]
  holder.kill()  # -9
  holder.wait()
  holder.stdout.close()
  with pytest.raises(UserError, match=r"config\.mesh"):
    main.main(config, workdir, jax.devices()[:2])
  assert not list(workdir.iterdir()), "nothing is left that `egoscale convert` would find there"


def test_it_is_held_to_the_end_of_training(shards, tiny_run, tmp_path, monkeypatch):
  """A finished run is opened again; its last act is looked at."""
  seen, finish = [], main.checkpoint.Saver.finish

  def noted(self, step):
    with pytest.raises(UserError, match="another `egoscale train`"), lock.alone(tiny_run):
      pass
    seen.append(step)
    return finish(self, step)

  monkeypatch.setattr(main.checkpoint.Saver, "finish", noted)
  main.main(tiny.config(shards, **tiny.RUN), tiny_run, jax.devices()[:1])
  assert seen == [24]
  assert not (tiny_run / "lock").exists()


def test_a_file_that_was_removed_in_between_is_not_the_lock(tmp_path, monkeypatch):
  flock, removed = fcntl.flock, []

  def late(file, how):
    if not removed:  # the one before ends between our open and our lock
      (tmp_path / "lock").unlink()
      removed.append(True)
    return flock(file, how)

  monkeypatch.setattr(fcntl, "flock", late)
  with lock.alone(tmp_path):
    with pytest.raises(UserError, match="another"), lock.alone(tmp_path):
      pass
    assert (tmp_path / "lock").is_file()


def test_a_file_system_without_locks_is_told_and_the_run_goes_on(tmp_path, monkeypatch, capsys):
  def none(*_):
    raise OSError(errno.ENOTSUP, "Operation not supported")

  monkeypatch.setattr(fcntl, "flock", none)
  with lock.alone(tmp_path / "run"):
    pass
  told = capsys.readouterr().out
  assert told.startswith(f"{tmp_path}/run/lock: this file system has no locks (Operation not supported)")
  assert told.count("\n") == 1
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match=r"--workdir=\S+: cannot be written: "), lock.alone(tmp_path / "file" / "run"):
    pass

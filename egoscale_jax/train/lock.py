"""One run at a time on a work directory: two would delete each other's saves and lose lines of metrics.jsonl."""

import contextlib
import fcntl
import os
import pathlib

from egoscale_jax.errors import UserError
from egoscale_jax.train import distributed

NAME = "lock"  # in a work directory, while a run is at it


@contextlib.contextmanager
def alone(workdir):
  """UserError where another run is at it. Process 0 holds the lock, which goes with the process, however it ends; its file with this."""
  if not distributed.is_first():
    yield
    return
  path = pathlib.Path(workdir) / NAME
  with contextlib.ExitStack() as stack:
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      while True:
        file = stack.enter_context(open(path, "w", encoding="utf-8"))
        _lock(file)
        if _is_at(path, file):
          break
        file.close()  # whoever had it has just removed it
    except BlockingIOError as error:
      raise UserError(f"--workdir={workdir}: another `egoscale train` is at this run, expected one at a time") from error
    except OSError as error:
      raise UserError(f"--workdir={workdir}: cannot be written: {error.strerror}") from error
    try:
      yield
    finally:
      path.unlink(missing_ok=True)  # while it is held: what is left is as without a lock


def _lock(file):
  """BlockingIOError where another process has it. Not every shared file system has locks: that is told, and the run goes on."""
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    raise
  except OSError as error:
    told = f"{file.name}: this file system has no locks ({error.strerror}); expected that no other run is at this work directory"
    distributed.say(told)


def _is_at(path, file):
  with contextlib.suppress(FileNotFoundError):
    return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
  return False

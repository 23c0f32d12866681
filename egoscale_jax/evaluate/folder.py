"""The folder of a study of many runs: one process at a time, one config from beginning to end, files that are whole or not there."""

import contextlib
import fcntl
import json
import pathlib

from egoscale_jax.errors import UserError
from egoscale_jax.evaluate import study_plan


@contextlib.contextmanager
def alone(workdir):
  """UserError where another process is at the same study. The lock goes with the process, however it ends."""
  workdir = pathlib.Path(workdir)
  with contextlib.ExitStack() as stack:
    try:
      workdir.mkdir(parents=True, exist_ok=True)
      file = stack.enter_context(open(workdir / "lock", "w", encoding="utf-8"))
    except OSError as error:
      raise UserError(f"--workdir={workdir}: cannot be written: {error.strerror}") from error
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise UserError(f"--workdir={workdir}: another process is at this study, expected one at a time") from error
    yield


def begin(workdir, told, folders):
  """told: study_plan.to_json's; UserError with the field where it is not what study.json there began with."""
  workdir = pathlib.Path(workdir)
  path = workdir / "study.json"
  if path.is_file():
    study_plan.check_same(json.loads(path.read_text(encoding="utf-8")), told, workdir)
  for name in folders:
    (workdir / name).mkdir(exist_ok=True)
  if not path.is_file():
    write(path, json.dumps(told, indent=1, sort_keys=True) + "\n")


def write(path, text):
  partial = path.with_name(path.name + ".partial")
  partial.write_text(text, encoding="utf-8")
  partial.replace(path)

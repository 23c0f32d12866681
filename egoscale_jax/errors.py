"""What ends a command without a traceback: the command line prints one line and exits with a code that says which."""

import pathlib

EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: try again


class UserError(Exception):
  """A user's mistake, in one line: the file or field, what was found, what was expected. Never wraps a bug of ours."""


class Preempted(Exception):
  """The machine is being taken away (SIGTERM): all is saved, and the same command goes on from there."""


def check_workdir(flag, path):
  """None is a flag that was not given."""
  if path is not None and not pathlib.Path(path).is_dir():
    raise UserError(f"--{flag}={path}: no such directory, expected a work directory of `egoscale train`")

"""The one exception for a user's mistake: the command line prints it as one line and exits non-zero."""


class UserError(Exception):
  """One line: the file or field, what was found, what was expected. Never wraps a bug of ours."""

"""Reads the JSON files that stand beside the shards; each has a `version`."""

import json
import os

from egoscale_jax.errors import UserError


def read(path, version: int, what: str, writer="egoscale prepare", again="prepare the data again") -> dict:
  """The object in the file; UserError where it is absent, not JSON, or of another version, with its name, who writes it and what to do."""
  path = os.fspath(path)
  if not os.path.isfile(path):
    raise UserError(f"{path}: no such file, expected the {what} that `{writer}` writes")
  try:
    with open(path, encoding="utf-8") as file:
      content = json.load(file)
  except ValueError as error:
    raise UserError(f"{path}: not JSON: {error}") from error
  except OSError as error:
    raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
  if not isinstance(content, dict) or content.get("version") != version:
    raise UserError(f"{path}: not {what} of version {version}; {again}")
  return content

"""Reads the JSON files that stand beside the shards; each has a `version`."""

import json
import os

from egoscale_jax.errors import UserError


def read(path, version: int, what: str) -> dict:
  """The object in the file; UserError where it is absent, not JSON, or of another version. `what`: its name in the error."""
  path = os.fspath(path)
  if not os.path.isfile(path):
    raise UserError(f"{path}: no such file, expected the {what} that `egoscale prepare` writes")
  try:
    with open(path, encoding="utf-8") as file:
      content = json.load(file)
  except ValueError as error:
    raise UserError(f"{path}: not JSON: {error}") from error
  except OSError as error:
    raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
  if not isinstance(content, dict) or content.get("version") != version:
    raise UserError(f"{path}: not {what} of version {version}; prepare the data again")
  return content

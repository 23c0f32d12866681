"""Reads `--config=configs/X.py[:debug] --config.key=value ...` into a locked ConfigDict.

The syntax of ml_collections.config_flags, without it: that reads overrides from sys.argv whatever it is handed, and loads the file through
an importlib call that Python is removing.
"""

import ast
import difflib
import importlib.util
import pathlib
import re
import sys

from egoscale_jax.errors import UserError


def parse(arguments):
  """["--config=FILE[:mode]", "--config.key=value", ...] -> ConfigDict, locked; a wrong file, key or value is a UserError naming it."""
  files = [argument.removeprefix("--config=") for argument in arguments if argument.startswith("--config=")]
  if len(files) != 1:
    raise UserError(f"--config: found {len(files)}, expected one, as in --config=configs/quickstart.py")
  path, _, mode = files[0].partition(":")
  config = _load(path, mode)
  for argument in arguments:
    if argument.startswith("--config."):
      key, equals, text = argument.removeprefix("--config.").partition("=")
      if not equals:
        raise UserError(f"--config.{key}: found no value, expected --config.{key}=VALUE")
      _override(config, key, text)
  return config.lock()


def _load(path, mode):
  path = pathlib.Path(path)
  if not path.is_file():
    raise UserError(f"--config={path}: no such file")
  sys.path.insert(0, str(path.resolve().parent))  # configs import each other by name
  try:
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
  except (SyntaxError, ImportError, AttributeError) as error:
    raise UserError(f"--config={path}: not a config: {error}") from error
  finally:
    sys.path.pop(0)
  if not hasattr(module, "get_config"):
    raise UserError(f"--config={path}: found no function get_config(mode)")
  try:
    return module.get_config(mode)
  except ValueError as error:
    raise UserError(f"--config={path}:{mode}: {error}") from error


def _override(config, key, text):
  """Sets one field; its new value must have the old one's type (an int will do for a float)."""
  names = key.split(".")
  owner, value = None, config
  for name in names:
    known = list(value.keys()) if hasattr(value, "keys") else []
    if name not in known:
      close = difflib.get_close_matches(name, known, n=1)
      hint = f"did you mean {close[0]!r}" if close else f"expected one of: {', '.join(sorted(known)) or 'nothing below it'}"
      raise UserError(f"--config.{key}: unknown key {name!r}, {hint}")
    owner, value = value, value[name]
  if hasattr(value, "keys"):
    raise UserError(f"--config.{key}: holds {', '.join(sorted(value.keys()))}; set one of them")
  owner[names[-1]] = _value(key, text, value)


def _value(key, text, old):
  if isinstance(old, str):
    return text
  if isinstance(old, float) and text.strip() == "inf":  # no literal of Python
    return float("inf")
  try:
    value = ast.literal_eval(text.strip().replace("true", "True").replace("false", "False"))
  except (ValueError, SyntaxError):
    value = text
  if isinstance(old, float) and type(value) is int:
    value = float(value)
  if isinstance(old, tuple) and not isinstance(value, tuple):
    value = (value,) if not isinstance(value, list) else tuple(value)
  if isinstance(old, tuple) and old and value and {type(item) for item in value} != {type(item) for item in old}:
    raise UserError(f"--config.{key}: found {text!r}, expected a tuple as in {old!r}")
  if type(value) is not type(old):
    raise UserError(f"--config.{key}: found {text!r}, expected {type(old).__name__}, as in {old!r}")
  return value


def flat(config, prefix=""):
  """Nested dicts -> ("a.b.c", value), ..."""
  for key, value in config.items():
    if isinstance(value, dict):
      yield from flat(value, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key}", value


def changes(begun, now, what, free) -> list[str]:
  """A line a field that differs between two configs as dicts, but for those that are free(key) and where a mixture's folders lie.

  `what` began with the first; what the folders hold is told by their fingerprints.
  """
  old, new = dict(flat(begun)), dict(flat(now))
  return [
    f"config.{key}: found {new.get(key, 'nothing')}, {what} began with {old.get(key, 'nothing')}"
    for key in sorted(old.keys() | new.keys())
    if old.get(key) != new.get(key) and not free(key) and not re.fullmatch(r"data\.mixture\..*\.(shards|pairs)", key)
  ]

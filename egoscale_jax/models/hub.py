"""Where a checkpoint lies -> a folder of this machine with its small files and its safetensors."""

import contextlib
import pathlib
import tempfile

from etils import epath

from egoscale_jax.errors import UserError

FILES = ("*.safetensors", "*.json")


@contextlib.contextmanager
def local(address):
  """A folder; hf://OWNER/NAME, by huggingface_hub and its cache; gs:// and what else etils.epath knows, copied to a folder that goes away.

  -> pathlib.Path. UserError says in a line what to do where it cannot be had.
  """
  scheme, _, name = str(address).rpartition("://")
  if not scheme:
    yield pathlib.Path(address)
  elif scheme == "hf":
    yield _from_hugging_face(address, name)
  else:
    with tempfile.TemporaryDirectory() as folder:
      _copy(address, pathlib.Path(folder))
      yield pathlib.Path(folder)


def _from_hugging_face(address, name):
  advice = f"where there is a network `hf download {name} --local-dir=DIR`, then give DIR"
  try:
    import huggingface_hub
  except ImportError as error:
    raise UserError(f"{address}: found no huggingface_hub, expected it installed: pip install huggingface_hub; or {advice}") from error
  try:
    return pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=list(FILES)))
  except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
    raise UserError(f"{address}: cannot be fetched ({_first_line(error)}); {advice}") from error


def _copy(address, folder):
  try:
    files = [file for file in epath.Path(address).iterdir() if any(file.match(pattern) for pattern in FILES)]
    for file in files:
      file.copy(folder / file.name)
  except Exception as error:  # every kind of storage has errors of its own, and none in common
    advice = "copy it to a folder with the storage's own tool (gcloud storage cp -r), then give that folder"
    raise UserError(f"{address}: cannot be fetched ({_first_line(error)}); {advice}") from error


def _first_line(error):
  return next(iter(str(error).strip().splitlines()), type(error).__name__)

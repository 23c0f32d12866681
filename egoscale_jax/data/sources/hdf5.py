"""Arrays of HDF5 files for the readers: what is in the file itself, and no more than a recording can hold."""

import h5py
import numpy as np

from egoscale_jax.data.sources import checks
from egoscale_jax.errors import UserError

CORRUPT = (OSError, RuntimeError, KeyError, ValueError)  # each seen from h5py, on files with some bytes changed
MAX_NUMBERS = checks.MAX_FRAMES * 63


def array(file, path, name) -> np.ndarray:
  """A dataset by its name; UserError where it is not there, or is not in this file: HDF5 can name other files, anywhere on the disk."""
  place = ""
  for part in name.split("/"):
    place = f"{place}/{part}"
    if not isinstance(file.get(place, h5py.HardLink(), getlink=True), h5py.HardLink):
      raise UserError(f"{path}: {name} is a link, expected it in the file itself")
  dataset = file.get(name)
  if not isinstance(dataset, h5py.Dataset):
    raise UserError(f"{path}: {name} is missing")
  if dataset.is_virtual or dataset.external:
    raise UserError(f"{path}: {name} is kept in other files, expected it in the file itself")
  if dataset.size is None or dataset.size > MAX_NUMBERS:
    raise UserError(f"{path}: {name} has {dataset.size} numbers, expected at most {MAX_NUMBERS}")
  return dataset[()]

"""HDF5 files for the readers: what is in the file itself, and no more than a recording can hold."""

import struct

import h5py
import numpy as np

from egoscale_jax.data.sources import checks
from egoscale_jax.errors import UserError

CORRUPT = (OSError, RuntimeError, KeyError, ValueError)  # each seen from h5py, on files with some bytes changed
MAX_NUMBERS = checks.MAX_FRAMES * 63


def opened(path) -> h5py.File:
  """The file, to read; one of CORRUPT, where it is none or would keep HDF5 busy for ever."""
  with open(path, "rb") as file:
    check_heaps(file.read())
  return h5py.File(path, "r")


def check_heaps(data: bytes):
  """ValueError where a heap of texts has an entry that does not lead to the next one.

  HDF5 walks such a heap without an end: a free entry of no size leads to itself, and a size near 2**64 wraps around. Found by fuzzing.
  Layout (the format's specification, III.E, global heap): "GCOL", version 1, 3 bytes, size; entries of index, references, 4 bytes,
  size and data, in steps of 8.
  """
  start = data.find(b"GCOL\x01")
  while start >= 0:
    (size,) = struct.unpack_from("<Q", data.ljust(start + 16, b"\0"), start + 8)
    place, end = start + 16, min(start + size, len(data))
    while place + 16 <= end:
      index, _, size = struct.unpack_from("<HHxxxxQ", data, place)
      if size > len(data) or (index == 0 and size == 0):
        raise ValueError(f"the heap at byte {start} has an entry of {size} bytes")
      place += 16 + -(-size // 8) * 8 if index else size
    start = data.find(b"GCOL\x01", start + 1)


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

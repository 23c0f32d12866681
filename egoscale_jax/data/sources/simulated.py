"""Recordings of the project's own simulator: the format of EgoDex, marked by the attribute `simulated`."""

from egoscale_jax.data import schema
from egoscale_jax.data.sources import egodex, hdf5
from egoscale_jax.errors import UserError

SOURCE = "simulated"
LICENCE = "Apache-2.0 (simulated)"


def find(directory) -> list[schema.Recording]:
  """As egodex.find; its error also says how to get some."""
  try:
    return egodex.find(directory)
  except UserError as error:
    raise UserError(f"{error}; write some with `egoscale simulate --output={directory}`") from error


def read(recording: schema.Recording, image_size: int) -> schema.Episode:
  """As egodex.read; refuses a recording that the simulator did not write, since its licence would be wrong."""
  path = recording.files[0]
  try:
    with hdf5.opened(path) as file:
      simulated = bool(file.attrs.get("simulated", False))
  except hdf5.CORRUPT as error:
    raise UserError(f"{path}: not a readable HDF5 file: {' '.join(str(error).split())}") from error
  if not simulated:
    raise UserError(f"{path}: attribute simulated is missing, expected a recording by `egoscale simulate`; real ones are read as egodex")
  return egodex.read_as(recording, image_size, SOURCE, LICENCE)

"""Tables of parquet files for the readers; pyarrow is imported when one is read."""

import functools
import os

import numpy as np

from egoscale_jax.data.sources import checks
from egoscale_jax.errors import UserError


def table(path, wanted=None, episode=None):
  """The table of a file: the columns with wanted(name), and the rows whose `episode_index` is `episode` alone."""
  import pyarrow
  import pyarrow.compute
  import pyarrow.parquet

  checks.readable(path)
  stat = os.stat(path)
  try:
    with pyarrow.parquet.ParquetFile(path) as file:
      # Of the file's own metadata no more is asked: pyarrow 26 ends the process where that of a row group is damaged.
      if not 0 <= file.metadata.num_rows <= checks.MAX_FRAMES:
        raise UserError(f"{path}: {file.metadata.num_rows} rows, expected at most {checks.MAX_FRAMES}")
      names = [name for name in file.schema_arrow.names if wanted is None or wanted(name)]
      if episode is None or "episode_index" not in names:
        return _valid(file.read(columns=names, use_threads=False))
      groups = [i for i, there in enumerate(_episodes_of_groups(path, stat.st_size, stat.st_mtime_ns)) if episode in there]
      read = _valid(file.read_row_groups(groups, columns=names, use_threads=False))
      return read.filter(pyarrow.compute.equal(read.column("episode_index"), episode))
  except (pyarrow.ArrowException, OSError, ValueError, KeyError, IndexError, TypeError, NotImplementedError, MemoryError) as error:
    raise UserError(f"{path}: not a readable parquet file: {checks.one_line(error)}") from error


def _valid(read):
  """Texts that are no texts and lists that reach out of their values are found here, not when they are used."""
  read.validate(full=True)
  return read


@functools.lru_cache(maxsize=64)
def _episodes_of_groups(path, _size, _time) -> tuple[frozenset[int], ...]:
  """The episodes of each row group, read once for all episodes of a file."""
  import pyarrow.parquet

  with pyarrow.parquet.ParquetFile(path) as file:
    groups = (file.read_row_group(i, columns=["episode_index"], use_threads=False) for i in range(file.num_row_groups))
    return tuple(frozenset(group.column(0).unique().to_pylist()) for group in groups)


def numbers(read, name, path) -> np.ndarray:
  """A column of numbers, or of lists of the same count of them -> float64 [F, n], NaN where one is null."""
  import pyarrow
  import pyarrow.compute

  if name not in read.column_names:
    raise UserError(f"{path}: {name} is missing, found {', '.join(read.column_names)}")
  try:
    column = read.column(name).combine_chunks()
    kind, width = column.type, 1
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind) or pyarrow.types.is_fixed_size_list(kind):
      widths = pyarrow.compute.unique(pyarrow.compute.list_value_length(column)).to_pylist()
      if len(widths) != 1 or not widths[0]:
        raise UserError(f"{path}: {name} holds lists of {widths[:3]} numbers, expected as many at every frame")
      width, column = widths[0], column.flatten()
      kind = column.type
    if not (pyarrow.types.is_floating(kind) or pyarrow.types.is_integer(kind) or pyarrow.types.is_boolean(kind)):
      raise UserError(f"{path}: {name} is {kind}, expected numbers or lists of numbers")
    values = column.cast(pyarrow.float64(), safe=False).to_numpy(zero_copy_only=False)
  except (pyarrow.ArrowException, ValueError, TypeError, NotImplementedError) as error:
    raise UserError(f"{path}: {name} cannot be read as numbers: {checks.one_line(error)}") from error
  return checks.floats(values, (None,), path, name).reshape(-1, width)

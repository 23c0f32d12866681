"""Tables of parquet files for the readers; pyarrow is imported when one is read."""

import numpy as np

from egoscale_jax.data.sources import checks
from egoscale_jax.errors import UserError

MAX_NUMBERS = 1_000_000_000  # of one table: a few bytes may claim any count of repeated values


def table(path, wanted=None, episode=None):
  """The table of a file: the columns with wanted(name), and the rows whose `episode_index` is `episode` alone."""
  import pyarrow
  import pyarrow.compute
  import pyarrow.parquet

  checks.readable(path)
  try:
    with pyarrow.parquet.ParquetFile(path) as file:
      meta = file.metadata
      groups = [meta.row_group(i) for i in range(meta.num_row_groups)]
      numbers = sum(group.column(j).num_values for group in groups for j in range(group.num_columns))
      if not 0 <= meta.num_rows <= checks.MAX_FRAMES or not 0 <= numbers <= MAX_NUMBERS:
        raise UserError(f"{path}: {meta.num_rows} rows of {numbers} numbers, expected at most {checks.MAX_FRAMES} of {MAX_NUMBERS}")
      names = [name for name in file.schema_arrow.names if wanted is None or wanted(name)]
      if episode is None or "episode_index" not in names:
        return _valid(file.read(columns=names, use_threads=False))
      there = [i for i, group in enumerate(groups) if _may_hold(group, episode)]
      read = file.read_row_groups(there, columns=names, use_threads=False)
      return _valid(read).filter(pyarrow.compute.equal(read.column("episode_index"), episode))
  except (pyarrow.ArrowException, OSError, ValueError, KeyError, IndexError, TypeError, NotImplementedError, MemoryError) as error:
    raise UserError(f"{path}: not a readable parquet file: {checks.one_line(error)}") from error


def _valid(read):
  """Texts that are no texts and lists that reach out of their values are found here, not when they are used."""
  read.validate(full=True)
  return read


def _may_hold(group, episode) -> bool:
  """By the statistics of a row group, where it has any."""
  for j in range(group.num_columns):
    column = group.column(j)
    if column.path_in_schema == "episode_index":
      known = column.statistics
      return known is None or not known.has_min_max or known.min <= episode <= known.max
  return True


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

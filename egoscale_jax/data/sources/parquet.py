"""Tables of parquet files for the readers; pyarrow is imported when one is read."""

import contextlib
import functools
import os
import resource

import numpy as np

from egoscale_jax.data.sources import checks
from egoscale_jax.errors import UserError

MAX_BYTES = 4_000_000_000  # that reading one file may take; LeRobot's files hold 100 MB
MAX_NUMBERS = 200_000_000  # of a column: checks.MAX_FRAMES of a hundred numbers each


@contextlib.contextmanager
def _bounded():
  """Within it no more than MAX_BYTES are allocated on top of what this process has; what wants more is a MemoryError.

  Run lengths and dictionaries let 600 bytes of a file stand for terabytes, and the counts that would tell so before are in the metadata of
  row groups (see `table`). So the allocation is refused, not the count. Only on Linux; elsewhere there is no bound.
  """
  if not os.path.exists("/proc/self/statm"):
    yield
    return
  with open("/proc/self/statm", encoding="ascii") as file:
    limit = int(file.read().split()[0]) * resource.getpagesize() + MAX_BYTES
  soft, hard = resource.getrlimit(resource.RLIMIT_AS)
  bounds = [limit, *(bound for bound in (soft, hard) if bound != resource.RLIM_INFINITY)]
  resource.setrlimit(resource.RLIMIT_AS, (min(bounds), hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def table(path, wanted=None, episode=None):
  """The table of a file: the columns with wanted(name), and the rows whose `episode_index` is `episode` alone."""
  import pyarrow
  import pyarrow.compute
  import pyarrow.parquet

  checks.readable(path)
  stat = os.stat(path)
  try:
    with _bounded(), pyarrow.parquet.ParquetFile(path) as file:
      # Of the file's own metadata no more is asked: pyarrow 26 ends the process where that of a row group is damaged.
      if not 0 <= file.metadata.num_rows <= checks.MAX_FRAMES:
        raise UserError(f"{path}: {file.metadata.num_rows} rows, expected at most {checks.MAX_FRAMES}")
      names = [name for name in file.schema_arrow.names if wanted is None or wanted(name)]
      if episode is None or "episode_index" not in names:
        return _valid(file.read(columns=names, use_threads=False))
      groups = [i for i, there in enumerate(_episodes_of_groups(path, stat.st_size, stat.st_mtime_ns)) if episode in there]
      read = _valid(file.read_row_groups(groups, columns=names, use_threads=False))
      return read.filter(pyarrow.compute.equal(read.column("episode_index"), episode))
  except MemoryError as error:
    raise UserError(f"{path}: its values take more than {MAX_BYTES} bytes of memory, expected less") from error
  except (pyarrow.ArrowException, OSError, ValueError, KeyError, IndexError, TypeError, NotImplementedError) as error:
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
    if len(column) > MAX_NUMBERS:  # a bit each in the file, eight bytes each here
      raise UserError(f"{path}: {name} holds {len(column)} numbers, expected at most {MAX_NUMBERS}")
    if not (pyarrow.types.is_floating(kind) or pyarrow.types.is_integer(kind) or pyarrow.types.is_boolean(kind)):
      raise UserError(f"{path}: {name} is {kind}, expected numbers or lists of numbers")
    values = column.cast(pyarrow.float64(), safe=False).to_numpy(zero_copy_only=False)
  except (pyarrow.ArrowException, ValueError, TypeError, NotImplementedError) as error:
    raise UserError(f"{path}: {name} cannot be read as numbers: {checks.one_line(error)}") from error
  return checks.floats(values, (None,), path, name).reshape(-1, width)

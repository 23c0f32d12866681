"""Which record and which window of it stand at row r of step s: a pure function of both, so that a run starts anywhere at once.

A record is worth several windows once it is read (decoding two pictures takes less time than fetching their record). So a row keeps `mix`
records and takes `windows` from each, in a random order, before it goes on to the next ones. Rows have different records, so a batch holds
as many episodes as one drawn without replacement; and rows are out of phase, so that each step reads about the same number of records.
"""

import dataclasses
import functools

import grain.experimental
import numpy as np

_PRIME = 7919  # steps the phases of the rows apart


@dataclasses.dataclass(frozen=True)
class Order:
  """rows: of the global batch (or pairs of them); windows: taken from each record; mix: records that a row has at a time."""

  rows: int
  windows: int
  mix: int
  seed: int

  def __call__(self, step: int, row: int) -> tuple[int, int]:
    """-> (ordinal, window): ordinals count records from 0, each is read by one row; window 0 .. windows - 1."""
    period = self.mix * self.windows
    time = step + row * _PRIME % period
    block, slot = divmod(time, period)
    record, window = divmod(int(_permutation(period, self.seed, row, block)[slot]), self.windows)
    return (block * self.mix + record) * self.rows + row, window


@functools.lru_cache(maxsize=65536)
def _permutation(size, seed, row, block) -> np.ndarray:
  return np.random.Generator(np.random.Philox(key=[seed, row], counter=block)).permutation(size).astype(np.uint16)


def shuffled(ordinal: int, size: int, seed: int) -> int:
  """The ordinal-th of an endless walk over 0 .. size - 1 in which every `size` steps each comes once, in another order every time."""
  epoch, index = divmod(ordinal, size)
  # Grain's: a bijection of a few rounds, so nothing is held in memory.
  return grain.experimental.index_shuffle(index, max_index=size - 1, seed=(seed + 0x9E3779B1 * epoch) % 2**32, rounds=4)


@functools.lru_cache(maxsize=65536)
def images(pictures: int, windows: int, seed: int, ordinal: int) -> tuple[int, ...]:
  """The pictures at which the windows of a record begin: different ones, as long as there are any."""
  rng = np.random.Generator(np.random.Philox(key=[seed, ordinal % 2**63]))
  order = rng.permutation(pictures)
  return tuple(int(order[i % pictures]) for i in range(windows))

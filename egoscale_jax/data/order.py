"""Which record and which window of it stand at row r of step s: a pure function of both, so that a run starts anywhere at once.

A record is worth several windows once it is read (decoding two pictures takes less time than fetching their record). So a row keeps `mix`
records and takes `windows` from each, in a random order, before it goes on to the next ones. Rows have different records, so a batch holds
as many episodes as one drawn without replacement; and rows are out of phase, so that each step reads about the same number of records.
"""

import dataclasses
import functools
import math

import grain.experimental
import numpy as np

_MASK = 2**64 - 1
_PRIME = 7919  # steps the phases of the rows apart


@dataclasses.dataclass(frozen=True)
class Order:
  """rows: of the global batch (or pairs of them); windows: taken from each record; mix: records that a row has at a time."""

  rows: int
  windows: int
  mix: int
  seed: int
  _kept: dict = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

  def __call__(self, step: int, row: int) -> tuple[int, int]:
    """-> (ordinal, window): ordinals count records from 0, each is read by one row; window 0 .. windows - 1."""
    period = self.mix * self.windows
    time = step + row * _PRIME % period
    block, slot = divmod(time, period)
    record, window = divmod(int(self._permutation(period, row, block)[slot]), self.windows)
    return (block * self.mix + record) * self.rows + row, window

  def _permutation(self, size, row, block) -> np.ndarray:
    # Two a row are kept, the present one and the next, which threads that run ahead are at: an LRU cache of all rows grows on and on.
    kept = self._kept.get((row, block % 2))
    if kept is None or kept[0] != block:
      generator = np.random.Generator(np.random.Philox(key=[self.seed, row], counter=block))
      kept = self._kept[row, block % 2] = block, generator.permutation(size).astype(np.uint16)
    return kept[1]


def shuffled(ordinal: int, size: int, seed: int) -> int:
  """The ordinal-th of an endless walk over 0 .. size - 1 in which every `size` steps each comes once, in another order every time."""
  epoch, index = divmod(ordinal, size)
  # Grain's: a bijection of a few rounds, so nothing is held in memory.
  return grain.experimental.index_shuffle(index, max_index=size - 1, seed=(seed + 0x9E3779B1 * epoch) % 2**32, rounds=4)


def drawn(ordinal: int, size: int, seed: int) -> int:
  """One of 0 .. size - 1, each as likely. For few of them `shuffled` takes milliseconds: it walks 2**16 numbers to one that is small."""
  return _hash(seed, ordinal) % size


def images(pictures: int, windows: int, seed: int, ordinal: int) -> tuple[int, ...]:
  """The pictures at which the windows of a record begin: different ones, as long as there are any."""
  # An arithmetic progression, its start and its step from a hash: a generator of random numbers costs ten times as much to set up.
  start, step = divmod(_hash(seed, ordinal), pictures)
  steps = _coprime(pictures)
  step = steps[step % len(steps)]
  return tuple((start + step * i) % pictures for i in range(windows))


def _hash(seed: int, ordinal: int) -> int:
  """64 bits (splitmix64)."""
  x = (ordinal * 0x9E3779B97F4A7C15 + seed * 0xD1342543DE82EF95 + 0x632BE59BD9B4E019) & _MASK
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _MASK
  x = (x ^ x >> 27) * 0x94D049BB133111EB & _MASK
  return x ^ x >> 31


@functools.cache
def _coprime(pictures: int) -> tuple[int, ...]:
  return tuple(n for n in range(1, pictures + 1) if math.gcd(n, pictures) == 1)

"""Shards -> Batch, with position = step.

Row r of step k is a pure function of the seed, k and r (data/order.py, data/mixture.py), process p of n makes the p-th block of the rows,
and worker w of m the w-th block of those. So the data position needs no checkpoint, and the same batch comes out, in the same order, for
any number of processes, workers and restarts. (A strided slice `rows[p::n]` would give the same set, but in another order on several
processes, and with a mixture it can leave a process with one data set only.)
"""

import collections
import dataclasses
import gc
import threading

import grain
import jax
import numpy as np

from egoscale_jax.data import clips, examples, memory, mixture, order
from egoscale_jax.data.spec import Batch
from egoscale_jax.errors import UserError

_NEIGHBOURS = 8  # clips that are tried in place of one that cannot be read
_FORGIVEN = 16  # unreadable ones that end no run, however short it is


@dataclasses.dataclass(frozen=True)
class Info:
  """Of one batch, or of this process's part of one."""

  episodes: int  # different ones
  unreadable: tuple[str, ...]  # one line each: what was not readable, and what stands in its place


class Cache:
  """Records that have windows left, the most recently read ones up to a number of bytes; safe for threads.

  What has been taken `uses` times leaves at once, and its memory serves the next record (data/memory.py). Those read first are nearest to
  that, so they are the ones to lose where memory is short; an order by last use would move an entry between two others at each window, and
  none of the three is in the processor's cache.
  """

  def __init__(self, limit: int, uses: int):
    self._limit, self._uses, self._size, self._lock, self._held = limit, uses, 0, threading.Lock(), collections.OrderedDict()

  def get(self, key, read):
    """read(*key) -> (value, its bytes)."""
    with self._lock:
      held = self._held.get(key)
      if held is not None:
        held[2] -= 1
        if not held[2]:
          del self._held[key]
          self._size -= held[1]
        return held[0]
    value, size = read(*key)  # not under the lock: two threads may read one record, and both get the same
    with self._lock:
      if key not in self._held and self._uses > 1:
        self._held[key] = [value, size, self._uses - 1]
        self._size += size
        while self._size > self._limit and len(self._held) > 1:
          self._size -= self._held.popitem(last=False)[1][1]
    return value


class Rows:
  """Makes any rows of any step."""

  def __init__(self, config, assembler: examples.Assembler, mixed: mixture.Mixture, cache_bytes: int):
    self._seed, self._size, self._mixture, self._assembler = config.seed, config.batch_size, mixed, assembler
    self._windows = config.data.windows
    self._order = order.Order(config.batch_size // mixed.unit, config.data.windows, config.data.mix, config.seed)
    self._cache_bytes = cache_bytes
    self._begin()

  def _begin(self):
    self._cache, self._pool = Cache(self._cache_bytes, self._windows), memory.Pool()

  def __getstate__(self):
    return self.__dict__ | {"_cache": None, "_pool": None}  # a worker process begins with empty ones

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._begin()

  def __call__(self, step: int, first: int, last: int) -> tuple[Batch, Info]:
    """Rows first .. last - 1 of the global batch.

    Each kind of work for all the rows before the next kind: after a picture was decoded, the processor has forgotten all other code, and a
    row that is chosen and read between two pictures costs three times as much.
    """
    rows, unreadable = range(first, last), []
    position = (step * self._size + np.arange(first, last, dtype=np.int64)) & 0x7FFFFFFF
    chosen = [self._choose(step, row, unreadable) for row in rows]
    batch = self._assembler.allocate(len(rows))
    for place, row in enumerate(rows):
      chosen[place] = self._decode(step, row, chosen[place], batch, place, unreadable)
    names = {(component, window.clip.episode) for window, component, _ in chosen}  # two folders may have episodes of one name
    windows = [window for window, _, _ in chosen]
    return self._assembler.fill(batch, windows, position.astype(np.int32)), Info(len(names), tuple(unreadable))

  def _choose(self, step, row, errors, skip=0):
    """-> the row's Window, its component, and how many clips were skipped for it: at least `skip`, what was not readable goes to errors."""
    unit, member = divmod(row, self._mixture.unit)
    ordinal, window = self._order(step, unit)
    component, own = self._mixture(ordinal, member)
    while skip < _NEIGHBOURS:
      try:
        clip, streams, images = self._cache.get((component, own, member, skip), self._read)
        return examples.Window(clip, images[window], streams), component, skip
      except ValueError as error:
        errors.append(f"step {step}, row {row}: {error}; the clip after it stands in its place")
        skip += 1
    raise UserError(f"{_NEIGHBOURS} clips in a row cannot be read: {errors[-1]}")

  def _decode(self, step, row, chosen, batch, place, errors):
    """The row's pictures into the batch -> what _choose gave, or gives next where a picture is damaged."""
    while True:
      try:
        self._assembler.decode(chosen[0], batch, place)
        return chosen
      except ValueError as error:
        errors.append(f"step {step}, row {row}: {error}; the clip after it stands in its place")
        chosen = self._choose(step, row, errors, chosen[2] + 1)

  def _read(self, component, own, member, skip):
    """-> (a clip, its streams, the pictures at which its windows begin), and its bytes."""
    split, number = self._mixture.components[component].find(own, member, self._seed, skip)
    clip = clips.read_clip(self._pool.copy(split.record(number)))
    streams = self._assembler.streams(clip)
    return (clip, streams, order.images(clip.num_images, self._windows, self._seed, own)), _nbytes(clip) + streams.nbytes


def _nbytes(clip):
  pictures = clip.decoded if clip.codec == clips.H264 else ()
  return memory.rounded(len(clip.data)) + sum(picture.nbytes for camera in pictures for picture in camera)


class Batches:
  """Iterator over this process's part of the batches of steps first_step .. config.steps - 1; `info` is of the batch that came last.

  What could not be read is in `info`, for the run to write down; too much of it ends the run.
  """

  def __init__(self, config, assembler, first_step, process, processes):
    self.mixture = mixture.make(config)
    self.info, self._read, self._unreadable, self._limit = None, 0, 0, config.data.unreadable
    if config.batch_size % (processes * self.mixture.unit):
      what = f"a multiple of the {processes} processes" + (" x 2, since aligned pairs are in the mixture" if self.mixture.unit > 1 else "")
      raise UserError(f"config.batch_size: found {config.batch_size}, expected {what}")
    self._local = config.batch_size // processes
    # What is there already, all of JAX, is no garbage: else the collector walks over it again and again while rows are made (3 % of them).
    gc.collect()
    gc.freeze()
    self._iterator = iter(self._stream(config, assembler, first_step, process * self._local))

  def _stream(self, config, assembler, first_step, first_row):
    """Elements are blocks of rows, one a worker and step, so that a record is read by one worker only."""
    data = config.data
    blocks = max(data.workers, 1)
    if self._local % (blocks * self.mixture.unit):
      raise UserError(f"config.data.workers: found {data.workers}, expected a divisor of the {self._local} rows that this process makes")
    size = sum(x.nbytes for x in jax.tree.leaves(assembler.allocate(1))) * self._local
    depth = int(data.prefetch_bytes // size)
    if depth < 1:
      raise UserError(f"config.data.prefetch_bytes: found {data.prefetch_bytes}, one batch of this process takes {size}")
    rows = Rows(config, assembler, self.mixture, int(data.cache_bytes) // blocks)
    height = self._local // blocks

    def make(element):
      step, block = divmod(element, blocks)
      first = first_row + block * height
      return rows(step, first, first + height)

    elements = grain.MapDataset.range(first_step * blocks, config.steps * blocks).map(make)
    threads = min(data.threads, depth)
    stream = elements.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=depth))
    if data.workers:
      buffer = max(1, depth // 2)  # half of it in the workers' own threads
      stream = elements.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=max(1, depth - buffer)))
      stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=data.workers, per_worker_buffer_size=buffer))
    return stream

  def __iter__(self):
    return self

  def __next__(self) -> Batch:
    parts = [next(self._iterator)]
    while sum(len(part.position_B) for part, _ in parts) < self._local:
      parts.append(next(self._iterator))
    unreadable = tuple(line for _, info in parts for line in info.unreadable)
    self.info = Info(sum(info.episodes for _, info in parts), unreadable)
    self._read += self._local
    self._unreadable += len(unreadable)
    if self._unreadable > max(_FORGIVEN, self._limit * self._read):
      raise UserError(
        f"config.data.unreadable: {self._unreadable} of {self._read} examples could not be read, expected at most a share of"
        f" {self._limit:g}; the last: {unreadable[-1]}"
      )
    batches = [part for part, _ in parts]
    return batches[0] if len(batches) == 1 else jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)


def train_batches(config, prompt, stats, first_step, process=None, processes=None) -> Batches:
  """This process's part of the batches of steps first_step .. config.steps - 1. stats: {slot: Statistics}, the run's."""
  process = jax.process_index() if process is None else process
  processes = jax.process_count() if processes is None else processes
  return Batches(config, examples.make_assembler(config, prompt, stats), first_step, process, processes)


def fake_batch(shapes, seed=0):
  """A Batch of the given shapes without data: random values, everything present. For tests, compilation and planning."""
  rng = np.random.default_rng(seed)

  def fill(shape):
    if shape.dtype == np.bool_:
      return np.ones(shape.shape, np.bool_)
    if shape.dtype == np.float32:
      return rng.standard_normal(shape.shape, np.float32)
    return rng.integers(0, 256 if shape.dtype == np.uint8 else 2, shape.shape).astype(shape.dtype)

  batch = jax.tree.map(fill, shapes)
  ones = np.ones_like(batch.action_weight_BxTxA)
  return dataclasses.replace(batch, position_B=np.arange(len(batch.position_B), dtype=np.int32), action_weight_BxTxA=ones)

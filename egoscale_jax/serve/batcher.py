"""Requests that come at about the same time share a call of the model, in batches of fixed sizes that are compiled once."""

import asyncio
import concurrent.futures
import dataclasses
import time

_RECENT_S = 1.0  # a client that asked within this is expected to ask again
_GAIN = 1.1  # a smaller batch must give so many more rows a second, for what is measured under load is not exact


@dataclasses.dataclass(frozen=True)
class Sampled:
  value: object
  rows: int  # that shared the call
  queue_s: float
  device_s: float


@dataclasses.dataclass
class _Waiting:
  row: object
  future: asyncio.Future
  since: float


class Batcher:
  """Used from one event loop. run(rows, size) -> a value a row, one call at a time, in a thread of its own where there are other clients.

  A call starts when the model is free and as many requests wait as there are clients who asked within the last second, or the best batch,
  or when the first of them has waited for the deadline: a lone robot never waits for company. The best batch is the size that gives the
  most rows a second, by its shortest call so far: on a processor the largest does not (measured: 603 rows/s by 16, 525 by 64).
  """

  def __init__(self, run, deadline_s: float, clock=time.perf_counter):
    self._run, self._deadline_s, self._clock = run, deadline_s, clock
    self.sizes = ()  # those that are compiled, rising: they may come one by one
    self._device = concurrent.futures.ThreadPoolExecutor(1, "device")
    self._waiting, self._seen, self._ready, self._alarm = [], {}, asyncio.Event(), None
    self._shortest_s, self._busy = {}, False  # of a call, by size; whether one is under way

  async def sample(self, client, row) -> Sampled:
    """client: whatever tells clients apart."""
    now = self._clock()
    self._seen[client] = now
    self._forget(now)
    if len(self._seen) == 1 and not self._waiting and not self._busy:
      await asyncio.sleep(0)  # whoever sends one request after the other lets the rest of the loop have its turn
      if len(self._seen) == 1 and not self._busy:
        return self._alone(row, now)
    one = _Waiting(row, asyncio.get_running_loop().create_future(), now)
    self._waiting.append(one)
    if len(self._waiting) >= self._wanted():
      self._ready.set()
    elif len(self._waiting) == 1:
      self._ring(self._deadline_s)
    return await one.future

  def _alone(self, row, start):
    """For a lone robot here and now: the loop has nobody else to serve, and to go to the thread and back costs 0.3 ms."""
    (value,) = self._run([row], 1)
    seconds = self._clock() - start
    self.took(1, seconds)
    return Sampled(value, 1, 0.0, seconds)

  def _forget(self, now):
    """Clients that have not asked for a while."""
    self._seen = {client: at for client, at in self._seen.items() if now - at < _RECENT_S}

  def took(self, size, seconds):
    """Of a call with this many rows."""
    self._shortest_s[size] = min(seconds, self._shortest_s.get(size, float("inf")))

  def _wanted(self):
    return min(max(len(self._seen), 1), self._best())

  def _best(self):
    """The sizes that were not tried yet first, the largest before all."""
    rows_per_s = {size: size / self._shortest_s[size] if size in self._shortest_s else float("inf") for size in self.sizes}
    best = self.sizes[-1]
    for size in reversed(self.sizes):
      if rows_per_s[size] > _GAIN * rows_per_s[best]:
        best = size
    return best

  def _ring(self, seconds):
    if self._alarm is not None:
      self._alarm.cancel()
    self._alarm = asyncio.get_running_loop().call_later(max(seconds, 0.0), self._ready.set)

  async def work(self):
    """Until it is cancelled."""
    while True:
      await self._ready.wait()
      self._ready.clear()
      best = self._best()
      batch, self._waiting = self._waiting[:best], self._waiting[best:]
      batch = [one for one in batch if not one.future.done()]  # a client that went away
      if batch:
        await self._call(batch)
      now = self._clock()
      self._forget(now)
      if len(self._waiting) >= self._wanted():
        self._ready.set()
      elif self._waiting:
        self._ring(self._waiting[0].since + self._deadline_s - now)

  async def _call(self, batch):
    start, self._busy = self._clock(), True
    size = next(size for size in self.sizes if size >= len(batch))
    try:
      values = await asyncio.get_running_loop().run_in_executor(self._device, self._run, [one.row for one in batch], size)
    except Exception as error:  # a bug: those who wait are told, and the next batch is another
      for one in batch:
        if not one.future.done():
          one.future.set_exception(error)
      return
    finally:
      self._busy = False
    took = self._clock() - start
    self.took(size, took)
    for one, value in zip(batch, values):
      if not one.future.done():
        one.future.set_result(Sampled(value, len(batch), start - one.since, took))

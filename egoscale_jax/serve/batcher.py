"""Requests that come at about the same time share a call of the model, in batches of fixed sizes that are compiled once."""

import asyncio
import concurrent.futures
import dataclasses
import time

_RECENT_S = 1.0  # a client that asked within this is expected to ask again


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
  """Used from one event loop. run(rows, size) -> a value a row, called in a thread of its own, one call at a time.

  A call starts when the model is free and as many requests wait as there are clients who asked within the last second, or the largest
  batch, or when the first of them has waited for the deadline: a lone robot never waits for company.
  """

  def __init__(self, run, deadline_s: float):
    self._run, self._deadline_s = run, deadline_s
    self.sizes = ()  # those that are compiled, rising: they may come one by one
    self._device = concurrent.futures.ThreadPoolExecutor(1, "device")
    self._waiting, self._seen, self._ready, self._alarm = [], {}, asyncio.Event(), None

  async def sample(self, client, row) -> Sampled:
    """client: whatever tells clients apart."""
    now = time.perf_counter()
    self._seen[client] = now
    one = _Waiting(row, asyncio.get_running_loop().create_future(), now)
    self._waiting.append(one)
    if len(self._waiting) >= self._wanted():
      self._ready.set()
    elif len(self._waiting) == 1:
      self._ring(self._deadline_s)
    return await one.future

  def _wanted(self):
    return min(max(len(self._seen), 1), self.sizes[-1])

  def _ring(self, seconds):
    if self._alarm is not None:
      self._alarm.cancel()
    self._alarm = asyncio.get_running_loop().call_later(max(seconds, 0.0), self._ready.set)

  async def work(self):
    """Until it is cancelled."""
    while True:
      await self._ready.wait()
      self._ready.clear()
      batch, self._waiting = self._waiting[: self.sizes[-1]], self._waiting[self.sizes[-1] :]
      batch = [one for one in batch if not one.future.done()]  # a client that went away
      if batch:
        await self._call(batch)
      now = time.perf_counter()
      self._seen = {client: at for client, at in self._seen.items() if now - at < _RECENT_S}
      if len(self._waiting) >= self._wanted():
        self._ready.set()
      elif self._waiting:
        self._ring(self._waiting[0].since + self._deadline_s - now)

  async def _call(self, batch):
    start = time.perf_counter()
    size = next(size for size in self.sizes if size >= len(batch))
    try:
      values = await asyncio.get_running_loop().run_in_executor(self._device, self._run, [one.row for one in batch], size)
    except Exception as error:  # a bug: those who wait are told, and the next batch is another
      for one in batch:
        if not one.future.done():
          one.future.set_exception(error)
      return
    took = time.perf_counter() - start
    for one, value in zip(batch, values):
      if not one.future.done():
        one.future.set_result(Sampled(value, len(batch), start - one.since, took))

"""Memory for records that are kept a while, handed back when the last view of them is gone, and given out again.

A record (300 kB) is read, kept for some hundred batches, and dropped, in another order than it came. Left to malloc, the free pieces
between them grow for as long as the run lasts (6 % over a million examples); fresh pages for each cost as much as decoding a picture.
"""

import collections
import weakref

import numpy as np

_SPARE = 64  # pieces that wait for their next record


class Pool:
  """Safe for threads: each step of a deque is whole."""

  def __init__(self):
    self._spare = collections.deque(maxlen=_SPARE)  # the oldest leaves where it is full

  def copy(self, data: bytes) -> memoryview:
    """The same bytes in a piece of the pool, which lives as long as any view of them does (slices and np.frombuffer are views)."""
    piece = self._piece(rounded(len(data)))
    held = piece[: len(data)]
    held[:] = np.frombuffer(data, np.uint8)
    weakref.finalize(held, self._spare.append, piece).atexit = False
    # Not `held` itself: views of an array keep the array below it alive, views of a memoryview keep what it was made of.
    return memoryview(held).toreadonly()

  def _piece(self, size):
    for _ in range(len(self._spare)):
      try:
        piece = self._spare.popleft()
      except IndexError:  # another thread was faster
        break
      if len(piece) == size:
        return piece
      self._spare.append(piece)
    return np.empty(size, np.uint8)


def rounded(size: int) -> int:
  """Up to one of eight sizes between each power of two and the next, so that pieces fit again."""
  step = 1 << max(size.bit_length() - 4, 6)
  return -(-size // step) * step

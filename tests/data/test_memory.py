"""The pool gives a piece out again once the last view of it is gone, and never before."""

import gc

import numpy as np
import pytest

from egoscale_jax.data import memory


def address(view):
  return np.frombuffer(view, np.uint8).__array_interface__["data"][0]


def test_a_piece_serves_the_next_record_once_nobody_looks_at_it():
  pool = memory.Pool()
  kept = pool.copy(b"a" * 1000)
  place = address(kept)
  assert address(pool.copy(b"b" * 1000)) != place
  del kept
  assert place in {address(pool.copy(b"c" * 1000)) for _ in range(3)}


@pytest.mark.parametrize("view", [lambda held: held[10:20], lambda held: np.frombuffer(held, np.uint8, 10, 10).reshape(2, 5)[1:]])
def test_a_slice_or_an_array_of_it_keeps_the_piece(view):
  pool = memory.Pool()
  part = view(pool.copy(bytes(range(200))))
  gc.collect()
  before = bytes(part)
  for i in range(200):  # would overwrite the piece, had it gone back
    pool.copy(bytes([i]) * 200)
  assert bytes(part) == before


def test_records_are_the_bytes_they_were_and_cannot_be_written():
  pool = memory.Pool()
  records = [np.random.default_rng(i).bytes(300 + 37 * i) for i in range(200)]
  held = [pool.copy(data) for data in records]
  assert [bytes(view) for view in held] == records
  with pytest.raises(TypeError):
    held[0][0] = 1


def test_sizes_waste_an_eighth_at_most_and_are_few():
  sizes = np.unique(np.geomspace(600, 1e8, 5000).astype(int))
  rounded = [memory.rounded(int(size)) for size in sizes]
  assert all(size <= up <= size * 1.125 + 1 for size, up in zip(sizes, rounded))
  assert len(set(rounded)) < 8 * 19


def test_pieces_that_wait_are_few():
  pool = memory.Pool()
  held = [pool.copy(b"x" * 5000) for _ in range(500)]
  del held
  assert len(pool._spare) == memory._SPARE

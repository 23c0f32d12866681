"""Messages: both conventions there and back, and whatever is no message is one line."""

import io

import msgpack
import numpy as np
import pytest

from egoscale_jax.errors import UserError
from egoscale_jax.serve import wire

ARRAYS = {
  "picture": np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3),
  "single": np.float32([[1.5, -2.0]]),
  "double": np.linspace(0, 1, 5),
  "none": np.zeros((0, 3)),
  "scalar": np.array(2, np.int64),
}


def same(left, right):
  assert left.keys() == right.keys()
  for name, array in left.items():
    assert array.dtype == right[name].dtype
    np.testing.assert_array_equal(array, right[name])


@pytest.mark.parametrize("pack", [wire.pack_openpi, wire.pack_npy])
def test_arrays_come_back(pack):
  message = pack({"a": ARRAYS, "text": "tea", "list": [1, None, 2.5, b"raw"]})
  found = wire.unpack(message)
  same(found.pop("a"), ARRAYS)
  assert found == {"text": "tea", "list": [1, None, 2.5, b"raw"]}


def test_other_byte_orders_and_fortran_order_are_the_same_numbers():
  numbers = np.arange(6.0).reshape(2, 3)
  big = {b"__ndarray__": True, b"data": numbers.astype(">f8").tobytes(), b"dtype": ">f8", b"shape": [2, 3]}
  np.testing.assert_array_equal(wire.unpack(msgpack.packb(big)), numbers)
  np.testing.assert_array_equal(wire.unpack(wire.pack_npy(np.asfortranarray(numbers))), numbers)
  assert wire.unpack(wire.pack_openpi(np.float32(0.5))) == np.float32(0.5)


def openpi(**fields):
  whole = {"data": b"\0" * 8, "dtype": "<f4", "shape": [2], **fields}
  return msgpack.packb({b"__ndarray__": True, **{name.encode(): value for name, value in whole.items()}})


def npy(header, data=b"\0" * 8):
  return msgpack.packb({"__ndarray_class__": True, "as_npy": b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data})


def objects():
  file = io.BytesIO()
  np.save(file, np.array([{}], object), allow_pickle=True)
  return msgpack.packb({"__ndarray_class__": True, "as_npy": file.getvalue()})


HOSTILE = {
  "empty": (b"", "not msgpack"),
  "ends early": (wire.pack_openpi(ARRAYS)[:-1], "not msgpack"),
  "goes on": (wire.pack_openpi(ARRAYS) + b"\0", "1 bytes after its end"),
  "no type": (b"\xc1", "not msgpack"),
  "no text": (b"\xa2\xff\xfe", "not msgpack"),
  "extension": (b"\xd4\x01\x00", "extension type"),
  "deep": (b"\x91" * 100_000, "levels of nesting"),
  "deep in maps": (b"\x81\xa1a" * 100_000 + b"\xc0", "levels of nesting"),
  "many": (b"\xdd\x00\x0f\xff\xff" + b"\xc0" * 0xFFFFF, "more than 4096 elements"),
  "claims many": (b"\xdd\xff\xff\xff\xff", "not msgpack"),
  "claims bytes": (b"\xc6\xff\xff\xff\xff", "not msgpack"),
  "key": (b"\x81\x01\x01", "no string"),
  "twice": (b"\x82\xa1a\x01\xa1a\x02", "twice"),
  "objects": (openpi(dtype="O", data=b""), "dtype 'O'"),
  "structured": (openpi(dtype="<f4,<i4"), "dtype '<f4,<i4'"),
  "no name": (openpi(dtype=3), "dtype 3"),
  "too few bytes": (openpi(shape=[3]), "in 8 bytes"),
  "overflow": (openpi(shape=[2**62, 2**62, 0, 2]), "in 8 bytes"),
  "negative": (openpi(shape=[-2, -1]), "in 8 bytes"),
  "dimensions": (openpi(shape=[1] * 40 + [2]), "in 8 bytes"),
  "text as data": (openpi(data="12345678"), "in str bytes"),
  "pickled": (objects(), "no .npy, expected|dtype '.O'"),
  "npy of terabytes": (npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (999999999999,), }\n"), "in 8 bytes"),
  "npy of code": (npy(b"__import__('os').abort()\n"), "no .npy"),
  "npy of minus": (npy(b"-" * 900 + b"\n"), "no .npy"),
  "npy of Python 2": (npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (2L,), }\n"), "no .npy"),
  "npy of a wrong length": (npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }\n" + b" " * 4, b"\0" * 4), "no .npy"),
  "npy that ends": (npy(b"")[:-12], "not msgpack"),
  "npy of text": (msgpack.packb({"__ndarray_class__": True, "as_npy": "x"}), "no .npy"),
  "scalar": (msgpack.packb({b"__npgeneric__": True, b"data": 2**40, b"dtype": "<i4"}), "fits int32"),
  "no scalar": (msgpack.packb({b"__npgeneric__": True, b"data": b"1", b"dtype": "<i4"}), "expected a number"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_message_is_one_line(name):
  data, told = HOSTILE[name]
  with pytest.raises(UserError, match=told) as caught:
    wire.unpack(data)
  assert len(str(caught.value).splitlines()) == 1
  assert len(str(caught.value)) < 300


def mutated(rng, data):
  """A few bytes changed, a piece cut out, or a piece doubled."""
  data = bytearray(data)
  for _ in range(rng.integers(1, 6)):
    data[rng.integers(len(data))] = rng.integers(256)
  if rng.random() < 0.3:
    begin, end = sorted(rng.integers(len(data), size=2))
    data[begin:end] = b"" if rng.random() < 0.5 else data[begin:end] * 2
  return bytes(data)


@pytest.mark.parametrize("count", [300, pytest.param(30_000, marks=pytest.mark.slow)])
def test_mutated_messages_are_messages_or_one_line(count):
  rng = np.random.default_rng(0)
  whole = [pack({"a": ARRAYS, "text": "tea", "list": [1, None, 2.5]}) for pack in (wire.pack_openpi, wire.pack_npy)]
  refused = 0
  for i in range(count):
    try:
      wire.unpack(mutated(rng, whole[i % 2]))
    except UserError:
      refused += 1
  assert 0 < refused < count

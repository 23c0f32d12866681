"""Bytes <-> values: msgpack with numpy arrays as the two kinds of clients send them. No pickle; depth, count and sizes are bounded.

openpi: {b"__ndarray__": True, b"data": bytes, b"dtype": "<f4", b"shape": [..]}, a numpy scalar {b"__npgeneric__": True, b"data", b"dtype"}.
GR00T: {"__ndarray_class__": True, "as_npy": the bytes of np.save}. Both are read wherever they stand; each has its own writer.
"""

import io
import math
import re

import msgpack
import numpy as np

from egoscale_jax.errors import UserError

DEPTH = 8  # maps in maps; an array counts as one
NODES = 4096  # keys and values of a message; an observation has about a hundred
_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")
_DIMENSIONS = 8
# Version 1.0: the header's length, then a Python literal of this one form, padded with spaces.
_NPY = re.compile(
  rb"\x93NUMPY\x01\x00(..)\{'descr': '([<>|=][a-z][0-9]+)', 'fortran_order': (True|False), 'shape': \(([0-9, ]{0,200})\), \} *\n", re.DOTALL
)


def unpack(data: bytes):
  """Message -> dicts, lists, strings, bytes, numbers and arrays (which share one copy of the message). UserError for anything else."""
  try:
    return _Reader(data).whole()
  except (msgpack.UnpackException, ValueError) as error:  # of the library: ends too early, no such type, no UTF-8
    raise UserError(f"message: not msgpack: {str(error) or type(error).__name__}") from error


class _Reader:
  """Walks a message element by element, so that no list is made longer than the message is. The library checks each element."""

  def __init__(self, data):
    self.data, self.nodes = data, 0
    self.unpacker = msgpack.Unpacker(max_buffer_size=max(len(data), 1))
    self.unpacker.feed(data)

  def whole(self):
    found = self.value(0)
    if self.unpacker.tell() != len(self.data):
      raise UserError(f"message: found {len(self.data) - self.unpacker.tell()} bytes after its end")
    return found

  def value(self, depth):
    self.nodes += 1
    if self.nodes > NODES or depth > DEPTH:
      raise UserError(f"message: found more than {NODES} elements or {DEPTH} levels of nesting")
    at = self.unpacker.tell()
    kind = self.data[at] if at < len(self.data) else 0  # the library tells that there is none
    if 0x80 <= kind <= 0x8F or kind in (0xDE, 0xDF):
      return self.map(depth)
    if 0x90 <= kind <= 0x9F or kind in (0xDC, 0xDD):
      return [self.value(depth + 1) for _ in range(self.unpacker.read_array_header())]
    if 0xC7 <= kind <= 0xC9 or 0xD4 <= kind <= 0xD8:
      raise UserError("message: found an extension type, expected none")
    return self.unpacker.unpack()

  def map(self, depth):
    count, found = self.unpacker.read_map_header(), {}
    for _ in range(count):
      key = self.value(depth + 1)
      if not isinstance(key, str | bytes) or key in found:
        raise UserError(f"message: found the key {_short(key)} twice, or no string; expected strings, each once")
      found[key] = self.value(depth + 1)
    if b"__ndarray__" in found:
      return _openpi_array(found)
    if b"__npgeneric__" in found:
      return _openpi_scalar(found)
    return _npy_array(found) if "__ndarray_class__" in found else found


def _short(value):
  return repr(value)[:60]


def _dtype(name):
  if not (isinstance(name, str) and _DTYPE.fullmatch(name)):
    raise UserError(f"message: found an array of dtype {_short(name)}, expected bool, int, uint or float")
  return np.dtype(name)


def _checked(data, dtype, shape, order):
  """bytes -> array; the size is compared in whole numbers that cannot overflow, before anything is made."""
  good = isinstance(shape, list | tuple) and len(shape) <= _DIMENSIONS and all(type(n) is int and n >= 0 for n in shape)
  if not (good and isinstance(data, bytes) and math.prod(shape) * dtype.itemsize == len(data)):
    size = len(data) if isinstance(data, bytes) else type(data).__name__
    raise UserError(f"message: found an array {dtype} of shape {_short(shape)} in {size} bytes, expected as many as that takes")
  array = np.frombuffer(data, dtype).reshape(shape, order=order)
  return array if dtype.isnative else array.astype(dtype.newbyteorder("="))


def _openpi_array(found):
  return _checked(found.get(b"data"), _dtype(found.get(b"dtype")), found.get(b"shape"), "C")


def _openpi_scalar(found):
  dtype, value = _dtype(found.get(b"dtype")), found.get(b"data")
  if not isinstance(value, bool | int | float):
    raise UserError(f"message: found a scalar {_short(value)}, expected a number")
  try:
    with np.errstate(over="ignore"):  # to infinity, which the field that it is for will refuse
      return dtype.type(value)
  except OverflowError as error:
    raise UserError(f"message: found a scalar {_short(value)}, expected one that fits {dtype}") from error


def _npy_array(found):
  """np.load allocates what a header claims before it reads, and raises more than it says: here what np.save writes is matched."""
  data = found.get("as_npy")
  match = _NPY.match(data) if isinstance(data, bytes) else None
  if match is None or len(match[0]) != 10 + int.from_bytes(match[1], "little"):
    raise UserError("message: found an array that is no .npy, expected what np.save writes of numbers")
  shape = [int(n) for n in match[4].split(b",") if n.strip()]
  return _checked(data[match.end() :], _dtype(match[2].decode()), shape, "F" if match[3] == b"True" else "C")


def line(error: UserError) -> str:
  """What a client is told: one line, whatever names of its own are quoted in it."""
  return "".join(c if c.isprintable() else "?" for c in str(error))[:1000]


def pack_openpi(value) -> bytes:
  return msgpack.packb(value, default=_openpi)


def _openpi(value):
  if isinstance(value, np.ndarray):
    return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
  if isinstance(value, np.generic):
    return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
  raise TypeError(f"cannot be sent: {type(value)}")


def pack_npy(value) -> bytes:
  return msgpack.packb(value, default=_npy)


def _npy(value):
  if not isinstance(value, np.ndarray):
    raise TypeError(f"cannot be sent: {type(value)}")
  file = io.BytesIO()
  np.save(file, value, allow_pickle=False)
  return {"__ndarray_class__": True, "as_npy": file.getvalue()}

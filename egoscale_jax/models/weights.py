"""Parameters from a checkpoint as the hub lays it out, and back: safetensors, in one file or several with an index.

Everything is compared by name, shape and dtype before a value is read. Then tensor by tensor: read, turned into our layout, written into
its place of a parameter that already lies sharded on the devices; the host holds one piece at a time.
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from egoscale_jax.errors import UserError
from egoscale_jax.models import reference

DTYPES = ("F32", "BF16", "F16")  # float32 holds each of them exactly, so that they go back as they came
INDEX = "model.safetensors.index.json"
PIECE_BYTES = 2**26  # a larger tensor is read in rows of so many bytes
FILE_BYTES = 2**31  # of an exported checkpoint: it is written file by file, so the host holds one of them


def path_name(path):
  return "/".join(str(key.key) for key in path)


def tensors(folder):
  """A folder of the hub -> {name: (file, shape, dtype)}; UserError where a file is missing, damaged or not as the index says."""
  folder = pathlib.Path(folder)
  index = folder / INDEX
  if index.is_file():
    try:
      told = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
      files = sorted({folder / str(name) for name in told.values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise UserError(f"{index}: not an index of safetensors: {error}") from error
  else:
    told, files = None, sorted(folder.glob("*.safetensors"))
  if not files:
    raise UserError(f"{folder}: found no .safetensors, expected a checkpoint as the hub lays it out")
  found = {}
  for file in files:
    for name, shape, dtype in _header(file):
      if name in found or (told is not None and told.get(name) != file.name):
        expected = f"it in {told.get(name, 'no file')}, as the index says" if told is not None else f"it in {found[name][0].name} alone"
        raise UserError(f"{file}: found {name}, expected {expected}")
      found[name] = (file, shape, dtype)
  missing = sorted(set(told or ()) - set(found))
  if missing:
    raise UserError(f"{folder}: {_listed(missing)}: named in {INDEX}, found in no file")
  return found


def _header(file):
  try:
    with safetensors.safe_open(file, "np") as opened:
      return [(name, tuple(opened.get_slice(name).get_shape()), opened.get_slice(name).get_dtype()) for name in opened.keys()]  # noqa: SIM118
  except FileNotFoundError as error:
    raise UserError(f"{file}: no such file, expected a part of the checkpoint") from error
  except (safetensors.SafetensorError, OSError) as error:
    raise UserError(f"{file}: not a whole safetensors file: {error}") from error


def _listed(lines, count=12):
  return "; ".join(lines[:count]) + (f" (and {len(lines) - count} more)" if len(lines) > count else "")


def plan(model, shapes, backbone="backbone.model.model."):
  """Our tree of shapes -> {our path: [Source]}."""
  leaves = jax.tree_util.tree_leaves_with_path(shapes)
  return {path_name(path): reference.sources(model, path_name(path), leaf.shape, backbone) for path, leaf in leaves}


def check(found, planned, folder, left_out=lambda name: False):
  """UserError with every path that is missing, extra, misshapen or of a dtype that we do not take."""
  expected = {source.name: source.shape for parts in planned.values() for source in parts}
  lines = []
  for name in sorted(found.keys() | expected.keys()):
    if name not in found:
      lines.append(f"{name}: found nothing, expected {expected[name]}")
    elif name not in expected:
      if not left_out(name):
        lines.append(f"{name}: found {found[name][1]}, expected nothing")
    elif found[name][1] != expected[name]:
      lines.append(f"{name}: found {found[name][1]}, expected {expected[name]}")
    elif found[name][2] not in DTYPES:
      lines.append(f"{name}: found {found[name][2]}, expected one of {', '.join(DTYPES)}")
  if lines:
    raise UserError(f"{folder} does not fit the config: {_listed(lines)}")


def load(found, planned, shapes, shardings):
  """-> parameters like `shapes`, sharded; what the checkpoint does not have (reference.OURS_ALONE) is zero."""

  def leaf(path, shape, sharding):
    value, write = _zeros(shape.shape, shape.dtype, sharding)(), _writer(sharding)
    for source in planned[path_name(path)]:
      for start, piece in _pieces(found[source.name][0], source, shape.shape):
        value = write(value, piece, np.int32(start), axis=source.axis or 0)
    return value

  return jax.tree_util.tree_map_with_path(leaf, shapes, shardings)


@functools.cache  # leaves of the same shape share what is compiled
def _zeros(shape, dtype, sharding):
  return jax.jit(functools.partial(jnp.zeros, shape, dtype), out_shardings=sharding)


@functools.cache
def _writer(sharding):
  return jax.jit(_write, static_argnames="axis", donate_argnums=0, out_shardings=sharding)


def _write(value, piece, start, axis):
  return jax.lax.dynamic_update_slice_in_dim(value, piece.astype(value.dtype), start, axis)


def _pieces(file, source, shape):
  """Yields (place on the source's axis, or on our first one, the values in our layout), in the file's own dtype."""
  if source.axis is not None:
    one = shape[: source.axis] + (1,) + shape[source.axis + 1 :]
    yield source.index, _to_ours(_read(file, source), source).reshape(one)
  elif source.transposed or source.shape != shape:
    yield 0, _to_ours(_read(file, source), source).reshape(shape)
  else:
    rows = max(1, PIECE_BYTES // (2 * int(np.prod(shape[1:]))))
    for start in range(0, shape[0], rows):
      yield start, _read(file, source, slice(start, min(start + rows, shape[0])))


def _read(file, source, rows=slice(None)):
  """Opened for every piece: the pages of a file that stays mapped would count as ours until the whole model is in memory twice."""
  if source.third is not None:
    size = source.shape[0] // 3
    rows = slice(source.third * size, (source.third + 1) * size)
  with safetensors.safe_open(file, "np") as opened:
    return opened.get_slice(source.name)[rows]


def _to_ours(value, source):
  return value.reshape(len(value), -1).T if source.transposed else value


def export(params, planned, dtypes, folder):
  """Writes the folder's safetensors, the inverse of `load`; dtypes: {name: "F32", …}, float32 where a name is not in it."""
  leaves = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
  parts = {}
  for path, group in planned.items():
    for source in group:
      parts.setdefault(source.name, []).append((path, source))
  files, size = [[]], 0
  for name in sorted(parts):
    source = parts[name][0][1]
    size += 4 * int(np.prod(source.shape))
    if files[-1] and size > FILE_BYTES:
      files.append([])
      size = 4 * int(np.prod(source.shape))
    files[-1].append(name)
  names = [f"model-{i + 1:05}-of-{len(files):05}.safetensors" if len(files) > 1 else "model.safetensors" for i in range(len(files))]
  total = 0
  for file, group in zip(names, files):
    values = {name: _theirs(parts[name], leaves, dtypes.get(name, "F32")) for name in group}
    total += sum(value.nbytes for value in values.values())
    safetensors_numpy.save_file(values, folder / file, metadata={"format": "pt"})
  if len(files) > 1:
    weight_map = {name: file for file, group in zip(names, files) for name in group}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


_NUMPY = {"F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}


def _theirs(parts, leaves, dtype):
  """(our path, Source) of every part of one of their tensors -> it."""
  rows = []
  for path, source in sorted(parts, key=lambda part: part[1].third or 0):
    leaf = leaves[path]
    value = np.asarray(leaf if source.axis is None else leaf[(slice(None),) * source.axis + (source.index,)])
    if source.transposed:  # [in …, out …] with as many columns as they have rows
      columns = source.shape[0] // (3 if source.third is not None else 1)
      value = value.reshape(-1, columns).T
    rows.append(value)
  value = np.concatenate([row.reshape(row.shape[0], -1) if row.ndim > 1 else row.reshape(-1) for row in rows]) if len(rows) > 1 else rows[0]
  return np.ascontiguousarray(value.reshape(source.shape).astype(_NUMPY[dtype]))

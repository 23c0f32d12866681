"""RLDS, as Open X-Embodiment ships it: TFDS folders `<name>/<version>/` with `features.json` and `<name>-<split>.tfrecord-*-of-*`.

A record is an episode: a tf.train.Example whose features `steps/..` hold all steps one after the other. TensorFlow is not needed: the
frames of a TFRecord are read here, the Example by the protocol buffer that TFDS carries. `features.json` names Python classes, which TFDS
would import; here it tells shapes and which features are pictures, and nothing of it is run.

RLDS tells neither a rate nor what the vectors mean: columns.py does, with columns named as in `observation/state`.
"""

import functools
import os
import re
import struct

import numpy as np

from egoscale_jax.data import schema
from egoscale_jax.data.sources import checks, columns, mp4
from egoscale_jax.errors import UserError

SOURCE = "rlds"
LICENCE = "not told by the data set"
_SHARD = re.compile(r"^(.+)-([^-]+)\.tfrecord-(\d{5})-of-(\d{5})$")
_HEADER, _FOOTER = 12, 4  # length and its checksum; the checksum of the record
MAX_RECORD_BYTES = 2_000_000_000


def find(directory, config_path="") -> list[schema.Recording]:
  """Every record of every shard below the directory, in order; what follows damage in a shard is one more, which read() refuses."""
  names = checks.find(directory, "features.json", "TFDS folders, <name>/<version>/features.json with *.tfrecord-*")
  found = []
  for folder in sorted(os.path.dirname(name) for name in names if os.path.basename(name) == "features.json"):
    root = os.path.join(directory, folder)
    for shard in sorted(name for name in os.listdir(root) if _SHARD.match(name)):
      path = os.path.join(root, shard)
      _, split, number, _ = _SHARD.match(shard).groups()
      stem = "/".join(part for part in (folder, split, number) if part)
      files = (path, os.path.join(root, "features.json"), os.fspath(config_path), os.fspath(directory))
      config = "" if config_path else columns.beside([root, os.fspath(directory)])
      found += [schema.Recording(f"{stem}/{i:06d}", files, config) for i in range(len(_records(path)))]
  if not found:
    raise UserError(f"{directory}: found no *.tfrecord-*-of-* beside a features.json")
  return found


def read(recording: schema.Recording, image_size: int) -> schema.Episode:
  """-> Episode; poses where a config tells their frame, else state and action alone."""
  path, features_path, config_path, directory = recording.files
  example = _example(path, int(recording.id.rsplit("/", 1)[1]))
  specs = _specs(features_path)
  config = columns.find(config_path, [os.path.dirname(features_path), directory])
  defaults = {"state": ["observation/state"], "action": ["action"], "cameras": {key: {} for key, spec in specs.items() if spec == "image"}}
  config = {key: type(value)(name for name in value if name in specs) for key, value in defaults.items() if key != "cameras"} | config
  cameras = config.get("cameras") or defaults["cameras"]
  frames = _count(example, path)
  if "rate_hz" not in config:
    raise UserError(f"{path}: RLDS tells no rate: rate_hz is missing, expected it in {columns.FILE} (see data/sources/columns.py)")
  rate_hz = checks.number(config["rate_hz"], 0.1, 1000, config_path or path, "rate_hz")
  table = columns.Table(path, frames, functools.partial(_numbers, example, specs, frames, path), {})
  told = [checks.text(value) for value in _bytes(example, config.get("text", "language_instruction"), frames, path)]
  stretches = columns.runs(told)
  if not stretches:
    raise UserError(f"{path}: no language text: {config.get('text', 'language_instruction')} is empty")
  spans = tuple(schema.Span(text, a / rate_hz, b / rate_hz) for text, a, b in stretches) if len(stretches) > 1 else ()
  views = [
    columns.view(camera, key, mp4.pictures(_bytes(example, key, frames, path), image_size, path, key), table)
    for key, camera in cameras.items()
  ]
  if not views:
    raise UserError(f"{features_path}: no picture among its features, expected one an observation")
  values = columns.fields(config, table)
  values.setdefault("embodiment", config.get("embodiment") or _SHARD.match(os.path.basename(path))[1])
  return schema.Episode(
    **values | schema.views(*views),
    id=recording.id,
    source=SOURCE,
    licence=config.get("licence") or LICENCE,
    scene=config.get("scene") or recording.id,
    text=stretches[0][0],
    spans=spans,
    rate_hz=rate_hz,
  )


def _records(path) -> tuple[tuple[int, int], ...]:
  """(begin, length) of each record of a shard; a last one of length -1 where it cannot be followed any further."""
  stat = os.stat(path)
  return _read_records(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _read_records(path, size, _):
  records, place = [], 0
  try:
    with open(path, "rb") as file:
      while place < size:
        file.seek(place)
        header = file.read(_HEADER)
        length = struct.unpack("<Q", header[:8])[0] if len(header) == _HEADER and _checksum(header[:8]) == header[8:] else size
        if length > min(size - place - _HEADER - _FOOTER, MAX_RECORD_BYTES):
          return (*records, (place, -1))
        records.append((place + _HEADER, length))
        place += _HEADER + length + _FOOTER
  except OSError:
    return ((0, -1),)  # read() opens it again and tells why it cannot
  return tuple(records) or ((0, -1),)


def _checksum(data) -> bytes:
  """CRC-32C, masked as TensorFlow's record_writer does."""
  import google_crc32c

  crc = google_crc32c.value(data)
  return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def _example(path, index) -> dict:
  """The features of one record, {name: Feature}."""
  from google.protobuf.message import DecodeError
  from tensorflow_datasets.proto import tf_example_pb2

  checks.readable(path)
  records = _records(path)
  begin, length = records[index] if index < len(records) else (0, -1)
  if length < 0:
    raise UserError(f"{path}: damaged or cut off after {index} records, at byte {begin}")
  with open(path, "rb") as file:
    file.seek(begin)
    data = file.read(length)
    if _checksum(data) != file.read(_FOOTER):
      raise UserError(f"{path}: record {index} does not have its checksum")
  try:
    return dict(tf_example_pb2.Example.FromString(data).features.feature)
  except (DecodeError, ValueError) as error:
    raise UserError(f"{path}: record {index} is no tf.train.Example: {checks.one_line(error)}") from error


def _specs(path) -> dict:
  """features.json -> {column of a step: "image", "text" or its shape}."""
  top = checks.read_json(path)
  try:
    steps = top["featuresDict"]["features"]["steps"]["sequence"]["feature"]
    return dict(_leaves(steps, "", 0))
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise UserError(f"{path}: is no features.json of RLDS, a dict with a data set of `steps`: {checks.one_line(error)}") from error


def _leaves(feature, name, depth):
  kind = feature["pythonClassName"].rsplit(".", 1)[-1]
  if kind == "FeaturesDict" and depth < 10:
    for key, below in feature["featuresDict"]["features"].items():
      yield from _leaves(below, f"{name}/{key}" if name else key, depth + 1)
  elif kind == "Image":
    yield name, "image"
  elif kind == "Text":
    yield name, "text"
  elif kind in ("Tensor", "Scalar") and feature["tensor"].get("encoding", "none") == "none":
    yield name, tuple(int(n) for n in feature["tensor"].get("shape", {}).get("dimensions", ()))


def _values(example, column, path):
  name = f"steps/{column}"
  if name not in example:
    found = ", ".join(sorted(key.removeprefix("steps/") for key in example if key.startswith("steps/")))
    raise UserError(f"{path}: {column} is missing, found {found:.300}")
  kind = example[name].WhichOneof("kind")
  return kind, getattr(example[name], kind).value if kind else []


def _count(example, path) -> int:
  """Steps of the episode: every RLDS step tells whether it is the first."""
  _, values = _values(example, "is_first", path)
  if not 0 < len(values) <= checks.MAX_FRAMES:
    raise UserError(f"{path}: is_first has {len(values)} values, expected 1 to {checks.MAX_FRAMES}")
  return len(values)


def _numbers(example, specs, frames, path, column):
  kind, values = _values(example, column, path)
  shape = specs.get(column)
  width = int(np.prod(shape)) if isinstance(shape, tuple) else 0
  if kind not in ("float_list", "int64_list") or not width:
    raise UserError(f"{path}: {column} holds no plain numbers, expected a Tensor of a fixed shape")
  if len(values) != frames * width:
    raise UserError(f"{path}: {column} holds {len(values)} numbers, expected {frames} x {width}")
  return checks.floats(np.array(values), (frames * width,), path, column).reshape(frames, width)


def _bytes(example, column, frames, path):
  kind, values = _values(example, column, path)
  if kind != "bytes_list" or len(values) != frames:
    raise UserError(f"{path}: {column} holds {len(values)} values of {kind or 'no kind'}, expected {frames} texts or pictures")
  return values

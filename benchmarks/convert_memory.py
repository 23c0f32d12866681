"""Host memory while a checkpoint is read, above the parameters themselves, against its largest tensor:

  python benchmarks/convert_memory.py [--width=1024] [--vocab=65536]

A checkpoint of zeros of GR00T N1.7's kind, in bfloat16, in files of 256 MB with an index, is read onto a CPU, where the parameters are host
memory too; in a process of its own by weights.load alone, in another by the whole of `egoscale convert`, which writes a checkpoint. Peaks
are of resident memory and so count the pages of the files that lie in it.
"""

import argparse
import contextlib
import json
import math
import os
import pathlib
import resource
import subprocess
import sys
import tempfile

import jax

from egoscale_jax import config as config_lib
from egoscale_jax.models import reference, vla, weights
from egoscale_jax.train import convert

ROOT = pathlib.Path(__file__).resolve().parents[1]
FILE_BYTES = 2**28


def default():
  return config_lib.parse([f"--config={ROOT}/configs/posttrain.py"])


def sizes(width, vocab):
  """The reference's model, narrower and shallower, with a large vocabulary: as in the real one the embedding is the largest tensor."""
  m = default().model.copy_and_resolve_references().unlock()
  m.language.update(layers=6, width=width, heads=8, kv_heads=4, mlp=3 * width, vocab=vocab)
  m.vision.update(depth=6, width=512, heads=8, mlp=2048, deepstack=(1, 3, 5))
  m.mixer.update(layers=2, heads=width // 64)
  m.expert.update(layers=8, heads=16, embodiments=8)
  m.update(image_token=vocab - 1, dtype="float32")
  return m


def write(folder, model):
  """Files of zeros, written as their length alone -> bytes of the largest tensor."""
  planned = weights.plan(model, vla.param_shapes(vla.VLA(model)))
  shapes = {source.name: source.shape for parts in planned.values() for source in parts}
  count = lambda shape: 2 * math.prod(shape)  # noqa: E731
  files, weight_map = [{}], {}
  for name, shape in sorted(shapes.items()):
    if sum(map(count, files[-1].values())) > FILE_BYTES:
      files.append({})
    files[-1][name] = shape
  for i, part in enumerate(files):
    path, header, at = folder / f"model-{i + 1:05}-of-{len(files):05}.safetensors", {}, 0
    for name, shape in part.items():
      header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": (at, at + count(shape))}
      at += count(shape)
      weight_map[name] = path.name
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + at)
  (folder / weights.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
  (folder / "config.json").write_text(json.dumps(reference.to_theirs(model)))
  return max(map(count, shapes.values()))


def peak():
  return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def read(folder, model):
  """weights.load, in the process that is measured -> bytes before, of the parameters, and at the peak."""
  shapes = vla.param_shapes(vla.VLA(model))
  one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  found, planned = weights.tensors(folder), weights.plan(model, shapes)
  weights.check(found, planned, folder)
  before = peak()
  params = jax.block_until_ready(weights.load(found, planned, shapes, jax.tree.map(lambda _: one, shapes)))
  return {"before": before, "parameters": sum(leaf.nbytes for leaf in jax.tree.leaves(params)), "peak": peak()}


def convert_all(folder):
  """All of `egoscale convert`, as `read`."""
  config, before = default(), peak()
  with tempfile.TemporaryDirectory() as output, contextlib.redirect_stdout(sys.stderr):
    count = convert.from_groot(folder, f"{output}/run", config, devices=jax.devices()[:1])
  return {"before": before, "parameters": 4 * count, "peak": peak()}


def measure(what, folder, arguments):
  command = [sys.executable, __file__, f"--{what}={folder}", f"--width={arguments.width}", f"--vocab={arguments.vocab}"]
  return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, env={**os.environ, "JAX_PLATFORMS": "cpu"}).stdout)


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--width", type=int, default=1024)
  parser.add_argument("--vocab", type=int, default=65536)
  parser.add_argument("--load", default="", help=argparse.SUPPRESS)
  parser.add_argument("--convert", default="", help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  model = sizes(arguments.width, arguments.vocab)
  if arguments.load or arguments.convert:
    print(json.dumps(read(pathlib.Path(arguments.load), model) if arguments.load else convert_all(arguments.convert)))
    return
  with tempfile.TemporaryDirectory() as folder:
    largest = write(pathlib.Path(folder), model)
    told = {what: measure(what, folder, arguments) for what in ("load", "convert")}
  print(f"largest tensor: {largest / 2**20:.0f} MiB in the file, {2 * largest / 2**20:.0f} in float32")
  print(f"{'MiB':10} {'before':>8} {'parameters':>11} {'peak':>8} {'above':>8} {'/ largest of the file':>22} {'/ in float32':>13}")
  for what, sizes_of in told.items():
    above = sizes_of["peak"] - sizes_of["before"] - sizes_of["parameters"]
    before, parameters, at_peak = (sizes_of[name] / 2**20 for name in ("before", "parameters", "peak"))
    shares = f"{above / largest:22.2f} {above / largest / 2:13.2f}"
    print(f"{what:10} {before:8.0f} {parameters:11.0f} {at_peak:8.0f} {above / 2**20:8.0f} {shares}")


if __name__ == "__main__":
  main()

"""Speed, shuffling, memory and start of the data pipeline against the bare JPEG decoder, in one run:

  python benchmarks/pipeline.py [--examples=100000] [--soak=1000000]

Examples are two 224 x 224 pictures and a 40-step chunk of two 22-joint hands. Rates are per CPU second of the process, all its threads
together. The data are synthetic robot episodes, whose pictures have about the bytes that 224-pixel frames of real video have (8 to 15 kB).
"""

import argparse
import concurrent.futures
import multiprocessing
import pathlib
import resource
import shutil
import tempfile
import time

import numpy as np
import simplejpeg
from PIL import Image

from egoscale_jax import config as config_lib
from egoscale_jax import geometry
from egoscale_jax.data import pipeline, prepare, schema, shards, slots, tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[1]
EPISODES, FRAMES, SIDE = 400, 160, 224
STATIC_STATE = [f"s{i}" for i in range(4)]


class Source:
  """Robot episodes with two cameras, as a module of data/sources."""

  SOURCE, LICENCE = "synthetic", "none"

  @staticmethod
  def find(directory):
    return [schema.Recording(f"{i:04d}", (f"{directory}/{i:04d}",)) for i in range(EPISODES)]

  @staticmethod
  def read(recording, image_size):
    seed = int(recording.id)
    rng = np.random.default_rng(seed)
    jpeg_F = [_picture(rng) for _ in range(8)]
    pictures = [tuple(jpeg_F[i] for i in rng.integers(0, 8, FRAMES)) for _ in range(2)]
    time_F = np.arange(FRAMES)[:, None, None] / 30
    pose = geometry.se3(
      geometry.so3_exp(0.3 * np.sin(time_F + rng.uniform(0, 6, (1, 2, 3)))), 0.1 * np.sin(time_F + rng.uniform(0, 6, (1, 2, 3)))
    )
    names = tuple(f"j{i}" for i in range(22))
    joints = np.sin(time_F + rng.uniform(0, 6, (1, 2, 22))).astype(np.float32)
    camera = np.tile(np.eye(4, dtype=np.float32), (FRAMES, 1, 1))
    views = [schema.View(name, jpeg, (SIDE, SIDE), None, camera) for name, jpeg in zip(("head", "wrist"), pictures)]
    return schema.Episode(
      **schema.robot(FRAMES)
      | schema.views(*views)
      | dict(T_world_wrist_Fx2x4x4=pose.astype(np.float32), joint_names=(names, names), joints_Fx2xJ=joints)
      | dict(joint_targets_Fx2xJ=joints, id=recording.id, source="synthetic", licence="none", embodiment="robot", scene=recording.id)
      | dict(text=f"task {seed % 40}", spans=(), rate_hz=30.0, frame=schema.Frame.BASE)
    )


def _picture(rng):
  """Blurred noise with a little grain."""
  coarse = Image.fromarray(rng.integers(0, 255, (14, 14, 3), np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
  grain = rng.normal(0, 1.0, (SIDE, SIDE, 1))
  return simplejpeg.encode_jpeg(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8), quality=90, colorsubsampling="420")


def make(folder):
  prepare.prepare(Source, "synthetic", folder, image_size=SIDE, validation=0.0)


def make_config(folder, **changes):
  fields = {"data.shards": folder, "data.image_size": (SIDE, SIDE), "data.cameras": ("head", "wrist"), "data.threads": 1} | changes
  config = config_lib.parse([f"--config={ROOT}/configs/pretrain.py", *(f"--config.{key}={value}" for key, value in fields.items())])
  with config.unlocked():
    config.data.slots = dict(robot=0)
  return config


def open_batches(config, first_step=0):
  texts = [f"task {i}" for i in range(40)]
  cells = (SIDE // 32) ** 2
  prompt = tokenizer.Prompt(tokenizer.build(texts, 2000), 2, cells, config.data.text_tokens)
  return pipeline.train_batches(config, prompt, slots.gather(config), first_step, 0, 1)


def bare_decoder(folder, seconds=3.0):
  """Images a CPU second, on the pictures of the shards, each into a buffer of its own."""
  split = shards.open_split(folder, shards.TRAIN)
  data = [split[i].picture(k) for i in np.linspace(0, len(split) - 1, 1024).astype(int) for k in (0, 16)]
  out = np.empty((512, SIDE, SIDE, 3), np.uint8)  # a batch of 256 with two pictures
  began, count = time.process_time(), 0
  while time.process_time() - began < seconds:
    for place, jpeg in enumerate(data):
      simplejpeg.decode_jpeg(jpeg, colorspace="RGB", buffer=out[place % 512])
    count += len(data)
  return count / (time.process_time() - began), np.mean([len(d) for d in data])


def speed(folder, examples, rounds=30):
  """-> ([(the decoder's, the pipeline's examples a CPU second)], different episodes a batch), in turns, so that both have the same machine.

  Short turns, since the machine's own speed wanders by a tenth within seconds. Each waits until the prefetch is full, for its threads' time
  is the process's too.
  """
  config = make_config(folder, batch_size=256, steps=10**9, **{"data.prefetch_bytes": 2**28})
  batches = open_batches(config)
  for _ in range(200):  # until every row has changed all its records once
    next(batches)
  rates, episodes, steps = [], [], max(examples // 256 // rounds, 1)
  for _ in range(rounds):
    _wait_until_idle()
    decoder, _ = bare_decoder(folder, 1.0)
    began = time.process_time()
    for _ in range(steps):
      next(batches)
      episodes.append(batches.info.episodes)
    _wait_until_idle()  # what was taken from the prefetch at the start is made again by the end
    rates.append((decoder / 2, steps * 256 / (time.process_time() - began)))
  return rates, np.mean(episodes)


def _wait_until_idle():
  before = -1.0
  while time.process_time() - before > 0.01:
    before = time.process_time()
    time.sleep(0.3)


def ideal_episodes(folder, batch=256, draws=2000):
  """Different episodes of a batch whose windows are drawn from all windows, each as likely, independently."""
  index = shards.load_index(folder)
  frames = index["frames"][index["split"] == 0].astype(np.float64)
  rng = np.random.default_rng(0)
  return np.mean([len(np.unique(rng.choice(len(frames), batch, p=frames / frames.sum()))) for _ in range(draws)])


def start(folder, step):
  config = make_config(folder, batch_size=256, steps=step + 10**6)
  began = time.perf_counter()
  batches = open_batches(config, step)
  opened = time.perf_counter()
  next(batches)
  return opened - began, time.perf_counter() - opened


def soak(folder, examples):
  """Resident memory along a run, in MB."""
  config = make_config(folder, batch_size=256, steps=10**9, **{"data.prefetch_bytes": 2**29, "data.cache_bytes": 2**29})
  batches, sizes = open_batches(config), []
  for step in range(examples // 256):
    next(batches)
    if step % max(examples // 256 // 20, 1) == 0:
      sizes.append(int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6)
  return sizes


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--examples", type=int, default=100_000)
  parser.add_argument("--soak", type=int, default=0, help="examples of the memory run; 0: none")
  parser.add_argument("--folder", default="", help="keep the synthetic shards here")
  arguments = parser.parse_args()
  folder = pathlib.Path(arguments.folder or tempfile.mkdtemp()) / "shards"
  with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:  # it leaves 1.8 GB of holes in its heap,
    pool.submit(make, folder).result()  # of which more and more pages would count as the soak's
  if arguments.soak:  # first, while nothing else has taken memory
    sizes = soak(folder, arguments.soak)
    print(f"resident MB over {arguments.soak} examples: {' '.join(f'{s:.0f}' for s in sizes)}")
  rates, episodes = speed(folder, arguments.examples)
  print(f"pictures of {bare_decoder(folder)[1]:.0f} bytes; examples a CPU second:")
  for decoder, rate in rates:
    print(f"  bare decoder {decoder:.0f}, pipeline {rate:.0f} = {rate / decoder:.1%}")
  decoder, rate = np.median(rates, axis=0)
  shares = [rate / decoder for decoder, rate in rates]
  print(
    f"  medians {decoder:.0f} and {rate:.0f}; of the shares {np.median(shares):.1%}, half of them within {np.percentile(shares, 25):.1%}"
    f" and {np.percentile(shares, 75):.1%}"
  )
  ideal = ideal_episodes(folder)
  print(f"different episodes in a batch of 256: {episodes:.1f}; ideal sampling {ideal:.1f}; ratio {episodes / ideal:.3f}")
  for step in (0, 10**8):
    print("start at step {}: open {:.3f} s, first batch {:.3f} s".format(step, *start(folder, step)))
  index = shards.load_index(folder)
  ids = shards.clip_ids(index, index["split"] == 0)
  print(f"index: {(index.nbytes + ids.nbytes) / index['frames'].sum():.2f} bytes an example")
  if not arguments.folder:
    shutil.rmtree(folder.parent)


if __name__ == "__main__":
  main()

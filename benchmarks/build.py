"""Speed of `egoscale prepare` with one worker process and with two, against the video decoder alone, and bytes a frame:

  python benchmarks/build.py [--copies=6] [--input=../shared/recordings/egodex]

The EgoDex recordings with a video below --input, each linked under several names to have enough to do; without them, simulated ones. The
rates are of the parts after each worker's first (which loads what was compiled), by the times at which the parts were done: run it on a
quiet machine. Frames per CPU second, of all processes together and without their start, say the same where it is not quiet.
"""

import argparse
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import time

import av

from egoscale_jax.data import clips, shards
from egoscale_jax.data.sources import mp4

ROOT = pathlib.Path(__file__).resolve().parents[1]
SIZE = 256


def link(source, folder, copies):
  """Recordings that have a video, `copies` times -> how many."""
  pairs = [(path, path.with_suffix(".mp4")) for path in sorted(source.rglob("*.hdf5")) if path.with_suffix(".mp4").exists()]
  for copy in range(copies):
    for pair in pairs:
      for path in pair:
        place = folder / path.parent.name / f"{path.stem}_{copy}{path.suffix}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(path.resolve())
  return copies * len(pairs)


def simulate(folder, count):
  command = [sys.executable, "-m", "egoscale_jax.cli", "simulate", f"--output={folder}", f"--episodes={count}", f"--image_size={SIZE}"]
  subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
  return count


def decoder_rate(paths):
  """Frames per CPU second that are decoded and reduced to RGB of the size stored; and by way of RGB of the full size."""
  rates = []
  for full in (False, True):
    frames, began = 0, time.process_time()
    for path in paths:
      with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        height, width = mp4.fit(stream.width, stream.height, SIZE)
        for frame in container.decode(stream):
          if full:
            frame = frame.reformat(format="rgb24", threads=1)
          frame.reformat(width=width, height=height, format="rgb24", interpolation="AREA", threads=1).to_ndarray()
          frames += 1
    rates.append(frames / (time.process_time() - began))
  return rates


def prepare(source, folder, output, workers, codec):
  """-> frames/s of the parts after the first of each worker; frames; CPU seconds of all processes; bytes of the clips' files."""
  shutil.rmtree(output, ignore_errors=True)
  command = [sys.executable, "-m", "egoscale_jax.cli", "prepare", f"--source={source}", f"--input={folder}", f"--output={output}"]
  before = resource.getrusage(resource.RUSAGE_CHILDREN)
  subprocess.run([*command, f"--workers={workers}", f"--codec={codec}"], check=True, cwd=ROOT, capture_output=True)
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  parts = sorted((output / "parts").glob("*.json"), key=os.path.getmtime)
  frames = [sum(e.get("frames", 0) for e in json.loads(path.read_text())["entries"]) for path in parts]
  rate = sum(frames[workers:]) / (os.path.getmtime(parts[-1]) - os.path.getmtime(parts[workers - 1]))
  size = sum(os.path.getsize(path) for path in pathlib.Path(shards.CLIPS.folder(output)).glob("*array_record-*"))
  return rate, sum(frames), after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, size


def measure(source, few, many, output, workers, codec):
  """-> frames/s, frames per CPU second without the start (the difference of two builds), bytes a frame."""
  _, few_frames, few_seconds, _ = prepare(source, few, output, workers, codec)
  rate, frames, seconds, size = prepare(source, many, output, workers, codec)
  return rate, (frames - few_frames) / (seconds - few_seconds), size / frames


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--copies", type=int, default=6)
  parser.add_argument("--input", type=pathlib.Path, default=ROOT.parent / "shared/recordings/egodex")
  arguments = parser.parse_args()
  with tempfile.TemporaryDirectory() as work:
    work = pathlib.Path(work)
    source = "egodex" if arguments.input.is_dir() else "simulated"
    few, many = work / "few", work / "many"
    if source == "egodex":
      link(arguments.input, few, 1)
      count = link(arguments.input, many, arguments.copies)
    else:
      simulate(few, 4)
      count = simulate(many, 5 * arguments.copies)
    for workers in (1, 2):
      prepare(source, few, work / "out", workers, clips.JPEG)  # compiles, which is kept
    reduced, full = decoder_rate(sorted(few.rglob("*.mp4")))
    print(f"{count} recordings of {source}, load {os.getloadavg()[0]:.1f} at the start, {os.cpu_count()} cores")
    print(f"decoder alone: {reduced:.0f} frames a CPU second to RGB of {SIZE} pixels, {full:.0f} by way of RGB of the full size")
    print(
      "| codec | one worker, frames/s | two | ratio | frames a CPU second, one, two | share of the decoder's, one, two | bytes a frame |"
    )
    print("|---|---|---|---|---|---|---|")
    for codec in (clips.JPEG, clips.H264):
      (one, one_cpu, size), (two, two_cpu, _) = (measure(source, few, many, work / "out", workers, codec) for workers in (1, 2))
      cpu = f"{one_cpu:.0f}, {two_cpu:.0f} | {one_cpu / reduced:.0%}, {two_cpu / reduced:.0%}"
      print(f"| {codec} | {one:.0f} | {two:.0f} | {two / one:.2f} | {cpu} | {size:,.0f} |", flush=True)
    print(f"load {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
  main()

"""Speed of `egoscale prepare` with one worker process and with two, against the video decoder alone, and bytes a frame:

  python benchmarks/build.py [--copies=6] [--input=../shared/recordings/egodex]

The EgoDex recordings with a video below --input, each linked under several names to have enough to do; without them, simulated ones. The
rates are of the parts after each worker's first (which loads what was compiled), by the times at which the parts were done; the seconds of
the whole command are told beside them. Run it on a quiet machine.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import av

from egoscale_jax.data import clips, shards
from egoscale_jax.data.sources import video

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
  """Frames per second of one thread that decodes and reduces to RGB of the size stored, and of one that makes RGB of the full size too."""
  rates = []
  for full in (False, True):
    frames, began = 0, time.perf_counter()
    for path in paths:
      with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        height, width = video.fit(stream.width, stream.height, SIZE)
        for frame in container.decode(stream):
          if full:
            frame = frame.reformat(format="rgb24")
          frame.reformat(width=width, height=height, format="rgb24", interpolation="AREA").to_ndarray()
          frames += 1
    rates.append(frames / (time.perf_counter() - began))
  return rates


def prepare(source, folder, output, workers, codec):
  """-> frames/s of the parts after the first of each worker, frames/s of the whole command, bytes a frame of the clips' files."""
  shutil.rmtree(output, ignore_errors=True)
  command = [sys.executable, "-m", "egoscale_jax.cli", "prepare", f"--source={source}", f"--input={folder}", f"--output={output}"]
  began = time.perf_counter()
  subprocess.run([*command, f"--workers={workers}", f"--codec={codec}"], check=True, cwd=ROOT, capture_output=True)
  seconds = time.perf_counter() - began
  parts = sorted((output / "parts").glob("*.json"), key=os.path.getmtime)
  frames = [sum(e.get("frames", 0) for e in json.loads(path.read_text())["entries"]) for path in parts]
  first = workers - 1  # of the parts done, the last that counts as a start
  steady = sum(frames[first + 1 :]) / (os.path.getmtime(parts[-1]) - os.path.getmtime(parts[first]))
  size = sum(os.path.getsize(path) for path in pathlib.Path(shards.CLIPS.folder(output)).glob("*array_record-*"))
  return steady, sum(frames) / seconds, size / sum(frames)


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
    print(f"decoder alone, one thread: {reduced:.0f} frames/s to RGB of {SIZE} pixels, {full:.0f} by way of RGB of the full size")
    print("| codec | one worker, frames/s | two | ratio | two as a share of two decoders | whole command, one and two | bytes a frame |")
    print("|---|---|---|---|---|---|---|")
    for codec in (clips.JPEG, clips.H264):
      one, two = (prepare(source, many, work / "out", workers, codec) for workers in (1, 2))
      share = f"{one[0] / reduced:.0%}, {two[0] / reduced / 2:.0%}"
      print(f"| {codec} | {one[0]:.0f} | {two[0]:.0f} | {two[0] / one[0]:.2f} | {share} | {one[1]:.0f}, {two[1]:.0f} | {one[2]:,.0f} |")
    print(f"load {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
  main()

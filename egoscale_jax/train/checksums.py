"""Is a checkpoint as it was written? checksums/STEP.json in the work directory: {file: [bytes, CRC-32C]}.

Orbax does not check what it reads, so one flipped bit would go into the weights. A checkpoint without such a file was complete (it has its
final name) when the run was killed before the sums were made: it is taken as it is.
"""

import concurrent.futures
import json
import pathlib

import google_crc32c

_PIECE = 1 << 24


def file_of(workdir, step):
  return pathlib.Path(workdir) / "checksums" / f"{step}.json"


def of_folder(folder):
  """-> {path within it: [bytes, CRC-32C]}; eight files at a time."""
  paths = sorted(path for path in folder.rglob("*") if path.is_file())
  with concurrent.futures.ThreadPoolExecutor(8) as threads:
    return {path.relative_to(folder).as_posix(): found for path, found in zip(paths, threads.map(_sum, paths))}


def _sum(path):
  checksum, size = google_crc32c.Checksum(), 0
  with open(path, "rb") as file:
    while piece := file.read(_PIECE):
      checksum.update(piece)
      size += len(piece)
  return [size, int.from_bytes(checksum.digest(), "big")]


def fault(workdir, step):
  """-> a line that names the first file of checkpoints/STEP that is not as it was written, or ""."""
  path, folder = file_of(workdir, step), pathlib.Path(workdir) / "checkpoints" / str(step)
  if not path.is_file():
    return ""
  try:
    expected, found = json.loads(path.read_text(encoding="utf-8")), of_folder(folder)
  except (ValueError, OSError) as error:
    return f"{path}: cannot be read: {error}"
  for name in sorted(expected.keys() | found.keys()):
    want, have = expected.get(name), found.get(name)
    if want != have:
      told = ["nothing" if x is None else f"{x[0]} bytes with CRC-32C {x[1]:08x}" for x in (have, want)]
      return f"{folder / name}: found {told[0]}, expected {told[1]}"
  return ""


def newest_sound(workdir, steps):
  """Of the checkpoints at `steps` -> (the newest one that is as it was written, or None; {step: fault} of the newer ones)."""
  faults = {}
  for step in sorted(steps, reverse=True):
    faults[step] = fault(workdir, step)
    if not faults[step]:
      del faults[step]
      return step, faults
  return None, faults

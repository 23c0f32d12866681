"""Where validation asks: fixed pictures of held-out episodes, found from the records without pictures, so in seconds for any hours."""

import dataclasses
import itertools
import zlib

import numpy as np

from egoscale_jax.data import clips, examples, manifest, shards
from egoscale_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Point:
  """One query: a picture of a clip of a folder."""

  folder: int
  record: int
  image: int
  episode: str
  time: int  # frame in the episode


class HeldOut:
  """The episodes of one split of a folder."""

  def __init__(self, path, split=shards.VALIDATION):
    content, index = manifest.load(path), shards.load_index(path)
    self.stride, self.images = content["stride"], content["images"]
    kept = [e for e in content["episodes"] if e["status"] == manifest.KEPT]  # as the rows of the index
    self.rows = {f"{content['source']}/{kept[row]['id']}": int(row) for row in np.flatnonzero(index["split"] == shards.SPLITS.index(split))}
    self.frames = index["frames"]
    self.first = np.cumsum(index["clips"], dtype=np.int64) - index["clips"]
    self.clips = shards.Records(path, shards.CLIPS, shards.lengths(index, "clips"))
    self.episodes = shards.open_episodes(path)

  def points(self, folder: int, name: str, horizon: int, stride: int) -> list[Point]:
    """Every picture of the episode from which a step of a chunk has a label, in order."""
    row = self.rows[name]
    try:
      valid_Fx2 = clips.read_labels(self.episodes[row])[1].valid_Fx2
    except ValueError as error:
      raise UserError(str(error)) from error
    labelled = [
      bool((valid_Fx2[start] & valid_Fx2[start + stride : start + horizon * stride + 1 : stride].any(axis=0)).any())
      for start in range(len(valid_Fx2))
    ]
    found = []
    edges = clips.clip_edges(int(self.frames[row]), self.stride, self.images)
    for number, (first, last) in enumerate(itertools.pairwise(edges)):
      for picture in range(first, last):
        time = picture * self.stride
        if labelled[time]:
          found.append(Point(folder, int(self.first[row]) + number, picture - first, name, time))
    return found

  def window(self, point: Point) -> examples.Window:
    try:
      return examples.Window(clips.read_clip(self.clips[point.record]), point.image)
    except ValueError as error:
      raise UserError(str(error)) from error


def fixed_points(held_out: list[HeldOut], episodes: int, times: int, horizon: int, stride: int) -> list[Point]:
  """Up to `times` evenly spaced pictures with a labelled step, of up to `episodes` episodes in the order of their names' hashes."""
  names = [(zlib.crc32(name.encode()), name, folder) for folder, data in enumerate(held_out) for name in data.rows]
  points, found = [], 0
  for _, name, folder in sorted(names):
    if found == episodes:
      break
    candidates = held_out[folder].points(folder, name, horizon, stride)
    points += [candidates[i] for i in np.unique(np.linspace(0, len(candidates) - 1, times).round().astype(int))] if candidates else []
    found += bool(candidates)
  return points

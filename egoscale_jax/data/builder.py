"""Clip records <-> shards: a TFDS builder that writes ArrayRecord, and the source that reads it back. TensorFlow is imported by neither."""

import contextlib
import dataclasses
import io
import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from egoscale_jax.data import schema, spec
from egoscale_jax.errors import UserError

NAME = "egoscale"
VERSION = "1.0.0"
TRAIN, VALIDATION = "train", "validation"
_DIRECTORY = os.path.join(NAME, VERSION)  # below the output, as TFDS lays it out: tfds.data_source("egoscale", data_dir=...) works


def clips(episode: schema.Episode, labels: schema.Labels) -> Iterator[tuple[str, dict]]:
  """An episode -> (key, record of spec.clip_features) for ceil(F / CLIP_FRAMES) clips of nearly the same length.

  Near-equal, so that no clip of one frame is left over: the pipeline draws clips, and a frame of a short clip would be seen too often.
  """
  name = f"{episode.source}/{episode.id}"
  num_frames = episode.num_frames
  count = -(-num_frames // spec.CLIP_FRAMES)
  edges = [num_frames * i // count for i in range(count + 1)]
  for start, end in itertools.pairwise(edges):
    tail = min(end + spec.TAIL_FRAMES, num_frames)
    yield (
      f"{name}#{start}",
      {
        "episode": name,
        "text": _text(episode, start, end),
        "embodiment": episode.embodiment,
        "start": np.int32(start),
        "rate_hz": np.float32(episode.rate_hz),
        "intrinsics": episode.intrinsics_3x3,
        "jpeg": np.array(episode.jpeg_F[start:end], dtype=object),
        "T_world_camera": episode.T_world_camera_Fx4x4[start:end],
        "keypoints": episode.keypoints_Fx2xPx3[start:end],
        "T_world_wrist": labels.T_world_wrist_Fx2x4x4[start:tail],
        "joints": labels.joints_Fx2xJ[start:tail],
        "valid": labels.valid_Fx2[start:tail],
        "residual_m": labels.residual_m_Fx2[start:tail],
      },
    )


def _text(episode, start, end) -> str:
  """The finer text that covers the clip's frames whole, the shortest of them; where none does, the episode's."""
  covering = [s for s in episode.spans if s.start_s * episode.rate_hz <= start + 0.5 and s.end_s * episode.rate_hz >= end - 0.5]
  return min(covering, key=lambda s: (s.end_s - s.start_s, s.text)).text if covering else episode.text


def write(output_dir, splits: Mapping[str, Callable[[], Iterator[tuple[str, dict]]]], num_joints: int, licence: str) -> dict[str, int]:
  """Writes the shards of {split: function that iterates (key, record)} below output_dir -> clips of each split.

  Records are shuffled by the hash of their key, so the bytes depend on the records alone. TFDS holds up to 1 GB of a split in memory, then
  sorts on disk. J joints a hand; the recordings' licence goes into the data set's description.
  """
  import tensorflow_datasets as tfds  # here, so that reading this file's constants does not pay for it

  with tfds.core.registered.skip_registration():

    class Egoscale(tfds.core.GeneratorBasedBuilder):
      """Clips of egocentric video with the hands' labels (egoscale_jax/data/spec.py)."""

      name = NAME
      VERSION = tfds.core.Version(VERSION)
      url_infos = None  # nothing is downloaded; TFDS 4.9.10 looks for checksums with a package that it does not depend on

      def _info(self):
        return tfds.core.DatasetInfo(
          builder=self,
          features=spec.clip_features(num_joints),
          description=self.__doc__,
          license=licence,
          homepage="https://arxiv.org/abs/2602.16710",
        )

      def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in splits}

      def _generate_examples(self, split):
        yield from splits[split]()

  tfds.disable_progress_bar()  # the caller has its own
  builder = Egoscale(data_dir=os.fspath(output_dir), file_format="array_record")
  with contextlib.redirect_stdout(io.StringIO()):  # "Downloading and preparing ..." on the standard output says nothing that is true here
    builder.download_and_prepare(download_dir=os.path.join(output_dir, "downloads"))
  shutil.rmtree(os.path.join(output_dir, "downloads"))  # TFDS makes it although nothing is downloaded
  return {name: split.num_examples for name, split in builder.info.splits.items()}


@dataclasses.dataclass
class Split:
  """Random access to the records of one split as dicts of numpy arrays; picklable, the shards are opened at the first read."""

  output_dir: str
  split: str

  def __post_init__(self):
    self._source = None

  def _open(self):
    if self._source is None:
      import tensorflow_datasets as tfds

      self._source = tfds.builder_from_directory(os.path.join(self.output_dir, _DIRECTORY)).as_data_source(self.split)
    return self._source

  def __len__(self):
    return len(self._open())

  def __getitem__(self, index: int) -> dict:
    """-> a record of spec.clip_features; texts as str, "jpeg" as an object array of bytes."""
    record = dict(self._open()[int(index)])
    return {key: value.decode() if isinstance(value, bytes) else value for key, value in record.items()}

  def __getstate__(self):
    return {"output_dir": self.output_dir, "split": self.split, "_source": None}


def open_split(output_dir, split: str) -> Split:
  """The records of `prepare`'s output; UserError where the directory holds no shards or not this split."""
  import tensorflow_datasets as tfds

  output_dir = os.fspath(output_dir)
  if not os.path.isfile(os.path.join(output_dir, _DIRECTORY, "dataset_info.json")):
    raise UserError(f"{output_dir}: holds no shards, expected {_DIRECTORY}/dataset_info.json as `egoscale prepare` writes it")
  found = sorted(tfds.builder_from_directory(os.path.join(output_dir, _DIRECTORY)).info.splits)
  if split not in found:
    raise UserError(f"{output_dir}: has no split {split!r}, found {', '.join(found)}")
  return Split(output_dir, split)

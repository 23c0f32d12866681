"""The files of prepared data: one ArrayRecord file of clips and one of episodes for every part of a build, laid out as a TFDS data set.

```
OUT/egoscale/2.0.0/egoscale-clips.array_record-00000 ...               clip records, with the pictures
OUT/egoscale_episodes/2.0.0/egoscale_episodes-episodes.array_record-00000 ...  episode records, without
OUT/index.npy                                                          one row an episode (INDEX), in the order of the records
OUT/parts/ plan.json statistics/ manifest.json                         data/builder.py
```

Files never change once they are there; more data is more files. So train and validation are no files of their own: they are columns of
the index, and so are the nested subsets of the hours. `tfds.data_source("egoscale", data_dir=OUT, split="clips")` opens the files too.
"""

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Iterable, Sequence

import numpy as np
from array_record.python import array_record_data_source, array_record_module

from egoscale_jax.data import clips, manifest, spec
from egoscale_jax.errors import UserError

VERSION = "2.0.0"
TRAIN, VALIDATION = "train", "validation"
SPLITS = (TRAIN, VALIDATION)
LEFT_OUT = len(SPLITS)  # kept in the files, read by nobody: an episode that would leak, or that a later list excludes
TWENTIETHS = 20  # nested subsets are so many twentieths of the training hours
INDEX = np.dtype(
  [
    ("part", np.uint32),  # the file
    ("clips", np.uint32),  # records of the episode
    ("frames", np.uint32),
    ("split", np.uint8),  # of SPLITS, or LEFT_OUT
    ("twentieth", np.uint8),  # 0 .. 19: in every subset of more twentieths than that
    ("embodiment", np.uint16),  # of the manifest's list
    ("task", np.uint64),  # hash of the instruction: equal tasks of two data sets are found by it
    ("rate_hz", np.float32),
  ]
)
# Pictures do not shrink: uncompressed files are 2 % larger and cost nothing to unpack.
_WRITER = "group_size:1,uncompressed"


@dataclasses.dataclass(frozen=True)
class Kind:
  """The clips, or the episodes."""

  dataset: str
  split: str

  def folder(self, output_dir) -> str:
    return os.path.join(output_dir, self.dataset, VERSION)

  def path(self, output_dir, part: int) -> str:
    return os.path.join(self.folder(output_dir), f"{self.dataset}-{self.split}.array_record-{part:05d}")


CLIPS = Kind("egoscale", "clips")
EPISODES = Kind("egoscale_episodes", "episodes")


class Writer:
  """Writes one file under a temporary name; close() puts it in place, whole. UserError where the disk is full."""

  def __init__(self, path: str):
    self._path, self._temporary, self._count = path, temporary(path), 0
    os.makedirs(os.path.dirname(path), exist_ok=True)
    self._writer = array_record_module.ArrayRecordWriter(self._temporary, _WRITER)

  def write(self, data: bytes):
    with self._telling():
      self._writer.write(data)
    self._count += 1

  def close(self) -> dict:
    """-> {records, bytes, sha256} of the file."""
    with self._telling():
      self._writer.close()
    told = {"records": self._count} | checksum(self._temporary)
    put_in_place(self._temporary, self._path)
    return told

  @contextlib.contextmanager
  def _telling(self):
    try:
      yield
    except RuntimeError as error:  # the library's, where it cannot write
      raise UserError(f"{self._path}: cannot be written: {' '.join(str(error).split())[:200]}") from error


def temporary(path: str) -> str:
  """Another name at every call: a cluster may give one part to two workers, and neither writes into the other's file."""
  return f"{path}.{os.getpid()}-{os.urandom(4).hex()}.tmp"


def checksum(path) -> dict:
  with open(path, "rb") as file:
    return {"bytes": os.path.getsize(path), "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def put_in_place(unfinished: str, path: str):
  """Renames a finished file, on the disk before its name is: after a power failure it is whole or not there."""
  with open(unfinished, "rb") as file:
    os.fsync(file.fileno())
  os.replace(unfinished, path)


def write_metadata(output_dir, kind: Kind, features, files: Sequence[dict], licence: str):
  """The dataset_info.json and features.json of TFDS; files: what Writer.close told, in the order of the parts."""
  import tensorflow_datasets as tfds
  from etils import epath

  folder = kind.folder(output_dir)
  template = tfds.core.ShardedFileTemplate(
    data_dir=epath.Path(folder),
    dataset_name=kind.dataset,
    split=kind.split,
    filetype_suffix="array_record",
    template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}",  # without the number of files, which grows
  )
  lengths, size = [file["records"] for file in files], sum(file["bytes"] for file in files)
  split = tfds.core.SplitInfo(name=kind.split, shard_lengths=lengths, num_bytes=size, filename_template=template)
  tfds.folder_dataset.write_metadata(
    data_dir=folder,
    features=features,
    split_infos=[split],
    filename_template=template,
    version=VERSION,
    description=f"Prepared egocentric recordings, {kind.split} (egoscale_jax/data/spec.py).",
    homepage="https://arxiv.org/abs/2602.16710",
    citation=f"Licence of the recordings: {licence}",
    check_data=False,
  )


def index_path(output_dir) -> str:
  return os.path.join(os.fspath(output_dir), "index.npy")


def save_index(rows: np.ndarray, output_dir):
  path = index_path(output_dir)
  unfinished = temporary(path)
  with open(unfinished, "wb") as file:
    np.save(file, rows)
  put_in_place(unfinished, path)


def load_index(output_dir) -> np.ndarray:
  """One row an episode, of INDEX; UserError where the data is not whole."""
  manifest.check(output_dir)
  path = index_path(output_dir)
  try:
    rows = np.load(path, allow_pickle=False)
  except (OSError, ValueError) as error:
    raise UserError(f"{path}: not readable: {error}") from error
  if rows.dtype != INDEX:
    raise UserError(f"{path}: another version's index; prepare the data again")
  return rows


def task_hash(text: str) -> int:
  return int.from_bytes(hashlib.sha256(" ".join(text.lower().split()).encode()).digest()[:8], "little")


@dataclasses.dataclass(frozen=True)
class _File:
  """As ArrayRecordDataSource takes a file whose length is known, so that none is opened before it is read."""

  filename: str
  skip: int
  take: int
  examples_in_shard: int


class Records:
  """Random access to the bytes of all records of a kind; picklable, and safe for threads."""

  def __init__(self, output_dir, kind: Kind, lengths: Iterable[int]):
    self._lengths = tuple(int(n) for n in lengths)
    files = [_File(kind.path(os.fspath(output_dir), part), 0, n, n) for part, n in enumerate(self._lengths) if n]
    self._source = array_record_data_source.ArrayRecordDataSource(files) if files else ()
    self._paths = [file.filename for file in files]
    self._ends = np.cumsum([file.take for file in files])

  def __len__(self):
    return sum(self._lengths)

  def __getitem__(self, record: int) -> bytes:
    """ValueError that names the file where it is missing or damaged."""
    try:
      data = self._source[int(record)]
      if not data:  # what the library gives of a file that was cut off
        raise ValueError("it is empty")
      return data
    except Exception as error:  # the library raises RuntimeError, ValueError and others for a damaged file
      path = self._paths[int(np.searchsorted(self._ends, record, side="right"))]
      raise ValueError(f"{path}: record {int(record)} cannot be read: {' '.join(str(error).split())[:200]}") from error


class Split:
  """Clips of a choice of episodes by a number 0 .. len - 1; picklable."""

  def __init__(self, records: Records, record_ids: np.ndarray):
    self._records, self.record_ids = records, record_ids

  def __len__(self):
    return len(self.record_ids)

  def __getitem__(self, number: int) -> clips.Clip:
    """ValueError where the record is damaged."""
    return clips.read_clip(self.record(number))

  def record(self, number: int) -> bytes:
    """ValueError where it cannot be read."""
    return self._records[self.record_ids[number]]


def clip_ids(index: np.ndarray, chosen: np.ndarray) -> np.ndarray:
  """Numbers of the clip records of the chosen episodes (bool, a row of the index each), 4 bytes a clip where that is enough."""
  first = np.cumsum(index["clips"], dtype=np.int64) - index["clips"]
  counts = index["clips"][chosen].astype(np.int64)
  within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
  ids = np.repeat(first[chosen], counts) + within
  return ids.astype(np.uint32) if len(index) == 0 or first[-1] + index["clips"][-1] < 2**32 else ids


def lengths(index: np.ndarray, column=None) -> np.ndarray:
  """Records of every file: clips, or episodes where the column is None."""
  parts = int(index["part"].max()) + 1 if len(index) else 0
  return np.bincount(index["part"], None if column is None else index[column], minlength=parts).astype(np.int64)


def open_split(output_dir, split: str, twentieths: int = TWENTIETHS) -> Split:
  """The clips of `prepare`'s output; twentieths: how many of the training hours. UserError where there are none."""
  index = load_index(output_dir)
  if split not in SPLITS:
    raise UserError(f"split: found {split!r}, expected {' or '.join(SPLITS)}")
  chosen = index["split"] == SPLITS.index(split)
  if not chosen.any():
    raise UserError(f"{output_dir}: has no episode in the split {split!r}")
  if split == TRAIN:
    chosen &= index["twentieth"] < twentieths
  return Split(Records(output_dir, CLIPS, lengths(index, "clips")), clip_ids(index, chosen))


def open_episodes(output_dir) -> Records:
  """The episode records, in the order of the index; clips.read_labels reads one."""
  return Records(output_dir, EPISODES, lengths(load_index(output_dir)))


def features(kind: Kind, num_joints: int):
  if kind is CLIPS:
    return clips.features(spec.CLIP_NUMBERS, spec.CLIP_TEXTS, True, num_joints)
  return clips.features(spec.EPISODE_NUMBERS, spec.EPISODE_TEXTS, False, num_joints)

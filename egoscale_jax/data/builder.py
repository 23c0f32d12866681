"""One part of a build: some recordings -> one file of clips, one of episodes, and the manifest entries of their episodes.

A part is the unit of work for a process, a Beam worker and a restart. What it writes depends on its recordings and the settings alone, so
that a build that is killed and started again, with any number of workers, ends with the same bytes. Its JSON is written last: a part that
has one is done, and is never touched again.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable

from egoscale_jax.data import clips, jsonfile, labeller, schema, shards, spec
from egoscale_jax.errors import UserError

VERSION = 2
PARTS = "parts"
MAX_RECORDINGS = 64  # a part; at 256 pixels and ten seconds an episode, a file of about 200 MB
LEFTOVERS = (".tmp", ".reading", ".error")
MIN_PARTS = 16  # so that a small set keeps all workers busy to the end


@dataclasses.dataclass(frozen=True)
class Settings:
  """What the bytes depend on, beside the recordings. An output has one for all its parts."""

  source: str
  columns: str  # sha256 of the config of columns, "" without
  asked_hand: str | None
  hand_sha256: str  # of its descriptions
  joints: labeller.Joints
  image_size: int
  stride: int
  images: int
  codec: str
  validation: float
  seed: int


@dataclasses.dataclass(frozen=True)
class Part:
  """What a worker is given."""

  output_dir: str
  number: int
  recordings: tuple[schema.Recording, ...]
  settings: Settings
  read: Callable[[schema.Recording], schema.Episode]  # of data/sources, with the image size


def sizes(recordings: int) -> int:
  """How many recordings a part takes, of so many."""
  return max(1, min(MAX_RECORDINGS, recordings // MIN_PARTS))


def json_path(output_dir, number: int) -> str:
  return os.path.join(output_dir, PARTS, f"{number:05d}.json")


def reading_path(output_dir, number: int) -> str:
  """Holds the file that a worker is reading, so that its death can be told by it."""
  return os.path.join(output_dir, PARTS, f"{number:05d}.reading")


def build(part: Part) -> int:
  """Writes the part, unless it is there -> its number; UserError where it cannot be written."""
  path = json_path(part.output_dir, part.number)
  if not os.path.exists(path):
    with writing(part.output_dir):
      content = _build(part)
      write_json(path, {"version": VERSION, **content})
  return part.number


@contextlib.contextmanager
def writing(output_dir):
  """A full disk or a directory without permission is the user's to mend: one line that names the output."""
  try:
    yield
  except OSError as error:
    raise UserError(f"{output_dir}: cannot be written: {error.strerror or error}") from error


def write_json(path, content):
  write_bytes(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def write_bytes(path, data: bytes):
  unfinished = shards.temporary(path)
  with open(unfinished, "wb") as file:
    file.write(data)
  shards.put_in_place(unfinished, path)


def sweep(output_dir):
  """Removes what killed or doubled workers left."""
  for folder in (".", PARTS, "statistics", *(kind.folder(".") for kind in (shards.CLIPS, shards.EPISODES))):
    folder = os.path.join(output_dir, folder)
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
      if name.endswith(LEFTOVERS):
        os.remove(os.path.join(folder, name))


def load(output_dir, number: int) -> dict:
  return jsonfile.read(json_path(output_dir, number), VERSION, "part")


def _build(part) -> dict:
  """-> {entries, files {path below the output: {records, bytes, sha256}}}."""
  s, folder = part.settings, os.fspath(part.output_dir)
  joints = len(s.joints.names[0])
  writers = {kind: shards.Writer(kind.path(folder, part.number)) for kind in (shards.CLIPS, shards.EPISODES)}
  features = {kind: shards.features(kind, joints) for kind in writers}
  entries = []
  for recording in part.recordings:
    with open(reading_path(folder, part.number), "w", encoding="utf-8") as file:
      file.write(os.fspath(recording.files[0]))
    try:
      episode = part.read(recording)
    except UserError as error:
      episode = error
    entry, labels = labeller.label(recording, episode, s.asked_hand, s.joints)
    if labels is not None:
      records = list(clips.cut(episode, labels, s.stride, s.images, s.codec))
      for record in records:
        writers[shards.CLIPS].write(clips.serialize(record, features[shards.CLIPS], spec.CLIP_NUMBERS))
      record = clips.whole(episode, labels)
      writers[shards.EPISODES].write(clips.serialize(record, features[shards.EPISODES], spec.EPISODE_NUMBERS))
      entry |= {"clips": len(records), "rate_hz": episode.rate_hz}
    entries.append(entry)
  files = {os.path.relpath(kind.path(folder, part.number), folder): writer.close() for kind, writer in writers.items()}
  return {"entries": entries, "files": files}

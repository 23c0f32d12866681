"""A part of a build on a worker that has no disk in common with the others: its recordings are fetched, what it built is put back.

The machine that plans and assembles sees the bucket mounted below `mount`; a worker of Dataflow cannot mount it, and reads and writes the
same paths below `address`. For formats whose recordings are files of their own: a recording is fetched with the files that it names.
"""

import dataclasses
import os
import shutil
import tempfile

from egoscale_jax.data import builder, schema
from egoscale_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Bucket:
  mount: str  # an absolute folder
  address: str  # gs://BUCKET, or whatever else Beam's FileSystems opens

  def remote(self, path) -> str:
    """A path below the mount -> its address."""
    return f"{self.address}/{self.below(path)}"

  def below(self, path) -> str:
    """The path seen from the mount; UserError where it is not in it."""
    path = os.path.abspath(os.fspath(path))
    if os.path.commonpath([path, self.mount]) != self.mount:
      raise UserError(f"--bucket={self.mount}={self.address}: found {path}, expected --input and --output below {self.mount}")
    return os.path.relpath(path, self.mount)


def parse(text: str) -> Bucket:
  """ "/mnt/bucket=gs://BUCKET" -> Bucket."""
  mount, _, address = text.partition("=")
  if not (os.path.isabs(mount) and address):
    raise UserError(f"--bucket={text}: expected MOUNT=ADDRESS, as in /mnt/bucket=gs://BUCKET")
  return Bucket(os.path.normpath(mount), address.rstrip("/"))


def build(part: builder.Part, bucket: Bucket):
  """builder.build on copies in a folder of this worker's own; the part's JSON is put back last, so that it is whole once it has one."""
  from apache_beam.io.filesystems import FileSystems

  done = builder.json_path(part.output_dir, part.number)
  if FileSystems.exists(bucket.remote(done)):
    return
  with tempfile.TemporaryDirectory() as folder:
    here = lambda path: os.path.join(folder, bucket.below(path))  # noqa: E731
    recordings = tuple(_fetched(recording, bucket, here) for recording in part.recordings)
    output = here(part.output_dir)
    os.makedirs(os.path.join(output, builder.PARTS), exist_ok=True)
    builder.build(dataclasses.replace(part, output_dir=output, recordings=recordings))
    made = [os.path.join(root, name) for root, _, names in os.walk(output) for name in names if not name.endswith(builder.LEFTOVERS)]
    for path in sorted(made, key=lambda path: path == here(done)):
      with open(path, "rb") as file:
        data = file.read()
      if path == here(done):  # it may name files that were not readable
        data = data.replace(folder.encode(), bucket.mount.encode())
      put(os.path.join(part.output_dir, os.path.relpath(path, output)), data, bucket)


def put(path, data: bytes, bucket: Bucket):
  """Writes what a worker has to say where the others see it as `path`."""
  from apache_beam.io.filesystems import FileSystems

  parent = os.path.dirname(bucket.remote(path))
  if "://" not in parent:  # a bucket has no folders to make
    os.makedirs(parent, exist_ok=True)
  with FileSystems.create(bucket.remote(path)) as file:
    file.write(data)


def _fetched(recording: schema.Recording, bucket, here) -> schema.Recording:
  """A file that is absent stays so: the reader tells."""
  from apache_beam.io.filesystems import FileSystems

  for path in recording.files:
    if FileSystems.exists(bucket.remote(path)):
      os.makedirs(os.path.dirname(here(path)), exist_ok=True)
      with FileSystems.open(bucket.remote(path)) as source, open(here(path), "wb") as target:
        shutil.copyfileobj(source, target)
  return dataclasses.replace(recording, files=tuple(here(path) for path in recording.files))

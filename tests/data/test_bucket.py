"""Workers without a shared disk: what they fetch, build and put back is what a local build writes.

The build itself is slow: pytest -m slow tests/data/test_bucket.py
"""

import functools
import os
import sys

import pytest
import recordings

from egoscale_jax import cli
from egoscale_jax.data import beam, bucket, builder, prepare, verify
from egoscale_jax.data.sources import egodex
from egoscale_jax.errors import UserError


def test_paths_below_the_mount_have_an_address():
  found = bucket.parse("/mnt/bucket/=gs://B/")
  assert found == bucket.Bucket("/mnt/bucket", "gs://B")
  assert found.remote("/mnt/bucket/in/a.mp4") == "gs://B/in/a.mp4"
  with pytest.raises(
    UserError, match=r"^--bucket=/mnt/bucket=gs://B: found /mnt/bucket2/a, expected --input and --output below /mnt/bucket$"
  ):
    found.remote("/mnt/bucket2/a")
  for wrong in ("/mnt/bucket", "gs://B", "mnt=gs://B"):
    with pytest.raises(UserError, match=r"expected MOUNT=ADDRESS"):
      bucket.parse(wrong)


def test_a_bucket_is_for_beam(capsys):
  assert cli.main(["prepare", "--source=egodex", "--input=in", "--output=out", "--bucket=/mnt=gs://B"]) == 1
  assert "found no --beam, whose workers it is for" in capsys.readouterr().err


def contents(folder):
  """{path: bytes} of what a build leaves, without the lock."""
  paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]
  return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.mark.slow
def test_workers_that_fetch_write_the_same_bytes(tmp_path, monkeypatch, capfd):
  monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
  mount = tmp_path / "mount"
  for i in range(4):
    recordings.write(mount / "in", f"pour/{i}", frames=40 + i, seed=i)
  (mount / "in" / "pour" / "3.mp4").unlink()
  (tmp_path / "remote").symlink_to(mount)  # the same files at another address; a worker that takes the mount's own would be seen below
  shared = bucket.parse(f"{mount}={tmp_path / 'remote'}")
  build = functools.partial(prepare.prepare, egodex, mount / "in", hand_name="dex3", image_size=64)
  build(mount / "local")
  opened = []
  build_part = builder.build
  monkeypatch.setattr(builder, "build", lambda part: opened.extend(r.files[0] for r in part.recordings) or build_part(part))
  build(mount / "out", run=functools.partial(beam.run, options="--runner=DirectRunner", bucket=shared))
  assert len(opened) == 4
  assert not any(path.startswith(str(mount)) for path in opened)
  assert verify.verify(mount / "out") == []
  found, expected = contents(mount / "out"), contents(mount / "local")
  assert found.keys() == expected.keys()
  for name in found:
    assert found[name] == expected[name], name
  assert str(mount).encode() in found["parts/00003.json"]  # the error of the recording without a video names it where a person finds it
  assert not any(name.endswith(builder.LEFTOVERS) for name in found)


@pytest.mark.slow
def test_a_worker_s_error_is_one_line(tmp_path, monkeypatch):
  mount = tmp_path / "mount"
  recordings.write(mount / "in", "pour/0")
  shared = bucket.parse(f"{mount}={mount}")

  def refuse(part):
    raise UserError("the disk of the worker is full")

  monkeypatch.setattr(builder, "_build", refuse)
  run = functools.partial(beam.run, options="--runner=DirectRunner", bucket=shared)
  with pytest.raises(UserError, match=r"^the disk of the worker is full$"):
    prepare.prepare(egodex, mount / "in", mount / "out", hand_name="dex3", run=run)
  with pytest.raises(UserError, match=r"expected --input and --output below"):
    prepare.prepare(egodex, mount / "in", tmp_path / "elsewhere", hand_name="dex3", run=run)

"""Every kind of damage to a folder of prepared data is found, and none in a whole one."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import recordings

from egoscale_jax import cli
from egoscale_jax.data import prepare, shards, verify
from egoscale_jax.errors import UserError


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  output = tmp_path_factory.mktemp("built") / "out"
  prepare.prepare(recordings.Cached(recordings.robots(8)), "in", output, validation=0.3)
  prepare.prepare(recordings.Cached(recordings.robots(11)), "in", output, validation=0.3, exclude={"pour/001"})
  return output


@pytest.fixture
def out(built, tmp_path):
  shutil.copytree(built, tmp_path / "out")
  return tmp_path / "out"


def clip_file(out, part=0):
  return pathlib.Path(shards.CLIPS.path(out, part))


def test_a_whole_folder_has_no_finding(built, out):
  assert verify.verify(built) == []
  (out / "README").write_text("A user's own note is none of our business.")
  assert verify.verify(out) == []


@pytest.mark.parametrize("number", range(12))
def test_a_flipped_bit_is_found_wherever_it_is(out, number):
  rng = np.random.default_rng(number)
  files = sorted(
    p for p in out.rglob("*") if p.suffix in (".npy", ".statistics") or "array_record-" in p.name or p.name == "statistics.json"
  )
  assert len(files) == 2 * 11 + 3
  path = files[int(rng.integers(len(files)))]
  data = bytearray(path.read_bytes())
  data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
  path.write_bytes(data)
  assert f"{path}: found sha256 " in verify.verify(out)[0]
  assert ", expected " in verify.verify(out)[0]


def test_a_truncated_and_a_missing_file(out):
  path = clip_file(out, 3)
  size = path.stat().st_size
  path.write_bytes(path.read_bytes()[:-1])
  assert verify.verify(out) == [f"{path}: found bytes {size - 1}, expected {size}"]
  path.unlink()
  assert verify.verify(out) == [f"{path}: missing, expected {size} bytes"]
  (out / "parts/00005.json").unlink()
  assert f"{out}/parts/00005.json: no such file" in "\n".join(verify.verify(out))


def test_two_files_that_changed_places(out):
  one, other = clip_file(out, 1), clip_file(out, 2)
  data = one.read_bytes()
  one.write_bytes(other.read_bytes())
  other.write_bytes(data)
  lines = verify.verify(out)
  assert [line.split(":")[0] for line in lines] == [str(one), str(other)]


def test_records_are_counted(out):
  """Also where somebody made the checksums fit."""
  path = out / "parts/00002.json"
  content = json.loads(path.read_text())
  name = next(name for name in content["files"] if "clips" in name)
  content["files"][name]["records"] += 1
  path.write_text(json.dumps(content))
  lines = "\n".join(verify.verify(out))
  assert f"{out}/{name}: found 3 records, expected 4" in lines
  assert f"{out}/index.npy: found 3 records in {name}, expected 4" in lines


def test_files_of_no_part(out):
  strange = [clip_file(out, 99), out / "parts/00099.json", out / "statistics/9-old.statistics", out / "parts/00001.reading"]
  for path in strange:
    path.write_bytes(b"")
  assert sorted(verify.verify(out)) == sorted(f"{path}: belongs to no part" for path in strange)


def edited(out, change):
  """-> the findings with another manifest."""
  content = json.loads((out / "manifest.json").read_text())
  change(content)
  (out / "manifest.json").write_text(json.dumps(content))
  return "\n".join(verify.verify(out))


def by_split(content, split):
  return next(e for e in content["episodes"] if e["split"] == split)


EDITS = {
  "episode 'frames'": (lambda c: c["episodes"][0].update(frames=7), "pour/000: frames: found 7, expected 40"),
  "split": (lambda c: by_split(c, "validation").update(split="train"), "found part, clips, frames, split"),
  "totals": (lambda c: c["totals"].update(hours=9000), "totals: hours: found 9000, expected 0.00"),
  "lost": (lambda c: c["episodes"].pop(), "found 10 episodes, expected the 11 of the parts"),
  "index": (lambda c: c.update(index_sha256="0"), "index.npy: found sha256 "),
  "parts": (lambda c: c.update(parts=10), "plan.json: found 11 parts, expected the 10 of manifest.json"),
  "statistics": (lambda c: c["statistics"]["testbot"].update(file="statistics/none"), "statistics/none: missing"),
  "scene": (lambda c: by_split(c, "train").update(scene=by_split(c, "validation")["scene"]), "in train and pour/"),
  "person": (lambda c: [by_split(c, s).update(person="Ann") for s in ("train", "validation")], "person 'Ann': found pour/"),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_manifest(out, name):
  change, line = EDITS[name]
  assert line in edited(out, change)


@pytest.mark.parametrize("key", ["parts", "episodes", "statistics", "totals", "index_sha256"])
@pytest.mark.parametrize("value", [None, 3, "x"])
def test_a_manifest_of_other_kinds_of_values_is_found_or_one_line(out, key, value):
  try:
    assert edited(out, lambda content: content.update({key: value}))
  except UserError as error:
    assert "not as it was written" in str(error)  # noqa: PT017


def test_an_index_of_other_episodes(out):
  index = np.load(out / "index.npy")
  index["clips"][4] += 1
  np.save(out / "index.npy", index)
  lines = "\n".join(verify.verify(out))
  assert "index.npy: found sha256" in lines
  assert "index.npy: pour/004: found part, clips, frames, split (4, 4," in lines


def test_no_finished_build_is_one_line(out, tmp_path):
  with pytest.raises(UserError, match=r"manifest\.json: no such file"):
    verify.verify(tmp_path)
  (out / "manifest.json").unlink()
  with pytest.raises(UserError, match=r"is not finished, expected manifest\.json"):
    verify.verify(out)


def test_the_command_tells_and_fails(built, out, capsys):
  assert cli.main(["doctor", f"--shards={built}"]) == 0
  assert capsys.readouterr().out == f"{built}: every file is as it was written\n"
  clip_file(out).unlink()
  assert cli.main(["doctor", f"--shards={out}"]) == 1
  told = capsys.readouterr()
  assert told.out.startswith(f"{clip_file(out)}: missing")
  assert told.err == f"egoscale doctor: {out}: 1 findings\n"
  for flags in ([], ["--source=egodex"], [f"--shards={out}", "--source=egodex"]):
    assert cli.main(["doctor", *flags]) == 1
    assert capsys.readouterr().err.startswith("egoscale doctor: --")

"""A build is killed, goes on, grows, is made by several processes or by Beam: always the same bytes, and nothing is half visible.

Episodes of robots, read from memory: nothing is decoded and nothing retargeted, so that a build takes a twentieth of a second.
"""

import errno
import fcntl
import functools
import hashlib
import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import recordings

from egoscale_jax.data import assemble, beam, builder, clips, manifest, prepare, shards, statistics, verify
from egoscale_jax.errors import UserError


def build(output, count=6, source=None, **how):
  return prepare.prepare(source or recordings.Cached(recordings.robots(count)), "in", output, validation=0.3, **how).manifest


def all_files(directory):
  directory = pathlib.Path(directory)
  return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def same(output, expected):
  found = all_files(output)
  assert sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)) == []


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """The files of a build of six recordings."""
  output = tmp_path_factory.mktemp("whole") / "out"
  build(output)
  return all_files(output)


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
  """Of one of six to which three were added."""
  output = tmp_path_factory.mktemp("grown") / "out"
  build(output)
  build(output, 9)
  return all_files(output)


def test_a_build_again_changes_nothing(whole, grown, tmp_path):
  for files, count in ((whole, 6), (grown, 9)):
    output = tmp_path / str(count)
    build(output)
    build(output, count)
    times = {p: p.stat().st_mtime_ns for p in output.rglob("*array_record-*")}
    build(output, count)
    same(output, files)
    assert times == {p: p.stat().st_mtime_ns for p in times}
    assert verify.verify(output) == []


def test_two_workers_write_the_same_bytes(whole, tmp_path):
  build(tmp_path / "out", workers=2)
  same(tmp_path / "out", whole)
  assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("options", ["", "--direct_running_mode=multi_processing --direct_num_workers=2"])
def test_beam_writes_the_same_bytes(whole, tmp_path, monkeypatch, options):
  monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
  build(tmp_path / "out", run=functools.partial(beam.run, options=f"--runner=DirectRunner {options}"))
  same(tmp_path / "out", whole)


def test_beam_hands_on_a_user_s_error_as_one_line(tmp_path, monkeypatch):
  def refuse(part):
    raise UserError(f"{part.output_dir}: cannot be written: No space left on device")

  run = functools.partial(beam.run, options="--runner=DirectRunner")
  monkeypatch.setattr(builder, "_build", refuse)
  with pytest.raises(UserError, match=r"out: cannot be written: No space left on device$"):
    build(tmp_path / "out", run=run)
  monkeypatch.undo()
  build(tmp_path / "out", run=run)
  assert verify.verify(tmp_path / "out") == []


def test_another_process_writes_the_same_bytes(whole, tmp_path):
  """With another seed of its hashes: no file is in the order of a set or of protobuf's maps."""
  code = f"import test_builder; test_builder.build({str(tmp_path / 'out')!r})"
  environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "7"}
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)
  assert done.returncode == 0, done.stderr
  same(tmp_path / "out", whole)


class Killed(BaseException):
  pass


def kill_at(monkeypatch, number, before):
  """The process "dies" before or after it puts its number-th file in place; every file of ours comes to its name this way."""
  count = 0
  replace = os.replace

  def dying(*paths):
    nonlocal count
    count += 1
    if count == number and before:
      raise Killed
    replace(*paths)
    if count == number:
      raise Killed

  monkeypatch.setattr(os, "replace", dying)


def killed(monkeypatch, number, before, function) -> bool:
  """False where it came to its end."""
  with monkeypatch.context() as patch:
    kill_at(patch, number, before)
    try:
      function()
    except Killed:
      return True
  return False


def readable(output):
  """-> the episodes that a reader sees, or None where it is told in one line that the folder is not finished."""
  try:
    index, content = shards.load_index(output), manifest.load(output)
  except UserError as error:
    assert str(error) == f"{output}: is not finished, expected manifest.json: start the same `egoscale prepare` again, it goes on"  # noqa: PT017
    return None
  assert hashlib.sha256((output / "index.npy").read_bytes()).hexdigest() == content["index_sha256"]
  assert hashlib.sha256((output / "statistics.json").read_bytes()).hexdigest() == content["statistics_sha256"]
  for told in content["statistics"].values():
    assert (output / told["file"]).exists()
  return len(index)


@pytest.mark.parametrize("before", [True, False])
def test_killed_at_any_file_it_goes_on_to_the_same_bytes(tmp_path, monkeypatch, before):
  build(tmp_path / "whole", 3)
  whole = all_files(tmp_path / "whole")
  seen = set()
  number = 1
  while killed(monkeypatch, number, before, lambda: build(tmp_path / str(number), 3)):  # noqa: B023
    output = tmp_path / str(number)
    if (output / "plan.json").exists():
      seen.add(readable(output))
    build(output, 3)
    same(output, whole)
    number += 1
  assert number == 1 + 1 + 3 * 3 + 3  # plan; three of each part; state, index, manifest
  assert seen == ({None} if before else {None, 3})


@pytest.mark.parametrize("before", [True, False])
def test_killed_while_it_grows_it_is_the_old_or_the_new_or_refused(tmp_path, monkeypatch, before):
  for count in (3, 5):
    build(tmp_path / "grown", count)
  grown = all_files(tmp_path / "grown")
  build(tmp_path / "old", 3)
  seen = []
  number = 1
  while True:
    output = tmp_path / str(number)
    shutil.copytree(tmp_path / "old", output)
    if not killed(monkeypatch, number, before, lambda: build(output, 5)):  # noqa: B023
      break
    seen.append(readable(output))
    build(output, 5)
    same(output, grown)
    number += 1
  assert seen[:7] == [3] * 7  # plan and two parts: whoever trains does not see them
  assert [n for n, following in itertools.pairwise(seen) if n != following] == ([3] if before else [3, None])
  assert seen[-1] == (None if before else 5)


def test_killed_again_and_again(whole, tmp_path, monkeypatch):
  """Dies at its first write each time, and still comes to an end."""
  output = tmp_path / "out"
  for number in (2, 2, 3, 2, 4, 2, 2):
    assert killed(monkeypatch, number, False, lambda n=number: build(output))
  build(output)
  same(output, whole)


def test_killed_in_the_middle_of_a_part(whole, tmp_path, monkeypatch):
  def dying(writer, data):
    raise Killed

  build_again = functools.partial(build, tmp_path / "out")
  with monkeypatch.context() as patch:
    patch.setattr(shards.Writer, "write", dying)
    with pytest.raises(Killed):
      build_again()
  assert any(name.endswith((".tmp", ".reading")) for name in all_files(tmp_path / "out"))
  build_again()
  same(tmp_path / "out", whole)


def record_set(output):
  index = shards.load_index(output)
  records = shards.Records(output, shards.CLIPS, shards.lengths(index, "clips"))
  episodes = shards.open_episodes(output)
  return sorted(records[i] for i in range(len(records))), sorted(episodes[i] for i in range(len(episodes)))


def test_adding_rewrites_nothing_and_holds_what_a_build_at_once_holds(tmp_path):
  output = tmp_path / "out"
  first = build(output, 20)
  old = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in output.rglob("*") if re.search(r"array_record-|parts/.*json", str(p))}
  assert len(old) == 3 * 20
  content = build(output, 60)
  assert old == {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in old}
  at_once = build(tmp_path / "once", 60)
  assert record_set(output) == record_set(tmp_path / "once")
  drawn = {e["id"]: e["split"] for e in first["episodes"]}
  assert drawn == {e["id"]: e["split"] for e in content["episodes"] if e["id"] in drawn}
  assert [e["id"] for e in content["episodes"]] == sorted(e["id"] for e in at_once["episodes"])
  assert {e["id"]: e["split"] for e in content["episodes"]} == {e["id"]: e["split"] for e in at_once["episodes"]}
  assert content["subsets"] == at_once["subsets"]
  grown, once = (statistics.load(folder / "statistics.json") for folder in (output, tmp_path / "once"))
  np.testing.assert_array_equal(grown.count_LxA, once.count_LxA)
  for name in ("mean_LxA", "std_LxA", "min_LxA", "max_LxA"):
    np.testing.assert_allclose(getattr(grown, name), getattr(once, name), rtol=1e-4, atol=1e-5)
  spread = once.max_LxA - once.min_LxA
  assert (np.abs(grown.q01_LxA - once.q01_LxA) <= 0.02 * spread + 1e-6).all()
  assert len(list((output / "statistics").iterdir())) == 1  # the old state went with its manifest
  assert verify.verify(output) == []


def counting(monkeypatch):
  """-> list that gets the ids of the episodes that statistics are made of."""
  read, seen = clips.read_labels, []

  def telling(data):
    values, labels = read(data)
    seen.append(values["episode"].removeprefix("egodex/"))
    return values, labels

  monkeypatch.setattr(assemble.clips, "read_labels", telling)
  return seen


def test_statistics_of_old_episodes_are_not_made_again(tmp_path, monkeypatch):
  build(tmp_path / "out", 6)
  seen = counting(monkeypatch)
  content = build(tmp_path / "out", 9)
  train = {e["id"] for e in content["episodes"] if e["split"] == "train"}
  assert seen == [f"pour/{i:03d}" for i in (6, 7, 8) if f"pour/{i:03d}" in train] != []
  assert {e["id"] for e in content["episodes"] if e["counted"]} == train
  seen.clear()
  build(tmp_path / "out", 9)
  assert seen == []


def test_what_is_excluded_later_is_in_no_split_and_no_statistics(tmp_path, monkeypatch):
  output = tmp_path / "out"
  before = build(output, 20)
  gone = {next(e["id"] for e in before["episodes"] if e["split"] == split) for split in ("train", "validation")}
  files = {p: p.stat().st_mtime_ns for p in output.rglob("*array_record-*")}
  content = build(output, 20, exclude=gone)
  assert files == {p: p.stat().st_mtime_ns for p in files}
  assert {e["id"] for e in content["episodes"] if e["split"] == "excluded"} == gone
  assert content["excluded"] == sorted(gone)
  for split in shards.SPLITS:
    opened = shards.open_split(output, split)
    read = {opened[i].episode.removeprefix("egodex/") for i in range(len(opened))}
    assert read == {e["id"] for e in content["episodes"] if e["split"] == split}
    assert not read & gone
  train = [e for e in content["episodes"] if e["split"] == "train"]
  table = statistics.load(output / "statistics.json")
  assert table.count_LxA[0, -1] == sum(e["frames"] - 1 for e in train)
  assert content["totals"]["kept"] == 18
  assert content["subsets"][-1]["episodes"] == len(train)
  assert verify.verify(output) == []
  again = build(output, 20)  # and back in
  assert {e["id"]: e["split"] for e in again["episodes"] if e["id"] not in gone} == {
    e["id"]: e["split"] for e in before["episodes"] if e["id"] not in gone
  }
  assert again["totals"]["kept"] == 20


def test_excluding_all_that_trains_is_one_line_and_leaves_the_folder_as_it_was(tmp_path):
  before = build(tmp_path / "out")
  train = {e["id"] for e in before["episodes"] if e["split"] == "train"}
  held_out = {e["id"] for e in before["episodes"] if e["split"] == "validation"}
  with pytest.raises(UserError, match="no usable episode in in: "):
    build(tmp_path / "out", exclude=train | held_out)
  assert manifest.load(tmp_path / "out") == before


def test_what_kills_its_worker_can_be_excluded(tmp_path, monkeypatch):
  """A part that is not built yet forgets what the list leaves out; afterwards it can come back as a new part."""

  def dying(part):
    if any(recording.id == "pour/003" for recording in part.recordings):
      raise Killed
    return build_part(part)

  build_part = builder._build
  monkeypatch.setattr(builder, "_build", dying)
  with pytest.raises(Killed):
    build(tmp_path / "out")
  content = build(tmp_path / "out", exclude={"pour/003"})
  assert [e["id"] for e in content["episodes"]] == [f"pour/{i:03d}" for i in (0, 1, 2, 4, 5)]
  assert verify.verify(tmp_path / "out") == []
  monkeypatch.undo()
  content = build(tmp_path / "out")
  assert (content["totals"]["kept"], content["parts"]) == (6, 7)
  assert verify.verify(tmp_path / "out") == []


OTHER = {"stride": 2, "images": 8, "codec": "h264", "image_size": 64, "seed": 1}


@pytest.mark.parametrize("name", OTHER)
def test_other_settings_are_one_line(whole, tmp_path, name):
  write(tmp_path / "out", whole)
  with pytest.raises(
    UserError, match=f"out was begun with other settings: {name}: found {OTHER[name]!r}, it has .*; choose another folder$"
  ):
    build(tmp_path / "out", **{name: OTHER[name]})
  same(tmp_path / "out", whole)


def write(output, files):
  for name, data in files.items():
    (output / name).parent.mkdir(parents=True, exist_ok=True)
    (output / name).write_bytes(data)


def test_another_hand_or_source_is_one_line(whole, tmp_path):
  write(tmp_path / "out", whole)
  with pytest.raises(UserError, match="begun with other settings: asked_hand: found 'sharpa_wave', it has None"):
    build(tmp_path / "out", hand_name="sharpa_wave")
  other = recordings.Cached(recordings.robots(6))
  other.SOURCE = "lerobot"
  with pytest.raises(UserError, match="begun with other settings: source: found 'lerobot', it has 'egodex'"):
    build(tmp_path / "out", source=other)


def test_another_recording_of_an_id_and_one_that_is_gone(tmp_path):
  (tmp_path / "in").mkdir()
  found = recordings.robots(6, tmp_path / "in")
  for recording in found:
    pathlib.Path(recording.files[0]).write_bytes(bytes(100))
  output = tmp_path / "out"
  build(output, source=recordings.Cached(found))
  fewer = {recording: episode for recording, episode in found.items() if recording.id != "pour/002"}
  content = build(output, source=recordings.Cached(fewer))  # it is in the files: nobody needs it any more
  assert content["totals"]["kept"] == 6
  path = pathlib.Path(next(iter(found)).files[0])
  path.write_bytes(bytes(101))
  with pytest.raises(UserError, match=f"^{path}: {output} holds another recording of the id pour/000; prepare it into a folder of its own"):
    build(output, source=recordings.Cached(found))


def test_a_recording_that_is_gone_before_it_was_read_is_one_line(tmp_path, monkeypatch):
  assert killed(monkeypatch, 6, False, lambda: build(tmp_path / "out"))
  found = recordings.robots(6)
  found.pop(next(recording for recording in found if recording.id == "pour/004"))
  with pytest.raises(UserError, match=r"^in: pour/004 is not there any more, and .*out is not finished with it; remove "):
    build(tmp_path / "out", source=recordings.Cached(found))


def test_a_second_prepare_at_the_same_time_is_one_line(whole, tmp_path):
  write(tmp_path / "out", whole)
  with open(tmp_path / "out/parts/lock") as held:
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(UserError, match=f"^{tmp_path}/out: another `egoscale prepare` is writing there$"):
      build(tmp_path / "out", 9)
  same(tmp_path / "out", whole)


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path):
  for name in ("out/thesis.tex", "parts/parts/thesis.tex", "parts/thesis.tex"):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("x")
  files = all_files(tmp_path)
  for folder in ("out", "parts", "out/thesis.tex"):
    with pytest.raises(UserError, match=f"{folder}: exists and is neither empty nor of `egoscale prepare`; remove it or choose another"):
      build(tmp_path / folder)
  assert all_files(tmp_path) == files


def test_what_cannot_be_written_is_one_line(tmp_path, monkeypatch):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match=r"file/out: cannot be written: Not a directory$"):
    build(tmp_path / "file/out")

  def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")

  with monkeypatch.context() as patch:
    patch.setattr(shards, "checksum", full)
    with pytest.raises(UserError, match=r"out: cannot be written: No space left on device$"):
      build(tmp_path / "out")
  build(tmp_path / "out")
  assert verify.verify(tmp_path / "out") == []


def test_no_permission_is_one_line(tmp_path):
  """Root may write everywhere, so permissions mean something only as another user."""
  tmp_path.chmod(0o755)
  (tmp_path / "closed").mkdir(mode=0o500)
  (tmp_path / "dark").mkdir(mode=0o000)
  was_root = os.geteuid() == 0
  for parent in [] if not was_root else [p for p in tmp_path.parents if p.stat().st_mode & 0o5 != 0o5]:
    parent.chmod(0o755)
  if was_root:
    os.seteuid(65534)
  try:
    for name in ("closed/out", "dark"):
      with pytest.raises(UserError, match=f"{name}: cannot be written: Permission denied$"):
        build(tmp_path / name)
  finally:
    if was_root:
      os.seteuid(0)
    (tmp_path / "dark").chmod(0o700)


def test_parts_are_enough_for_all_workers_and_not_too_many():
  assert [builder.sizes(n) for n in (1, 15, 31, 32, 1024, 10**6)] == [1, 1, 1, 2, 64, 64]


def test_a_damaged_plan_or_part_is_one_line(whole, tmp_path):
  for name, what in (("plan.json", "plan"), ("parts/00002.json", "part")):
    write(tmp_path / what, whole)
    (tmp_path / what / name).write_text('{"version": ')
    with pytest.raises(UserError, match=f"{name}: not JSON"):
      build(tmp_path / what)
  content = json.loads(whole["plan.json"])
  (tmp_path / "plan" / "plan.json").write_text(json.dumps(content | {"version": 99}))
  with pytest.raises(UserError, match=r"plan\.json: not plan of version 2; prepare the data again"):
    build(tmp_path / "plan")


@pytest.mark.slow
def test_twenty_kills_at_random_moments_end_with_the_same_bytes(tmp_path):
  """Of a real process and its two workers: while they start, between parts and within them."""
  for i in range(31):
    recordings.write(tmp_path / "in", f"pour/{i}", frames=40 + i, seed=i)
  command = [sys.executable, "-m", "egoscale_jax.cli", "prepare", "--source=egodex", f"--input={tmp_path}/in", "--image_size=90"]
  command += ["--validation=0.3", "--workers=2"]

  def start(output):
    with open(tmp_path / "log", "w") as log:
      return subprocess.Popen([*command, f"--output={output}"], stdout=log, stderr=log, start_new_session=True)

  def parts(output):
    return len(list(output.glob("parts/*.json")))

  assert start(tmp_path / "whole").wait(600) == 0, (tmp_path / "log").read_text()
  whole = all_files(tmp_path / "whole")
  rng = np.random.default_rng(0)
  output, done, finished = tmp_path / "out", [], 0
  for _ in range(20):
    process, wanted = start(output), parts(output) + rng.integers(0, 6)
    while process.poll() is None and parts(output) < wanted:
      time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.5))
    if process.poll() is None:
      os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done.append(parts(output))
    if process.returncode == 0:  # it came to its end: from the start again
      same(output, whole)
      shutil.rmtree(output)
      finished += 1
    elif (output / "plan.json").exists() and not (output / "manifest.json").exists():
      assert readable(output) is None
  print(f"parts done of 31 at each kill: {done}; came to its end {finished} times")
  assert start(output).wait(600) == 0, (tmp_path / "log").read_text()
  same(output, whole)
  assert verify.verify(output) == []

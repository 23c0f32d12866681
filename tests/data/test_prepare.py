import hashlib
import json
import os
import pathlib
import re

import numpy as np
import pytest
import recordings

from egoscale_jax.data import builder, doctor, manifest, prepare, schema, spec, statistics, workers
from egoscale_jax.data.sources import egodex
from egoscale_jax.errors import UserError
from egoscale_jax.hands import hand, retarget

HAND = "sharpa_wave"


def write_folder(directory):
  """Four usable recordings (one with a gap), four that are not."""

  def gap(file):
    file["transforms/leftHand"][10:13] = np.nan

  def missing(file):
    del file["transforms/leftThumbTip"]

  for i in range(3):
    recordings.write(directory, f"good/{i}", frames=40, seed=i)
  recordings.write(directory, "good/gap", frames=40, seed=3, change=gap)
  recordings.write(directory, "bad/lost_video", frames=20).with_suffix(".mp4").unlink()
  recordings.write(directory, "bad/missing", frames=20, change=missing)
  recordings.write(directory, "bad/frames", frames=20, video_frames=18)
  recordings.write(directory, "bad/short", frames=10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  directory = tmp_path_factory.mktemp("recordings")
  write_folder(directory)
  return directory


@pytest.fixture(scope="module")
def prepared(folder, tmp_path_factory):
  output = tmp_path_factory.mktemp("prepared") / "one"
  return prepare.prepare(egodex, folder, output, HAND, workers=1, image_size=90, validation=0.3)


def all_files(directory):
  directory = pathlib.Path(directory)
  return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def all_records(output, split):
  source = builder.open_split(output, split)
  return [source[i] for i in range(len(source))]


def test_usable_ones_are_kept_and_each_other_is_named(prepared, folder):
  entries = {e["id"]: e for e in prepared.manifest["episodes"]}
  kept = {name for name, e in entries.items() if e["status"] == "kept"}
  assert kept == {"good/0", "good/1", "good/2", "good/gap"}
  causes = {
    "bad/lost_video": "lost_video.mp4: missing",
    "bad/missing": "missing.hdf5: transforms/leftThumbTip is missing",
    "bad/frames": "frames.mp4: 18 frames, expected as many as the 20 poses",
    "bad/short": "short.hdf5: too_short: 10 frames in 0.33 s, expected at least 2 in 0.5 s",
  }
  assert set(entries) == kept | set(causes)
  lines = prepared.lines()
  for name, cause in causes.items():
    assert entries[name]["status"] == "rejected"
    assert entries[name]["error"].startswith(f"{folder}/bad/")
    assert cause in entries[name]["error"]
    assert f"rejected {entries[name]['error']}" in lines
  assert "masked not_finite left: 3 of 160 frames, in 1 of 4 episodes" in lines
  assert any(line.startswith("  good/gap: not_finite left, 3 frames from ") for line in lines)
  assert lines[-1] == f"kept 4 of 8 episodes, {160 / 30 / 60:.1f} minutes, in {prepared.output_dir}"
  assert not any("\n" in line for line in lines)


def test_manifest_tells_what_is_in_the_shards(prepared):
  content = manifest.load(prepared.output_dir)
  assert content == prepared.manifest
  assert content["embodiments"] == ["human"]
  assert (content["source"], content["hand"], content["image_size"]) == ("egodex", HAND, 90)
  gap = next(e for e in content["episodes"] if e["id"] == "good/gap")
  assert gap["findings"] == [
    {"name": "not_finite", "severity": "masked", "side": "left", "count": 3, "first_frame": 10, "last_frame": 12}
    | {"detail": "a keypoint is NaN or infinite", "spans": [[10, 12]]}
  ]
  assert gap["valid"] == [37 / 40, 1.0]
  assert (gap["frames"], gap["text"], gap["scene"]) == (40, "Pour the tea.", "session good/gap")
  assert 0 < gap["residual_m"] < 0.05
  with open(f"{prepared.output_dir}/statistics.json", "rb") as file:
    assert content["statistics_sha256"] == hashlib.file_digest(file, "sha256").hexdigest()
  for split, clips in content["totals"]["clips"].items():
    records = all_records(prepared.output_dir, split)
    assert len(records) == clips
    assert {r["episode"] for r in records} == {f"egodex/{e['id']}" for e in content["episodes"] if e["split"] == split}
    assert {r["embodiment"] for r in records} == {"human"}


def test_labels_in_the_shards_are_the_retargeted_keypoints(prepared, folder):
  """Nothing on the way from the file to the shard moves a frame or swaps a hand; and no zero where NaN was."""
  episode = egodex.read(schema.Recording("good/gap", (f"{folder}/good/gap.hdf5", f"{folder}/good/gap.mp4")), 90)
  valid_Fx2, _ = doctor.check(episode)
  points_Fx2xPx3 = np.where(valid_Fx2[..., None, None], episode.keypoints_Fx2xPx3, np.nan)
  expected = [
    retarget.retarget(points_Fx2xPx3[:, i], hand.load(HAND, side), side, rate_hz=episode.rate_hz)
    for i, side in enumerate(("left", "right"))
  ]
  records = [r for split in prepared.manifest["totals"]["clips"] for r in all_records(prepared.output_dir, split)]
  for record in [r for r in records if r["episode"] == "egodex/good/gap"]:
    start, length = record["start"], len(record["jpeg"])
    np.testing.assert_array_equal(record["keypoints"], episode.keypoints_Fx2xPx3[start : start + length])
    assert tuple(record["jpeg"]) == episode.jpeg_F[start : start + length]
    labelled = slice(start, start + len(record["valid"]))  # past the clip's frames: the last of them have a chunk of labels ahead
    assert labelled.stop == min(start + length + spec.TAIL_FRAMES, episode.num_frames)
    for i, result in enumerate(expected):
      valid = record["valid"][:, i]
      np.testing.assert_array_equal(valid, result.valid_F[labelled])
      np.testing.assert_allclose(record["joints"][valid, i], result.joints_FxJ[labelled][valid], atol=1e-6)
      for name in ("joints", "T_world_wrist", "residual_m"):
        assert np.isnan(record[name][~valid, i]).all()


def test_statistics_are_of_the_train_episodes(prepared):
  stats = statistics.load(f"{prepared.output_dir}/statistics.json")
  train = [e for e in prepared.manifest["episodes"] if e["split"] == "train"]
  assert 0 < len(train) < 4
  right = stats.count_LxA[0, -1]
  assert right == sum(e["frames"] - 1 for e in train)
  assert stats.hand == HAND
  assert len(stats.joint_names) == hand.load(HAND, "left").num_joints
  # The clips of an episode overlap in their tails; frames before the next clip are each of them once.
  joints = np.concatenate([r["joints"][: len(r["jpeg"])] for r in all_records(prepared.output_dir, "train")])
  assert stats.q99_LxA[0, -1] <= np.nanmax(joints[:, 1, -1]) + 1e-6


def test_two_workers_write_the_same_bytes(prepared, folder, tmp_path):
  two = prepare.prepare(egodex, folder, tmp_path / "two", HAND, workers=2, image_size=90, validation=0.3)
  one = all_files(prepared.output_dir)
  assert all_files(two.output_dir) == one
  assert sum("array_record" in name for name in one) == 2
  assert os.listdir(tmp_path) == ["two"]  # nothing is left beside it


def entries(scenes):
  return [{"status": "kept", "scene": scene, "split": None} for scene in scenes]


def draw(scenes, validation, seed=0):
  rows = entries(scenes)
  notes = prepare._draw_split(rows, validation, seed)
  by_scene = {scene: {r["split"] for r in rows if r["scene"] == scene} for scene in scenes}
  assert all(len(splits) == 1 for splits in by_scene.values())  # no scene straddles
  return {scene: splits.pop() for scene, splits in by_scene.items()}, notes


GOLDEN = [9, 15]  # of 20 scenes at a share of 0.2


def test_split_is_by_scene_and_stable_when_data_is_added():
  scenes = [f"scene {i % 200}" for i in range(400)]
  before, notes = draw(scenes, 0.1)
  assert notes == []
  after, _ = draw([*scenes, *(f"new scene {i}" for i in range(100))], 0.1)
  assert {scene: after[scene] for scene in before} == before
  share = sum(split == "validation" for split in before.values()) / len(before)
  assert 0.04 < share < 0.16
  assert draw(scenes, 0.1, seed=1)[0] != before
  assert set(draw(scenes, 0.0)[0].values()) == {"train"}
  # The same on every machine, in every process and release: where this changes, data that is prepared again leaks into validation.
  assert [i for i in range(20) if prepare.is_validation(f"scene {i}", 0.2, 0)] == GOLDEN


def test_split_fallbacks_leave_no_split_empty_and_say_so():
  for validation, in_validation in ((1e-9, 1), (1 - 1e-9, 2)):
    splits, notes = draw(["a", "b", "c"], validation)
    assert list(splits.values()).count("validation") == in_validation
    assert len(notes) == 1
  for validation in (1e-9, 0.5, 1 - 1e-9):
    splits, notes = draw(["a", "a"], validation)
    assert splits == {"a": "train"}
    assert "one scene only (a)" in notes[0]


def test_output_that_is_not_empty_is_refused_and_left_alone(folder, tmp_path):
  (tmp_path / "out").mkdir()
  (tmp_path / "out/thesis.tex").write_text("x")
  with pytest.raises(UserError, match="out: exists and is not an empty directory"):
    prepare.prepare(egodex, folder, tmp_path / "out", HAND)
  assert all_files(tmp_path) == {"out/thesis.tex": b"x"}


def test_output_that_cannot_be_written_is_one_line(folder, tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match=r"file/out: cannot be written: Not a directory$"):
    prepare.prepare(egodex, folder, tmp_path / "file/out", HAND)


def test_a_full_disk_is_one_line_and_leaves_nothing(folder, tmp_path, monkeypatch):
  def full(*args):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(builder, "write", full)
  episodes = {schema.Recording("a/0", ("a/0.hdf5",)): recordings.episode()}
  with pytest.raises(UserError, match=r"out: cannot be written: No space left on device$"):
    prepare.prepare(recordings.Cached(episodes), folder, tmp_path / "out", HAND)
  assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("argument", "value"), [("validation", 1.0), ("validation", -0.1), ("image_size", 4), ("workers", 0)])
def test_bad_arguments(folder, tmp_path, argument, value):
  with pytest.raises(UserError, match=f"{argument}: found {re.escape(str(value))}"):
    prepare.prepare(egodex, folder, tmp_path / "out", HAND, **{argument: value})
  assert os.listdir(tmp_path) == []


def test_nothing_usable_tells_counts_and_leaves_the_manifest_beside(tmp_path):
  recordings.write(tmp_path / "in", "bad/0", frames=10)
  recordings.write(tmp_path / "in", "bad/1", frames=20).with_suffix(".mp4").unlink()
  with pytest.raises(UserError) as error:
    prepare.prepare(egodex, tmp_path / "in", tmp_path / "out", HAND, image_size=90)
  counts = "2 found, 1 not readable, 1 refused by the checks"
  assert str(error.value).startswith(f"no usable episode in {tmp_path}/in: {counts}; {tmp_path}/out.manifest.json names each")
  assert "\n" not in str(error.value)
  assert sorted(os.listdir(tmp_path)) == ["in", "out.manifest.json"]
  content = json.loads((tmp_path / "out.manifest.json").read_text())
  assert [e["status"] for e in content["episodes"]] == ["rejected", "rejected"]


def die_on_two(recording):
  """Top level, so that a worker process finds it."""
  if recording.id == "2":
    os.kill(os.getpid(), 9)
  return recording.id


def bug_on_two(recording):
  return {"2": {}}.get(recording.id, {"x": recording.id})["x"]


def echo(recording):
  if recording.id == "3":
    raise UserError("three")
  return recording.id


RECORDINGS = [schema.Recording(str(i), (f"dir/{i}.hdf5",)) for i in range(8)]


def test_a_dying_worker_is_an_error_naming_the_file():
  with pytest.raises(UserError, match=r"^dir/2\.hdf5: the process that was reading it died with exit code -9"):
    list(workers.read_all(die_on_two, RECORDINGS, 2))


def test_a_bug_in_a_worker_is_raised_with_its_traceback():
  with pytest.raises(RuntimeError, match=r"(?s)dir/2\.hdf5 failed with.*bug_on_two.*KeyError: 'x'"):
    list(workers.read_all(bug_on_two, RECORDINGS, 2))


@pytest.mark.parametrize("count", [1, 3])
def test_workers_keep_the_order_and_hand_on_user_errors(count):
  results = list(workers.read_all(echo, RECORDINGS, count))
  assert [r.id for r, _ in results] == [str(i) for i in range(8)]
  assert [str(e) for _, e in results] == ["0", "1", "2", "three", "4", "5", "6", "7"]


def test_real_samples(shared, tmp_path, capsys):
  source = recordings.Cached(recordings.read_real(shared))
  summary = prepare.prepare(source, shared / "recordings/egodex", tmp_path / "out", HAND)
  total = summary.manifest["totals"]
  assert (total["kept"], total["rejected"], total["frames"]) == (5, 3, 744)
  assert sum(total["clips"].values()) == 6 + 8 + 10 + 11 + 13
  assert total["clips"]["validation"] > 0
  for e in summary.manifest["episodes"]:
    if e["status"] == "kept":
      assert min(e["valid"]) > 0.99, e["id"]
      assert e["residual_m"] < 0.01, e["id"]
  assert sum("missing" in line for line in summary.lines()) == 3
  written = capsys.readouterr()
  assert written.out == ""  # what a command prints is its own affair; the bar is on the standard error
  assert "8/8" in written.err

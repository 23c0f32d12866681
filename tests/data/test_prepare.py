"""`prepare` from recordings to a finished folder: what is kept, what is told, and that its arguments are checked.

Kills, additions and several processes are in test_builder.py.
"""

import hashlib
import json
import os
import pathlib
import re

import numpy as np
import pytest
import recordings

from egoscale_jax.data import clips, doctor, labeller, manifest, prepare, schema, shards, spec, statistics, workers
from egoscale_jax.data.sources import egodex
from egoscale_jax.errors import UserError
from egoscale_jax.hands import hand, retarget

HAND = "dex3"  # compiles in a third of the time that one of 22 joints takes


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


def all_clips(output, split):
  source = shards.open_split(output, split)
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
  output = prepared.output_dir
  content = manifest.load(output)
  assert content == prepared.manifest
  assert content["embodiments"] == ["human"]
  assert (content["source"], content["hand"], content["image_size"]) == ("egodex", HAND, 90)
  assert (content["stride"], content["images"], content["codec"], content["parts"]) == (1, 16, "jpeg", 8)
  gap = next(e for e in content["episodes"] if e["id"] == "good/gap")
  assert gap["findings"] == [
    {"name": "not_finite", "severity": "masked", "side": "left", "count": 3, "first_frame": 10, "last_frame": 12}
    | {"detail": "a keypoint is NaN or infinite", "spans": [[10, 12]]}
  ]
  assert gap["valid"] == [37 / 40, 1.0]
  assert (gap["frames"], gap["text"], gap["scene"]) == (40, "Pour the tea.", "session good/gap")
  assert 0 < gap["residual_m"] < 0.05
  told = {"statistics.json": content["statistics_sha256"], "index.npy": content["index_sha256"]}
  told |= {state["file"]: state["sha256"] for state in content["statistics"].values()}
  for name, sha256 in told.items():
    assert hashlib.sha256(pathlib.Path(output, name).read_bytes()).hexdigest() == sha256
  assert sum(content["totals"]["clips"].values()) == 4 * 3
  for split, count in content["totals"]["clips"].items():
    read = all_clips(output, split)
    assert len(read) == count
    assert {clip.episode for clip in read} == {f"egodex/{e['id']}" for e in content["episodes"] if e["split"] == split}
    assert {clip.embodiment for clip in read} == {"human"}


def test_labels_in_the_shards_are_the_retargeted_keypoints(prepared, folder):
  """Nothing on the way from the file to the shard moves a frame or swaps a hand; and no zero where NaN was."""
  episode = egodex.read(schema.Recording("good/gap", (f"{folder}/good/gap.hdf5", f"{folder}/good/gap.mp4")), 90)
  valid_Fx2, _ = doctor.check(episode)
  points_Fx2xPx3 = np.where(valid_Fx2[..., None, None], episode.keypoints_Fx2xPx3, np.nan)
  expected = [
    retarget.retarget(points_Fx2xPx3[:, i], hand.load(HAND, side), side, rate_hz=episode.rate_hz)
    for i, side in enumerate(("left", "right"))
  ]
  read = [clip for split in prepared.manifest["totals"]["clips"] for clip in all_clips(prepared.output_dir, split)]
  read = [clip for clip in read if clip.episode == "egodex/good/gap"]
  assert len(read) == 3
  for clip in read:
    here = slice(clip.start, clip.start + clip.num_images)
    np.testing.assert_array_equal(clip.keypoints_Nx2xPx3, episode.keypoints_Fx2xPx3[here])
    assert [clip.picture(i) for i in range(clip.num_images)] == list(episode.jpeg_F[here])
    labelled = slice(clip.start, clip.start + len(clip.valid_Fx2))  # past the clip's frames: the last of them have a chunk of labels ahead
    assert labelled.stop == min(here.stop + spec.TAIL_FRAMES, episode.num_frames)
    for i, result in enumerate(expected):
      valid = clip.valid_Fx2[:, i]
      np.testing.assert_array_equal(valid, result.valid_F[labelled])
      np.testing.assert_allclose(clip.joints_Fx2xJ[valid, i], result.joints_FxJ[labelled][valid], atol=1e-6)
      for array in (clip.joints_Fx2xJ, clip.T_world_wrist_Fx2x4x4, clip.residual_m_Fx2):
        assert np.isnan(array[~valid, i]).all()


def test_two_workers_write_the_same_bytes(prepared, folder, tmp_path):
  """Although XLA runs with other threads there."""
  two = prepare.prepare(egodex, folder, tmp_path / "two", HAND, workers=2, image_size=90, validation=0.3)
  one = all_files(prepared.output_dir)
  assert all_files(two.output_dir) == one
  assert sum("array_record-" in name for name in one) == 2 * 8
  assert os.listdir(tmp_path) == ["two"]  # nothing is left beside it


def test_statistics_are_of_the_train_episodes(prepared):
  stats = statistics.load(f"{prepared.output_dir}/statistics.json")
  train = [e for e in prepared.manifest["episodes"] if e["split"] == "train"]
  assert 0 < len(train) < 4
  assert stats.count_LxA[0, -1] == sum(e["frames"] - 1 for e in train)
  assert stats.hand == HAND
  assert len(stats.joint_names) == hand.load(HAND, "left").num_joints
  joints = np.concatenate([clip.joints_Fx2xJ for clip in all_clips(prepared.output_dir, "train")])
  assert stats.q99_LxA[0, -1] <= np.nanmax(joints[:, 1, -1]) + 1e-6


def test_every_third_picture_as_h264_end_to_end(folder, tmp_path):
  """Labels stay at the full rate; the pictures are those of the JPEG build, nearly."""
  jpeg, h264 = (
    prepare.prepare(
      egodex, folder, tmp_path / codec, HAND, image_size=90, validation=0.3, stride=3, codec=codec, exclude={"good/1", "good/2"}
    )
    for codec in (clips.JPEG, clips.H264)
  )
  assert jpeg.manifest["totals"]["clips"] == h264.manifest["totals"]["clips"]
  assert (h264.manifest["stride"], h264.manifest["codec"]) == (3, "h264")
  for split in jpeg.manifest["totals"]["clips"]:
    for one, other in zip(all_clips(jpeg.output_dir, split), all_clips(h264.output_dir, split)):
      assert one.num_images == other.num_images == 14
      assert len(one.valid_Fx2) == 40
      assert (one.stride, one.rate_hz) == (3, 30.0)
      for field in ("joints_Fx2xJ", "T_world_wrist_Fx2x4x4", "keypoints_Nx2xPx3", "T_world_camera_CxNx4x4"):
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field))
      for image in range(14):
        difference = one.rgb(image).astype(int) - other.rgb(image)
        assert np.abs(difference).mean() < 3  # grey levels; from picture to picture it is 24
      assert np.abs(one.rgb(0).astype(int) - other.rgb(1)).mean() > 10
  assert os.path.getsize(shards.CLIPS.path(h264.output_dir, 0)) <= os.path.getsize(shards.CLIPS.path(jpeg.output_dir, 0))


def test_robots_without_wrist_poses_are_kept_with_their_joints(tmp_path, monkeypatch):
  """As soon as the checks let them pass: the wrist's numbers are NaN, and masked by themselves."""
  monkeypatch.setattr(labeller.doctor, "check", lambda episode: (np.ones((episode.num_frames, 2), bool), []))
  found = {}
  for recording in recordings.robots(4):
    number = int(recording.id[-3:])
    found[recording] = recordings.robot(40, number, recording.id, f"scene {number}", T_world_wrist_Fx2x4x4=schema.missing(40, 2, 4, 4))
  summary = prepare.prepare(recordings.Cached(found), "in", tmp_path / "out", validation=0.3)
  assert summary.manifest["totals"]["kept"] == 4
  clip = all_clips(summary.output_dir, "train")[0]
  assert clip.valid_Fx2.all()
  assert np.isnan(clip.T_world_wrist_Fx2x4x4).all()
  assert np.isfinite(clip.joints_Fx2xJ).all()
  table = statistics.load(f"{summary.output_dir}/statistics.json")
  assert (table.count_LxA[0].reshape(2, -1)[:, :9] == 0).all()
  assert (table.count_LxA[0].reshape(2, -1)[:, 9:] > 0).all()


def test_humans_and_robots_of_other_joints_are_told_apart(tmp_path):
  found = recordings.robots(3)
  human = schema.Recording("human", ("/none/human.hdf5",))
  found[human] = recordings.episode(name="human", scene="hall")
  content = prepare.prepare(recordings.Cached(found), "in", tmp_path / "out").manifest
  entry = next(e for e in content["episodes"] if e["id"] == "human")
  expected = "/none/human.hdf5: joints: found those of sharpa_wave, expected those of testbot as pour/000 has; prepare them apart"
  assert (entry["status"], entry["error"]) == ("rejected", expected)
  assert content["embodiments"] == ["testbot"]


BAD = [("validation", 1.0), ("validation", -0.1), ("image_size", 4), ("workers", 0)]
BAD += [("stride", 0), ("stride", 65), ("images", 0), ("images", 257), ("codec", "png")]


@pytest.mark.parametrize(("argument", "value"), BAD)
def test_bad_arguments(folder, tmp_path, argument, value):
  with pytest.raises(UserError, match=f"{argument}: found {re.escape(repr(value))}"):
    prepare.prepare(egodex, folder, tmp_path / "out", HAND, **{argument: value})
  assert os.listdir(tmp_path) == []


def test_a_wrong_hand_or_config_is_told_before_anything_is_written(folder, tmp_path):
  with pytest.raises(UserError, match="shrapa"):
    prepare.prepare(egodex, folder, tmp_path / "out", "shrapa")
  with pytest.raises(UserError, match="columns: found x, expected none"):
    prepare.prepare(egodex, folder, tmp_path / "out", HAND, columns="x")
  assert os.listdir(tmp_path) == []


def test_nothing_usable_tells_counts_and_leaves_a_manifest_of_another_name(tmp_path):
  recordings.write(tmp_path / "in", "bad/0", frames=10)
  recordings.write(tmp_path / "in", "bad/1", frames=20).with_suffix(".mp4").unlink()
  with pytest.raises(UserError) as error:
    prepare.prepare(egodex, tmp_path / "in", tmp_path / "out", HAND, image_size=90)
  counts = "2 found, 1 not readable, 1 refused by the checks"
  assert str(error.value).startswith(f"no usable episode in {tmp_path}/in: {counts}; {tmp_path}/out/rejected.manifest.json names each")
  assert "\n" not in str(error.value)
  content = json.loads((tmp_path / "out/rejected.manifest.json").read_text())
  assert [e["status"] for e in content["episodes"]] == ["rejected", "rejected"]
  with pytest.raises(UserError, match="is not finished"):
    shards.open_split(tmp_path / "out", "train")
  recordings.write(tmp_path / "in", "good/0", frames=20)  # and goes on when there is something
  summary = prepare.prepare(egodex, tmp_path / "in", tmp_path / "out", HAND, image_size=90)
  assert summary.manifest["totals"]["kept"] == 1
  assert not (tmp_path / "out/rejected.manifest.json").exists()


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
  summary = prepare.prepare(source, shared / "recordings/egodex", tmp_path / "out", "sharpa_wave")
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

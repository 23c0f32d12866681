import json

import fuzz
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import recordings
import robots
import simplejpeg

from egoscale_jax import geometry
from egoscale_jax.data import schema
from egoscale_jax.data.sources import columns, lerobot
from egoscale_jax.errors import UserError

WRITERS = {"v2.1": robots.write_v2, "v3.0": robots.write_v3}


@pytest.fixture(params=WRITERS)
def write(request):
  return WRITERS[request.param]


def read_all(folder, image_size=180):
  return [lerobot.read(r, image_size) for r in lerobot.find(folder)]


def test_both_versions_give_the_same_episodes_as_written(tmp_path, write):
  write(tmp_path, "kitchen")
  episodes = read_all(tmp_path)
  assert [e.id for e in episodes] == ["kitchen/episode_000000", "kitchen/episode_000001"]
  for i, e in enumerate(episodes):
    fuzz.check_shapes(e)
    count = robots.LENGTHS[i]
    assert e.num_frames == count
    values = robots.state(count, i)
    np.testing.assert_array_equal(e.state_FxS, values)
    np.testing.assert_array_equal(e.action_FxA[:-1], values[1:])
    assert e.state_names == e.action_names == robots.NAMES
    np.testing.assert_array_equal(e.joints_Fx2xJ[:, 0], values[:, 7:])
    np.testing.assert_array_equal(e.joint_targets_Fx2xJ[:-1, 0], values[1:, 7:])
    assert e.joint_names == (("grip_0", "grip_1"), ())
    np.testing.assert_allclose(e.T_world_wrist_Fx2x4x4[:, 0], recordings.wrist_path(count, i)[:, 0], atol=1e-6)
    assert e.has_wrist_Fx2.tolist() == [[True, False]] * count
    assert (e.embodiment, e.frame, e.rate_hz, e.licence) == ("testbot", schema.Frame.BASE, 30.0, "CC0")
    assert e.text == robots.TASKS[0]
    half = count // 2
    assert [(s.text, s.start_s * 30, s.end_s * 30) for s in e.spans] == [(robots.TASKS[0], 0, half), (robots.TASKS[1], half, count)]
    means = [float(simplejpeg.decode_jpeg(jpeg).mean()) for jpeg in e.jpeg_F]
    np.testing.assert_allclose(means, [robots.level(i, f) for f in range(count)], atol=2.4)  # the next frame is 5 off
    camera = geometry.transform(geometry.se3_inverse(e.T_world_camera_Fx4x4), e.T_world_wrist_Fx2x4x4[:, 0, None, :3, 3])
    x, y, z = np.moveaxis(camera[:, 0].astype(float), -1, 0)
    pixels = geometry.project(e.intrinsics_3x3, camera)[:, 0]
    np.testing.assert_allclose(pixels, np.stack([150 * x / z + 159.5, 151 * y / z + 89.5], axis=-1), atol=1e-3)
    assert ((pixels > 0) & (pixels < (320, 180))).all()


def test_without_a_config_state_and_action_are_kept_and_no_frame_is_claimed(tmp_path, write):
  write(tmp_path, config=None)
  e = read_all(tmp_path)[0]
  fuzz.check_shapes(e)
  assert e.frame is schema.Frame.NONE
  assert not e.has_wrist_Fx2.any()
  assert np.isnan(e.intrinsics_3x3).all()
  assert e.state_names == robots.NAMES
  assert e.camera_names == ("ego",)  # the other is in info.json alone


def test_modality_json_tells_hands_camera_and_text(tmp_path):
  root = robots.write_v2(tmp_path, config=None, change=lambda i, c: c.update({"annotation.human.task": [1] * len(c["index"])}))
  modality = {
    "state": {"left_arm": {"start": 0, "end": 7}, "left_gripper": {"start": 7, "end": 9}},
    "action": {"left_gripper": {"start": 7, "end": 9}},
    "video": {"ego_view": {"original_key": robots.KEY}},
    "annotation": {"human.task": {}, "human.validity": {}},
  }
  (root / "meta/modality.json").write_text(json.dumps(modality))
  e = read_all(tmp_path)[0]
  np.testing.assert_array_equal(e.joints_Fx2xJ[:, 0], robots.state(20)[:, 7:])
  assert (e.camera_names, e.text, e.joint_names[0]) == (("ego_view",), robots.TASKS[1], ("grip_0", "grip_1"))


def test_a_config_beside_the_data_set_serves_where_it_may_not_be_written_to(tmp_path, write):
  write(tmp_path, config=None)
  (tmp_path / "egoscale.json").write_text(json.dumps(robots.CONFIG))
  assert read_all(tmp_path)[0].frame is schema.Frame.BASE


@pytest.mark.parametrize("layout", ["xyz_quat_wxyz", "xyz_quat_xyzw", "xyz_rotvec", "xyz_rpy", "xyz_rot6d_rows", "matrix"])
def test_pose_layouts(layout):
  """Each against scipy's rotations, which the project does not use."""
  from scipy.spatial.transform import Rotation

  pose = recordings.wrist_path(30)[:, 0]
  turned = Rotation.from_matrix(pose[:, :3, :3])
  numbers = {
    "xyz_quat_wxyz": turned.as_quat()[:, [3, 0, 1, 2]],
    "xyz_quat_xyzw": turned.as_quat(),
    "xyz_rotvec": turned.as_rotvec(),
    "xyz_rpy": turned.as_euler("xyz"),
    "xyz_rot6d_rows": pose[:, :2, :3].reshape(30, 6),
  }
  values = pose.reshape(30, 16) if layout == "matrix" else np.concatenate([pose[:, :3, 3], numbers[layout]], axis=1)
  table = columns.Table("f", 30, lambda name: values, {})
  np.testing.assert_allclose(table.pose({"column": "a", "pose": layout}, "w"), pose, atol=1e-6)
  values = np.where(np.arange(30)[:, None] == 4, np.nan, values)
  assert np.isnan(table.pose({"column": "a", "pose": layout}, "w")).all(axis=(1, 2)).nonzero()[0].tolist() == [4]


def test_a_human_s_keypoints_in_columns(tmp_path):
  points = recordings.hand_points(20).astype(np.float32)
  points[4, 1] = np.nan

  def change(i, c):
    rows = points[: len(c["index"])]
    c.update({"hands": rows.reshape(len(rows), 126).tolist()})

  hand = {s: {"keypoints": {"column": "hands", "start": 63 * i, "end": 63 * i + 63}} for i, s in enumerate(("left", "right"))}
  robots.write_v2(tmp_path, config={"frame": "world", **hand}, change=change)
  e = read_all(tmp_path)[0]
  fuzz.check_shapes(e)
  assert e.embodiment == "human"
  np.testing.assert_array_equal(e.keypoints_Fx2xPx3, points)
  assert (e.confidence_Fx2xP[4, 1] == 0).all()


def config(**change):
  return robots.CONFIG | change


def left(**change):
  return config(left={k: v for k, v in (robots.CONFIG["left"] | change).items() if v is not None})


BAD = {
  "no frame": ({k: v for k, v in robots.CONFIG.items() if k != "frame"}, 'frame is missing, expected "world", "base" or "camera"'),
  "another frame": (config(frame="moon"), "frame is 'moon', expected"),
  "unknown key": (config(lefty={}), "unknown key lefty, expected one of"),
  "unknown hand key": (left(fingers=3), "unknown key left/fingers"),
  "no axes": (left(T_tool_wrist=None), 'left/T_tool_wrist is missing, expected 4 x 4 numbers or "identity"'),
  "layout": (left(wrist=robots.CONFIG["left"]["wrist"] | {"pose": "xyz"}), "left/wrist/pose is 'xyz', expected one of xyz_quat_wxyz"),
  "width": (left(wrist=robots.CONFIG["left"]["wrist"] | {"end": 6}), "left/wrist has 6 numbers, expected 7"),
  "no unit quaternion": (left(wrist=robots.CONFIG["left"]["wrist"] | {"start": 2, "end": 9}), "has a quaternion of norm"),
  "slice": (left(joints={"column": "action", "start": 7, "end": 99}), "left/joints is action[7:99], expected a part of its 9 numbers"),
  "column": (left(joints={"column": "actions"}), "actions is missing, found observation.state, action"),
  "targets": (left(joint_targets={"column": "action"}), "left/joint_targets has 9 numbers, expected 2 as joints"),
  "text": (config(text="instruction"), "the text's column instruction is missing"),
  "text of numbers": (config(text="timestamp"), "which is no text and no task"),
  "camera": (config(cameras={"observation.images.nose": {}}), "no such video"),
  "K": (config(cameras={robots.KEY: {"intrinsics": [1, 1, 999, 3]}}), "principal point at (999.0, 3.0)"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_configs_are_one_line(tmp_path, name):
  changed, cause = BAD[name]
  robots.write_v2(tmp_path, config=changed)
  lines = fuzz.lines_of(lerobot, tmp_path)
  assert lines
  assert all(cause in line for line in lines), lines


def test_versions_are_told_apart_and_others_refused(tmp_path):
  robots.write_v2(tmp_path, "good")
  robots.write_v2(tmp_path, "future", codebase_version="v4.0")
  robots.write_v2(tmp_path, "foreign").joinpath("meta/info.json").write_text('{"name": "npm"}')
  lines = fuzz.lines_of(lerobot, tmp_path)
  assert len(lines) == 2
  assert "foreign/meta/info.json: codebase_version is None, expected v2.0, v2.1, v3.0" in lines[0]
  assert "future/meta/info.json: codebase_version is 'v4.0'" in lines[1]
  assert len(lerobot.find(tmp_path)) == 4


def test_names_that_leave_the_data_set_are_refused(tmp_path):
  outside = tmp_path / "outside.mp4"
  recordings.write_video(outside, 20)
  robots.write_v2(tmp_path / "in", "up", video_path="../../outside.mp4")
  robots.write_v2(tmp_path / "in", "absolute", data_path=str(outside))
  robots.write_v2(tmp_path / "in", "format", video_path="{episode_index.__class__}")
  lines = fuzz.lines_of(lerobot, tmp_path / "in")
  assert len([line for line in lines if "leaves" in line]) == 4
  assert len(lines) == 6  # the last template names no place: no such video


def test_files_that_are_links_as_hugging_face_s_cache_has_them(tmp_path, write):
  root = write(tmp_path / "in")
  (tmp_path / "blobs").mkdir()
  for i, path in enumerate(sorted(p for p in root.rglob("*") if p.is_file())):
    path.rename(tmp_path / "blobs" / str(i))
    path.symlink_to(tmp_path / "blobs" / str(i))
  assert [e.num_frames for e in read_all(tmp_path / "in")] == list(robots.LENGTHS)


def test_a_damaged_clock_and_missing_frames_are_told(tmp_path):
  def late(i, c):
    c["timestamp"][5:] = [t + 0.1 for t in c["timestamp"][5:]]

  def short(place):
    place["length"] = [19, 17]

  robots.write_v2(tmp_path / "a", change=late)
  assert "timestamp goes on by 4 frames after frame 4, expected 1 at 30 Hz" in fuzz.lines_of(lerobot, tmp_path / "a")[0]
  robots.write_v3(tmp_path / "b", change=short)
  assert "holds 20 frames of episode 0, expected 19" in fuzz.lines_of(lerobot, tmp_path / "b")[0]
  root = robots.write_v2(tmp_path / "c")
  recordings.write_video(root / "videos/chunk-000" / robots.KEY / "episode_000001.mp4", 9)
  assert "9 frames, expected 17 as episode_000001.parquet has" in fuzz.lines_of(lerobot, tmp_path / "c")[0]


def test_pictures_in_the_table(tmp_path):
  from egoscale_jax.data.sources import mp4

  root = robots.write_v2(tmp_path)
  path = root / "data/chunk-000/episode_000000.parquet"
  jpegs = [mp4.encode(robots.grey_of(0)(f)) for f in range(20)]
  table = pq.read_table(path).append_column("observation.images.wrist", pa.array([{"bytes": j, "path": None} for j in jpegs]))
  pq.write_table(table, path)
  told = json.loads((root / "meta/info.json").read_text())
  told["features"]["observation.images.wrist"] = {"dtype": "image", "shape": [180, 320, 3]}
  (root / "meta/info.json").write_text(json.dumps(told))
  (root / "meta/egoscale.json").write_text(json.dumps(config(cameras={robots.KEY: {}, "observation.images.wrist": {"name": "wrist"}})))
  e = lerobot.read(lerobot.find(tmp_path)[0], 180)
  fuzz.check_shapes(e)
  assert e.camera_names == ("ego", "wrist")
  assert e.jpeg_CxF[1] == tuple(jpegs)  # of the right size: not encoded twice


def test_empty_and_closed_files(tmp_path):
  with pytest.raises(UserError, match="expected LeRobot data sets"):
    lerobot.find(tmp_path)
  root = robots.write_v2(tmp_path)
  (root / "data/chunk-000/episode_000000.parquet").write_bytes(b"")
  assert fuzz.lines_of(lerobot, tmp_path) == [f"{root}/data/chunk-000/episode_000000.parquet: is empty"]
  lines = fuzz.lines_where_closed(lerobot, lambda folder: robots.write_v2(folder) / "data/chunk-000/episode_000001.parquet")
  assert lines == ["set/data/chunk-000/episode_000001.parquet: cannot be opened: Permission denied"]


def test_real_samples_of_both_versions_agree(shared):
  """The same five episodes as version 2.0 in h264 and as 3.0 in one AV1 file."""
  old = lerobot.find(shared / "recordings" / "gr00t_robot_sim_picknplace")
  new = lerobot.find(shared / "recordings" / "lerobot_v3_from_gr00t")
  assert len(old) == len(new) == 5
  for i, frames, thing in ((1, 470, "ketchup"), (4, 328, "spray")):
    a, b = (lerobot.read(found[i], 64) for found in (old, new))
    assert a.num_frames == b.num_frames == frames
    assert a.text == b.text == f"pick the {thing} from the counter and place it in the plate"
    assert a.rate_hz == b.rate_hz == 20.0
    np.testing.assert_array_equal(a.state_FxS, b.state_FxS)
    np.testing.assert_array_equal(a.action_FxA, b.action_FxA)
    np.testing.assert_array_equal(a.joints_Fx2xJ[:, 1], a.state_FxS[:, 29:35])
    assert a.camera_names == ("ego_view",)
    for f in (0, frames // 2, frames - 1):
      first, second = (simplejpeg.decode_jpeg(e.jpeg_F[f]).astype(float) for e in (a, b))
      assert np.abs(first - second).mean() < 3.0, (i, f)


def test_real_parquet_values_are_those_that_pyarrow_reads(shared):
  root = shared / "recordings/gr00t_robot_sim_picknplace/robot_sim.PickNPlace"
  rows = pq.read_table(root / "data/chunk-000/episode_000004.parquet").to_pylist()
  e = lerobot.read(lerobot.find(root)[4], 32)
  assert e.id == "robot_sim.PickNPlace/episode_000004"
  np.testing.assert_array_equal(e.state_FxS, np.array([row["observation.state"] for row in rows], np.float32))


@pytest.mark.parametrize("count", [150, pytest.param(10_000, marks=pytest.mark.slow)])
def test_damaged_files_are_refused_or_read_but_never_a_traceback(tmp_path, write, count):
  write(tmp_path)
  assert fuzz.survives(lerobot, tmp_path, count) > count // 4


@pytest.mark.parametrize("count", [60, pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.parametrize("file", ["meta/egoscale.json", "meta/info.json", "meta/modality.json"])
def test_odd_values_in_json_are_refused_or_read_but_never_a_traceback(tmp_path, file, count):
  root = robots.write_v2(tmp_path, config=None if "modality" in file else robots.CONFIG)
  modality = {"state": {"left_gripper": {"start": 7, "end": 9}}, "video": {"ego": {"original_key": robots.KEY}}, "annotation": {"a.b": {}}}
  (root / "meta/modality.json").write_text(json.dumps(modality))
  assert fuzz.survives_odd_json(lerobot, tmp_path, root / file, count) > 10

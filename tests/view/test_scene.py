"""What the page shows, without a page: which pictures, hands, labels and findings an episode has, and from what frame on each is drawn."""

import dataclasses

import numpy as np
import pytest
import recordings
import simplejpeg

from egoscale_jax import geometry
from egoscale_jax.data import manifest, prepare, schema
from egoscale_jax.data import shards as shards_lib
from egoscale_jax.data.findings import Finding
from egoscale_jax.errors import UserError
from egoscale_jax.evaluate import film
from egoscale_jax.hands import keypoints
from egoscale_jax.view import draw, episodes, timeline, video
from egoscale_jax.view import scene as scene_lib

F = 12


def a_scene(**fields):
  """A human, both hands always there, no robot hand."""
  points = recordings.hand_points(F).astype(np.float32)
  pose = np.repeat(recordings.T_WORLD_CAMERA[None], F, axis=0)
  camera = scene_lib.Camera("head", tuple(recordings.jpeg(i) for i in range(F)), (180, 320), recordings.INTRINSICS, pose)
  values = dict(
    name="egodex/pour/0",
    text="Pour.",
    embodiment="human",
    rate_hz=30.0,
    stride=1,
    cameras=(camera,),
    keypoints_Fx2xPx3=points,
    T_world_wrist_Fx2x4x4=keypoints.wrist_frames(points),
    joints_Fx2xJ=np.zeros((F, 2, 0), np.float32),
    hand="",
    robot_Fx2xPx3=schema.missing(F, 2, 21, 3),
    confidence_Fx2=np.full((F, 2), 0.6, np.float32),
    residual_m_Fx2=schema.missing(F, 2),
    valid_Fx2=np.ones((F, 2), bool),
    findings=(),
  )
  return scene_lib.Scene(**values | fields)


@pytest.fixture(scope="module")
def of_shards(shards):
  return scene_lib.of_shards(shards, 4)


def test_shards_give_every_frame_of_the_episode_that_the_video_shows(shards, of_shards):
  """The `episode`-th is that of `egoscale view --output`, and the pictures, poses and keypoints are those."""
  name, entries = list(episodes.from_shards(shards).items())[4]
  footage = episodes.footage_of_records(entries)
  assert (of_shards.name, of_shards.text, of_shards.num_frames) == (name, footage.text, 54)
  mine = of_shards.footage()
  assert mine.jpeg_F == footage.jpeg_F
  for field in ("T_world_camera_Fx4x4", "keypoints_Fx2xPx3", "T_world_wrist_Fx2x4x4", "joints_Fx2xJ"):
    np.testing.assert_array_equal(getattr(mine, field), getattr(footage, field))
  (camera,) = of_shards.cameras
  assert simplejpeg.decode_jpeg(camera.jpeg_N[0]).shape[:2] == camera.image_size
  assert of_shards.confidence_Fx2.shape == (54, 2)
  np.testing.assert_allclose(of_shards.confidence_Fx2, 0.6, atol=1e-6)  # as recordings.write has it: 0.5 to 0.7
  assert (of_shards.residual_m_Fx2 > 0).all()


def test_the_video_of_shards_shows_the_labels_and_greys_a_hand_that_has_none(of_shards):
  footage = of_shards.footage()
  masked = dataclasses.replace(footage, joints_Fx2xJ=np.where(np.arange(2)[:, None] == 0, np.nan, footage.joints_Fx2xJ))
  robot = np.where(np.arange(2)[:, None, None] == 0, np.nan, of_shards.robot_Fx2xPx3)
  colours = lambda *drawn: set(map(tuple, np.asarray(video.annotate(*drawn)).reshape(-1, 3).tolist()))  # noqa: E731
  plain, told = colours(footage, 5), colours(footage, 5, None, of_shards.robot_Fx2xPx3)
  assert set(draw.SIDE_COLOURS) <= plain
  assert not plain & {*draw.LABELLED, draw.MASKED}
  assert {*draw.SIDE_COLOURS, *draw.LABELLED} <= told
  half = colours(masked, 5, None, robot)
  assert {draw.MASKED, draw.SIDE_COLOURS[1], draw.LABELLED[1]} <= half
  assert not half & {draw.SIDE_COLOURS[0], draw.LABELLED[0]}


def test_the_robot_hand_hangs_at_the_wrist_and_reaches_the_humans_tips(of_shards):
  assert of_shards.hand == "sharpa_wave"
  off = np.linalg.norm(of_shards.robot_Fx2xPx3 - of_shards.keypoints_Fx2xPx3, axis=-1)
  assert np.nanmax(off[:, :, keypoints.WRIST]) < 1e-5
  assert np.nanmedian(off[:, :, list(keypoints.TIPS)]) < 0.03


def test_findings_come_with_the_shards(shards, monkeypatch):
  told = manifest.load(shards)
  row = sorted(told["episodes"], key=lambda e: e["id"])[4]
  row["findings"].append(dataclasses.asdict(Finding("jump", "masked", "left", 3, 2, 4, "found", ((2, 4),))))
  monkeypatch.setattr(manifest, "load", lambda _: told)
  (finding,) = scene_lib.of_shards(shards, 4).findings[-1:]
  assert (finding.name, finding.spans) == ("jump", ((2, 4),))


def test_two_cameras_and_a_stride(tmp_path):
  """Each camera has its own pictures, every third frame; labels are of every frame."""
  frames = 50
  made = recordings.robot(frames)
  views = [
    schema.View(name, tuple(recordings.jpeg(i + shift) for i in range(frames)), (180, 320), recordings.INTRINSICS, pose)
    for name, shift, pose in (("head", 0, made.T_world_camera_Fx4x4), ("wrist", 60, None))
  ]
  made = dataclasses.replace(made, **schema.views(*views))
  source = recordings.Cached({schema.Recording("pour/0", ("/none/a.hdf5",)): made})
  prepare.prepare(source, "in", tmp_path / "out", validation=0.0, stride=3)
  scene = scene_lib.of_shards(tmp_path / "out")
  assert [camera.name for camera in scene.cameras] == ["head", "wrist"]
  for camera, jpeg_F in zip(scene.cameras, made.jpeg_CxF):
    assert camera.jpeg_N == jpeg_F[::3]
  np.testing.assert_array_equal(scene.cameras[0].T_world_camera_Fx4x4, made.T_world_camera_Fx4x4)
  np.testing.assert_array_equal(scene.T_world_wrist_Fx2x4x4, made.T_world_wrist_Fx2x4x4)
  footage = scene.footage()
  assert (footage.rate_hz, footage.stride, len(footage.jpeg_F)) == (10.0, 3, 17)
  np.testing.assert_array_equal(footage.joints_Fx2xJ, made.joints_Fx2xJ[::3])


def test_a_split_and_an_episode_out_of_range(shards):
  held_out = scene_lib.of_shards(shards, 0, shards_lib.VALIDATION)
  entry = next(e for e in manifest.load(shards)["episodes"] if e["split"] == shards_lib.VALIDATION)
  assert held_out.name.endswith(entry["id"])
  for number in (6, -1):
    with pytest.raises(UserError, match=rf"--episode={number}: .* holds 6 episodes"):
      scene_lib.of_shards(shards, number)


def test_a_robot_of_an_unknown_hand_has_wrists_alone():
  made = scene_lib.of_episode(recordings.robot(20))
  assert (made.hand, made.embodiment) == ("", "testbot")
  assert np.isnan(made.robot_Fx2xPx3).all()
  assert np.isfinite(made.T_world_wrist_Fx2x4x4).all()
  assert np.isnan(made.confidence_Fx2).all()
  line = timeline.make(made)
  assert all(lines == [] for _, lines in line.strips["world/human/left"].rows)
  assert all(len(lines) == 2 for _, lines in line.strips["world/wrist/right"].rows)


def test_a_rejected_human_is_shown_without_labels():
  made = scene_lib.of_episode(recordings.episode(F, frame=schema.Frame.CAMERA))
  assert [f.name for f in made.findings] == ["moving_frame"]
  assert not made.valid_Fx2.any()
  assert made.joints_Fx2xJ.shape[-1] == 0
  assert timeline.make(made).lanes["findings/moving_frame"].rows == [(0, "rejected"), (F, None)]


def test_lines_are_there_when_the_hand_is_and_gone_when_it_is_not():
  """A row a frame, since a row holds until the next: a hand that is lost must not stay on the page."""
  scene = a_scene()
  scene.keypoints_Fx2xPx3[3:6, 0] = np.nan
  rows = timeline.make(scene).strips["world/human/left"].rows
  assert [frame for frame, _ in rows] == list(range(F))
  assert [len(lines) for _, lines in rows] == [5, 5, 5, 0, 0, 0] + [5] * 6
  np.testing.assert_array_equal(rows[7][1][1], scene.keypoints_Fx2xPx3[7, 0, [0, 5, 6, 7, 8]])
  assert len(timeline.make(scene).strips["world/human/right"].rows[4][1]) == 5


def test_bones_leave_out_what_a_robot_hand_lacks():
  points = recordings.hand_template("right")
  points[17:21] = np.nan  # no little finger
  points[6] = np.nan
  lines = timeline.bones(points)
  assert len(lines) == 4
  np.testing.assert_array_equal(lines[1], points[[0, 5, 7, 8]])
  points[keypoints.WRIST] = np.nan
  assert timeline.bones(points) == []


def test_lanes_begin_and_end_with_their_spans():
  found = (
    Finding("jump", "masked", "left", 4, 2, 8, "", ((2, 3), (7, 8))),
    Finding("dark", "warning", "", 1, F - 1, F - 1, "", ((F - 1, F - 1),)),
  )
  valid = np.ones((F, 2), bool)
  valid[2:4, 0] = False
  lanes = timeline.make(a_scene(findings=found, valid_Fx2=valid)).lanes
  assert lanes["findings/jump_left"].rows == [(2, "masked"), (4, None), (7, "masked"), (9, None)]
  assert lanes["findings/dark"].rows == [(F - 1, "warning"), (F, None)]
  assert lanes["labels/left"].rows == [(0, "label"), (2, "no label"), (4, "label"), (F, None)]
  assert lanes["labels/right"].rows == [(0, "label"), (F, None)]


def test_curves_have_no_point_where_nothing_is_known():
  residual = schema.missing(F, 2)
  residual[4, 1] = 0.0125
  curves = timeline.make(a_scene(residual_m_Fx2=residual)).curves
  assert curves["quality/residual_mm/left"].rows == []
  assert curves["quality/residual_mm/right"].rows == [(4, pytest.approx(12.5))]
  assert [frame for frame, _ in curves["quality/confidence/left"].rows] == list(range(F))


class FakePredictor:
  """Says that the wrist moves 1 cm a step along the world's x, stiff."""

  stride, horizon = 4, 3

  def __init__(self):
    self.asked = []

  def __call__(self, footage, number):
    self.asked.append((len(footage.jpeg_F), number, footage.stride))
    return footage.keypoints_Fx2xPx3[number] + 0.01 * np.arange(1, 4)[:, None, None, None] * np.array([1.0, 0, 0])


def test_a_chunk_is_asked_at_every_picture_and_drawn_from_its_frame():
  """Of a scene with a stride of 2: picture n is of frame 2 n; the truth beside the chunk is of the same time, as far as there is any."""
  scene = a_scene(stride=2)
  scene = dataclasses.replace(scene, cameras=(dataclasses.replace(scene.cameras[0], jpeg_N=scene.cameras[0].jpeg_N[::2]),))
  predictor = FakePredictor()
  chunks = list(scene_lib.predict(predictor, scene))
  assert predictor.asked == [(6, n, 2) for n in range(6)]
  assert [chunk.frame for chunk in chunks] == [0, 2, 4, 6, 8, 10]
  strips = timeline.chunk_strips(scene, chunks[1])
  assert set(frame for drawn in strips.values() for frame, _ in drawn.rows) == {2}
  (wrist,) = strips["world/predicted/right/wrist"].rows[0][1]
  start = scene.T_world_wrist_Fx2x4x4[2, 1, :3, 3]
  np.testing.assert_allclose(wrist, start + 0.01 * np.arange(4)[:, None] * np.array([1.0, 0, 0]), atol=1e-6)
  assert len(strips["world/predicted/left/tips"].rows[0][1]) == 5
  (true,) = strips["world/true/left/wrist"].rows[0][1]
  np.testing.assert_array_equal(true, scene.T_world_wrist_Fx2x4x4[2:, 0, :3, 3])  # to frame 14, of which there are 12
  late = timeline.chunk_strips(scene, chunks[-1])
  assert len(late["world/true/left/wrist"].rows[0][1][0]) == 2
  assert timeline.true_strips(scene, F - 1, F + 5)["world/true/left/wrist"].rows == [(F - 1, [])]


def test_a_chunk_without_a_pose_clears_the_one_before():
  scene = a_scene()
  chunk = scene_lib.Chunk(3, np.array([4, 5]), np.full((2, 2, 21, 3), np.nan))
  strips = timeline.chunk_strips(scene, chunk)
  for part in ("wrist", "tips", "hand"):
    assert strips[f"world/predicted/left/{part}"].rows == [(3, [])]


@pytest.mark.parametrize("degrees", [0, 30, 60, 80])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_up_is_told_by_a_camera_that_looks_down_at_a_table(degrees, axis):
  """A level camera looks along an axis of the world with another of them up, and tilts down by so much."""
  up = np.eye(3)[axis]
  forward = np.eye(3)[(axis + 1) % 3]
  level = np.stack([np.cross(forward, up), -up, forward], axis=1)
  tilt = geometry.so3_exp(np.array([-np.radians(degrees), 0, 0]))
  poses = np.repeat(geometry.se3(level @ tilt, np.zeros(3))[None], F, axis=0)
  scene = a_scene()
  scene = dataclasses.replace(scene, cameras=(dataclasses.replace(scene.cameras[0], T_world_camera_Fx4x4=poses),))
  np.testing.assert_array_equal(timeline.up(scene), up)


def test_a_scene_without_any_pose_has_no_viewpoint():
  scene = a_scene(keypoints_Fx2xPx3=schema.missing(F, 2, 21, 3), T_world_wrist_Fx2x4x4=schema.missing(F, 2, 4, 4))
  assert timeline.viewpoint(scene) is None
  assert timeline.make(scene).strips["world/wrist/left"].rows[0] == (0, [])


@pytest.fixture
def rollout(tmp_path):
  """A folder of two films, written as rollout.run does: a robot that plans at frames 0 and 8."""
  frames, joints = 16, np.zeros((16, 2, 22), np.float32)
  wrists = recordings.wrist_path(frames).astype(np.float32)
  step = geometry.se3(np.eye(3), np.array([0.02, 0, 0]))
  plan = np.stack([np.linalg.matrix_power(step, k + 1) for k in range(4)])
  content = {
    **{"text": "Open it.", "body": "sharpa_wave", "hand": "sharpa_wave", "rate_hz": 15.0, "intrinsics": recordings.INTRINSICS},
    **{"T_world_camera": np.repeat(recordings.T_WORLD_CAMERA[None], frames, axis=0), "T_world_wrist": wrists, "joints": joints},
    **{"keypoints": schema.missing(frames, 2, 21, 3), "plan_frame": np.array([0, 8]), "plan_stride": 2},
    "plan_wrist": np.broadcast_to(plan[None, :, None], (2, 4, 2, 4, 4)).astype(np.float32),
    "plan_joints": np.zeros((2, 4, 2, 22), np.float32),
    "pictures": np.full((frames, 32, 32, 3), 90, np.uint8),
  }
  for name in ("drawer_best_001", "drawer_worst_000"):
    film.save(content, tmp_path / f"{name}.mp4")
  (tmp_path / "trials.jsonl").write_text("")
  return tmp_path


def test_a_rollout_has_its_own_chunks(rollout):
  scene = scene_lib.of_rollout(rollout, 1)
  assert (scene.name, scene.rate_hz, scene.num_frames, scene.hand) == ("drawer_worst_000", 15.0, 16, "sharpa_wave")
  assert len(scene.cameras[0].jpeg_N) == 16
  second = scene.chunks[1]
  assert (second.frame, list(second.frame_T)) == (8, [10, 12, 14, 16])
  assert timeline.make(scene).lanes == {}  # nothing of it is a label
  start = scene.T_world_wrist_Fx2x4x4[8, 1]
  np.testing.assert_allclose(second.keypoints_Tx2xPx3[:, 1, 0], start[:3, 3] + 0.02 * np.arange(1, 5)[:, None] * start[:3, 0], atol=1e-6)
  with pytest.raises(UserError, match=r"--episode=2: .* holds 2 episodes"):
    scene_lib.of_rollout(rollout, 2)


def test_a_damaged_film_is_one_line(rollout):
  path = rollout / "drawer_best_001.npz"
  path.write_bytes(path.read_bytes()[:200])
  with pytest.raises(UserError, match="cannot be read as a film"):
    scene_lib.of_rollout(rollout, 0)
  np.savez(path, text="?")
  with pytest.raises(UserError, match=r"rate_hz.* is missing"):
    scene_lib.of_rollout(rollout, 0)

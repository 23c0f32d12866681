"""Robot episodes and recordings of other formats on the road to the shards and the batch."""

import dataclasses
import json
import re
import types

import numpy as np
import pytest
import recordings
import robots
import test_landmarks

from egoscale_jax import geometry
from egoscale_jax.data import actions, doctor, examples, labels, manifest, pipeline, prepare, schema, shards, slots, statistics
from egoscale_jax.data.sources import landmarks, lerobot
from egoscale_jax.errors import UserError
from egoscale_jax.hands import retarget


def no_retarget(*_):
  raise AssertionError("a robot's hand is not retargeted")


@pytest.fixture
def episode(tmp_path):
  robots.write_v2(tmp_path)
  return lerobot.read(lerobot.find(tmp_path)[0], 90)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  folder = tmp_path_factory.mktemp("robots")
  robots.write_v3(folder / "in")
  return prepare.prepare(lerobot, folder / "in", folder / "out", image_size=90, validation=0.5)


def records(output):
  for split in manifest.load(output)["totals"]["clips"]:
    source = shards.open_split(output, split)
    yield from (source[i] for i in range(len(source)))


def test_a_robot_s_labels_are_its_own_wrists_and_joints(episode):
  valid, findings = doctor.check(episode)
  assert findings == []
  assert valid.tolist() == [[True, False]] * 20
  result, findings = labels.label(episode, None, valid, no_retarget)
  assert findings == []
  np.testing.assert_array_equal(result.T_world_wrist_Fx2x4x4[:, 0], episode.T_world_wrist_Fx2x4x4[:, 0])
  np.testing.assert_array_equal(result.joints_Fx2xJ[:, 0], robots.state(20)[:, 7:])
  assert np.isnan(result.T_world_wrist_Fx2x4x4[:, 1]).all()
  assert np.isnan(result.joints_Fx2xJ[:, 1]).all()
  assert np.isnan(result.residual_m_Fx2).all()


def test_faults_of_a_robot_are_named_and_masked(episode):
  wrist, joints, targets = (a.copy() for a in (episode.T_world_wrist_Fx2x4x4, episode.joints_Fx2xJ, episode.joint_targets_Fx2xJ))
  wrist[3, 0] = np.nan
  wrist[9:, 0, 0, 3] += 0.5
  joints[15, 0, 1] = targets[15, 0, 1] = np.nan
  joints[16, 0, 1] = np.nan  # the command is known: no fault
  changed = dataclasses.replace(episode, T_world_wrist_Fx2x4x4=wrist, joints_Fx2xJ=joints, joint_targets_Fx2xJ=targets)
  valid, findings = doctor.check(changed)
  assert [(f.name, f.side, f.count, f.first_frame) for f in findings] == [
    ("not_finite", "left", 1, 3),
    ("wrist_jump", "left", 2, 8),
    ("joints_not_finite", "left", 1, 15),
  ]
  assert np.flatnonzero(~valid[:, 0]).tolist() == [3, 8, 9, 15]
  result, _ = labels.label(changed, None, valid, no_retarget)
  assert result.joints_Fx2xJ[16, 0, 1] == targets[16, 0, 1]


def test_without_wrist_poses_a_hand_is_valid_where_its_joints_are(episode):
  joints = episode.joints_Fx2xJ.copy()
  joints[4, 0] = np.nan
  nothing = {"T_world_wrist_Fx2x4x4": schema.missing(20, 2, 4, 4), "joint_targets_Fx2xJ": schema.missing(*joints.shape)}
  blind = dataclasses.replace(episode, frame=schema.Frame.NONE, joints_Fx2xJ=joints, **nothing)
  valid, findings = doctor.check(blind)
  assert [(f.name, f.severity, f.count) for f in findings] == [("no_wrist", "warning", 20), ("joints_not_finite", "masked", 1)]
  assert np.flatnonzero(~valid[:, 0]).tolist() == [4]
  assert not valid[:, 1].any()


def test_robot_episodes_reach_the_shards(prepared):
  content = manifest.load(prepared.output_dir)
  assert content["embodiments"] == ["testbot"]
  assert content["hand"] == "testbot"
  assert content["totals"]["kept"] == 2
  assert {e["licence"] for e in content["episodes"]} == {"CC0"}
  stats = statistics.load(f"{prepared.output_dir}/statistics.json")
  assert (stats.hand, stats.joint_names) == ("testbot", ("grip_0", "grip_1"))
  texts = set()
  for record in records(prepared.output_dir):
    index = int(record.episode[-1])
    start, count = record.start, len(record.valid_Fx2)
    np.testing.assert_array_equal(record.joints_Fx2xJ[:, 0], robots.state(robots.LENGTHS[index], index)[start : start + count, 7:])
    assert record.embodiment == "testbot"
    assert record.valid_Fx2[:, 0].all()
    assert not record.valid_Fx2[:, 1].any()
    texts.add(record.text)
    step, mask = actions.make_chunk(record.T_world_wrist_Fx2x4x4, record.joints_Fx2xJ, record.valid_Fx2, 0, 4)
    path = recordings.wrist_path(robots.LENGTHS[index], index)[start:, 0]
    relative = geometry.se3_inverse(path[0]) @ path[4]
    np.testing.assert_allclose(step[3, :3], relative[:3, 3], atol=1e-6)
    assert mask[:, :11].all()
    assert not mask[:, 11:].any()
  assert texts == set(robots.TASKS)  # the clips of the second half have the second task


def test_a_batch_of_robot_clips(prepared):
  import tiny

  from egoscale_jax.data import tokenizer

  config = tiny.config(prepared.output_dir, batch_size=4, steps=2)
  prompt = tokenizer.Prompt(tokenizer.build(list(robots.TASKS), 512), 1, tiny.image_tokens(config), config.data.text_tokens)
  with pytest.raises(UserError, match="no slot for the embodiment 'testbot'"):
    slots.gather(config)
  with config.unlocked():
    config.data.slots = dict(human=0, testbot=3)
  stats = slots.gather(config)
  assert list(stats) == [3]
  batch = next(pipeline.train_batches(config, prompt, stats, 0, 0, 1))
  assert set(np.asarray(batch.embodiment_B)) == {3}
  assert batch.action_mask_BxTxA.any()
  assert np.isfinite(batch.action_BxTxA).all()
  # A robot has its proprioception, human video has none (paper section 2.3); of its one arm, for there is no other.
  assert batch.state_mask_B.all()
  assert batch.state_BxS[:, :11].any(axis=0).all()
  assert not batch.state_BxS[:, 11:].any()

  with config.unlocked():
    config.data.resting = tuple(map(re.escape, (names := stats[3].action_names)[:1] + names[9:11]))
  rested = next(pipeline.train_batches(config, prompt, stats, 0, 0, 1))
  learnt_A = np.array([n != 0 and n < 9 for n in range(rested.action_mask_BxTxA.shape[-1])])
  np.testing.assert_array_equal(rested.action_mask_BxTxA, batch.action_mask_BxTxA & learnt_A)
  np.testing.assert_array_equal(rested.state_BxS, batch.state_BxS)


def test_a_robot_s_wrists_are_seen_from_the_camera_or_as_the_config_says_from_the_base(prepared):
  import tiny

  from egoscale_jax.data import tokenizer

  def state(clip, has_wrists=True, **data):
    config = tiny.config(prepared.output_dir, **{f"data.{name}": value for name, value in data.items()})
    with config.unlocked():
      config.data.slots = dict(testbot=3)
    prompt = tokenizer.Prompt(tokenizer.build(list(robots.TASKS), 512), 1, tiny.image_tokens(config), config.data.text_tokens)
    assembler = examples.make_assembler(config, prompt, slots.gather(config))
    observed_A = assembler.slots[3].normalizer.observed_A
    observed_A[: actions.WRIST_DIM] &= has_wrists
    batch = assembler.fill(assembler.allocate(1), [examples.Window(clip, 2)], np.zeros(1, np.int32))
    assert batch.state_mask_B.all()
    return batch.state_BxS[0, :11]

  clip = next(iter(records(prepared.output_dir)))
  wrist = clip.T_world_wrist_Fx2x4x4[2 * clip.stride, 0]
  seen = geometry.se3_inverse(recordings.T_WORLD_CAMERA.astype(np.float64)) @ wrist
  for found, expected in ((state(clip), seen), (state(clip, base_state=("testbot",)), wrist)):
    np.testing.assert_allclose(found[:3] * actions.STATE_METRES, expected[:3, 3], atol=1e-5)
    np.testing.assert_allclose(found[3:9], expected[:2, :3].reshape(-1), atol=1e-5)
  lost = dataclasses.replace(clip, T_world_camera_CxNx4x4=np.full_like(clip.T_world_camera_CxNx4x4, np.nan))
  np.testing.assert_array_equal(state(lost, base_state=("testbot",)), state(clip, base_state=("testbot",)))
  with pytest.raises(UserError, match=r"config.data.base_state: found without 'testbot', whose recordings do not tell where the camera is"):
    state(lost)
  joints_alone = state(lost, has_wrists=False)
  assert not joints_alone[:9].any()
  np.testing.assert_array_equal(joints_alone[9:], state(clip)[9:])


def test_a_named_hand_must_have_the_robot_s_joints(tmp_path):
  robots.write_v2(tmp_path / "in")
  with pytest.raises(UserError, match=r"joints: found 2 a hand, expected the 22 of sharpa_wave"):
    prepare.prepare(lerobot, tmp_path / "in", tmp_path / "out", "sharpa_wave")


def test_robots_of_other_joints_are_not_mixed(tmp_path):
  robots.write_v2(tmp_path / "in", "a")
  config = json.loads(json.dumps(robots.CONFIG))
  for key in ("joints", "joint_targets"):
    config["left"][key] |= {"start": 8}
  robots.write_v2(tmp_path / "in", "b", config=config)
  summary = prepare.prepare(lerobot, tmp_path / "in", tmp_path / "out", image_size=64)
  kept = [e["id"][0] for e in summary.manifest["episodes"] if e["status"] == "kept"]
  assert kept == ["a", "a"]
  assert "expected those of testbot as a/episode_000000 has; prepare them apart" in summary.manifest["episodes"][2]["error"]


def test_a_wrist_without_a_hand_makes_no_label(tmp_path):
  config = json.loads(json.dumps(robots.CONFIG))
  del config["left"]["joints"], config["left"]["joint_targets"]
  robots.write_v2(tmp_path / "in", config=config)
  with pytest.raises(UserError, match="joints: found none, expected those of a hand or a gripper"):
    prepare.prepare(lerobot, tmp_path / "in", tmp_path / "out", image_size=64)


def test_a_config_beside_the_recordings_that_was_mended_is_another_output(tmp_path):
  root = robots.write_v2(tmp_path / "in")
  prepare.prepare(lerobot, tmp_path / "in", tmp_path / "out", image_size=90)
  prepare.prepare(lerobot, tmp_path / "in", tmp_path / "out", image_size=90)  # the same: nothing to do
  (path,) = root.rglob("egoscale.json")
  frame = {"base": "world", "world": "base"}[robots.CONFIG["frame"]]
  path.write_text(json.dumps(robots.CONFIG | {"frame": frame}))
  with pytest.raises(
    UserError, match=f"^{path}: the columns mean something else than when {tmp_path}/out was begun; prepare it into a folder"
  ):
    prepare.prepare(lerobot, tmp_path / "in", tmp_path / "out", image_size=90)


def test_a_hand_s_description_that_was_mended_is_another_output(tmp_path, monkeypatch):
  robots.write_v2(tmp_path / "in")
  description = tmp_path / "hand.xml"
  description.write_text("one")
  monkeypatch.setattr(prepare.hand_lib, "files", lambda name, side: (description,))
  prepare.prepare(lerobot, tmp_path / "in", tmp_path / "out", image_size=90)
  prepare.prepare(lerobot, tmp_path / "in", tmp_path / "out", image_size=90)  # the same: nothing to do
  description.write_text("two")
  with pytest.raises(UserError, match=r"was begun with other settings: hand_sha256: found '\w+', it has '\w+'; choose another folder"):
    prepare.prepare(lerobot, tmp_path / "in", tmp_path / "out", image_size=90)


def test_columns_are_for_sources_that_need_them(tmp_path):
  test_landmarks.write(tmp_path / "in")
  with pytest.raises(UserError, match=r"columns: found x\.json, expected none: recordings of landmarks"):
    prepare.prepare(landmarks, tmp_path / "in", tmp_path / "out", columns="x.json")


def test_landmarks_reach_the_shards(tmp_path, monkeypatch):
  def still(points, hand, side, rate_hz):  # the solver has its own tests, and takes long to compile
    return types.SimpleNamespace(joints_FxJ=np.zeros((40, hand.num_joints)), residual_m_F=np.zeros(40), valid_F=np.ones(40, bool))

  monkeypatch.setattr(retarget, "retarget", still)
  test_landmarks.write(tmp_path / "in", frames=40, span_text=["reach"], span_s=[[0.0, 0.5]], licence="CC BY 4.0")
  summary = prepare.prepare(landmarks, tmp_path / "in", tmp_path / "out", image_size=90)
  assert summary.manifest["totals"]["kept"] == 1, summary.lines()
  by_start = {r.start: r for r in records(tmp_path / "out")}
  assert [by_start[s].text for s in sorted(by_start)] == ["reach", "Pour the tea.", "Pour the tea."]
  assert all(r.valid_Fx2.all() for r in by_start.values())
  description = json.loads((tmp_path / "out/egoscale/2.0.0/dataset_info.json").read_text())
  assert "CC BY 4.0" in json.dumps(description)


@pytest.mark.parametrize("write", [test_landmarks.write, robots.write_v3])
def test_view_draws_an_episode_of_any_source(tmp_path, write):
  """Something is drawn where the wrist is: the keypoints of a human, the axes of a robot."""
  from egoscale_jax.view import episodes, video

  source = {test_landmarks.write: landmarks, robots.write_v3: lerobot}[write]
  write(tmp_path / "in")
  footage = episodes.open_footage(tmp_path / "in", 0, source)
  drawn = np.asarray(video.annotate(footage, 5))
  camera = geometry.transform(geometry.se3_inverse(footage.T_world_camera_Fx4x4[5]), footage.T_world_wrist_Fx2x4x4[5, 0, None, :3, 3])
  scale = drawn.shape[1] / 320
  x, y = ((geometry.project(footage.intrinsics_3x3, camera)[0] + 0.5) * scale).round().astype(int)
  patch = drawn[y - 6 : y + 6, x - 6 : x + 6].astype(int)
  assert (np.ptp(patch, axis=2) > 60).any()  # coloured, on a grey picture
  video.view(tmp_path / "in", tmp_path / "v.png", 0, source=source)
  with pytest.raises(UserError, match=r"--episode=9: .* holds"):
    video.view(tmp_path / "in", tmp_path / "v.png", 9, source=source)

"""Recordings of the bench are read and prepared without loss, and say what a rollout carries out."""

import dataclasses
import pathlib

import numpy as np
import pytest

from egoscale_jax import geometry
from egoscale_jax.data import actions, clips, doctor, manifest, prepare, shards
from egoscale_jax.data.sources import lerobot, simulated
from egoscale_jax.errors import UserError
from egoscale_jax.hands import keypoints
from egoscale_jax.sim.bench import RATE_HZ, noise, recorders

PLAN = recorders.Plan("sharpa_wave", ("pick_place", "play"), "train", 3, 2, image_size=48)


def files(directory):
  return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(pathlib.Path(directory).rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def robot(tmp_path_factory):
  folder = tmp_path_factory.mktemp("robot") / "in"
  assert recorders.record_all(folder, PLAN)[0] == 2
  return folder


@pytest.fixture(scope="module")
def human(tmp_path_factory):
  folder = tmp_path_factory.mktemp("human") / "in"
  assert recorders.record_all(folder, dataclasses.replace(PLAN, body="human", clean=True))[0] == 2
  return folder


def test_a_robots_recording_is_its_commands(robot):
  take = recorders.successful(PLAN, 0)[0]
  episode = lerobot.read(lerobot.find(robot)[0], 48)
  assert (episode.embodiment, episode.rate_hz, episode.scene) == ("sharpa_wave", RATE_HZ, f"home {take.trial.home}")
  np.testing.assert_array_equal(episode.T_world_wrist_Fx2x4x4, take.T_world_wrist_Fx2x4x4.astype(np.float32))
  np.testing.assert_array_equal(episode.joint_targets_Fx2xJ, take.joint_targets_Fx2xJ.astype(np.float32))
  np.testing.assert_array_equal(episode.state_FxS, take.joints_Fx2xJ.reshape(len(take.joints_Fx2xJ), -1).astype(np.float32))
  assert np.isnan(episode.joints_Fx2xJ).all(), "what is measured stands short of the command where a finger presses"


def test_prepare_keeps_a_robots_actions(robot, tmp_path):
  """The chunk of the shards, carried out from where the wrists are, is the recorded path."""
  out = tmp_path / "shards"
  prepare.prepare(lerobot, robot, out, image_size=48, validation=0.0)
  entries = manifest.load(out)["episodes"]
  assert [entry["status"] for entry in entries] == [manifest.KEPT] * 2
  episodes = shards.open_episodes(out)
  for index, recording in enumerate(lerobot.find(robot)):
    episode, labels = lerobot.read(recording, 48), clips.read_labels(episodes[index])[1]
    assert labels.valid_Fx2.all()
    action, mask = actions.make_chunk(labels.T_world_wrist_Fx2x4x4, labels.joints_Fx2xJ, labels.valid_Fx2, 5, 8)
    assert mask.all()
    relative, joints = actions.split_chunk(action, labels.joints_Fx2xJ.shape[-1])
    path = episode.T_world_wrist_Fx2x4x4[5] @ relative
    np.testing.assert_allclose(path, episode.T_world_wrist_Fx2x4x4[6:14], atol=2e-6)
    np.testing.assert_array_equal(joints, episode.joint_targets_Fx2xJ[6:14])


def test_a_humans_recording_is_read_and_passes_the_doctor(human):
  take = recorders.successful(dataclasses.replace(PLAN, body="human"), 0)[0]
  episode = simulated.read(simulated.find(human)[0], 48)
  assert episode.text == take.trial.goal["text"]
  assert episode.scene == f"home {take.trial.home}"
  camera_wrist = geometry.se3_inverse(take.T_world_camera_Fx4x4)[:, None] @ take.T_world_wrist_Fx2x4x4
  read = geometry.se3_inverse(episode.T_world_camera_Fx4x4)[:, None] @ keypoints.wrist_frames(episode.keypoints_Fx2xPx3)
  np.testing.assert_allclose(read, camera_wrist, atol=2e-5)
  valid_Fx2, found = doctor.check(episode)
  assert valid_Fx2.all(), found


def test_noise_is_small_and_loses_hands():
  frames = 900
  pose = np.broadcast_to(np.eye(4), (frames, 2, 25, 4, 4)).copy()
  pose[..., 2, 3] = 0.4
  camera = np.broadcast_to(np.eye(4), (frames, 4, 4)).copy()
  seen_camera, seen, known = noise.track(np.random.default_rng(0), camera, pose)
  local = geometry.se3_inverse(seen_camera)[:, None, None] @ seen
  off = np.linalg.norm((local - pose)[..., :3, 3], axis=-1)
  assert 0.001 < off.mean() < 0.006
  assert 0.0 < np.linalg.norm(seen_camera[-1, :3, 3]) < 0.1
  assert 0.01 < 1 - known.mean() < 0.12


@pytest.mark.slow
def test_prepare_retargets_a_noisy_human(tmp_path):
  recorders.record_all(tmp_path / "in", dataclasses.replace(PLAN, body="human", episodes=3))
  summary = prepare.prepare(simulated, tmp_path / "in", tmp_path / "out", image_size=48, validation=0.0)
  assert summary.manifest["totals"]["kept"] == 3


def test_two_workers_write_the_same_files(human, tmp_path):
  recorders.record_all(tmp_path / "two", dataclasses.replace(PLAN, body="human", clean=True), num_workers=2)
  assert files(tmp_path / "two") == files(human)


@pytest.mark.parametrize(
  ("change", "told"),
  [
    ({"body": "octopus"}, "body: found 'octopus'"),
    ({"tasks": ("fold",)}, "tasks: found fold"),
    ({"episodes": 0}, "episodes=0"),
    ({"split": "test"}, "split: found 'test'"),
    ({"image_size": 33}, "image_size=33"),
  ],
)
def test_a_wrong_request_is_one_line_and_leaves_nothing(tmp_path, change, told):
  with pytest.raises(UserError, match=told) as error:
    recorders.record_all(tmp_path / "out", dataclasses.replace(PLAN, **change))
  assert "\n" not in str(error.value)
  assert not list(tmp_path.iterdir())

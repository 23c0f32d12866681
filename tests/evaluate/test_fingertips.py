"""Fingertips in place of joints: there and back, from recordings to shards, and around a policy."""

import dataclasses
import types

import numpy as np
import pytest

from egoscale_jax.data import clips, labeller, manifest, prepare, shards
from egoscale_jax.errors import UserError
from egoscale_jax.evaluate import fingertips, rollout, steps
from egoscale_jax.hands import keypoints, kinematics
from egoscale_jax.sim.bench import recorders


def poses(hand, count=6):
  share = np.random.default_rng(0).uniform(0.1, 0.7, (count, hand.num_joints))
  return (hand.lower_J + share * (hand.upper_J - hand.lower_J)).astype(np.float32)


@pytest.mark.parametrize(("name", "tips"), [("sharpa_wave", 5), ("dex3", 3)])
def test_tips_become_joints_and_tips_again(name, tips):
  for hand in labeller.load_hands(name):
    joints_FxJ = poses(hand)
    tips_FxN = fingertips.of_joints(hand, joints_FxJ)
    assert tips_FxN.shape == (6, len(fingertips.names(hand))) == (6, 3 * tips)
    found_FxJ = fingertips.to_joints(hand, tips_FxN)
    assert (found_FxJ >= hand.lower_J).all()
    assert (found_FxJ <= hand.upper_J).all()
    np.testing.assert_allclose(fingertips.of_joints(hand, found_FxJ), tips_FxN, atol=1e-4)


def test_tips_are_seen_from_the_wrist():
  hand = labeller.load_hands("sharpa_wave")[1]
  joints_FxJ = poses(hand, 2)
  points_Fx21x3 = np.asarray(kinematics.keypoints(hand, joints_FxJ), np.float64)
  wrist = keypoints.wrist_frame(np.asarray(kinematics.keypoints(hand, np.zeros((1, hand.num_joints), np.float32)), np.float64), "right")[0]
  little = points_Fx21x3[:, keypoints.TIPS[-1]]
  own = (little - wrist[:3, 3]) @ wrist[:3, :3]
  found = fingertips.of_joints(hand, joints_FxJ)[:, -3:]
  assert fingertips.names(hand)[-3:] == ("little_tip_x", "little_tip_y", "little_tip_z")
  np.testing.assert_allclose(found, own, atol=1e-5)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """A robot's recordings as shards of joints, and as shards of tips."""
  folder = tmp_path_factory.mktemp("tips")
  recorders.record_all(folder / "raw", recorders.Plan("sharpa_wave", ("drawer",), "train", 0, 2))
  joints, tips = folder / "joints", folder / "tips"
  prepare.prepare(steps.ROBOTS, folder / "raw", joints, image_size=32, validation=0.0)
  prepare.prepare(fingertips.Source(steps.ROBOTS, str(joints)), folder / "raw", tips, image_size=32, validation=0.0)
  return joints, tips


def test_shards_of_tips_hold_the_tips_of_the_same_labels(prepared):
  joints, tips = (manifest.load(path) for path in prepared)
  assert tips["embodiments"] == ["sharpa_wave_tips"]
  assert [e["id"] for e in tips["episodes"]] == [e["id"] for e in joints["episodes"]]
  hands = labeller.load_hands("sharpa_wave")
  for one, other in zip(*(shards.open_episodes(path) for path in prepared)):
    of_joints, of_tips = (clips.read_labels(record)[1] for record in (one, other))
    np.testing.assert_array_equal(of_tips.T_world_wrist_Fx2x4x4, of_joints.T_world_wrist_Fx2x4x4)
    np.testing.assert_array_equal(of_tips.valid_Fx2, of_joints.valid_Fx2)
    assert of_joints.valid_Fx2.any()
    for i, hand in enumerate(hands):
      np.testing.assert_array_equal(of_tips.joints_Fx2xJ[:, i], fingertips.of_joints(hand, of_joints.joints_Fx2xJ[:, i]))


def seen_by(hands, names):
  joints_2xJ = np.stack([poses(hand, 1)[0] for hand in hands])
  return rollout.Seen(None, "", np.eye(4), np.stack([np.eye(4)] * 2), joints_2xJ, names, 0)


def test_a_policy_of_tips_moves_a_body_of_joints():
  hands = labeller.load_hands("sharpa_wave")
  wanted_Tx2xN, asked = np.stack([fingertips.of_joints(hand, poses(hand)) for hand in hands], axis=1), []

  @dataclasses.dataclass
  class Chunk:
    joints_Tx2xJ: np.ndarray
    joint_names: tuple

  def predict(seen, pending):
    asked.append(seen)
    return Chunk(wanted_Tx2xN, seen.joint_names)

  seen = seen_by(hands, hands[0].joint_names)
  chunk = fingertips.agent(lambda: types.SimpleNamespace(predict=predict), "sharpa_wave").predict(seen, None)
  assert asked[0].joint_names == fingertips.names(hands[0])
  for i, hand in enumerate(hands):
    np.testing.assert_allclose(asked[0].joint_targets_2xJ[i], fingertips.of_joints(hand, seen.joint_targets_2xJ[i : i + 1])[0])
    np.testing.assert_allclose(fingertips.of_joints(hand, chunk.joints_Tx2xJ[:, i]), wanted_Tx2xN[:, i], atol=1e-4)
  assert chunk.joint_names == hands[0].joint_names


def test_a_body_of_another_hand_is_refused():
  hands = labeller.load_hands("dex3")
  agent = fingertips.agent(lambda: types.SimpleNamespace(predict=None), "sharpa_wave")
  with pytest.raises(UserError, match="hand sharpa_wave: found the body's joints from left_hand_thumb_0_joint"):
    agent.predict(seen_by(hands, hands[0].joint_names), None)

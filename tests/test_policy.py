import dataclasses
import json
import shutil

import numpy as np
import pytest

from egoscale_jax.errors import UserError
from egoscale_jax.policy import Executing, Policy, Request


@pytest.fixture(scope="module")
def policy(tiny_run):
  return Policy(tiny_run)


def test_chunk_is_poses_and_joints_within_reach(policy):
  image = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)
  chunk = policy([image], "Pour tea into cup 1.")
  horizon = policy.config.model.horizon
  assert chunk.T_start_wrist_Tx2x4x4.shape == (horizon, 2, 4, 4)
  assert chunk.joints_Tx2xJ.shape == (horizon, 2, 22) == (horizon, 2, len(chunk.joint_names))
  rotation = chunk.T_start_wrist_Tx2x4x4[..., :3, :3]
  np.testing.assert_allclose(rotation @ rotation.swapaxes(-1, -2), np.broadcast_to(np.eye(3), rotation.shape), atol=1e-5)
  again = policy([image], "Pour tea into cup 1.")
  np.testing.assert_array_equal(chunk.joints_Tx2xJ, again.joints_Tx2xJ)
  other = policy([image], "Pour tea into cup 1.", seed=1)
  assert not np.array_equal(chunk.joints_Tx2xJ, other.joints_Tx2xJ)


def test_an_older_checkpoint_is_opened_by_its_step(policy, tiny_run):
  first = min(int(folder.name) for folder in (tiny_run / "checkpoints").iterdir() if folder.name.isdigit())
  with pytest.raises(UserError, match=r"checkpoints/7777: no such checkpoint, or not any more: a run that goes on keeps"):
    Policy(tiny_run, 7777)
  older, image = Policy(tiny_run, first), np.zeros((32, 32, 3), np.uint8)
  assert older.step == first < policy.step
  assert not np.array_equal(older([image], "Pour tea.").joints_Tx2xJ, policy([image], "Pour tea.").joints_Tx2xJ)


def test_wrong_observations_are_named(policy):
  good = np.zeros((32, 32, 3), np.uint8)
  with pytest.raises(UserError, match=r"images: found 2, expected one for each of the cameras \('ego',\)"):
    policy([good, good], "Pour.")
  with pytest.raises(UserError, match=r"images\[0\]: found float32 \(32, 32, 3\), expected uint8"):
    policy([good.astype(np.float32)], "Pour.")
  with pytest.raises(UserError, match=r"state: found \(62,\), expected none: 'human' was trained without"):
    policy([good], "Pour.", state=np.zeros(62))
  with pytest.raises(UserError, match=r"embodiment: found 'dog', expected one of \['human'\]"):
    policy([good], "Pour.", embodiment="dog")
  with pytest.raises(UserError, match=r"config.data.text_tokens: found 40, the instruction 'tea tea .* takes \d+ with its template"):
    policy([good], " ".join(["tea"] * 200))


def test_without_a_picture_its_tokens_are_masked(policy):
  blind = policy.row(Request([None], "Pour tea."))
  black = policy.row(Request([np.zeros((32, 32, 3), np.uint8)], "Pour tea."))
  assert not blind[0].image_mask_BxC.any()
  assert black[0].image_mask_BxC.all()
  noise = np.random.default_rng(0).integers(0, 256, blind[0].image_BxCxYxXx3.shape).astype(np.uint8)
  poisoned = (dataclasses.replace(blind[0], image_BxCxYxXx3=noise), *blind[1:])
  first = policy.sample([blind])
  np.testing.assert_array_equal(first, policy.sample([poisoned]))
  assert not np.array_equal(first, policy.sample([black]))


def test_what_rests_stays_and_is_never_read(policy, tiny_run, tmp_path):
  copy = tmp_path / "run"
  shutil.copytree(tiny_run, copy)
  config = json.loads((copy / "config.json").read_text())
  config["data"]["resting"] = [r"left\..*"]
  (copy / "config.json").write_text(json.dumps(config))
  resting, image = Policy(copy), np.zeros((32, 32, 3), np.uint8)
  chunks = [resting([image], "Pour tea.", seed=seed) for seed in range(2)]
  mean_A = resting.slot("human").normalizer.rest_A
  for chunk in chunks:
    np.testing.assert_array_equal(chunk.joints_Tx2xJ[:, 0], np.broadcast_to(mean_A[9:31], (len(chunk.joints_Tx2xJ), 22)))
    np.testing.assert_array_equal(chunk.T_start_wrist_Tx2x4x4[:, 0], np.broadcast_to(np.eye(4), (len(chunk.joints_Tx2xJ), 4, 4)))
  assert np.ptp([chunk.joints_Tx2xJ[:, 1] for chunk in chunks], axis=0).min() > 0
  batch = resting.row(Request([image], "Pour tea."))[0]
  state_A, action = np.linspace(-1, 1, 62).astype(np.float32), np.zeros((resting.config.model.horizon, resting.config.model.action_dim))
  told = resting.chunk(Request([], "Pour tea.", state_A), action.astype(np.float32))  # by the state where there is one
  np.testing.assert_array_equal(told.joints_Tx2xJ[:, 0], np.broadcast_to(state_A[9:31], told.joints_Tx2xJ[:, 0].shape))
  np.testing.assert_array_equal(told.T_start_wrist_Tx2x4x4[:, 0], np.broadcast_to(np.eye(4), (len(action), 4, 4)))
  assert (told.joints_Tx2xJ[:, 1] != state_A[40:]).any()
  np.testing.assert_array_equal(batch.action_mask_BxTxA[0, :62], np.arange(62) >= 31)
  assert policy.row(Request([image], "Pour tea."))[0].action_mask_BxTxA[0, :62].all()


def test_a_hand_that_was_never_seen_stays_where_it_is(policy, monkeypatch):
  slot, left_A = policy.slot("human"), np.arange(62) < 31
  normalizer = slot.normalizer
  rest_A = np.where(left_A, np.float32(np.nan), normalizer.rest_A)
  normalizer = dataclasses.replace(normalizer, observed_A=~left_A, learnt_A=~left_A, rest_A=rest_A)
  monkeypatch.setattr(policy, "slot", lambda embodiment: dataclasses.replace(slot, normalizer=normalizer))
  action = np.random.default_rng(0).normal(size=(policy.config.model.horizon, policy.config.model.action_dim)).astype(np.float32)
  chunk = policy.chunk(Request([], "Pour tea."), action)
  np.testing.assert_array_equal(chunk.T_start_wrist_Tx2x4x4[:, 0], np.broadcast_to(np.eye(4), (len(action), 4, 4)))
  assert np.isnan(chunk.joints_Tx2xJ[:, 0]).all()
  assert np.isfinite(chunk.joints_Tx2xJ[:, 1]).all()
  assert np.ptp(chunk.T_start_wrist_Tx2x4x4[:, 1], axis=0).max() > 0
  broken = policy.chunk(Request([], "Pour tea."), np.full_like(action, np.nan))
  assert np.isnan(broken.T_start_wrist_Tx2x4x4[:, 1, :3, 3]).all(), "a model that fails is not a hand that rests"


def test_several_requests_are_what_each_is_alone(policy):
  rng = np.random.default_rng(1)
  requests = [Request([rng.integers(0, 256, (40, 40, 3)).astype(np.uint8)], text, seed=i) for i, text in enumerate(("Pour tea.", "Stop."))]
  for request, chunk in zip(requests, policy.many(requests)):
    alone = policy(request.images, request.text, seed=request.seed)
    np.testing.assert_allclose(chunk.joints_Tx2xJ, alone.joints_Tx2xJ, atol=1e-5)
    np.testing.assert_allclose(chunk.T_start_wrist_Tx2x4x4, alone.T_start_wrist_Tx2x4x4, atol=1e-5)


def test_the_steps_under_way_come_back_and_the_ramp_lies_between(policy):
  image = np.zeros((32, 32, 3), np.uint8)
  old = policy([image], "Pour tea.", seed=5)
  free = policy([image], "Pour tea.", seed=6)
  new = policy([image], "Pour tea.", seed=6, executing=Executing(old, frozen=3, ramp=2))
  np.testing.assert_allclose(new.joints_Tx2xJ[:3], old.joints_Tx2xJ[:3], atol=1e-5)
  np.testing.assert_allclose(new.T_start_wrist_Tx2x4x4[:3], old.T_start_wrist_Tx2x4x4[:3], atol=1e-5)
  apart = lambda a, b, k: np.abs(a.joints_Tx2xJ[k] - b.joints_Tx2xJ[k]).mean()  # noqa: E731
  assert 0 < apart(new, old, 3) < apart(new, old, 4) < apart(free, old, 4)
  with pytest.raises(UserError, match=r"executing: found frozen 7 and ramp 2, expected together at most 8"):
    policy([image], "Pour tea.", executing=Executing(old, frozen=7, ramp=2))


def test_the_rest_of_a_chunk_is_seen_from_where_the_wrists_are(policy):
  chunk = policy([np.zeros((32, 32, 3), np.uint8)], "Pour tea.")
  now = chunk.T_start_wrist_Tx2x4x4[1]
  rest = chunk.rest(2, now)
  np.testing.assert_allclose(now @ rest.T_start_wrist_Tx2x4x4[0], chunk.T_start_wrist_Tx2x4x4[2], atol=1e-6)
  assert len(rest.joints_Tx2xJ) == len(chunk.joints_Tx2xJ) - 2


def test_a_folder_that_is_no_run_is_named(tmp_path):
  with pytest.raises(UserError, match=r"config.json is missing"):
    Policy(tmp_path)

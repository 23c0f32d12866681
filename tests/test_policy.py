import numpy as np
import pytest

from egoscale_jax.errors import UserError
from egoscale_jax.policy import Policy


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


def test_wrong_observations_are_named(policy):
  good = np.zeros((32, 32, 3), np.uint8)
  with pytest.raises(UserError, match=r"images: found 2, expected one for each of the cameras \('ego',\)"):
    policy([good, good], "Pour.")
  with pytest.raises(UserError, match=r"images\[0\]: found float32 \(32, 32, 3\), expected uint8"):
    policy([good.astype(np.float32)], "Pour.")
  with pytest.raises(UserError, match=r"state: found \(62,\), expected none: the policy was trained without"):
    policy([good], "Pour.", state=np.zeros(62))
  with pytest.raises(UserError, match=r"embodiment: found 'dog', expected one of \['human'\]"):
    policy([good], "Pour.", embodiment="dog")


def test_a_folder_that_is_no_run_is_named(tmp_path):
  with pytest.raises(UserError, match=r"config.json is missing"):
    Policy(tmp_path)

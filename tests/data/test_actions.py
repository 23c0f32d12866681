"""The action chunk, on a path that is known: absolute poses come back, masks obey validity and the episode's end."""

import numpy as np
import pytest
import recordings

from egoscale_jax import geometry
from egoscale_jax.data import actions

J = 4


def chunk(labels, start, horizon, stride=1):
  return actions.make_chunk(labels.T_world_wrist_Fx2x4x4, labels.joints_Fx2xJ, labels.valid_Fx2, start, horizon, stride)


@pytest.mark.parametrize("stride", [1, 3])
def test_chunk_reproduces_the_wrist_path_and_the_joints(stride):
  labels = recordings.labels(40, J)
  action, mask = chunk(labels, 5, 10, stride)
  assert action.shape == mask.shape == (10, actions.action_dim(J))
  assert action.dtype == np.float32
  assert mask.all()
  T_start_wrist, joints = actions.split_chunk(action, J)
  frames = 5 + stride * np.arange(1, 11)
  np.testing.assert_allclose(labels.T_world_wrist_Fx2x4x4[5] @ T_start_wrist, recordings.wrist_path(40)[frames], atol=2e-6)
  np.testing.assert_array_equal(joints, labels.joints_Fx2xJ[frames])  # absolute, of the step's own time


def test_chunk_does_not_depend_on_the_world():
  labels = recordings.labels(40, J)
  T_other_world = geometry.se3(geometry.so3_exp(np.array([0.3, -1.0, 0.5])), np.array([1.0, 2.0, -3.0]))
  moved = T_other_world @ labels.T_world_wrist_Fx2x4x4
  action, _ = actions.make_chunk(moved, labels.joints_Fx2xJ, labels.valid_Fx2, 5, 10)
  np.testing.assert_allclose(action, chunk(labels, 5, 10)[0], atol=2e-6)


def test_layout_is_left_then_right_xyz_rot6d_joints():
  labels = recordings.labels(40, J)
  action, _ = chunk(labels, 0, 1)
  step = geometry.se3_inverse(labels.T_world_wrist_Fx2x4x4[0]) @ labels.T_world_wrist_Fx2x4x4[1]
  for side, offset in ((0, 0), (1, 9 + J)):
    np.testing.assert_allclose(action[0, offset : offset + 3], step[side, :3, 3], atol=1e-6)
    np.testing.assert_allclose(action[0, offset + 3 : offset + 9], step[side, :2, :3].ravel(), atol=1e-6)
    np.testing.assert_array_equal(action[0, offset + 9 : offset + 9 + J], labels.joints_Fx2xJ[1, side])


def test_steps_past_the_end_are_masked_and_nan():
  action, mask = chunk(recordings.labels(40, J), 35, 10)
  assert mask[:4].all()
  assert not mask[4:].any()
  assert np.isnan(action[4:]).all()
  assert not chunk(recordings.labels(40, J), 39, 10)[1].any()


def test_an_invalid_frame_masks_its_hand_at_its_step():
  labels = recordings.labels(40, J, invalid=[(8, 1)])
  action, mask = chunk(labels, 5, 5)
  left, right = np.split(mask, 2, axis=1)
  assert left.all()
  assert right.all(axis=1).tolist() == [True, True, False, True, True]
  assert (np.isnan(action) == ~mask).all()


def test_a_hand_invalid_at_the_start_is_masked_throughout():
  action, mask = chunk(recordings.labels(40, J, invalid=[(5, 0)]), 5, 5)
  assert not mask[:, : 9 + J].any()
  assert mask[:, 9 + J :].all()
  assert np.isnan(action[:, : 9 + J]).all()

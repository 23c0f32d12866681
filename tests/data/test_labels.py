import dataclasses

import numpy as np
import recordings

from egoscale_jax import geometry
from egoscale_jax.data import labels
from egoscale_jax.hands import hand, keypoints


@dataclasses.dataclass
class Retargeted:
  joints_FxJ: np.ndarray
  residual_m_F: np.ndarray
  valid_F: np.ndarray


def fake_retarget(points, hand, side):
  """Joints = hand number; residual beyond the limit at frame 4, no solution at frame 9 of the left hand."""
  valid = np.isfinite(points).all(axis=(1, 2))
  joints = np.where(valid[:, None], np.full((len(points), 3), hand), np.nan)
  residual = np.where(valid, 0.01, np.nan)
  if side == "left":
    residual[4] = 0.06
    valid[9] = False
  return Retargeted(joints, residual, valid)


def test_labels_mask_residuals_failures_and_the_doctor_s_frames():
  valid = np.ones((40, 2), bool)
  valid[2, 1] = False
  result, findings = labels.label(recordings.episode(), (7.0, 8.0), valid, fake_retarget)
  assert recordings.bad_frames(result.valid_Fx2[:, 0]) == [4, 9]
  assert recordings.bad_frames(result.valid_Fx2[:, 1]) == [2]
  assert [(f.name, f.side, f.count, f.first_frame) for f in findings] == [("retarget_failed", "left", 1, 9), ("residual", "left", 1, 4)]
  for array in (result.T_world_wrist_Fx2x4x4, result.joints_Fx2xJ, result.residual_m_Fx2):
    assert array.dtype == np.float32
    flat = array.reshape(40, 2, -1)
    assert np.isnan(flat[~result.valid_Fx2]).all()  # NaN and never zero
    assert np.isfinite(flat[result.valid_Fx2]).all()
  assert (result.joints_Fx2xJ[0, :, 0] == (7, 8)).all()


def test_labels_wrist_is_the_keypoints_wrist_frame():
  episode = recordings.episode()
  result, _ = labels.label(episode, (0.0, 0.0), np.ones((40, 2), bool), fake_retarget)
  good = result.valid_Fx2.all(axis=1)
  np.testing.assert_allclose(result.T_world_wrist_Fx2x4x4[good], keypoints.wrist_frames(episode.keypoints_Fx2xPx3)[good], atol=1e-6)
  step = geometry.se3_inverse(result.T_world_wrist_Fx2x4x4[0]) @ result.T_world_wrist_Fx2x4x4[30]
  truth = recordings.wrist_path(40)
  centre = geometry.se3_inverse(truth[0]) @ truth[30]  # the same rigid motion, seen from another frame on the hand: the same angle
  np.testing.assert_allclose(geometry.so3_angle(step[:, :3, :3]), geometry.so3_angle(centre[:, :3, :3]), atol=1e-5)


def test_a_flat_palm_is_masked_and_named():
  episode = recordings.change_points(recordings.episode(), (5, 0), lambda p: np.outer(np.arange(21), (0.01, 0, 0)).astype(np.float32))
  result, findings = labels.label(episode, (0.0, 0.0), np.ones((40, 2), bool), fake_retarget)
  assert not result.valid_Fx2[5, 0]
  assert [f.name for f in findings if f.first_frame == 5] == ["flat_palm"]


def test_masked_frames_reach_the_retargeting_as_nan():
  seen = {}

  def spy(points, hand, side):
    seen[side] = points
    return fake_retarget(points, hand, side)

  valid = np.ones((40, 2), bool)
  valid[3, 0] = False
  labels.label(recordings.episode(), (0.0, 0.0), valid, spy)
  assert np.isnan(seen["left"][3]).all()
  assert np.isfinite(np.delete(seen["left"], 3, axis=0)).all()


def test_labels_do_not_ask_for_a_keypoint_that_is_never_there():
  hands = tuple(hand.load("sharpa_wave", side) for side in keypoints.SIDES)
  left_never = recordings.change_points(recordings.episode(), (slice(None), 0, 1), lambda p: p * np.nan)
  asked = []

  def spy(points, robot, side):
    asked.append(robot.present)
    return fake_retarget(points, 7.0, side)

  labels.label(left_never, hands, np.ones((40, 2), bool), spy)
  assert asked[0] == tuple(p != 1 for p in range(21))
  assert all(asked[1])

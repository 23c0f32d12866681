"""Episode -> Labels: of a human, wrist frames from the keypoints and joints of a robot's hand by retargeting; of a robot, its own."""

import dataclasses

import numpy as np

from egoscale_jax.data import check_hand, check_motion, schema
from egoscale_jax.data import findings as findings_lib
from egoscale_jax.errors import UserError
from egoscale_jax.hands import keypoints

MAX_RESIDUAL = 0.05  # metres, mean over the fingertips: beyond it the robot's hand does not do what the human's did


def label(episode: schema.Episode, hands, valid_Fx2, retarget) -> tuple[schema.Labels, list[findings_lib.Finding]]:
  """-> Labels, NaN where not valid, and the findings that masked more frames.

  hands: the robot's (left, right); valid [F, 2] is the doctor's; retarget(keypoints [F, 21, 3], hand, side) -> an object with joints_FxJ,
  residual_m_F, valid_F. Masked frames go there as NaN: a fault that the doctor found must not pull on the frames beside it.
  """
  if episode.embodiment != schema.HUMAN:
    return _of_robot(episode, valid_Fx2), []
  findings, joints, residuals, valid = [], [], [], []
  T_world_wrist_Fx2x4x4 = keypoints.wrist_frames(episode.keypoints_Fx2xPx3)
  for i, side in enumerate(keypoints.SIDES):
    valid_F = valid_Fx2[:, i]
    points_FxPx3 = np.where(valid_F[:, None, None], episode.keypoints_Fx2xPx3[:, i], np.float32(np.nan))
    result = retarget(points_FxPx3, _without(hands[i], check_hand.absent(episode.keypoints_Fx2xPx3[:, i])), side)
    residual_F = np.asarray(result.residual_m_F)
    flat_F = valid_F & ~np.isfinite(T_world_wrist_Fx2x4x4[:, i]).all(axis=(1, 2))
    failed_F = valid_F & ~flat_F & ~(np.asarray(result.valid_F) & np.isfinite(result.joints_FxJ).all(axis=1))
    off_F = valid_F & ~flat_F & ~failed_F & ~(residual_F <= MAX_RESIDUAL)
    worst = residual_F[off_F].max() if off_F.any() else 0.0
    findings += findings_lib.masked("flat_palm", side, flat_F, "the wrist and the knuckles lie on a line, expected a palm with an area")
    findings += findings_lib.masked("retarget_failed", side, failed_F, "no joint angles were found")
    findings += findings_lib.masked("residual", side, off_F, f"fingertips are up to {worst:.3f} m off, expected at most {MAX_RESIDUAL}")
    valid.append(valid_F & ~(flat_F | failed_F | off_F))
    joints.append(result.joints_FxJ)
    residuals.append(residual_F)
  valid_Fx2 = np.stack(valid, axis=1)
  labels = schema.Labels(
    T_world_wrist_Fx2x4x4=_masked(T_world_wrist_Fx2x4x4, valid_Fx2),
    joints_Fx2xJ=_masked(np.stack(joints, axis=1), valid_Fx2),
    residual_m_Fx2=_masked(np.stack(residuals, axis=1), valid_Fx2),
    valid_Fx2=valid_Fx2,
  )
  return labels, findings


def own_joints(episode) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """The joints of a robot's hands, as many on both sides; a side that it lacks takes the other's names, and is never valid."""
  left, right = episode.joint_names
  if not (left or right):
    raise UserError("joints: found none, expected those of a hand or a gripper: tell which columns hold them (data/sources/columns.py)")
  if left and right and len(left) != len(right):
    raise UserError(f"joints: found {len(left)} on the left and {len(right)} on the right, expected as many")
  return left or right, right or left


def _of_robot(episode, valid_Fx2) -> schema.Labels:
  """Measured wrists and joints, the commanded where nothing was measured; no residual, since nothing was retargeted."""
  # As the doctor saw them: what is no number there must be none here.
  measured, commanded = (check_motion.sane(joints) for joints in (episode.joints_Fx2xJ, episode.joint_targets_Fx2xJ))
  joints_Fx2xJ = np.where(np.isfinite(measured), measured, commanded)
  return schema.Labels(
    T_world_wrist_Fx2x4x4=_masked(episode.T_world_wrist_Fx2x4x4, valid_Fx2),
    joints_Fx2xJ=_masked(joints_Fx2xJ, valid_Fx2),
    residual_m_Fx2=schema.missing(*valid_Fx2.shape),
    valid_Fx2=valid_Fx2,
  )


def _without(hand, absent):
  """The hand with keypoints that it is not asked to follow, since the recording has none."""
  if not absent:
    return hand
  return dataclasses.replace(hand, present=tuple(there and p not in absent for p, there in enumerate(hand.present)))


def _masked(array_Fx2, valid_Fx2):
  """[F, 2, ...] as float32, NaN where not valid."""
  mask = valid_Fx2.reshape(valid_Fx2.shape + (1,) * (array_Fx2.ndim - 2))
  return np.where(mask, array_Fx2, np.nan).astype(np.float32)

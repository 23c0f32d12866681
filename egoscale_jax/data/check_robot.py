"""Checks of a robot's wrists, joints, state and actions. Its camera stands where it stands: no label is made of its pose."""

import numpy as np

from egoscale_jax.data import check_motion, findings
from egoscale_jax.hands import keypoints

MAX_JOINT = 4 * np.pi  # radians: no joint turns twice around; degrees do at once
GRIPPER_JOINTS = 2  # a gripper has at most so many, in whatever unit: shares, percent, millimetres
STILL = 1e-6  # of a column's range: a number that is written again and again
MIN_SECONDS = 3.0  # before a gripper that never moved, or an action that never changed, is odd
MOVED = 0.05  # a state column's range, radians or metres, for its constant command to be odd


def check(episode):
  """-> valid [F, 2] and findings. A side without wrist and joints is no fault: a robot of one arm. One without joints has no labels."""
  known_Fx2xJ = np.isfinite(episode.joints_Fx2xJ) | np.isfinite(episode.joint_targets_Fx2xJ)
  has_wrist_Fx2 = episode.has_wrist_Fx2
  blind = not has_wrist_Fx2.any()
  valid_Fx2, found = np.zeros_like(has_wrist_Fx2), []
  if blind:
    detail = "the recording tells no wrist pose: labels of joints alone; columns.py of data/sources tells how to name what holds it"
    found.append(findings.whole("no_wrist", findings.WARNING, "", episode.num_frames, detail))
  for i, side in enumerate(keypoints.SIDES):
    count = len(episode.joint_names[i])
    joints_F = known_Fx2xJ[:, i, :count].all(axis=1)
    if not (has_wrist_Fx2[:, i].any() or (blind and count and joints_F.any())):
      continue
    if not count and any(episode.joint_names):  # on neither side: labels.own_joints tells what to do
      detail = "the recording tells a wrist here and no joint: no labels of this side; columns.py of data/sources tells how to name them"
      found.append(findings.whole("no_joints", findings.WARNING, side, episode.num_frames, detail))
      continue
    valid_Fx2[:, i] = joints_F
    if not blind:
      pose_F, more = _wrist(episode.T_world_wrist_Fx2x4x4[:, i], side, episode.rate_hz)
      valid_Fx2[:, i] &= pose_F
      found += more
    found += findings.masked("joints_not_finite", side, ~joints_F, "a joint is NaN or infinite")
    found += _range(episode, i, side, count)
  for name, table_FxN in (("state", episode.state_FxS), ("action", episode.action_FxA)):
    hole_F = ~np.isfinite(table_FxN[:, np.isfinite(table_FxN).any(axis=0)]).all(axis=1)  # a column that never was is no hole
    found += findings.masked(f"{name}_not_finite", "", hole_F, f"a number of the {name} is NaN or infinite")
    valid_Fx2 &= ~hole_F[:, None]
  return valid_Fx2, found + _still(episode)


def _wrist(pose_Fx4x4, side, rate_hz):
  lost_F = ~np.isfinite(pose_Fx4x4).all(axis=(1, 2))
  found = findings.masked("not_finite", side, lost_F, "the wrist's pose is NaN or infinite")
  valid_F, more = check_motion.pose(pose_Fx4x4, "wrist", side, rate_hz, check_motion.MAX_WRIST_SPEED, check_motion.MAX_WRIST_SPIN)
  return valid_F, found + more


def _range(episode, i, side, count):
  """The finding of a hand's joints that are no radians."""
  joints_FxJ = np.nan_to_num(np.abs(episode.joints_Fx2xJ[:, i, :count]), nan=0.0, posinf=0.0)
  far_F = (joints_FxJ > MAX_JOINT).any(axis=1) & (count > GRIPPER_JOINTS)
  detail = f"a joint is up to {joints_FxJ.max(initial=0):.4g}, expected radians, at most {MAX_JOINT:.3g}: degrees?"
  return findings.warned("joint_range", side, far_F, detail)


def _ranges(table_FxN):
  """Of each column, over the rows that are whole [N]; 0 where there is none."""
  rows = table_FxN[np.isfinite(table_FxN).all(axis=1)].astype(np.float64)
  return np.ptp(rows, axis=0) if len(rows) else np.zeros(table_FxN.shape[1])


def _still(episode):
  """Findings of a gripper that never moves and of actions that never change."""
  if episode.num_frames < MIN_SECONDS * episode.rate_hz:
    return []
  found, frames = [], episode.num_frames
  joints_FxN = np.concatenate([episode.joints_Fx2xJ, episode.joint_targets_Fx2xJ], axis=2).reshape(frames, -1)
  joints_FxN = joints_FxN[:, np.isfinite(joints_FxN).any(axis=0)]
  if joints_FxN.shape[1] and (_ranges(joints_FxN) < STILL).all():
    found.append(findings.whole("gripper_still", findings.WARNING, "", frames, "no joint of a hand or gripper ever moves, expected one to"))
  action_A, state_S = _ranges(episode.action_FxA), dict(zip(episode.state_names, _ranges(episode.state_FxS)))
  if len(action_A) and (action_A < STILL).all():
    detail = "no action ever changes, expected commands"
    return [*found, findings.whole("action_still", findings.WARNING, "", frames, detail)]
  odd = [name for name, size in zip(episode.action_names, action_A) if size < STILL and state_S.get(name, 0) > MOVED]
  if odd:
    detail = f"the action {', '.join(odd):.60} never changes although the state does, expected its command"
    found.append(findings.whole("action_constant", findings.WARNING, "", frames, detail))
  return found

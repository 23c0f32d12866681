"""Checks of an Episode: each fault has a name, is counted, and masks the frames of a hand or rejects the episode.

`masked` frames stay in the shards and carry no label; a `rejected` episode is left out. Nothing is repaired.
"""

import dataclasses

import numpy as np

from egoscale_jax.data import schema
from egoscale_jax.hands import keypoints

# Mean confidence over a hand's 20 finger keypoints. The wrist's own stays above 0.9 whatever the fingers do, so it does not count. In real
# EgoDex episodes the mean is 0.5 to 0.64 and never below 0.20 at any frame: below 0.1 the tracker does not see the hand.
MIN_CONFIDENCE = 0.1
MAX_CAMERA_SPEED = 6.0  # m/s, 0.20 m a frame at 30 Hz; a head does 0.16 in the real samples
MAX_WRIST_SPEED = 9.0  # m/s, 0.30 m a frame at 30 Hz; a wrist does 0.95 in the real samples
MAX_BONE_DRIFT = 0.3  # of the bone's median length in the episode; the real samples stay below 0.014
PALM_METRES = (0.04, 0.20)  # wrist to middle knuckle; outside it the unit is not the metre, or the skeleton is not a hand's
MIN_FRAMES = 16  # a shorter episode has no whole clip
MIN_VALID_SECONDS = 0.5  # of one hand, together
# A tracker may have no such keypoint at all (Project Aria has no base of the thumb); it may then be absent from a whole episode.
OPTIONAL = (keypoints.NAMES.index("thumb_cmc"),)


@dataclasses.dataclass(frozen=True)
class Finding:
  """One fault of an episode."""

  name: str
  severity: str  # "masked" or "rejected"
  side: str  # "left", "right", or "" where it is not of one hand
  count: int  # frames
  first_frame: int
  last_frame: int  # of them
  detail: str  # what was found, what was expected


def check(episode: schema.Episode) -> tuple[np.ndarray, list[Finding]]:
  """-> valid [F, 2] bool (left, right) and the findings; the episode is usable where none of them has the severity "rejected"."""
  if episode.frame is schema.Frame.CAMERA:
    detail = "poses are seen from a camera whose own motion nobody knows, expected poses in a frame that stands still"
    finding = rejected("moving_frame", episode.num_frames, episode.num_frames, detail)
    return np.zeros((episode.num_frames, 2), bool), [finding]
  if episode.embodiment != schema.HUMAN:
    return _check_robot(episode)
  findings = []
  camera_F, camera_findings = _check_camera(episode)
  findings.extend(camera_findings)
  valid_Fx2 = np.stack([camera_F, camera_F], axis=1)
  for i, side in enumerate(keypoints.SIDES):
    hand_F, hand_findings = _check_hand(episode.keypoints_Fx2xPx3[:, i], episode.confidence_Fx2xP[:, i], side, episode.rate_hz)
    valid_Fx2[:, i] &= hand_F
    findings.extend(hand_findings)
  return valid_Fx2, findings + _check_length(episode) + check_valid(valid_Fx2, episode.rate_hz)


def _check_length(episode):
  if episode.num_frames >= MIN_FRAMES:
    return []
  detail = f"{episode.num_frames} frames, expected at least {MIN_FRAMES}"
  return [rejected("too_short", episode.num_frames, episode.num_frames, detail)]


def _check_robot(episode):
  """A robot's wrists and joints: finite, and the wrists without jumps. Its camera stands where it stands: no label is made of its pose."""
  has_wrist_Fx2 = episode.has_wrist_Fx2
  if not has_wrist_Fx2.any():
    detail = "the recording tells no wrist pose, expected one of the hands': tell which columns hold it (data/sources/columns.py)"
    return np.zeros_like(has_wrist_Fx2), [rejected("no_wrist", episode.num_frames, episode.num_frames, detail)]
  findings, valid_Fx2 = [], has_wrist_Fx2.copy()
  known_Fx2xJ = np.isfinite(episode.joints_Fx2xJ) | np.isfinite(episode.joint_targets_Fx2xJ)
  for i, side in enumerate(keypoints.SIDES):
    if not has_wrist_Fx2[:, i].any():
      continue  # a robot of one arm: nothing is wrong with the other
    lost_F = ~has_wrist_Fx2[:, i]
    jump_F, speed = _jumps(episode.T_world_wrist_Fx2x4x4[:, i, :3, 3], episode.rate_hz, MAX_WRIST_SPEED)
    joints_F = ~known_Fx2xJ[:, i, : len(episode.joint_names[i])].all(axis=1)
    findings += masked("not_finite", side, lost_F, "the wrist's pose is NaN or infinite")
    findings += masked("wrist_jump", side, jump_F, f"up to {speed:.3g} m/s, expected at most {MAX_WRIST_SPEED:g}")
    findings += masked("joints_not_finite", side, joints_F, "a joint is NaN or infinite")
    valid_Fx2[:, i] &= ~(jump_F | joints_F)
  return valid_Fx2, findings + _check_length(episode) + check_valid(valid_Fx2, episode.rate_hz)


def absent(points_FxPx3) -> list[int]:
  """Keypoints of a hand that the episode never has, and need not: of OPTIONAL."""
  seen_P = np.isfinite(points_FxPx3).all(axis=-1).any(axis=0)
  return [p for p in OPTIONAL if not seen_P[p]] if seen_P.any() else []


def check_valid(valid_Fx2, rate_hz) -> list[Finding]:
  """The finding "no_hand" where neither hand is valid for long enough; again asked once the labels are made."""
  count_2 = valid_Fx2.sum(axis=0)
  if (count_2 >= MIN_VALID_SECONDS * rate_hz).any():
    return []
  seconds = " and ".join(f"{side} {count / rate_hz:.2f} s" for side, count in zip(keypoints.SIDES, count_2))
  detail = f"valid {seconds}, expected one of the hands for {MIN_VALID_SECONDS} s"
  return [rejected("no_hand", int((~valid_Fx2.any(axis=1)).sum()), len(valid_Fx2), detail)]


def masked(name, side, bad_F, detail) -> list[Finding]:
  """The finding of the frames where bad_F, or none."""
  if not bad_F.any():
    return []
  at = np.flatnonzero(bad_F)
  return [Finding(name, "masked", side, len(at), int(at[0]), int(at[-1]), detail)]


def rejected(name, count, num_frames, detail) -> Finding:
  """The finding of an episode as a whole, for the sake of `count` of its frames."""
  return Finding(name, "rejected", "", count, 0, num_frames - 1, detail)


def _check_camera(episode):
  """-> valid [F] and findings; a camera that is lost or jumps takes both hands with it, for their world is its own."""
  pose_Fx4x4 = episode.T_world_camera_Fx4x4
  lost_F = ~np.isfinite(pose_Fx4x4).all(axis=(1, 2))
  jump_F, speed = _jumps(pose_Fx4x4[:, :3, 3], episode.rate_hz, MAX_CAMERA_SPEED)
  findings = masked("camera_not_finite", "", lost_F, "pose of the camera is NaN or infinite")
  findings += masked("camera_jump", "", jump_F, f"up to {speed:.3g} m/s, expected at most {MAX_CAMERA_SPEED:g}")
  return ~(lost_F | jump_F), findings


def _check_hand(points_FxPx3, confidence_FxP, side, rate_hz):
  """-> valid [F] of one hand and findings. A length is judged on the frames alone that passed what comes before."""
  here = [p for p in range(len(keypoints.NAMES)) if p not in absent(points_FxPx3)]
  lost_F = ~np.isfinite(points_FxPx3[:, here]).all(axis=(1, 2))
  findings = masked("not_finite", side, lost_F, "a keypoint is NaN or infinite")
  mean_F = confidence_FxP[:, here[1:]].mean(axis=1)
  unsure_F = ~lost_F & ~(mean_F >= MIN_CONFIDENCE)
  lowest = mean_F[unsure_F].min() if unsure_F.any() else 1.0
  findings += masked("low_confidence", side, unsure_F, f"mean over the fingers down to {lowest:.3f}, expected at least {MIN_CONFIDENCE}")
  jump_F, speed = _jumps(points_FxPx3[:, keypoints.WRIST], rate_hz, MAX_WRIST_SPEED)
  findings += masked("wrist_jump", side, jump_F, f"up to {speed:.3g} m/s, expected at most {MAX_WRIST_SPEED:g}")
  valid_F = ~(lost_F | unsure_F | jump_F)
  if not valid_F.any():
    return valid_F, findings
  parents, children = np.transpose([bone for bone in keypoints.BONES if set(bone) <= set(here)])
  bone_FxN = np.linalg.norm(points_FxPx3[:, children] - points_FxPx3[:, parents], axis=-1)
  median_N = np.median(bone_FxN[valid_F], axis=0)
  palm = float(median_N[list(children).index(keypoints.KNUCKLES[1])])  # the middle one
  if not PALM_METRES[0] <= palm <= PALM_METRES[1]:
    detail = f"wrist to middle knuckle is {palm:.3g} m, expected {PALM_METRES[0]} to {PALM_METRES[1]}"
    return np.zeros_like(valid_F), findings + masked("hand_size", side, valid_F, detail)
  drift_F = np.zeros(len(valid_F))
  drift_F[valid_F] = np.abs(bone_FxN[valid_F] / np.maximum(median_N, 1e-6) - 1).max(axis=1)
  drift_bad_F = drift_F > MAX_BONE_DRIFT
  detail = f"a bone's length is up to {drift_F.max():.0%} off its median, expected at most {MAX_BONE_DRIFT:.0%}"
  return valid_F & ~drift_bad_F, findings + masked("bone_drift", side, drift_bad_F, detail)


def _jumps(position_Fx3, rate_hz, limit):
  """-> the frames on both sides of a jump [F] bool, and the highest speed in m/s; across frames without a position the time counts too."""
  known = np.flatnonzero(np.isfinite(position_Fx3).all(axis=1))
  jump_F = np.zeros(len(position_Fx3), bool)
  if len(known) < 2:
    return jump_F, 0.0
  speed = np.linalg.norm(np.diff(position_Fx3[known], axis=0), axis=1) * rate_hz / np.diff(known)
  fast = speed > limit
  jump_F[known[:-1][fast]] = True
  jump_F[known[1:][fast]] = True
  return jump_F, float(speed.max())

"""Checks of one human hand's 21 keypoints: there, sure, steady, of a hand's size and shape."""

import numpy as np

from egoscale_jax import geometry
from egoscale_jax.data import check_motion, findings
from egoscale_jax.hands import keypoints

# Mean confidence over a hand's 20 finger keypoints. The wrist's own stays above 0.9 whatever the fingers do, so it does not count. In real
# EgoDex episodes the mean is 0.5 to 0.64 and never below 0.20 at any frame: below 0.1 the tracker does not see the hand.
MIN_CONFIDENCE = 0.1
MAX_BONE_DRIFT = 0.3  # of the bone's median length in the episode; the real samples stay below 0.014
MAX_GROWTH = 0.08  # of a hand's size from the first to the last third of an episode; the real samples stay below 0.001
PALM_METRES = (0.04, 0.20)  # wrist to middle knuckle; outside it the unit is not the metre, or the skeleton is not a hand's
MIN_BEND = np.radians(-45)  # of any joint of keypoints.bends: few people bend a single one 20 degrees back
FROZEN_SECONDS = 0.5  # a tracker's noise alone moves some keypoint by more than STILL_METRES; the real samples repeat one frame at most
STILL_METRES = 2e-5
REPEATS = 5  # frames in a row with equal gaps: a track that was resampled by repeating
# A tracker may have no such keypoint at all (Project Aria has no base of the thumb); it may then be absent from a whole episode.
OPTIONAL = (keypoints.NAMES.index("thumb_cmc"),)


def check(points_FxPx3, confidence_FxP, T_world_camera_Fx4x4, side, rate_hz):
  """-> valid [F] of one hand and findings. A length is judged on the frames alone that passed what comes before, a
  shape also where the hand jumps: it may be the other hand that it jumps to."""
  never = absent(points_FxPx3)
  here = [p for p in range(len(keypoints.NAMES)) if p not in never]
  finite_FxP = np.isfinite(points_FxPx3[:, here]).all(axis=2)
  missing_F, lost_F = ~finite_FxP.any(axis=1), ~finite_FxP.all(axis=1)
  detail = "the hand is absent from the whole episode" if missing_F.all() else "the hand is absent"
  found = findings.masked("missing", side, missing_F, detail)
  found += findings.masked("not_finite", side, lost_F & ~missing_F, "a keypoint is NaN or infinite")
  mean_F = confidence_FxP[:, here[1:]].mean(axis=1)
  unsure_F = ~lost_F & ~(mean_F >= MIN_CONFIDENCE)
  lowest = mean_F[unsure_F].min() if unsure_F.any() else 1.0
  found += findings.masked(
    "low_confidence", side, unsure_F, f"mean over the fingers down to {lowest:.3f}, expected at least {MIN_CONFIDENCE}"
  )
  T_world_wrist_Fx4x4 = keypoints.wrist_frame(points_FxPx3.astype(np.float64), side)
  sure_F = ~(lost_F | unsure_F)
  moves_F, more = _moves(points_FxPx3, T_world_wrist_Fx4x4, T_world_camera_Fx4x4, side, rate_hz)
  valid_F = sure_F & moves_F
  found += more
  if not valid_F.any():
    return valid_F, found
  size_F, more = _sizes(points_FxPx3, valid_F, here, side)
  shape_F, bends = _bends(points_FxPx3, T_world_wrist_Fx4x4, sure_F, side)
  return valid_F & size_F & shape_F, found + more + bends


def absent(points_FxPx3) -> list[int]:
  """Keypoints of a hand that the episode never has, and need not: of OPTIONAL."""
  seen_P = np.isfinite(points_FxPx3).all(axis=-1).any(axis=0)
  return [p for p in OPTIONAL if not seen_P[p]] if seen_P.any() else []


def _moves(points_FxPx3, T_world_wrist_Fx4x4, T_world_camera_Fx4x4, side, rate_hz):
  """-> [F] bool, and findings: the wrist neither jumps nor spins, and the hand is not a still picture of one."""
  jump_F, speed = check_motion.jumps(points_FxPx3[:, keypoints.WRIST], rate_hz, check_motion.MAX_WRIST_SPEED)
  found = findings.masked("wrist_jump", side, jump_F, f"up to {speed:.3g} m/s, expected at most {check_motion.MAX_WRIST_SPEED:g}")
  spin_F, spin = check_motion.spins(T_world_wrist_Fx4x4[:, :3, :3], rate_hz, check_motion.MAX_WRIST_SPIN)
  found += findings.masked("wrist_spin", side, spin_F, f"turns at up to {spin:.3g} rad/s, expected at most {check_motion.MAX_WRIST_SPIN:g}")
  in_camera_FxPx3 = geometry.transform(geometry.se3_inverse(T_world_camera_Fx4x4.astype(np.float64)), points_FxPx3)
  frozen_F = np.zeros(len(jump_F), bool)
  for place_FxPx3 in (points_FxPx3, in_camera_FxPx3):  # a tracker that lost the hand repeats its place in the world, or in the picture
    frozen_F |= findings.within(still(place_FxPx3), FROZEN_SECONDS * rate_hz)
  detail = (
    f"all keypoints stand still within {STILL_METRES * 1e6:g} micrometres a frame, expected a tracker's noise within {FROZEN_SECONDS} s"
  )
  found += findings.masked("hand_frozen", side, frozen_F, detail)
  found += _repeats(still(points_FxPx3), side)
  return ~(jump_F | spin_F | frozen_F), found


def still(points_FxPx3) -> np.ndarray:
  """[F - 1] bool: no keypoint moved from a frame to the next, and some are there."""
  step_FxP = np.abs(np.diff(points_FxPx3, axis=0)).max(axis=2)
  known_FxP = np.isfinite(step_FxP)
  return known_FxP.any(axis=1) & (np.where(known_FxP, step_FxP, 0).max(axis=1) < STILL_METRES)


def _repeats(still_step, side):
  """The finding of poses that repeat at equal gaps, as those do that were brought to a higher rate by repeating them."""
  repeat_F = np.concatenate([[False], still_step])
  every, repeat_F = periodic(repeat_F)
  return findings.warned("poses_repeat", side, repeat_F, f"every {every}. pose is the one before it again, expected a pose measured anew")


def periodic(repeat_F) -> tuple[int, np.ndarray]:
  """Frames that repeat the one before -> (the gap between them, [F] bool of those in runs of equal gaps of 2 to 8 frames)."""
  at = np.flatnonzero(repeat_F)
  gap = np.diff(at)
  regular_F = np.zeros(len(repeat_F), bool)
  if len(at) <= REPEATS:
    return 0, regular_F
  every = int(np.bincount(gap).argmax())
  if 2 <= every <= 8:
    for first, end in findings.runs(gap == every):
      if end - first >= REPEATS:
        regular_F[at[first : end + 1]] = True
  return every, regular_F


def sizes(points_FxPx3, here) -> np.ndarray:
  """Lengths of the bones [F, N], and which of them leads to the middle knuckle, for the keypoints that are there."""
  parents, children = np.transpose([bone for bone in keypoints.BONES if set(bone) <= set(here)])
  length_FxN = np.linalg.norm(points_FxPx3[:, children] - points_FxPx3[:, parents], axis=-1)
  return length_FxN, list(children).index(keypoints.KNUCKLES[1])


def _sizes(points_FxPx3, valid_F, here, side):
  """-> [F] bool, and findings: a hand's size in metres, that keeps."""
  bone_FxN, middle = sizes(points_FxPx3, here)
  median_N = np.median(bone_FxN[valid_F], axis=0)
  palm = float(median_N[middle])
  if not PALM_METRES[0] <= palm <= PALM_METRES[1]:
    detail = f"wrist to middle knuckle is {palm:.3g} m, expected {PALM_METRES[0]} to {PALM_METRES[1]}"
    return np.zeros_like(valid_F), findings.masked("hand_size", side, valid_F, detail)
  drift_F = np.zeros(len(valid_F))
  drift_F[valid_F] = np.abs(bone_FxN[valid_F] / np.maximum(median_N, 1e-6) - 1).max(axis=1)
  drift_bad_F = drift_F > MAX_BONE_DRIFT
  detail = f"a bone's length is up to {drift_F.max():.0%} off its median, expected at most {MAX_BONE_DRIFT:.0%}"
  found = findings.masked("bone_drift", side, drift_bad_F, detail)
  size = bone_FxN[valid_F & ~drift_bad_F].mean(axis=1)
  third = len(size) // 3
  if third:
    growth = float(np.median(size[-third:]) / np.median(size[:third]) - 1)
    detail = f"the hand's size changes by {growth:+.0%} from the first to the last third, expected at most {MAX_GROWTH:.0%}"
    found += findings.warned("hand_growth", side, valid_F & (abs(growth) > MAX_GROWTH), detail)
  return ~drift_bad_F, found


def _bends(points_FxPx3, T_world_wrist_Fx4x4, sure_F, side):
  """-> [F] bool, and findings: fingers bend to the palm, which tells a left hand from a right one."""
  bend_Fx4x2 = np.zeros((len(sure_F), 4, 2))
  bend_Fx4x2[sure_F] = np.nan_to_num(keypoints.bends(points_FxPx3[sure_F].astype(np.float64), T_world_wrist_Fx4x4[sure_F]))
  mean_F, lowest_F = bend_Fx4x2.mean(axis=(1, 2)), bend_Fx4x2.min(axis=(1, 2))
  mirrored_F = mean_F < keypoints.MIN_MEAN_BEND
  degrees = np.degrees(mean_F.min())
  detail = f"the fingers bend {degrees:.0f} degrees on average, out of the back: points of the other hand, or a mirrored picture"
  found = findings.masked("mirrored", side, mirrored_F, detail)
  backwards_F = (lowest_F < MIN_BEND) & ~mirrored_F
  detail = f"a finger's joint bends {np.degrees(lowest_F.min()):.0f} degrees, expected at least {np.degrees(MIN_BEND):.0f}"
  found += findings.masked("finger_backwards", side, backwards_F, detail)
  return ~(mirrored_F | backwards_F), found

"""Checks of both human hands together: not one hand twice, not exchanged, of one size."""

import numpy as np

from egoscale_jax.data import check_hand, findings
from egoscale_jax.hands import keypoints

IDENTICAL_METRES = 1e-3  # between all keypoints: two hands cannot be at one place
MIN_APART = 0.1  # metres between the wrists, for an exchange to be told from a movement: nobody moves both hands so far in a frame
MAX_CROSSING = 0.25  # of the way both wrists made: how much shorter it is where left and right are exchanged
MAX_SIDES_RATIO = 1.15  # sizes of a person's hands differ by a few percent; in the real samples by 0.1


def check(points_Fx2xPx3, valid_Fx2):
  """-> valid [F] of both hands and findings; valid [F, 2] is what the checks of each hand left."""
  distance_FxP = np.abs(points_Fx2xPx3[:, 0] - points_Fx2xPx3[:, 1]).max(axis=2)
  known_FxP = np.isfinite(distance_FxP)
  identical_F = known_FxP.any(axis=1) & (np.where(known_FxP, distance_FxP, 0).max(axis=1) < IDENTICAL_METRES)
  detail = f"left and right hand are within {IDENTICAL_METRES * 1000:g} mm of each other, expected two hands"
  found = findings.masked("hands_identical", "", identical_F, detail)
  swapped_F = swapped(points_Fx2xPx3[:, :, keypoints.WRIST])
  found += findings.masked("swapped", "", swapped_F, "left and right hand jump to each other's place, expected each to stay itself")
  return ~(identical_F | swapped_F), found + _sizes(points_Fx2xPx3, valid_Fx2 & ~(identical_F | swapped_F)[:, None])


def swapped(wrist_Fx2x3) -> np.ndarray:
  """[F] bool: the frames, the fewer of the two kinds, between jumps of both wrists to the other's place."""
  known = np.flatnonzero(np.isfinite(wrist_Fx2x3).all(axis=(1, 2)))
  wrist = wrist_Fx2x3[known].astype(np.float64)
  distance = lambda a, b: np.linalg.norm(b - a, axis=-1).sum(axis=-1)  # noqa: E731
  straight, crossed = distance(wrist[:-1], wrist[1:]), distance(wrist[:-1], wrist[1:, ::-1])
  apart = np.linalg.norm(wrist[:, 0] - wrist[:, 1], axis=1)
  flips = (crossed < MAX_CROSSING * straight) & (np.minimum(apart[:-1], apart[1:]) > MIN_APART)
  swapped_F = np.zeros(len(wrist_Fx2x3), bool)
  if flips.any():
    odd = np.concatenate([[False], np.cumsum(flips) % 2 == 1])
    swapped_F[known[odd if odd.mean() <= 0.5 else ~odd]] = True
  return swapped_F


def _sizes(points_Fx2xPx3, valid_Fx2):
  if not valid_Fx2.any(axis=0).all():
    return []
  missing = {p for i in range(2) for p in check_hand.absent(points_Fx2xPx3[:, i])}
  here = [p for p in range(len(keypoints.NAMES)) if p not in missing]
  left, right = (float(np.median(check_hand.sizes(points_Fx2xPx3[valid_Fx2[:, i], i], here)[0].mean(axis=1))) for i in range(2))
  ratio = max(left, right) / min(left, right)
  detail = (
    f"bones of the left hand are {left * 1000:.1f} mm on average, of the right {right * 1000:.1f}, expected a ratio below {MAX_SIDES_RATIO}"
  )
  return findings.warned("sides_differ", "", valid_Fx2.any(axis=1) & (ratio > MAX_SIDES_RATIO), detail)

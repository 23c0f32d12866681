"""Hand shapes the experts use, and where in the hand a shape touches or holds (a right hand; a left one is its mirror)."""

import numpy as np

from egoscale_jax.sim.human import TIP_RADIUS, posture

# degrees; thumb: flexion, abduction, mcp, ip; fingers: abduction, mcp, pip, dip
LOOSE = posture((-6, 2, 36, 42), (2, 48, 62, 35), (0, 52, 66, 36), (-2, 54, 68, 36), (-4, 56, 66, 36))
OPEN = posture((-12, 8, 0, 4), (8, 8, 12, 8), (1, 6, 12, 8), (-6, 8, 14, 8), (-14, 10, 14, 8))
POINT = posture((0, -3, 50, 72), (0, 12, 8, 4), (0, 72, 95, 55), (-2, 76, 98, 55), (-4, 78, 98, 55))
BLADE = posture((12, -8, 5, 8), (-3, 6, 6, 4), (0, 5, 6, 4), (4, 6, 6, 4), (9, 8, 6, 4))
FIST = posture((5, 0, 48, 66), (0, 84, 100, 60), (0, 85, 102, 60), (-2, 86, 102, 60), (-4, 86, 100, 60))
GRASP_OPEN = posture((-8, 9, 0, 2), (6, 18, 28, 16), (2, 16, 36, 20), (-2, 18, 34, 19), (-6, 20, 33, 18))
GRASP_SHUT = posture((4, 3, 30, 32), (-4, 34, 58, 32), (-2, 36, 60, 33), (3, 38, 58, 32), (8, 40, 56, 30))
PINCH_OPEN = posture((-8, 9, 0, 3), (6, 17, 33, 18), (2, 45, 50, 27), (-3, 74, 80, 43), (-6, 78, 84, 45))
PINCH_SHUT = posture((5, 2, 28, 32), (0, 34, 58, 32), (0, 60, 58, 31), (-3, 75, 80, 43), (-6, 78, 84, 45))

INDEX_TIP, MIDDLE_PIP = 8, 10  # keypoint numbers
_THUMB_PAD, _INDEX_PAD, _MIDDLE_PAD = (3, 4), (7, 8), (11, 12)  # a pad lies between the last joint and the tip


def blend(a, b, share):
  return (1 - share) * a + share * b


def _pads(keypoints, fingers):
  """Thumb pad and the mean pad of the fingers it faces, each [3]."""
  thumb, *others = (0.3 * keypoints[i] + 0.7 * keypoints[j] for i, j in (_THUMB_PAD, *fingers))
  return thumb, np.mean(others, axis=0)


def close_around(hand, wide, shut, width, fingers=(_INDEX_PAD, _MIDDLE_PAD)):
  """Close from `wide` towards `shut` until an object `width` metres thick fills the gap.

  -> (joints [20], the middle of the gap in the wrist frame [3]). `hand` is a human.RightHand.
  """
  flesh = (0.009 + TIP_RADIUS) * hand.scale
  low, high = 0.0, 1.0
  for _ in range(24):
    share = 0.5 * (low + high)
    thumb, finger = _pads(hand.keypoints(blend(wide, shut, share)), fingers)
    if np.linalg.norm(thumb - finger) - flesh > width:
      low = share
    else:
      high = share
  if high == 1.0 or low == 0.0:
    raise ValueError(f"no closure holds an object of {width} m in a hand of scale {hand.scale}")
  return blend(wide, shut, low), 0.5 * (thumb + finger)


def pinch_around(hand, width):
  return close_around(hand, PINCH_OPEN, PINCH_SHUT, width, fingers=(_INDEX_PAD,))

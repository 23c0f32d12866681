"""Landmarks of hands in one camera's pictures -> metres before the camera, by the size of the person's hand. docs/video.md: how well.

An estimator tells of each landmark its pixel, and how much farther than the wrist it is, in pixels too. One camera cannot tell a small hand
from a far one: the lengths of the bones, known from the length of the palm, decide the distance. Then every hand is fitted by damped least
squares to the three things that are known of it, each with its own error: where its landmarks are seen, how long its bones are, and how
their depths differ.

Median errors on five EgoDex episodes, of the wrist, of the fingertips seen from it, and of the palm's turn: 48 mm, 43 mm, 18 degrees.
Rejected: MediaPipe's own landmarks in metres, scaled and placed by their pixels, 110 mm, 77 mm, 41 degrees; the same turned to fit the
pixels (PnP), 108, 63, 36. The depths beside the pixels tell the tilt of a hand far better. The start of the fit alone gives 72, 59, 16, and
in four frames of ten a bone is 30 % off its median.
"""

import dataclasses

import numpy as np
from scipy import ndimage

from egoscale_jax.hands import keypoints

# Of the depths: MediaPipe tells a hand flatter to the picture than it is where fingers point away, as a wearer's do. 1 leaves the wrists of
# the five episodes 115 mm too far from the camera, 1.5 79 mm, 2 36 mm, 2.5 puts them 6 mm too near; 1.5 is best for one task, 2.5 for two.
DEPTH_GAIN = 2.0
PIXEL_METRES, DEPTH_METRES, BONE_SHARE = 0.006, 0.03, 0.1  # standard deviations: across the ray, along it, of a length
PIXEL_SECONDS, DEPTH_SECONDS = 1 / 30, 0.2  # the landmarks are smoothed over: their depths jump by more than hands move
STEPS = 8  # of Gauss-Newton, from a start in closed form; after 5 the means move by less than a millimetre
BLOCK = 512  # frames that are solved at once: 20 MB a hundred
MAX_METRES = 2.0  # from the camera: a wearer's hand is nearer, a bystander's would be a guess
# A fit that misses the landmarks by more of a palm, or the bones' lengths by more of themselves, root mean square, is none. In the five
# episodes 3 % of the hands miss by more than 0.15 (their points are 15 cm off, the others' 5) and 0.1 % stretch so.
MAX_MISS, MAX_STRETCH = 0.15, 0.15

# Lengths in palms (wrist to the knuckle of the middle finger). Fingers and metacarpals: mean bones of adults (Buryanov and Kotiuk 2010,
# rounded), with 20 mm from the wrist to the metacarpals and 4 mm of pulp at the tips; the thumb's first and those across the palm are our
# own estimate. They are within 13 % of EgoDex's own, which do no better here.
_BONES = ((0.35, 0.55, 0.37, 0.30), (1.04, 0.47, 0.26, 0.23), (1.00, 0.53, 0.31, 0.25), (0.92, 0.49, 0.30, 0.25), (0.87, 0.39, 0.21, 0.24))
_ACROSS = {(5, 17): 0.67, (1, 5): 0.77, (5, 9): 0.24, (9, 13): 0.26, (13, 17): 0.24}
PAIRS = (*keypoints.BONES, *_ACROSS)
LENGTHS = np.array([length for finger in _BONES for length in finger] + list(_ACROSS.values()))
_A, _B = np.transpose(PAIRS)


@dataclasses.dataclass(frozen=True)
class Marks:
  """What an estimator saw; NaN where it saw no hand. Left hand first, landmarks as hands/keypoints.py."""

  pixel_Fx2x21x2: np.ndarray  # of the video as it is on disk, the centre of the first pixel at (0, 0)
  depth_Fx2x21: np.ndarray  # pixels: how much farther than the wrist, at the hand's own scale; positive is away
  score_Fx2: np.ndarray  # 0 to 1


def place(marks: Marks, k_3x3, palm_m: float, rate_hz: float, lengths=LENGTHS) -> np.ndarray:
  """-> keypoints [F, 2, 21, 3] in the camera, metres, float64; NaN where no hand was seen, or none that fits in front of the camera.

  k_3x3: intrinsics of the video as it is on disk; palm_m: of this person; lengths: of PAIRS, in palms.
  """
  points_Fx2x21x3 = np.full((*marks.depth_Fx2x21.shape, 3), np.nan)
  focal_2, centre_2 = np.array([k_3x3[0, 0], k_3x3[1, 1]]), np.array([k_3x3[0, 2], k_3x3[1, 2]])
  for side in range(2):
    seen = (marks.pixel_Fx2x21x2[:, side] - centre_2) / focal_2
    depth = DEPTH_GAIN * marks.depth_Fx2x21[:, side] / focal_2.mean()
    there = np.flatnonzero(np.isfinite(seen).all(axis=(1, 2)) & np.isfinite(depth).all(axis=1))
    if not len(there):
      continue
    seen = _smooth(seen, there, PIXEL_SECONDS * rate_hz)
    depth = _smooth(depth, there, DEPTH_SECONDS * rate_hz)
    for first in range(0, len(there), BLOCK):
      block = slice(first, first + BLOCK)
      points_Fx2x21x3[there[block], side] = _fit(seen[block], depth[block], lengths * palm_m, palm_m)
  return points_Fx2x21x3


def _smooth(values, there, frames):
  """Values [F, ...] -> those of the frames `there`, a Gaussian mean over the neighbours that are there too."""
  present, filled = np.zeros(len(values)), np.zeros(values.shape)
  present[there], filled[there] = 1, values[there]
  total = ndimage.gaussian_filter1d(filled, frames, axis=0, mode="constant")[there]
  weight = ndimage.gaussian_filter1d(present, frames, mode="constant")[there]
  return total / weight.reshape(-1, *[1] * (values.ndim - 1))


def _fit(seen_Nx21x2, depth_Nx21, length_M, palm_m):
  """Where landmarks are seen (at distance 1), their depths from the wrist (at distance 1) -> points [N, 21, 3]; NaN where nothing fits."""
  points = np.concatenate([seen_Nx21x2, np.ones_like(depth_Nx21)[..., None]], axis=-1) * (1 + depth_Nx21)[..., None]
  share = _length(points) / length_M  # at distance 1; the distance that makes all of them right, by least squares
  distance_N = share.sum(axis=1) / (share**2).sum(axis=1)
  points *= distance_N[:, None, None]
  depth_Nx21 = depth_Nx21 - depth_Nx21.mean(axis=1, keepdims=True)
  with np.errstate(all="ignore"):  # a hand at or behind the camera runs away, and is dropped below
    for _ in range(STEPS):
      residual, jacobian = _residuals(points, seen_Nx21x2, depth_Nx21, length_M, distance_N)
      normal = jacobian.swapaxes(1, 2) @ jacobian + np.eye(63)  # damped by one standard deviation a metre: only where nothing else holds
      step = np.linalg.solve(np.nan_to_num(normal, posinf=0, neginf=0) + 1e-9 * np.eye(63), _down(jacobian, residual))
      points = points - step.reshape(points.shape)
    miss_N = (points[..., :2] / points[..., 2:] - seen_Nx21x2) * points[..., 2:].mean(axis=1, keepdims=True)
    miss_N = np.sqrt((miss_N**2).sum(axis=2).mean(axis=1)) / palm_m
    near_N = (points[..., 2] > 0).all(axis=1) & (np.linalg.norm(points.mean(axis=1), axis=1) < MAX_METRES)
    stretch_N = np.sqrt(((_length(points) / length_M - 1) ** 2).mean(axis=1))
    good_N = near_N & (miss_N < MAX_MISS) & (stretch_N < MAX_STRETCH)
    return np.where(good_N[:, None, None], points, np.nan)


def _down(jacobian, residual):
  return np.nan_to_num(jacobian.swapaxes(1, 2) @ residual[..., None], posinf=0, neginf=0)


def _length(points):
  return np.linalg.norm(points[..., _B, :] - points[..., _A, :], axis=-1)


def _residuals(points, seen, depth, length_M, distance_N):
  """-> residuals [N, R] in standard deviations, and their Jacobian [N, R, 63]: pixels, lengths, depths."""
  count, i, m = len(points), np.arange(21), np.arange(len(length_M))
  z = points[..., 2]
  scale = (distance_N / PIXEL_METRES)[:, None]
  across = (points[..., :2] / z[..., None] - seen) * scale[..., None]
  of_pixels = np.zeros((count, 21, 2, 21, 3))
  for axis in range(2):
    of_pixels[:, i, axis, i, axis] = scale / z
    of_pixels[:, i, axis, i, 2] = -scale * points[..., axis] / z**2
  bone, length = points[:, _B] - points[:, _A], _length(points)
  off = (length / length_M - 1) / BONE_SHARE
  along = bone / length[..., None] / (length_M * BONE_SHARE)[:, None]
  of_bones = np.zeros((count, len(m), 21, 3))
  of_bones[:, m, _B], of_bones[:, m, _A] = along, -along
  wrist = z[:, : keypoints.WRIST + 1]
  deep = (z - z.mean(axis=1, keepdims=True) - depth * wrist) / DEPTH_METRES  # from the hand's own middle: the wrist's is as unsure as any
  of_depths = np.zeros((count, 21, 21, 3))
  of_depths[..., 2] = (np.eye(21) - 1 / 21) / DEPTH_METRES
  of_depths[..., keypoints.WRIST, 2] -= depth / DEPTH_METRES
  residual = np.concatenate([across.reshape(count, -1), off, deep], axis=1)
  return residual, np.concatenate([part.reshape(count, -1, 63) for part in (of_pixels, of_bones, of_depths)], axis=1)

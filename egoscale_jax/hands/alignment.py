"""The human's keypoints as the robot's hand should have them: in its base frame, on its scale, a piece of a recording at a time."""

import numpy as np

from egoscale_jax import geometry
from egoscale_jax.errors import UserError
from egoscale_jax.hands import keypoints

_PALM_M = (0.03, 0.3)  # wrist to middle knuckle: outside, the unit is not the metre
_SAMPLE = 2000  # frames that tell a person's size


class Human:
  """Keypoints of one human hand in any frame of reference, taken to the robot through both wrist frames and one scale for the person."""

  def __init__(self, keypoints_Fx21x3, hand, side, confidence_Fx21, min_confidence, scale):
    shape = getattr(keypoints_Fx21x3, "shape", None) or np.shape(keypoints_Fx21x3)
    check_shape(shape)
    if confidence_Fx21 is not None and np.shape(confidence_Fx21) != tuple(shape[:2]):
      raise UserError(f"confidence: expected {list(shape[:2])}, found {list(np.shape(confidence_Fx21))}")
    if hand.side != side:
      raise UserError(f"keypoints of a {side} hand cannot go to the {hand.side} hand {hand.name!r}")
    if scale is not None and not (np.isfinite(scale) and scale > 0):
      raise UserError(f"scale: expected a positive number, found {scale}")
    self.hand, self._side = hand, side
    self._keypoints, self._confidence, self._min_confidence = keypoints_Fx21x3, confidence_Fx21, min_confidence
    sample = self._human(slice(None, None, max(1, shape[0] // _SAMPLE)))
    _check_unit(sample)
    self.scale = _scale(sample, hand) if scale is None else float(scale)
    if np.isnan(self.scale) and len(sample) < shape[0]:  # a hand that is seen so rarely that the sample missed it
      self.scale = _scale(self._human(slice(None)), hand)

  def check_side(self):
    """UserError where most hands bend backwards, as a person's do not: their residuals would look as good as any."""
    sample = self._human(slice(None, None, max(1, len(self) // _SAMPLE)))
    whole_Fx21x3 = sample[np.isfinite(sample).all(axis=(1, 2))]
    mean_F = keypoints.bends(whole_Fx21x3, keypoints.wrist_frame(whole_Fx21x3, self._side)).mean(axis=(1, 2))
    if np.sum(mean_F < keypoints.MIN_MEAN_BEND) > 0.5 * len(mean_F):
      found = f"in most frames the fingers bend out of the back of a {self._side} hand ({np.degrees(np.median(mean_F)):.0f} degrees)"
      expected = "expected a hand of that side, not mirrored, as wrist, then thumb, index, middle, ring, little, each base to tip"
      raise UserError(f"keypoints: {found}; {expected}")

  def __len__(self):
    return len(self._keypoints)

  def _human(self, frames):
    """[F, 21, 3] float64 (world coordinates are far from zero: float32 from the wrist frame on), NaN where missing or uncertain."""
    points = np.array(self._keypoints[frames], np.float64)
    if self._confidence is not None:
      points[~(np.asarray(self._confidence[frames]) >= self._min_confidence)] = np.nan  # one that is NaN is no confidence
    return points

  def read(self, start, stop, length):
    """-> target [21, 3, length], seen [21, length], valid [stop - start]: see `_padded`."""
    human_Fx21x3 = self._human(slice(start, stop))
    T_frame_wrist = keypoints.wrist_frame(human_Fx21x3, self._side, self.hand.knuckles)
    has_wrist_F = np.isfinite(T_frame_wrist).all((1, 2))
    inverse = geometry.se3_inverse(np.where(has_wrist_F[:, None, None], T_frame_wrist, np.eye(4)))
    base = self.hand.T_base_wrist_4x4.astype(np.float64)[None]
    target_Fx21x3 = geometry.transform(base, self.scale * geometry.transform(inverse, human_Fx21x3))
    target_Fx21x3[~has_wrist_F] = np.nan
    return _padded(self.hand, target_Fx21x3, length)


class Targets:
  """Keypoints in the robot's base frame and on its scale already; `scale` is how they came there, and tells the human's size."""

  def __init__(self, target_Fx21x3, hand, scale=1.0):
    self.hand, self.scale, self._target_Fx21x3 = hand, scale, target_Fx21x3

  def __len__(self):
    return len(self._target_Fx21x3)

  def read(self, start, stop, length):
    return _padded(self.hand, np.array(self._target_Fx21x3[start:stop], np.float64), length)


def check_shape(shape):
  if len(shape) != 3 or tuple(shape[1:]) != (21, 3):
    raise UserError(f"keypoints: expected [frames, 21, 3] ({keypoints.ORDER}), found {list(shape)}")


_LONGEST = (9, 5, 13, 17)  # knuckles of the fingers, a human's longest first


def chain_length(points_Px3, knuckle, present=(True,) * 21):
  """Keypoints [..., 21, 3] -> the summed bones from the wrist through a knuckle to its fingertip [...]: the same in every pose."""
  chain = [p for p in (0, *range(knuckle, knuckle + 4)) if present[p]]
  return np.linalg.norm(np.diff(points_Px3[..., chain, :], axis=-2), axis=-1).sum(-1)


def _padded(hand, target_Fx21x3, length):
  """-> target [21, 3, length], seen [21, length], valid [F]: every keypoint of the hand is there. float32.

  Missing keypoints are filled in from the frames around, and frames past the end repeat the last: neither is seen.
  """
  seen_Fx21 = np.isfinite(target_Fx21x3).all(-1)
  filled = np.stack([_filled(target_Fx21x3[:, p], seen_Fx21[:, p], hand.keypoint_Px3[p]) for p in range(21)], axis=1)
  pad = ((0, length - len(filled)), (0, 0), (0, 0))
  target_Px3xF = np.pad(filled, pad, mode="edge").transpose(1, 2, 0).astype(np.float32)
  return target_Px3xF, np.pad(seen_Fx21, pad[:2]).T.astype(np.float32), seen_Fx21[:, np.flatnonzero(hand.present)].all(-1)


def _filled(points_Fx3, seen_F, otherwise_3):
  """Each missing place on the line between those of the frames around it: a start for the solver, which does not weigh it."""
  if seen_F.all():
    return points_Fx3
  at = np.flatnonzero(seen_F)
  if not len(at):
    return np.broadcast_to(otherwise_3, points_Fx3.shape)
  return np.stack([np.interp(np.arange(len(seen_F)), at, points_Fx3[at, axis]) for axis in range(3)], axis=-1)


def _check_unit(keypoints_Fx21x3):
  """Refuses lengths that no hand in metres has."""
  palm_F = np.linalg.norm(keypoints_Fx21x3[:, 9] - keypoints_Fx21x3[:, 0], axis=-1)
  palm_F = palm_F[palm_F > 0]  # neither NaN nor the zeros that some files hold for a missing hand
  if palm_F.size and not _PALM_M[0] <= np.median(palm_F) <= _PALM_M[1]:
    low, high = _PALM_M
    raise UserError(f"keypoints: wrist to middle knuckle is {np.median(palm_F):.3g}, expected {low} to {high} metres: another unit?")


def _scale(human_Fx21x3, hand):
  """Robot's chain over the human's of the same finger, one figure for all frames; NaN without a frame."""
  knuckle = next(p for p in _LONGEST if hand.present[p + 3])
  length_F = chain_length(human_Fx21x3, knuckle)
  length_F = length_F[np.isfinite(length_F) & (length_F > 0)]
  own = chain_length(hand.keypoint_Px3.astype(np.float64), knuckle, hand.present)
  return float(own / np.median(length_F)) if len(length_F) else float("nan")

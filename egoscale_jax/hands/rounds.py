"""How finely a recording is solved, and whether once more: from where it stands, smoother or until nothing is gained. numpy alone."""

import dataclasses

import numpy as np

_PIECE = 2880  # frames whose jerk is read at once
_LOOSE = 0.99  # of what is allowed: a fine solution that was made smoother than this takes some of it back
_GAIN = 2e-4  # of the mean fingertip error: a fine solution that still changes as much is not finished
_LAST = 4  # rounds that are for too much jerk alone


@dataclasses.dataclass(frozen=True)
class Effort:
  knot: int  # frames between the spline's knots; 1: every frame is free
  iterations: int  # a round
  rounds: int  # at most
  tip_share: float  # of Weights.tip_soft_m, for a hand that does not pinch: the smaller, the nearer to the mean distance
  aim: float  # of the jerk that is allowed, for a round that has to be smoother
  steep: float  # the weight of the jerk as a power of the jerk that is wanted: a round that ends early moves less than its optimum


COARSE = Effort(knot=2, iterations=7, rounds=4, tip_share=1.0, aim=1 / 1.01, steep=1.7)
FINE = Effort(knot=1, iterations=20, rounds=12, tip_share=0.3, aim=0.997, steep=1.3)


def prepared(weights, effort, jerk, pinches):
  """-> (weights, smooth): what is compiled, where every weight of the jerk is `jerk`, and the multiplier that it is told when it runs."""
  share = 1.0 if pinches or np.isinf(weights.tip_soft_m) else effort.tip_share  # a pinch is balanced against tips as they are
  smooth = share**0.5  # far tips pull by so much less, and the jerk is to weigh the same against them
  if weights.jerk > 0:
    weights, smooth = dataclasses.replace(weights, jerk=jerk), smooth * weights.jerk / jerk
  return dataclasses.replace(weights, tip_soft_m=share * weights.tip_soft_m), smooth


def once_more(effort, attempt, least, smooth, jerk, max_jerk, gain):
  """The multiplier of the jerk's weight for another round, None where this one may stay; gain: of this round, in fingertip error."""
  wanted = max(least, smooth * (jerk / (effort.aim * max_jerk)) ** effort.steep)
  if jerk > max_jerk:
    return wanted
  if attempt >= effort.rounds - _LAST:
    return None
  loose = smooth == least or jerk > _LOOSE * max_jerk
  return None if loose and abs(gain) < _GAIN else wanted


def mean_jerk(joints_FxJ, valid_F, rate_hz):
  """Mean |third difference| over the stretches where all four frames are valid; 0 where there is none. Reads a piece at a time."""
  total, count = 0.0, 0
  for start in range(0, max(len(joints_FxJ) - 3, 0), _PIECE):
    jerk_FxJ = np.abs(np.diff(joints_FxJ[start : start + _PIECE + 3].astype(np.float64), n=3, axis=0)) * rate_hz**3
    valid = valid_F[start : start + _PIECE + 3]
    jerk_FxJ = jerk_FxJ[valid[:-3] & valid[1:-2] & valid[2:-1] & valid[3:]]
    total, count = total + jerk_FxJ.sum(), count + jerk_FxJ.size
  return total / count if count else 0.0

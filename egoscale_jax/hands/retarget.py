"""Human keypoints -> robot joint values, numpy in and numpy out, with the fingertip error kept as the label's quality.

Keypoints go into the human's wrist frame, are scaled to the robot's size, and are solved as trajectories: windows of a few hundred frames
that overlap, so a long recording takes no more memory than a short one and all cores work. `retarget_frames` solves each frame on its own.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import os
import threading

import jax
import jax.numpy as jnp
import numpy as np

from egoscale_jax.hands import alignment, costs, rounds, solver
from egoscale_jax.hands.costs import Weights

DEFAULT = Weights()
LANES = (4, 8, 16)  # windows side by side in one call: few for a short recording, so that no core waits
WINDOW, OVERLAP = 288, 32  # frames; windows are blended over the overlap: with 16 a round trip is 1.6 degrees off, with 32 0.1
STRIDE, FRAME_ITERATIONS = 2, 5  # the start: every so manieth frame alone
MAX_JERK = 100.0  # rad/s^3, mean
MAX_GAP_S = 0.5  # missing keypoints are bridged by smoothness for so long
ALONE = 1024  # frames a call of retarget_frames
ALONE_ITERATIONS = 30
_REST_BEND = 0.2  # the rest pose and start: this part of the way from straight to mid-range, since straight lies on many a bound


@dataclasses.dataclass(frozen=True)
class Retargeted:
  """The wrist frame is that of `keypoints.wrist_frame`."""

  joints_FxJ: np.ndarray  # within the hand's limits; NaN where neither valid nor bridged; float32
  residual_m_F: np.ndarray  # mean over the fingertips of the distance robot to scaled human; NaN where not valid; float32
  valid_F: np.ndarray  # bool: every keypoint that the hand needs was there, and the palm had an area
  bridged_F: np.ndarray  # bool: some were not, and the joints are what the frames around say
  scale: float  # robot's size over the human's; NaN without a valid frame


def retarget(
  keypoints_Fx21x3,
  hand,
  side,
  weights=DEFAULT,
  *,
  confidence_Fx21=None,
  min_confidence=0.5,
  scale=None,
  rate_hz=30.0,
  max_gap_s=MAX_GAP_S,
  max_jerk=MAX_JERK,
  fine=None,
  out=None,
) -> Retargeted:
  """Keypoints of one human hand [F, 21, 3] in metres, in any frame of reference (may move), NaN where missing (or of low confidence).

  scale: robot's size over the human's, estimated from the keypoints where None. max_jerk: the mean of |jerk| in rad/s^3 that a quick
  person, a noisy tracker or a hand of few joints may reach; beyond it the recording is solved again, smoother, at most three times.
  fine: every frame is free (else every second), and rounds go on until the tips gain nothing: some thirty times the time. None: for a robot
  that does not pinch (`Weights.pinch_scale`, `pinch_joints`): much is out of its reach, and tips are all that is left to get right.
  out: (joints [F, J], residual [F]) float32 to write into, as memory maps for a recording that does not fit.
  """
  source = alignment.Human(keypoints_Fx21x3, hand, side, confidence_Fx21, min_confidence, scale)
  return follow(source, weights, rate_hz=rate_hz, max_gap_s=max_gap_s, max_jerk=max_jerk, fine=fine, out=out)


def retarget_frames(keypoints_Fx21x3, hand, side, weights=DEFAULT, *, confidence_Fx21=None, min_confidence=0.5, scale=None) -> Retargeted:
  """As retarget, each frame on its own and from the same starts: nothing is bridged, and the order of the frames changes nothing."""
  return follow_frames(alignment.Human(keypoints_Fx21x3, hand, side, confidence_Fx21, min_confidence, scale), weights)


def follow(source, weights=DEFAULT, *, rate_hz=30.0, max_gap_s=MAX_GAP_S, max_jerk=MAX_JERK, fine=None, out=None) -> Retargeted:
  """`retarget` of an alignment.Human or alignment.Targets."""
  hand, frames = source.hand, len(source)
  joints_FxJ, residual_m_F = out or (np.zeros((frames, hand.num_joints), np.float32), np.zeros(frames, np.float32))
  valid_F = np.zeros(frames, bool)
  pinches = costs.pinches(hand, weights, source.scale)
  effort = rounds.COARSE if (pinches if fine is None else not fine) else rounds.FINE
  weights, least = rounds.prepared(weights, effort, DEFAULT.jerk, pinches)
  smooth, error = least, np.inf
  for attempt in range(effort.rounds):
    _solve(source, weights, float(rate_hz), effort, smooth, joints_FxJ, residual_m_F, valid_F, again=attempt > 0)
    before, error = error, residual_m_F.sum(where=valid_F, dtype=np.float64)
    jerk = rounds.mean_jerk(joints_FxJ, valid_F, rate_hz)
    smooth = rounds.once_more(effort, attempt, least, smooth, jerk, max_jerk, gain=1.0 - error / before if error else 0.0)
    if smooth is None:
      break
  bridged_F = _short_gaps(valid_F, round(max_gap_s * rate_hz))
  joints_FxJ[~(valid_F | bridged_F)] = np.nan
  residual_m_F[~valid_F] = np.nan
  np.clip(joints_FxJ, hand.lower_J, hand.upper_J, out=joints_FxJ)  # a blend may round to the outside
  return Retargeted(joints_FxJ, residual_m_F, valid_F, bridged_F, source.scale)


def follow_frames(source, weights=DEFAULT) -> Retargeted:
  """`retarget_frames` of an alignment.Human or alignment.Targets."""
  hand, pieces = source.hand, []
  solve = functools.partial(_solve_alone, source, weights)
  for joints_FxJ, residual_F, valid_F in _in_order(solve, range(0, len(source), ALONE)):
    pieces.append((np.where(valid_F[:, None], joints_FxJ, np.float32(np.nan)), np.where(valid_F, residual_F, np.float32(np.nan)), valid_F))
  pieces = pieces or [(np.zeros((0, hand.num_joints), np.float32), np.zeros(0, np.float32), np.zeros(0, bool))]
  joints_FxJ, residual_F, valid_F = (np.concatenate(column) for column in zip(*pieces))
  return Retargeted(joints_FxJ, residual_F, valid_F, np.zeros_like(valid_F), source.scale)


@functools.partial(jax.jit, static_argnames=("hand", "weights"))
def start_windows(hand, weights, target_Px3xFxB, scale):
  """Where `refine_windows` starts: every second frame on its own, without the pinches, from keypoints and to joints that a filter calms.

  What is not seen is believed here as it was filled in, so that a gap starts between its ends.
  """
  weights, rest_J = dataclasses.replace(weights, pinch=0.0), rest_pose(hand)
  calm = _calmed(target_Px3xFxB, 1)[..., ::STRIDE, :]
  aims = costs.aims(hand, weights, calm, jnp.ones_like(calm[:, 0]), scale)
  start, _ = solver.frames(hand, weights, aims, rest_J, _everywhere(rest_J, calm[0, 0]), FRAME_ITERATIONS)
  return jnp.repeat(_calmed(start, 2), STRIDE, axis=-2)


@functools.partial(jax.jit, static_argnames=("hand", "weights", "rate_hz", "effort"))
def refine_windows(hand, weights, target_Px3xFxB, seen_PxFxB, scale, start_JxFxB, rate_hz, smooth=1.0, effort=rounds.COARSE):
  """Trajectories on the robot's scale, in its base frame: [21, 3, F, B], seen [21, F, B] -> (joints [J, F, B], tip error [F, B], m)."""
  aims = costs.aims(hand, weights, target_Px3xFxB, seen_PxFxB, scale)
  knot, iterations = effort.knot, effort.iterations
  joints, _ = solver.trajectories(hand, weights, aims, rest_pose(hand), start_JxFxB, rate_hz, knot, iterations, smooth)
  return joints, costs.tip_error(hand, joints, target_Px3xFxB, seen_PxFxB)


@functools.partial(jax.jit, static_argnames=("hand", "weights", "iterations"))
def solve_frames(hand, weights, target_Px3xF, seen_PxF, scale, iterations=ALONE_ITERATIONS):
  """Likewise for frames: [21, 3, F], seen [21, F] -> (joints [J, F], tip error [F] in metres), the better of two starts."""
  rest_J = rest_pose(hand)
  half_closed_J = 0.5 * (hand.lower_J + hand.upper_J)
  starts = jnp.stack([_everywhere(start_J, target_Px3xF[0, 0]) for start_J in (rest_J, half_closed_J)], axis=1)
  aims = costs.aims(hand, weights, *(jnp.stack([x, x], axis=-2) for x in (target_Px3xF, seen_PxF)), scale)
  joints, cost = solver.frames(hand, weights, aims, rest_J, starts, iterations)
  joints = jnp.where((cost[0] <= cost[1])[None], joints[:, 0], joints[:, 1])
  return joints, costs.tip_error(hand, joints, target_Px3xF, seen_PxF)


def rest_pose(hand):
  """Joint values [J] the solver starts from and is faintly drawn to: nearly straight, and within the limits."""
  straight_J = np.clip(np.zeros_like(hand.lower_J), hand.lower_J, hand.upper_J)
  return straight_J + np.float32(_REST_BEND) * (np.float32(0.5) * (hand.lower_J + hand.upper_J) - straight_J)


def windows(frames):
  """(start, stop, share [stop - start]) of each window; the shares of all windows add up to one at every frame."""
  ramp = (np.arange(OVERLAP) + 0.5) / OVERLAP
  ramp = (ramp * ramp * (3.0 - 2.0 * ramp)).astype(np.float32)
  start = 0
  while start < frames:
    stop = min(start + WINDOW, frames)
    share_F = np.ones(stop - start, np.float32)
    if start:
      share_F[:OVERLAP] = ramp
    if stop < frames:
      share_F[-OVERLAP:] = 1.0 - ramp
    yield start, stop, share_F
    if stop == frames:
      return
    start = stop - OVERLAP


def _solve(source, weights, rate_hz, effort, smooth, joints_FxJ, residual_m_F, valid_F, again):
  """Fills the three arrays; again: from the joints that stand there."""
  start_FxJ = joints_FxJ.copy() if again else None
  joints_FxJ[:], residual_m_F[:] = 0.0, 0.0
  solve = functools.partial(_solve_windows, source, weights, rate_hz, effort, np.float32(smooth), start_FxJ)
  for batch, joints_JxFxB, residual_FxB, valid in _in_order(solve, _batches(len(source))):
    for b, (start, stop, share_F) in enumerate(batch):
      joints_FxJ[start:stop] += share_F[:, None] * joints_JxFxB[:, : stop - start, b].T
      residual_m_F[start:stop] += share_F * residual_FxB[: stop - start, b]
      valid_F[start:stop] = valid[b]


def _batches(frames):
  """Lists of windows that are solved side by side."""
  every = list(windows(frames))
  lanes = next((n for n in LANES if n * (os.cpu_count() or 1) >= len(every)), LANES[-1])
  return [every[i : i + lanes] for i in range(0, len(every), lanes)]


def _solve_windows(source, weights, rate_hz, effort, smooth, start_FxJ, batch):
  hand, lanes = source.hand, next(n for n in LANES if n >= len(batch))
  pieces = [source.read(start, stop, WINDOW) for start, stop, _ in batch]
  valid = [piece[2] for piece in pieces]
  if not any(valid_F.any() for valid_F in valid):  # nothing to solve for, and no size to scale by where that holds everywhere
    empty = np.zeros((hand.num_joints, WINDOW, len(batch)), np.float32)
    return batch, empty, empty[0], valid
  pieces += pieces[-1:] * (lanes - len(pieces))
  target, seen = (np.stack([piece[i] for piece in pieces], axis=-1) for i in (0, 1))
  scale = np.float32(source.scale)
  with _compiling:
    from_keypoints, refine = _programs(hand, weights, rate_hz, effort, lanes)
  if start_FxJ is None:
    start = from_keypoints(target, scale)
  else:
    start = np.stack([_padded_to(start_FxJ[a:b].T, WINDOW) for a, b, _ in batch + batch[-1:] * (lanes - len(batch))], axis=-1)
  joints, residual = refine(target, seen, scale, start, smooth)
  return batch, np.asarray(joints), np.asarray(residual), valid


_compiling = threading.Lock()


@functools.lru_cache(maxsize=16)
def _programs(hand, weights, rate_hz, effort, lanes):
  """start_windows and refine_windows for so many windows, compiled side by side: 22 joints take seconds on one core."""

  def single(*shape):
    return jax.ShapeDtypeStruct(shape, np.float32)

  target, seen, start = single(21, 3, WINDOW, lanes), single(21, WINDOW, lanes), single(hand.num_joints, WINDOW, lanes)
  lowered = (
    start_windows.lower(hand, weights, target, single()),
    refine_windows.lower(hand, weights, target, seen, single(), start, rate_hz, single(), effort),
  )
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    return tuple(pool.map(lambda program: program.compile(), lowered))


def _padded_to(joints_JxF, length):
  return np.pad(joints_JxF, ((0, 0), (0, length - joints_JxF.shape[1])), mode="edge")


def _solve_alone(source, weights, start):
  stop = min(start + ALONE, len(source))
  target, seen, valid_F = source.read(start, stop, ALONE)
  joints, residual = solve_frames(source.hand, weights, target, seen, np.float32(source.scale))
  return np.asarray(joints).T[: stop - start], np.asarray(residual)[: stop - start], valid_F


def _in_order(function, items):
  """map, a few items ahead on as many threads as cores: XLA runs one window on one core most of the time."""
  threads = os.cpu_count() or 1
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    ahead = collections.deque()
    for item in items:
      ahead.append(pool.submit(function, item))
      if len(ahead) > threads:
        yield ahead.popleft().result()
    while ahead:
      yield ahead.popleft().result()


def _short_gaps(valid_F, limit):
  """Frames that are not valid, in runs of at most `limit` with valid frames on both sides."""
  edges = np.flatnonzero(np.diff(np.concatenate([[1], valid_F, [1]]).astype(np.int8)))
  bridged_F = np.zeros_like(valid_F)
  for start, stop in edges.reshape(-1, 2):
    if stop - start <= limit and start > 0 and stop < len(valid_F):
      bridged_F[start:stop] = True
  return bridged_F


def _calmed(frames_FxB, times):
  """[..., F, B], each frame with a quarter of each neighbour, so many times."""
  for _ in range(times):
    padded = jnp.pad(frames_FxB, [(0, 0)] * (frames_FxB.ndim - 2) + [(1, 1), (0, 0)], mode="edge")
    frames_FxB = 0.25 * (padded[..., :-2, :] + 2.0 * padded[..., 1:-1, :] + padded[..., 2:, :])
  return frames_FxB


def _everywhere(joints_J, like_F):
  return jnp.broadcast_to(jnp.asarray(joints_J, like_F.dtype).reshape(-1, *(1,) * like_F.ndim), (len(joints_J), *like_F.shape))

"""Each wrist as it is seen from where it was some frames before, at every lag, for the statistics: pairs of frames by the million.

Episodes are laid one after the other, a batch of them, and every second frame side by side: starts and targets are then slices.
"""

import numpy as np

from egoscale_jax.data import actions, spec

LAGS = spec.TAIL_FRAMES
# Up to so many frames every pair of frames counts, past it those of LANES[1] are dropped for good: half of the time. The wrists of
# neighbouring targets (counted in their episode) say nearly the same; at the shortest lags a tracker's jitter sets them apart, so all stay.
# Quantiles move by less than 0.1 % in rank, wherever (docs/data.md). The rule knows no order, so parts merge.
ALL_PAIRS_FRAMES = 1_200_000
LANES = (((1, 4, 0, 1), (5, LAGS, 0, 2)), ((5, LAGS, 1, 2),))  # of (first lag, last lag, first target, step of the targets)
_ROUND = 2  # episodes start at a multiple of it: of every step, as LAGS is


def batch(episodes):
  """(T_world_wrist [F, 4, 4], valid [F]) of one side, one after the other: pose [LAGS + T, 12] float32, valid [LAGS + T], age [LAGS + T].

  In front and between them nothing is valid and poses are 0; age is the frame in its episode.
  """
  slots = [-(-len(valid_F) // _ROUND) * _ROUND for _, valid_F in episodes]
  total = LAGS + sum(slots)
  pose_Tx12, valid_T, age_T = np.zeros((total, 12), np.float32), np.zeros(total, bool), np.zeros(total, np.int32)
  first = LAGS
  for (pose_Fx4x4, valid_F), slot in zip(episodes, slots):
    here = slice(first, first + len(valid_F))
    np.copyto(pose_Tx12[here], pose_Fx4x4[:, :3].reshape(-1, 12), where=valid_F[:, None])
    valid_T[here], age_T[here] = valid_F, np.arange(len(valid_F))
    first += slot
  return pose_Tx12, valid_T, age_T


def add(sketch, group, batch, first_lag, last_lag, offset, step):
  """The wrist at each target seen from `lag` frames before, as in actions.py, to the group of each lag: `group` has lag 1.

  Rows come in the order of time, so it is the same however the episodes are put into batches.
  """
  pose_Tx12, valid_T, age_T = batch
  pose_12xPxN = pose_Tx12.reshape(-1, step, 12).transpose(2, 1, 0).copy()  # frame step * n + p is at [p, n], as below
  valid_PxN, age_PxN = (array_T.reshape(-1, step).T.copy() for array_T in (valid_T, age_T))
  front, count = LAGS // step, valid_PxN.shape[1] - LAGS // step
  wrist_9xN = np.empty((actions.WRIST_DIM, count), np.float32)
  end_3x4xN = pose_12xPxN[:, offset, front:].reshape(3, 4, -1)
  for lag in range(first_lag, last_lag + 1):
    back, phase = divmod(offset - lag, step)
    start = slice(front + back, front + back + count)
    both_N = valid_PxN[offset, front:] & valid_PxN[phase, start]
    both_N &= age_PxN[offset, front:] >= lag
    _relative(pose_12xPxN[:, phase, start].reshape(3, 4, -1), end_3x4xN, wrist_9xN)
    sketch.add(group + lag - 1, wrist_9xN.compress(both_N, axis=1))


def _relative(start_3x4xN, end_3x4xN, wrist_9xN):
  """inverse(T_world_start) @ T_world_end, written as the 9 numbers of a wrist.

  Entry by entry over all targets at once: numpy's product of small matrices takes ten times as long, einsum five times.
  """
  moved_3xN = end_3x4xN[:, 3] - start_3x4xN[:, 3]
  _dot(start_3x4xN[:, :3], moved_3xN, wrist_9xN[:3])  # row i is column i of the start's rotation times what moved ...
  _dot(start_3x4xN[:, :2, None], end_3x4xN[:, None, :3], wrist_9xN[3:].reshape(2, 3, -1))  # ... and two rows of geometry.so3_to_rot6d


def _dot(a_3xN, b_3xN, out_N):
  np.multiply(a_3xN[0], b_3xN[0], out=out_N)
  out_N += a_3xN[1] * b_3xN[1]
  out_N += a_3xN[2] * b_3xN[2]

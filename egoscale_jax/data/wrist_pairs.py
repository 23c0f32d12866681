"""Each wrist as it is seen from where it was some frames before, at every lag, for the statistics: pairs of frames by the million."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from egoscale_jax.data import actions, spec

LAGS = spec.TAIL_FRAMES
# Up to so many frames every pair of frames counts, past it those of LANES[1] are dropped for good: a third of the time. At long lags the
# wrists of neighbouring targets (counted in their episode) say the same; at short ones a tracker's jitter sets them apart, so half stay.
# The quantiles q01 and q99 move by less than 0.1 % in rank (docs/data.md). The rule knows no order, so parts merge.
ALL_PAIRS_FRAMES = 500_000
LANES = (  # of (first lag, last lag, offset, step): the pairs with the targets offset, offset + step, ...
  ((1, 16, 0, 2), (17, LAGS, 0, 8)),
  ((1, 16, 1, 2), (17, LAGS, 1, 2), (17, LAGS, 2, 4), (17, LAGS, 4, 8)),
)
_BLOCK = 512  # targets a pass


def padded(T_world_wrist_Fx4x4):
  """-> [12, LAGS + F] float32: frame t is at t + LAGS, so that every target has a start at every lag."""
  return np.pad(T_world_wrist_Fx4x4[:, :3].reshape(-1, 12).T.astype(np.float32), ((0, 0), (LAGS, 0)))


def add(sketch, group, pose_12xF, valid_F, first_lag, last_lag, offset, step):
  """The wrist at each target seen from `lag` frames before, as in actions.py, to the group of each lag: `group` has lag 1."""
  for first in range(LAGS + offset, len(valid_F), step * _BLOCK):
    last = min(first + step * _BLOCK, len(valid_F))  # views of the starts, the latest first; the targets are their first row
    start_12xLxn = sliding_window_view(pose_12xF[:, first - LAGS : last], LAGS + 1, axis=1)[:, ::step, LAGS::-1].swapaxes(1, 2)
    valid_Lxn = sliding_window_view(valid_F[first - LAGS : last], LAGS + 1)[::step, LAGS::-1].T
    lags = slice(first_lag, last_lag + 1)
    wrist_9xLxn = _relative(start_12xLxn[:, lags].reshape(3, 4, -1, valid_Lxn.shape[1]), start_12xLxn[:, 0].reshape(3, 4, -1))
    both_Lxn = valid_Lxn[lags] & valid_Lxn[0]
    for row, run in enumerate(_runs(both_Lxn)):
      rows_9xn = wrist_9xLxn[:, row]
      sketch.add(group + first_lag - 1 + row, rows_9xn.compress(both_Lxn[row], axis=1) if run is None else rows_9xn[:, run])


def _runs(true_LxN):
  """-> of each row the slice of its True values, None where they do not stand together: a slice is not copied."""
  start_L, stop_L = true_LxN.argmax(axis=1), true_LxN.shape[1] - true_LxN[:, ::-1].argmax(axis=1)
  together_L = true_LxN.sum(axis=1) == stop_L - start_L
  return [slice(*run) if together else None for *run, together in zip(start_L.tolist(), stop_L.tolist(), together_L.tolist())]


def _relative(start_3x4xLxN, end_3x4xN):
  """inverse(T_world_start) @ T_world_end -> [9, L, N].

  Entry by entry over all lags and targets at once: numpy's product of small matrices takes ten times as long, einsum five times.
  """
  end_3x4x1xN = end_3x4xN[:, :, None]
  wrist_9xLxN = np.empty((actions.WRIST_DIM, *start_3x4xLxN.shape[2:]), np.float32)
  moved_3xLxN = end_3x4x1xN[:, 3] - start_3x4xLxN[:, 3]
  for i in range(3):  # row i is column i of the start's rotation times ...
    _dot(start_3x4xLxN[:, i], moved_3xLxN, wrist_9xLxN[i])
  for i in range(2):  # the rows of geometry.so3_to_rot6d
    for j in range(3):
      _dot(start_3x4xLxN[:, i], end_3x4x1xN[:, j], wrist_9xLxN[3 + 3 * i + j])
  return wrist_9xLxN


def _dot(a_3xLxN, b_3xLxN, out_LxN):
  np.multiply(a_3xLxN[0], b_3xLxN[0], out=out_LxN)
  out_LxN += a_3xLxN[1] * b_3xLxN[1]
  out_LxN += a_3xLxN[2] * b_3xLxN[2]

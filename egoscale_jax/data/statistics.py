"""Statistics of the actions, one table a lag, and the normalisation made from them.

Lag l is an action step l frames after its chunk's start, so step k of a chunk of stride s has lag k * s. The spread of the relative wrist
grows with the lag; that of the absolute joints does not.
"""

import dataclasses
import json

import numpy as np

from egoscale_jax import geometry
from egoscale_jax.data import actions, jsonfile, schema, spec
from egoscale_jax.errors import UserError

VERSION = 1
LAGS = spec.TAIL_FRAMES
# Quantiles come from a subsample a lag and hand: every n-th valid action in the order of the episodes, n doubled each time ROWS of them are
# held. It then has ROWS / 2 to ROWS rows and no chance in it; memory is 2 * LAGS * ROWS * (9 + J) floats, 130 MB at J = 22. The 1 %
# quantile of 4096 rows is off by 0.16 % in rank (one sigma). Mean, std and count are of all actions.
ROWS = 8192
_FLOOR = 1e-3  # the least width of a range, metres or radians: a dimension that hardly moves would be blown up to noise
_WRIST_NAMES = ("x", "y", "z", "r00", "r01", "r02", "r10", "r11", "r12")
_TABLES = ("mean", "std", "q01", "q99", "count")


@dataclasses.dataclass(frozen=True)
class Normalizer:
  """Maps low..high of each action dimension to -1..1, linearly and without a clip; on numpy arrays [..., A], NaN stays NaN."""

  low_A: np.ndarray  # float32
  high_A: np.ndarray
  observed_A: np.ndarray  # bool; False: no valid value in the data, low and high are -1 and 1 then

  def normalize(self, action):
    return 2.0 * (action - self.low_A) / (self.high_A - self.low_A) - 1.0

  def denormalize(self, action):
    return 0.5 * (action + 1.0) * (self.high_A - self.low_A) + self.low_A


@dataclasses.dataclass(frozen=True)
class Statistics:
  """Row l - 1 is lag l; L = LAGS. NaN where the count is 0."""

  hand: str  # as hands.hand.load takes it
  joint_names: tuple[str, ...]  # of the left hand, J
  action_names: tuple[str, ...]  # "<side>.<name>", A
  mean_LxA: np.ndarray  # float64, as the others
  std_LxA: np.ndarray
  q01_LxA: np.ndarray
  q99_LxA: np.ndarray
  count_LxA: np.ndarray  # int64

  def normalizer(self, horizon: int, stride: int = 1) -> Normalizer:
    """One range for all the steps of a chunk: the lowest 1 % and the highest 99 % quantile over its lags.

    Percentiles rather than the extremes as GR00T N1.7 does it (`use_percentiles`); the paper is silent. One range and not one a step: the
    model then sees a wrist that moves off, as it does in the world.
    """
    rows = _rows(horizon, stride)
    observed_A = (self.count_LxA[rows] > 0).any(axis=0)
    low_A = np.where(observed_A, np.nan_to_num(self.q01_LxA[rows], nan=np.inf).min(axis=0), -1.0)
    high_A = np.where(observed_A, np.nan_to_num(self.q99_LxA[rows], nan=-np.inf).max(axis=0), 1.0)
    missing_A = np.maximum(_FLOOR - (high_A - low_A), 0.0)
    low_A, high_A = low_A - missing_A / 2, high_A + missing_A / 2
    return Normalizer(low_A.astype(np.float32), high_A.astype(np.float32), observed_A)

  def mean_chunk(self, horizon: int, stride: int = 1) -> np.ndarray:
    """-> [T, A] float32, the mean action of every step: the baseline that a policy must beat; NaN where nothing was observed."""
    return self.mean_LxA[_rows(horizon, stride)].astype(np.float32)

  def save(self, path):
    """Writes JSON; NaN becomes null, for JSON has no NaN."""
    tables = {name: getattr(self, f"{name}_LxA") for name in _TABLES}
    lists = {name: [[None if np.isnan(v) else v for v in row] for row in table.tolist()] for name, table in tables.items()}
    head = {"version": VERSION, "hand": self.hand, "joint_names": self.joint_names, "action_names": self.action_names}
    with open(path, "w", encoding="utf-8") as file:
      json.dump(head | lists, file)


def load(path) -> Statistics:
  """Reads what save() wrote; UserError where it is absent or of another version."""
  content = jsonfile.read(path, VERSION, "statistics")
  tables = {f"{name}_LxA": np.array(content[name], np.int64 if name == "count" else np.float64) for name in _TABLES}
  return Statistics(content["hand"], tuple(content["joint_names"]), tuple(content["action_names"]), **tables)


class Accumulator:
  """Takes Labels as they stream by, in bounded memory. The result depends on their order (the quantiles' subsample), so keep it fixed."""

  def __init__(self, hand: str, joint_names: tuple[tuple[str, ...], tuple[str, ...]]):
    """joint_names: of the left and of the right hand, J each."""
    self._hand = hand
    self._joint_names = tuple(tuple(names) for names in joint_names)
    size = actions.WRIST_DIM + len(self._joint_names[0])
    self._count_Lx2 = np.zeros((LAGS, 2), np.int64)
    self._mean_Lx2xD = np.zeros((LAGS, 2, size))
    self._square_Lx2xD = np.zeros((LAGS, 2, size))  # sum of squared deviations from the mean
    self._samples = [[_Sample() for _ in range(2)] for _ in range(LAGS)]

  def add(self, labels: schema.Labels):
    """Every frame of the episode is the start of a chunk."""
    pose_Fx2x4x4, valid_Fx2 = labels.T_world_wrist_Fx2x4x4, labels.valid_Fx2
    inverse_Fx2x4x4 = geometry.se3_inverse(pose_Fx2x4x4)
    for lag in range(1, min(LAGS, len(valid_Fx2) - 1) + 1):
      T_start_wrist = inverse_Fx2x4x4[:-lag] @ pose_Fx2x4x4[lag:]
      rot6d = geometry.so3_to_rot6d(T_start_wrist[..., :3, :3])
      action_Fx2xD = np.concatenate([T_start_wrist[..., :3, 3], rot6d, labels.joints_Fx2xJ[lag:]], axis=-1)
      both_Fx2 = valid_Fx2[:-lag] & valid_Fx2[lag:]
      for side in range(2):
        self._add(lag - 1, side, action_Fx2xD[both_Fx2[:, side], side])

  def _add(self, row, side, action_NxD):
    """Merges N actions into one lag and hand (Chan et al.: the squares of large sums never cancel)."""
    if not len(action_NxD):
      return
    action_NxD = action_NxD.astype(np.float32)
    before, new = self._count_Lx2[row, side], len(action_NxD)
    mean_D = action_NxD.mean(axis=0, dtype=np.float64)
    delta_D = mean_D - self._mean_Lx2xD[row, side]
    self._count_Lx2[row, side] = before + new
    self._mean_Lx2xD[row, side] += delta_D * (new / (before + new))
    self._square_Lx2xD[row, side] += ((action_NxD - mean_D) ** 2).sum(axis=0) + delta_D**2 * (before * new / (before + new))
    self._samples[row][side].add(action_NxD)

  def finish(self) -> Statistics:
    """-> Statistics of all that was added."""
    size = self._mean_Lx2xD.shape[-1]
    seen_Lx2x1 = (self._count_Lx2 > 0)[..., None]
    std_Lx2xD = np.sqrt(self._square_Lx2xD / np.maximum(self._count_Lx2, 1)[..., None])
    quantile_2xLx2xD = np.full((2, LAGS, 2, size), np.nan)
    for row, side in np.argwhere(seen_Lx2x1[..., 0]):
      quantile_2xLx2xD[:, row, side] = np.quantile(self._samples[row][side].rows(), (0.01, 0.99), axis=0)
    names = [f"{side}.{name}" for side, joints in zip(("left", "right"), self._joint_names) for name in _WRIST_NAMES + joints]
    return Statistics(
      hand=self._hand,
      joint_names=self._joint_names[0],
      action_names=tuple(names),
      mean_LxA=np.where(seen_Lx2x1, self._mean_Lx2xD, np.nan).reshape(LAGS, -1),
      std_LxA=np.where(seen_Lx2x1, std_Lx2xD, np.nan).reshape(LAGS, -1),
      q01_LxA=quantile_2xLx2xD[0].reshape(LAGS, -1),
      q99_LxA=quantile_2xLx2xD[1].reshape(LAGS, -1),
      count_LxA=np.repeat(self._count_Lx2, size, axis=1),
    )


class _Sample:
  """Every n-th of the rows that were added, at most ROWS of them; see there."""

  def __init__(self):
    self._parts, self._held, self._seen, self._every = [], 0, 0, 1

  def add(self, rows_NxD):
    kept = rows_NxD[-self._seen % self._every :: self._every].copy()  # a view would hold the whole episode
    self._seen += len(rows_NxD)
    self._parts.append(kept)
    self._held += len(kept)
    while self._held > ROWS:
      self._parts = [self.rows()[::2].copy()]
      self._held = len(self._parts[0])
      self._every *= 2

  def rows(self):
    return np.concatenate(self._parts)


def _rows(horizon, stride):
  """Rows of the tables for the steps of a chunk."""
  if horizon < 1 or stride < 1 or horizon * stride > LAGS:
    raise UserError(f"horizon {horizon} and stride {stride}: found {horizon * stride} frames, expected 1 to {LAGS}, the lags in the shards")
  return stride * np.arange(1, horizon + 1) - 1

"""Statistics of the actions and the normalisation made from them; per embodiment, mergeable, from the low-dimensional labels alone.

Lag l is an action step l frames after its chunk's start, so step k of a chunk of stride s has lag k * s. The spread of the relative wrist
grows with the lag, so the wrist has a table a lag; that of the absolute joints does not, so they have one for all.
"""

import dataclasses
import hashlib
import io
import json
import re
from collections.abc import Sequence

import numpy as np

from egoscale_jax.data import actions, jsonfile, schema, wrist_pairs
from egoscale_jax.data.sketch import Sketch
from egoscale_jax.errors import UserError

VERSION = 2  # of statistics.json
_STATE_VERSION = 4  # of an Accumulator's bytes
LAGS = wrist_pairs.LAGS
_BATCH_FRAMES = 8192  # numpy's own cost is by the call
_FLOOR = 1e-3  # the least width of a range, metres or radians: a dimension that hardly moves would be blown up to noise
_CONSTANT = 1e-6  # metres, radians: float32 poses within 10 m of their origin are no finer
_WRIST_NAMES = ("x", "y", "z", "r00", "r01", "r02", "r10", "r11", "r12")
_TABLES = ("mean", "std", "q01", "q99", "min", "max", "count")
_MAGIC = b"egoscale statistics %d\n" % _STATE_VERSION


@dataclasses.dataclass(frozen=True)
class Normalizer:
  """Maps low..high of each action dimension to -1..1, linearly and without a clip; on numpy arrays [..., A], NaN stays NaN."""

  low_A: np.ndarray  # float32
  high_A: np.ndarray
  observed_A: np.ndarray  # bool; False: no valid value in the data, low and high are -1 and 1 then
  learnt_A: np.ndarray  # bool: observed, and not at rest (config.data.resting)
  rest_A: np.ndarray  # float32: the mean, which a policy without proprioception says of what is not learnt; NaN: never observed

  def normalize(self, action):
    normal = action - self.low_A
    normal *= 2.0 / (self.high_A - self.low_A)  # in place: a batch of chunks is megabytes
    normal -= 1.0
    return normal

  def of(self, part: slice) -> "Normalizer":
    """Of a part of each hand's numbers, left and right: its arrays are [2, D]."""
    return Normalizer(*(getattr(self, field.name).reshape(2, -1)[:, part] for field in dataclasses.fields(self)))

  def denormalize(self, action):
    return 0.5 * (action + 1.0) * (self.high_A - self.low_A) + self.low_A


@dataclasses.dataclass(frozen=True)
class Statistics:
  """Row l - 1 is lag l; L = LAGS; joints have the same in every row. NaN where the count is 0."""

  hand: str  # as hands.hand.load takes it
  joint_names: tuple[str, ...]  # of the left hand, J
  action_names: tuple[str, ...]  # "<side>.<name>", A
  mean_LxA: np.ndarray  # float64, as the others
  std_LxA: np.ndarray
  q01_LxA: np.ndarray
  q99_LxA: np.ndarray
  min_LxA: np.ndarray
  max_LxA: np.ndarray
  count_LxA: np.ndarray  # int64

  def normalizer(self, horizon: int, stride: int = 1, resting: Sequence[str] = ()) -> Normalizer:
    """One range for all the steps of a chunk: the lowest 1 % and the highest 99 % quantile over its lags.

    Percentiles rather than the extremes as GR00T N1.7 does it (`use_percentiles`); the paper is silent. One range and not one a step: the
    model then sees a wrist that moves off, as it does in the world. resting: config.data.resting, see there.
    """
    rows = _rows(horizon, stride)
    observed_A = (self.count_LxA[rows] > 0).any(axis=0)
    learnt_A = observed_A & ~self._named(resting)
    self._refuse_constant(rows, learnt_A)
    low_A = _lowest(self.q01_LxA[rows], observed_A)
    high_A = _highest(self.q99_LxA[rows], observed_A)
    missing_A = np.maximum(_FLOOR - (high_A - low_A), 0.0)
    low_A, high_A = low_A - missing_A / 2, high_A + missing_A / 2
    rest_A = np.full(len(observed_A), np.nan)
    rest_A[observed_A] = np.nanmean(self.mean_LxA[rows][:, observed_A], axis=0)
    return Normalizer(low_A.astype(np.float32), high_A.astype(np.float32), observed_A, learnt_A, rest_A.astype(np.float32))

  def _named(self, patterns) -> np.ndarray:
    """[A] bool: which names of actions one of the patterns matches, the whole of them."""
    try:
      compiled = [re.compile(pattern) for pattern in patterns]
    except re.error as error:
      raise UserError(f"config.data.resting: found {tuple(patterns)}, expected regular expressions: {error}") from error
    return np.array([any(pattern.fullmatch(name) for pattern in compiled) for name in self.action_names])

  def _refuse_constant(self, rows, learnt_A):
    """UserError naming each dimension to be learnt that is the same in all the data: a wrong column, a wrong unit or a dead joint.

    The extremes and not the quantiles, for a gripper may close in one frame of a thousand; over all lags of the chunk, since that is the
    range which is mapped: a wrist turns little in one frame. Of a rotation's six entries some stand still by nature (turning about one
    axis of the wrist leaves three of them), so they are refused only where all six do: the wrist never turned.
    """
    low_A, high_A = _lowest(self.min_LxA[rows], learnt_A), _highest(self.max_LxA[rows], learnt_A)
    still_A = learnt_A & (high_A - low_A < _CONSTANT)
    rotation_2x6 = still_A.reshape(2, -1)[:, 3 : actions.WRIST_DIM]
    rotation_2x6 &= rotation_2x6.all(axis=1, keepdims=True)  # a view: writes still_A
    named = [f"{name} = {low:.6g}" for name, low, still in zip(self.action_names, low_A, still_A) if still]
    if named:
      advice = "expected values that move (a wrong column or unit, a dead joint?); config.data.resting names those that may stand still"
      raise UserError(f"statistics of {self.hand}: found constant {', '.join(named)}, {advice}")

  def mean_chunk(self, horizon: int, stride: int = 1) -> np.ndarray:
    """-> [T, A] float32, the mean action of every step: the baseline that a policy must beat; NaN where nothing was observed."""
    return self.mean_LxA[_rows(horizon, stride)].astype(np.float32)

  def to_json(self) -> dict:
    """NaN becomes null, for JSON has no NaN."""
    tables = {name: getattr(self, f"{name}_LxA") for name in _TABLES}
    lists = {name: [[None if np.isnan(v) else v for v in row] for row in table.tolist()] for name, table in tables.items()}
    return {"version": VERSION, "hand": self.hand, "joint_names": self.joint_names, "action_names": self.action_names} | lists

  def save(self, path):
    with open(path, "w", encoding="utf-8") as file:
      json.dump(self.to_json(), file)


def load(path) -> Statistics:
  """Reads what save() wrote; UserError where it is absent or of another version."""
  return from_json(jsonfile.read(path, VERSION, "statistics"))


def from_json(content: dict) -> Statistics:
  """What to_json() gave."""
  tables = {f"{name}_LxA": np.array(content[name], np.int64 if name == "count" else np.float64) for name in _TABLES}
  return Statistics(content["hand"], tuple(content["joint_names"]), tuple(content["action_names"]), **tables)


class Accumulator:
  """Takes the Labels of one embodiment as they stream by, in bounded memory: 0.9 GB at J = 22, however many there are.

  Parts of a build make one each and save its bytes; the whole is merged from them. The same labels and merges in the same order give the
  same bytes; another order moves quantiles by less than 0.1 % in rank and the rest by rounding.
  """

  def __init__(self, hand: str, joint_names: tuple[tuple[str, ...], tuple[str, ...]]):
    """joint_names: of the left and of the right hand, J each."""
    self.hand, self.joint_names = hand, tuple(tuple(names) for names in joint_names)
    self._joints = Sketch(2, len(self.joint_names[0]))
    self._frames = 0
    self._wrists = [Sketch(2 * LAGS, actions.WRIST_DIM) for _ in wrist_pairs.LANES]  # None: dropped; group LAGS * side + lag - 1
    self._waiting = ([], [])  # of each side: episodes whose wrists are not in the sketches yet

  def add(self, labels: schema.Labels):
    """Every frame is the start of a chunk; joints count at every frame that a chunk can reach, so not at the first."""
    self._grow(len(labels.valid_Fx2))
    for side in range(2):
      valid_F = labels.valid_Fx2[:, side]
      self._joints.add(side, labels.joints_Fx2xJ[1:, side][valid_F[1:]].T)
      valid_F = valid_F & np.isfinite(labels.T_world_wrist_Fx2x4x4[:, side]).all(axis=(1, 2))  # a robot may tell its joints alone
      if valid_F.any():
        self._waiting[side].append((labels.T_world_wrist_Fx2x4x4[:, side], valid_F))
        if sum(len(valid_F) for _, valid_F in self._waiting[side]) >= _BATCH_FRAMES:
          self._pair(side)

  def _pair(self, *sides):
    """The wrists of the episodes that wait, to their sketches."""
    for side in (side for side in sides if self._waiting[side]):
      batch = wrist_pairs.batch(self._waiting[side])
      for sketch, lane in zip(self._wrists, wrist_pairs.LANES):
        for pairs in lane if sketch is not None else ():
          wrist_pairs.add(sketch, LAGS * side, batch, *pairs)
      self._waiting[side].clear()

  def merge(self, other: "Accumulator"):
    """Takes in all that `other` holds; UserError where it is of another hand."""
    for what, mine, its in (("hand", self.hand, other.hand), ("joints", self.joint_names, other.joint_names)):
      if mine != its:
        raise UserError(f"statistics: found {what} {its!r}, expected {mine!r}: only the same can be merged")
    self._pair(0, 1)
    other._pair(0, 1)
    self._joints.merge(other._joints)
    self._grow(other._frames)
    for mine, its in zip(self._wrists, other._wrists):
      if mine is not None:  # then the other has it too, having fewer frames
        mine.merge(its)

  def _grow(self, frames):
    self._frames += frames
    if self._frames > wrist_pairs.ALL_PAIRS_FRAMES:
      self._wrists[1] = None

  def to_bytes(self) -> bytes:
    """Versioned, with a checksum, without pickle: from_bytes() reads them."""
    self._pair(0, 1)
    head = {"hand": self.hand, "joint_names": self.joint_names, "frames": self._frames}
    file = io.BytesIO()
    file.write(json.dumps(head).encode() + b"\n")
    for sketch in (self._joints, *self._wrists):
      if sketch is not None:
        sketch.write(file)
    body = file.getvalue()
    return _MAGIC + hashlib.sha256(body).digest() + body

  @classmethod
  def from_bytes(cls, data: bytes, path) -> "Accumulator":
    """What to_bytes() gave; UserError naming `path`, where they came from, if they are damaged or of another version."""
    body = data[len(_MAGIC) + 32 :]
    if not data.startswith(_MAGIC):
      raise UserError(f"{path}: not statistics of version {_STATE_VERSION}; prepare the data again")
    if hashlib.sha256(body).digest() != data[len(_MAGIC) : len(_MAGIC) + 32]:
      raise UserError(f"{path}: damaged: found another checksum than the one it was written with; prepare the data again")
    file = io.BytesIO(body)
    head = json.loads(file.readline())
    result = cls(head["hand"], head["joint_names"])
    result._grow(head["frames"])
    result._joints = Sketch.read(file)
    result._wrists = [sketch and Sketch.read(file) for sketch in result._wrists]
    return result

  def finish(self) -> Statistics:
    """-> Statistics of all that was added so far; more may follow."""
    joints, wrists = self._finished()
    q01_LxA, q99_LxA = _quantiles(wrists, joints, (0.01, 0.99))
    names = [f"{side}.{name}" for side, joints in zip(("left", "right"), self.joint_names) for name in _WRIST_NAMES + joints]

    def table(name):
      return _table(getattr(wrists, name), getattr(joints, name))

    count_LxA = _table(*(np.repeat(sketch.count_G[:, None], sketch.mean_GxD.shape[1], axis=1) for sketch in (wrists, joints)))
    values = dict(mean=table("mean_GxD"), std=np.sqrt(table("square_GxD") / np.maximum(count_LxA, 1)))
    values |= dict(q01=q01_LxA, q99=q99_LxA, min=table("min_GxD"), max=table("max_GxD"))
    tables = {f"{name}_LxA": np.where(count_LxA > 0, value, np.nan) for name, value in values.items()}
    return Statistics(self.hand, self.joint_names[0], tuple(names), **tables, count_LxA=count_LxA)

  def quantiles(self, ranks: Sequence[float]) -> np.ndarray:
    """-> [Q, L, A] of all that was added so far, NaN where nothing was."""
    joints, wrists = self._finished()
    return _quantiles(wrists, joints, ranks)

  def _finished(self):
    self._pair(0, 1)
    wrists = Sketch(2 * LAGS, actions.WRIST_DIM)
    for sketch in filter(None, self._wrists):
      wrists.merge(sketch)
    return self._joints.finished(), wrists.finished()


def merged(accumulators: Sequence[Accumulator]) -> Statistics:
  """Statistics of several embodiments or shard folders that share an adapter slot, and so a normaliser."""
  whole = Accumulator(accumulators[0].hand, accumulators[0].joint_names)
  for accumulator in accumulators:
    whole.merge(accumulator)
  return whole.finish()


def _quantiles(wrists, joints, ranks):
  return np.stack([_table(wrist, joint) for wrist, joint in zip(wrists.quantiles(ranks), joints.quantiles(ranks))])


def _table(wrist_GxD, joint_2xJ):
  """Groups of both sketches -> [L, A]."""
  wrist_Lx2x9 = wrist_GxD.reshape(2, LAGS, -1).swapaxes(0, 1)
  return np.concatenate([wrist_Lx2x9, np.broadcast_to(joint_2xJ, (LAGS, *joint_2xJ.shape))], axis=-1).reshape(LAGS, -1)


def _lowest(table_TxA, observed_A):
  return np.where(observed_A, np.nan_to_num(table_TxA, nan=np.inf).min(axis=0), -1.0)


def _highest(table_TxA, observed_A):
  return np.where(observed_A, np.nan_to_num(table_TxA, nan=-np.inf).max(axis=0), 1.0)


def _rows(horizon, stride):
  """Rows of the tables for the steps of a chunk."""
  if horizon < 1 or stride < 1 or horizon * stride > LAGS:
    raise UserError(f"horizon {horizon} and stride {stride}: found {horizon * stride} frames, expected 1 to {LAGS}, the lags in the shards")
  return stride * np.arange(1, horizon + 1) - 1

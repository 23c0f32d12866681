"""What the joints of a served hand may do: ranges and speeds, of its description or of a file."""

import dataclasses
import json
import pathlib

import numpy as np

from egoscale_jax.errors import UserError
from egoscale_jax.hands import hand as hand_lib
from egoscale_jax.hands import keypoints
from egoscale_jax.train import run as run_lib


@dataclasses.dataclass(frozen=True)
class Limits:
  """Left hand, then right; radians and rad/s, inf where no speed is stated."""

  lower_2xJ: np.ndarray  # float32, as the others
  upper_2xJ: np.ndarray
  velocity_2xJ: np.ndarray

  def check_units(self, joints_2xJ, joint_names):
    """UserError where a joint is said to be more than a turn outside of its range: no hand is, but degrees are."""
    beyond_2xJ = np.maximum(self.lower_2xJ - joints_2xJ, joints_2xJ - self.upper_2xJ)
    if beyond_2xJ.max() > 2 * np.pi:
      i, j = np.unravel_index(beyond_2xJ.argmax(), beyond_2xJ.shape)
      told = f"{joints_2xJ[i, j]:g} of {joint_names[i][j]}, whose range is {self.lower_2xJ[i, j]:.3g} to {self.upper_2xJ[i, j]:.3g}"
      raise UserError(f"state/joints: found {told}, expected radians")

  def enforce(self, joints_TxJ2, start_2xJ, step_s, done=0):
    """Targets [T, 2, J] -> float32 within the ranges, and no step faster than the speeds allow; the first `done` steps stay as they are.

    start: the joints now, from where the first step goes. A target out of reach is approached as fast as is allowed. Joints that are
    outside of their range, as measured ones may be, come back at that speed too: until then they are outside, and nearer each step.
    A target of NaN is none: the joint stays at `start`, in its range or not.
    """
    bounded = np.clip(np.asarray(joints_TxJ2, np.float32), self.lower_2xJ, self.upper_2xJ)
    before = np.asarray(start_2xJ, np.float32)
    np.copyto(bounded, before, where=np.isnan(bounded))
    if done:
      bounded[:done] = joints_TxJ2[:done]
      before = bounded[done - 1]
    reach = self.velocity_2xJ * np.float32(step_s)
    for k in range(done, len(bounded)):  # between the last step and a target in range, so in range too once that is
      # np.clip costs three times as much, and a horizon has forty steps
      np.minimum(np.maximum(bounded[k], before - reach), before + reach, out=bounded[k])
      before = bounded[k]
    return bounded


def of_hand(workdir, hand_name, joints: int) -> Limits:
  """Of the description that the policy's labels are of: a built-in hand, or the file that the work directory keeps."""
  kept = hand_lib.kept(hand_name, pathlib.Path(workdir) / run_lib.HANDS)
  if not all(hand_lib.files(kept, side) for side in keypoints.SIDES):
    raise UserError(f"--limits: found none, expected a file: the work directory holds no description of the hand {hand_name!r}")
  hands = [hand_lib.load(kept, side) for side in keypoints.SIDES]
  if any(hand.num_joints != joints for hand in hands):
    raise UserError(f"--limits: found none, expected a file: {hand_name!r} has {hands[0].num_joints} joints, the policy {joints}")
  return Limits(*(np.stack([getattr(hand, name) for hand in hands]) for name in ("lower_J", "upper_J", "velocity_J")))


def of_file(path, joint_names: list[tuple[str, ...]]) -> Limits:
  """A .json: {"left": {joint: [lower, upper, rad/s or null], ...}, "right": {...}}; joint_names: of both hands."""
  try:
    told = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise UserError(f"--limits={path}: cannot be read: {error}") from error
  rows = []
  for side, names in zip(keypoints.SIDES, joint_names):
    hand = told.get(side) if isinstance(told, dict) else None
    if not (isinstance(hand, dict) and set(hand) == set(names)):
      raise UserError(f"--limits={path}: {side}: expected an object of the joints {', '.join(names)}, and no other")
    rows.append([_row(f"--limits={path}: {side}.{name}", hand[name]) for name in names])
  return Limits(*np.moveaxis(np.asarray(rows, np.float32), -1, 0))


def _row(where, row):
  numbers = (
    isinstance(row, list) and len(row) == 3 and all(type(n) in (int, float) for n in row[:2]) and type(row[2]) in (int, float, type(None))
  )
  velocity = np.inf if numbers and row[2] is None else (row[2] if numbers else 0)
  if not (numbers and row[0] < row[1] and velocity > 0):
    raise UserError(f"{where}: found {row}, expected [lower, upper, speed or null] in radians and rad/s")
  return row[0], row[1], velocity

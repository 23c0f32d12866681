"""Errors of actions in units that a hand can feel: the wrist in millimetres and degrees, the joints in degrees, both hands together.

The same on numpy arrays (validation) and on the device (the training step), whatever slots the rows of a batch have.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from egoscale_jax import geometry
from egoscale_jax.data import actions

GROUPS = ("wrist_mm", "wrist_degrees", "joint_degrees")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Units:
  """Of every adapter slot, N of them: normalised action * scale + offset is metres, rot6d and radians; and what stands where."""

  scale_NxA: np.ndarray  # float32
  offset_NxA: np.ndarray
  wrist_Nx2x9: np.ndarray  # int32, the columns of the left and of the right wrist
  is_joint_NxA: np.ndarray  # bool


def table(normalizers, slots: int, action_dim: int) -> Units:
  """{slot: statistics.Normalizer} -> Units; a slot without one has no joint, and its numbers are as they are."""
  scale, offset = np.ones((slots, action_dim), np.float32), np.zeros((slots, action_dim), np.float32)
  wrist, is_joint = np.zeros((slots, 2, actions.WRIST_DIM), np.int32), np.zeros((slots, action_dim), bool)
  for slot, normalizer in normalizers.items():
    width = len(normalizer.low_A)
    scale[slot, :width] = 0.5 * (normalizer.high_A - normalizer.low_A)
    offset[slot, :width] = 0.5 * (normalizer.high_A + normalizer.low_A)
    wrist[slot] = width // 2 * np.arange(2)[:, None] + np.arange(actions.WRIST_DIM)
    is_joint[slot, :width] = np.arange(width) % (width // 2) >= actions.WRIST_DIM
  return Units(scale, offset, wrist, is_joint)


def group_errors(units: Units, predicted_BxTxA, truth_BxTxA, mask_BxTxA, slot_B):
  """Normalised actions -> ({group: sum of errors}, {group: how many}): distance and angle of a wrist whose nine numbers are all labelled,
  absolute difference of a joint. What is masked may be anything, NaN too.
  """
  xp = jnp if isinstance(predicted_BxTxA, jax.Array) else np
  units = jax.tree.map(xp.asarray, units)
  difference = xp.where(mask_BxTxA, predicted_BxTxA - truth_BxTxA, 0.0) * units.scale_NxA[slot_B][:, None]
  joint_mask = mask_BxTxA & units.is_joint_NxA[slot_B][:, None]
  column_BxT1x18 = units.wrist_Nx2x9[slot_B].reshape(len(slot_B), 1, -1)

  def wrists(array_BxTxA):  # -> [B, T, 2, 9]
    columns = xp.broadcast_to(column_BxT1x18, (*array_BxTxA.shape[:2], column_BxT1x18.shape[-1]))
    return xp.take_along_axis(array_BxTxA, columns, axis=-1).reshape(*array_BxTxA.shape[:2], 2, -1)

  valid_BxTx2 = wrists(mask_BxTxA).all(axis=-1)
  square = xp.sum(wrists(difference)[..., :3] ** 2, axis=-1)

  def rotation(action_BxTxA):
    rot6d = wrists(action_BxTxA * units.scale_NxA[slot_B][:, None] + units.offset_NxA[slot_B][:, None])[..., 3:]
    return geometry.rot6d_to_so3(xp.where(valid_BxTx2[..., None], rot6d, xp.asarray(_IDENTITY).reshape(1, 1, 1, 6)))

  true, guess = rotation(truth_BxTxA), rotation(predicted_BxTxA)
  between = xp.sum(true[..., :, None] * guess[..., None, :], axis=-3)  # true^T guess; a TPU's product of matrices has three digits
  sums = (
    1e3 * xp.sum(xp.where(valid_BxTx2, xp.sqrt(square), 0.0)),
    xp.rad2deg(xp.sum(xp.where(valid_BxTx2, geometry.so3_angle(between), 0.0))),
    xp.rad2deg(xp.sum(xp.where(joint_mask, xp.abs(difference), 0.0))),
  )
  steps = xp.sum(valid_BxTx2)
  return dict(zip(GROUPS, sums)), dict(zip(GROUPS, (steps, steps, xp.sum(joint_mask))))


_IDENTITY = np.array([1, 0, 0, 0, 1, 0], np.float32)

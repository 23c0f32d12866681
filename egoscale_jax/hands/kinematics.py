"""Forward kinematics and the Jacobian of the keypoints, batched over any leading axes, in the precision of the joint angles.

The tree is walked depth by depth: all joints of one depth at once, so a five-fingered hand takes five steps whatever its number of joints.
"""

import jax
import jax.numpy as jnp
import numpy as np

from egoscale_jax import geometry


def keypoints(hand, joints_J):
  """Joint angles [..., J] (radians) -> keypoints [..., 21, 3] in the hand's base frame (metres)."""
  return _keypoints(hand, *_joint_frames(hand, joints_J))


def keypoints_in_wrist(hand, joints_J):
  """Joint angles [..., J] -> keypoints [..., 21, 3] in the hand's wrist frame, which is that of the zero pose and does not move."""
  return _in_wrist(hand, keypoints(hand, joints_J))


def keypoints_and_jacobian(hand, joints_J):
  """Joint angles [..., J] -> base-frame keypoints [..., 21, 3] and their derivative [..., 21, 3, J] (metres a radian)."""
  rotation_Jx3x3, anchor_Jx3 = _joint_frames(hand, joints_J)
  points_Px3 = _keypoints(hand, rotation_Jx3x3, anchor_Jx3)
  # A hinge leaves its own axis where it is, so the frame after the joint has the axis of the frame before it.
  axis_3xJ = _rotate(rotation_Jx3x3, _as(hand.axis_Jx3, joints_J, joints_J.ndim + 1)).swapaxes(-1, -2)
  arm_Px3xJ = points_Px3[..., None] - anchor_Jx3.swapaxes(-1, -2)[..., None, :, :]
  a, r = (axis_3xJ[..., None, 0, :], axis_3xJ[..., None, 1, :], axis_3xJ[..., None, 2, :]), tuple(arm_Px3xJ[..., i, :] for i in range(3))
  cross = (a[1] * r[2] - a[2] * r[1], a[2] * r[0] - a[0] * r[2], a[0] * r[1] - a[1] * r[0])  # with J innermost: XLA's CPU vectorises it
  moves_PxJ = _as(moved_by(hand), joints_J, joints_J.ndim + 1)
  return points_Px3, jnp.stack([component * moves_PxJ for component in cross], axis=-2)


def keypoints_and_jacobian_in_wrist(hand, joints_J):
  """As keypoints_and_jacobian, in the hand's wrist frame."""
  points_Px3, jacobian_Px3xJ = keypoints_and_jacobian(hand, joints_J)
  turn = _as(hand.T_base_wrist_4x4, joints_J)[:3, :3]
  return _in_wrist(hand, points_Px3), jnp.einsum("ab,...paj->...pbj", turn, jacobian_Px3xJ)


def moved_by(hand):
  """bool [21, J]: joint j moves keypoint p."""
  ancestors_JxJ = np.zeros((hand.num_joints, hand.num_joints), bool)
  for joint, parent in enumerate(hand.parents):
    ancestors_JxJ[joint, joint] = True
    if parent >= 0:
      ancestors_JxJ[joint] |= ancestors_JxJ[parent]
  base = np.zeros((1, hand.num_joints), bool)
  return np.concatenate([ancestors_JxJ, base])[np.asarray(hand.keypoint_parents)]  # -1 is the base


def _joint_frames(hand, joints_J):
  """Rotation [..., J, 3, 3] since the zero pose of the frame after each joint, and the joint's place [..., J, 3]."""
  batch, rank = joints_J.shape[:-1], joints_J.ndim
  turn_Jx3x3 = geometry.so3_exp(joints_J[..., None] * _as(hand.axis_Jx3, joints_J, rank + 1))
  anchor_Jx3 = _as(hand.anchor_Jx3, joints_J)
  # One more row, the base: rotation one, place zero. -1 picks it as the parent.
  anchor0_Jx3 = jnp.concatenate([anchor_Jx3, jnp.zeros((1, 3), joints_J.dtype)])
  rotation = jnp.broadcast_to(jnp.eye(3, dtype=joints_J.dtype), (*batch, 1, 3, 3))
  place = jnp.zeros((*batch, 1, 3), joints_J.dtype)
  row = {-1: 0}  # where each joint lies in the two growing arrays
  for level in _levels(hand.parents):
    parents = np.asarray([hand.parents[j] for j in level])
    rows = np.asarray([row[p] for p in parents])
    offset = (anchor0_Jx3[np.asarray(level)] - anchor0_Jx3[parents]).reshape((1,) * len(batch) + (len(level), 3))
    before = rotation[..., rows, :, :]
    place = jnp.concatenate([place, place[..., rows, :] + _rotate(before, offset)], axis=-2)
    rotation = jnp.concatenate([rotation, _compose(before, turn_Jx3x3[..., np.asarray(level), :, :])], axis=-3)
    row |= {j: len(row) + i for i, j in enumerate(level)}
  order = np.asarray([row[j] for j in range(hand.num_joints)])
  return rotation[..., order, :, :], place[..., order, :]


def _keypoints(hand, rotation_Jx3x3, anchor_Jx3):
  batch = anchor_Jx3.shape[:-2]
  identity = jnp.broadcast_to(jnp.eye(3, dtype=anchor_Jx3.dtype), (*batch, 1, 3, 3))
  parents = np.asarray(hand.keypoint_parents)
  rotation = jnp.concatenate([rotation_Jx3x3, identity], axis=-3)[..., parents, :, :]
  anchor = jnp.concatenate([anchor_Jx3, jnp.zeros((*batch, 1, 3), anchor_Jx3.dtype)], axis=-2)[..., parents, :]
  anchor0 = jnp.concatenate([jnp.asarray(hand.anchor_Jx3), jnp.zeros((1, 3), hand.anchor_Jx3.dtype)])[parents]
  return anchor + _rotate(rotation, _as(hand.keypoint_Px3 - anchor0, anchor_Jx3, anchor_Jx3.ndim))


def _in_wrist(hand, points_Px3):
  pose = _as(hand.T_base_wrist_4x4, points_Px3)
  centred = points_Px3 - pose[:3, 3].reshape((1,) * (points_Px3.ndim - 1) + (3,))
  return jnp.einsum("ab,...pa->...pb", pose[:3, :3], centred)


def _levels(parents):
  """Joints grouped by their depth in the tree."""
  depth = []
  for parent in parents:
    depth.append(0 if parent < 0 else depth[parent] + 1)
  return [[j for j, d in enumerate(depth) if d == level] for level in range(max(depth) + 1)]


def _rotate(rotation, vector):
  """[..., 3, 3] times [..., 3], as three products written out: with jnp.sum over the axis the whole solver runs at 0.7 of the speed."""
  return sum(rotation[..., k] * vector[..., None, k] for k in range(3))


def _compose(a, b):
  """[..., 3, 3] times [..., 3, 3], likewise."""
  return sum(a[..., :, k, None] * b[..., None, k, :] for k in range(3))


def _as(array, like, rank=None):
  """The hand's constant in the precision of `like`, with leading axes of 1 up to `rank` (rank promotion is an error in the tests)."""
  array = jnp.asarray(array, like.dtype)
  return array if rank is None else jax.lax.expand_dims(array, range(rank - array.ndim))

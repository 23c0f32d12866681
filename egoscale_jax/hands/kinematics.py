"""Forward kinematics and the Jacobian of the keypoints, for any batch, in the precision of the joint angles.

Inside, the tree is unrolled when the program is traced and every number is an array over the whole batch (vectors.py): `walk` and `columns`
are what the solver uses, the other functions wrap them for arrays with the batch in front.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from egoscale_jax import geometry
from egoscale_jax.hands import vectors


@dataclasses.dataclass(frozen=True)
class Walk:
  """The tree at some joint angles, in the base frame. Vectors and rotations of vectors.py."""

  axis: dict  # joint -> hinge axis
  anchor: dict  # joint -> a point on that axis
  rotation: dict  # joint -> rotation since the zero pose of what moves with it
  point: dict  # keypoint index -> place, for the keypoints that the hand has


def tree_joints(hand, joints_J):
  """Actuated values [..., J] -> angles of all joints of the tree [..., N]."""
  return joints_J[..., np.asarray(hand.source)] * _constant(hand.ratio_N, joints_J) + _constant(hand.offset_N, joints_J)


def keypoints(hand, joints_J):
  """Joint values [..., J] (radians) -> keypoints [..., 21, 3] in the hand's base frame (metres); zeros where the hand has none."""
  return _stacked(walk(hand, _unstacked(joints_J)).point, joints_J)


def keypoints_in_wrist(hand, joints_J):
  """Joint values [..., J] -> keypoints [..., 21, 3] in the hand's wrist frame, which is that of the zero pose and does not move."""
  return _in_wrist(hand, keypoints(hand, joints_J))


def frames(hand, joints_J):
  """Joint values [..., J] -> T_base_keypoint [..., 21, 4, 4]: place and orientation of the links or sites that carry the keypoints."""
  tree = walk(hand, _unstacked(joints_J))
  eye = jnp.broadcast_to(jnp.eye(3, dtype=joints_J.dtype), (*joints_J.shape[:-1], 3, 3))
  turns = [eye if n < 0 else jnp.stack([jnp.stack(row, axis=-1) for row in tree.rotation[n]], axis=-2) for n in hand.keypoint_parents]
  rotation_Px3x3 = jnp.einsum("...pij,pjk->...pik", jnp.stack(turns, axis=-3), jnp.asarray(hand.keypoint_rotation_Px3x3, joints_J.dtype))
  upper = jnp.concatenate([rotation_Px3x3, _stacked(tree.point, joints_J)[..., None]], axis=-1)
  last = jnp.broadcast_to(jnp.asarray([0, 0, 0, 1], joints_J.dtype), (*upper.shape[:-2], 1, 4))
  return jnp.concatenate([upper, last], axis=-2)


def keypoints_and_jacobian(hand, joints_J):
  """Joint values [..., J] -> base-frame keypoints [..., 21, 3] and their derivative [..., 21, 3, J] (metres a radian)."""
  tree = walk(hand, _unstacked(joints_J))
  zero = jnp.zeros(joints_J.shape[:-1], joints_J.dtype)
  empty = (zero, zero, zero)
  rows = []
  for p in range(len(hand.present)):
    moved = columns(hand, tree, p) if p in tree.point else {}
    rows.append(jnp.stack([jnp.stack(moved.get(j, empty), axis=-1) for j in range(hand.num_joints)], axis=-1))
  return _stacked(tree.point, joints_J), jnp.stack(rows, axis=-3)


def keypoints_and_jacobian_in_wrist(hand, joints_J):
  """As keypoints_and_jacobian, in the hand's wrist frame."""
  points_Px3, jacobian_Px3xJ = keypoints_and_jacobian(hand, joints_J)
  turn = jnp.asarray(hand.T_base_wrist_4x4, joints_J.dtype)[:3, :3]
  return _in_wrist(hand, points_Px3), jnp.einsum("ab,...paj->...pbj", turn, jacobian_Px3xJ)


def walk(hand, joints) -> Walk:
  """joints: J arrays of one shape -> Walk. Parents come before children, so one pass does it."""
  axis, anchor, rotation, point = {}, {}, {}, {}
  like = jnp.zeros_like(joints[0])
  unit_Nx3 = geometry.normalize(jnp.asarray(hand.axis_Nx3, like.dtype)) if isinstance(hand.axis_Nx3, jax.Array) else _unit(hand.axis_Nx3)
  for n, parent in enumerate(hand.parents):
    turn = _rodrigues(unit_Nx3[n], joints[hand.source[n]] * hand.ratio_N[n] + hand.offset_N[n])
    if parent < 0:
      axis[n], anchor[n], rotation[n] = _constant_vector(unit_Nx3[n], like), _constant_vector(hand.anchor_Nx3[n], like), turn
      continue
    before = rotation[parent]
    axis[n] = vectors.rotate(before, unit_Nx3[n])  # a hinge leaves its own axis where it is
    anchor[n] = vectors.add(anchor[parent], vectors.rotate(before, hand.anchor_Nx3[n] - hand.anchor_Nx3[parent]))
    rotation[n] = vectors.compose(before, turn)
  for p in (int(p) for p in np.flatnonzero(hand.present)):
    n = hand.keypoint_parents[p]
    if n < 0:
      point[p] = _constant_vector(hand.keypoint_Px3[p], like)
    else:
      point[p] = vectors.add(anchor[n], vectors.rotate(rotation[n], hand.keypoint_Px3[p] - hand.anchor_Nx3[n]))
  return Walk(axis, anchor, rotation, point)


def columns(hand, tree, p):
  """Derivative of keypoint p by each joint value that moves it: {j: vector} (metres a radian)."""
  found = {}
  for n in moving(hand, p):
    column = vectors.scale(hand.ratio_N[n], vectors.cross(tree.axis[n], vectors.sub(tree.point[p], tree.anchor[n])))
    j = hand.source[n]
    found[j] = vectors.add(found[j], column) if j in found else column
  return found


def moving(hand, p):
  """The joints of the tree that move keypoint p, from it to the base."""
  n = hand.keypoint_parents[p]
  while n >= 0:
    yield n
    n = hand.parents[n]


def _unit(axis_Nx3):
  """As Python floats, in the precision of what they meet: an axis rounded to float32 is no unit vector in float64."""
  axis_Nx3 = np.asarray(axis_Nx3, np.float64)
  return (axis_Nx3 / np.linalg.norm(axis_Nx3, axis=-1, keepdims=True)).tolist()


def _constant_vector(vector_3, like):
  return tuple(like + vector_3[i] for i in range(3))


def _rodrigues(axis_3, angle):
  """Rotation about a constant axis, as rows."""
  s, c = jnp.sin(angle), jnp.cos(angle)
  x, y, z = axis_3[0], axis_3[1], axis_3[2]
  v = 1 - c
  return (
    (c + x * x * v, x * y * v - z * s, x * z * v + y * s),
    (x * y * v + z * s, c + y * y * v, y * z * v - x * s),
    (x * z * v - y * s, y * z * v + x * s, c + z * z * v),
  )


def _unstacked(joints_J):
  return [joints_J[..., j] for j in range(joints_J.shape[-1])]


def _stacked(point, joints_J):
  zero = jnp.zeros(joints_J.shape[:-1], joints_J.dtype)
  return jnp.stack([jnp.stack(point.get(p, (zero, zero, zero)), axis=-1) for p in range(21)], axis=-2)


def _in_wrist(hand, points_Px3):
  pose = jnp.asarray(hand.T_base_wrist_4x4, points_Px3.dtype)
  centred = points_Px3 - pose[:3, 3].reshape((1,) * (points_Px3.ndim - 1) + (3,))
  return jnp.einsum("ab,...pa->...pb", pose[:3, :3], centred)


def _constant(array, like):
  """The hand's constant in the precision of `like`, with leading axes of 1 (rank promotion is an error in the tests)."""
  array = jnp.asarray(array, like.dtype)
  return jax.lax.expand_dims(array, range(like.ndim - array.ndim))

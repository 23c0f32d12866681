"""What the retargeting asks for: weighted residuals in metres, one function each.

Every position cost is linear in the keypoints. So each function maps any array whose leading axis is P = 21 keypoints to rows: given the
error (robot minus target, [21, 3]) it returns residuals, given the Jacobian of the keypoints [21, 3, J] it returns theirs. No derivative of
a cost is written twice, and the solver sees one sum of squares.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from egoscale_jax import geometry
from egoscale_jax.hands import keypoints

_TIPS = np.asarray(keypoints.TIPS)
_THUMB_TIP = keypoints.TIPS[:1]
_PHALANX_ENDS = np.asarray([i for tip in keypoints.TIPS for i in (tip - 2, tip - 1, tip)])  # each bone ends here and starts one before


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Weights:
  """Each weight multiplies a residual before it is squared."""

  tip: float = 1.0  # fingertips, in the wrist frame: what touches objects; the others are read against this one
  pinch: float = 2.0  # thumb tip to each other tip, when they touch: a grasp that closes on the human's hand closes on the robot's
  pinch_distance_m: float = 0.04  # thumb to finger, on the robot's scale: at this distance the pinch weight is half of its full value
  pinch_width_m: float = 0.008  # how softly the pinch weight fades around that distance: a hard edge would make the joints jump
  bone: float = 0.5  # direction of each finger bone, as a vector of the robot's length: how a finger bends where its tip leaves that open
  rest: float = 0.001  # metres a radian, to the rest pose: decides only what no keypoint moves; at 0.003 joints are off by 3 degrees


def fingertips(points_Px, weights):
  """[21, ...] -> [5, ...]: the fingertips themselves."""
  return weights.tip * points_Px[_TIPS]


def pinches(points_Px, weight_4):
  """[21, ...] -> [4, ...]: the vectors from each fingertip to the thumb tip, weighted by pinch_weights."""
  vectors = jnp.broadcast_to(points_Px[np.asarray(_THUMB_TIP)], (4, *points_Px.shape[1:])) - points_Px[_TIPS[1:]]
  return jax.lax.expand_dims(weight_4, range(1, vectors.ndim)) * vectors


def pinch_weights(human_Px3, weights):
  """The human's keypoints on the robot's scale [21, 3] -> [4]: 0 for fingers far from the thumb, rising to weights.pinch as they close."""
  gap_4 = jnp.linalg.norm(human_Px3[np.asarray(_THUMB_TIP)] - human_Px3[_TIPS[1:]], axis=-1)
  return weights.pinch * jax.nn.sigmoid((weights.pinch_distance_m - gap_4) / weights.pinch_width_m)


def phalanges(points_Px, weights):
  """[21, ...] -> [15, ...]: the vector along each finger bone past the knuckle (of the thumb, past the CMC).

  Rejected: positions of the inner joints, as a robot's bones are not a human's. On reachable poses they left two bends of the thumb for
  one tip (joints off by 25 degrees at the median against 0.3), and with them real hands jumped by more than a radian between frames.
  """
  return weights.bone * (points_Px[_PHALANX_ENDS] - points_Px[_PHALANX_ENDS - 1])


def phalanx_target(human_Px3, robot_Px3):
  """[21, 3] each -> [21, 3]: each finger from its own zero on, with the robot's bone lengths and the human's directions."""
  bone_15x3 = human_Px3[_PHALANX_ENDS] - human_Px3[_PHALANX_ENDS - 1]
  length_15x1 = jnp.linalg.norm(robot_Px3[_PHALANX_ENDS] - robot_Px3[_PHALANX_ENDS - 1], axis=-1, keepdims=True)
  steps_5x3x3 = (length_15x1 * geometry.normalize(bone_15x3)).reshape(5, 3, 3)
  chain_5x4x3 = jnp.concatenate([jnp.zeros_like(steps_5x3x3[:, :1]), jnp.cumsum(steps_5x3x3, axis=1)], axis=1)
  return jnp.concatenate([jnp.zeros_like(human_Px3[:1]), chain_5x4x3.reshape(20, 3)])


def rest(joints_J, rest_J, weights):
  """Distance of the joints to the rest pose [J]."""
  return weights.rest * (joints_J - rest_J)

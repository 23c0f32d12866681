"""Action chunks: the wrist relative to the chunk's start, the hand's joints absolute (paper section 2.1 and appendix D).

Step k of a chunk at time t (k = 1..T, `stride` frames apart): inverse(T_world_wrist[t]) @ T_world_wrist[t + k*stride] as xyz + rot6d,
and the joint targets at t + k*stride. The paper leaves open whether a chunk starts at its own time (identity) or one step on; we take
one step on. Layout: left then right, each 3 + 6 + J; A = 2 * (9 + J).
"""

import numpy as np

from egoscale_jax import geometry
from egoscale_jax.data import schema

WRIST_DIM = 9  # xyz + rot6d
STILL = (0, 0, 0, 1, 0, 0, 0, 1, 0)  # a wrist that stays where it is


def action_dim(num_joints: int) -> int:
  return 2 * (WRIST_DIM + num_joints)


def make_chunks(T_world_wrist_BxTx2x4x4, joints_BxTx2xJ, valid_BxTx2):
  """Start and T steps of B windows -> action [B, T, A] float32 and its mask [B, T, A] bool; masked entries are NaN.

  A hand that is not valid at the start has no frame to be relative to: all its steps are masked. A wrist that is NaN although the hand is
  valid (a robot whose recording tells joints alone) masks its own nine numbers.
  """
  rows, steps = len(joints_BxTx2xJ), joints_BxTx2xJ.shape[1] - 1
  hand_BxTx2xD = np.empty((rows, steps, 2, WRIST_DIM + joints_BxTx2xJ.shape[-1]), np.float32)
  lay_out(relative(T_world_wrist_BxTx2x4x4[..., :3, :].transpose(0, 2, 3, 1, 4).copy()).transpose(0, 3, 1, 2, 4), hand_BxTx2xD)
  hand_BxTx2xD[..., WRIST_DIM:] = joints_BxTx2xJ[:, 1:]
  mask_BxTx2x1 = (valid_BxTx2[:, 1:] & valid_BxTx2[:, :1])[..., None]
  whole = np.isfinite(hand_BxTx2xD.sum(dtype=np.float64))  # one NaN anywhere, and the sum is one
  mask = np.broadcast_to(mask_BxTx2x1, hand_BxTx2xD.shape) if whole else mask_BxTx2x1 & np.isfinite(hand_BxTx2xD)
  if not (mask_BxTx2x1.all() if whole else mask.all()):
    hand_BxTx2xD[~mask] = np.nan
  return hand_BxTx2xD.reshape(rows, steps, -1), mask.reshape(rows, steps, -1)


def relative(pose_Bx2x3xSx4):
  """Upper rows of poses at the start and S - 1 = T steps -> the steps as they are seen from the start, [B, 2, 3, T, 4].

  It overwrites its argument. The steps stand inside: one product of [3, 3] with [3, 4 * T] a row and hand, not T of them, since numpy's
  own cost is by the product.
  """
  rows, steps = len(pose_Bx2x3xSx4), pose_Bx2x3xSx4.shape[3] - 1
  start_Bx2x3x4 = pose_Bx2x3xSx4[:, :, :, 0]
  pose_Bx2x3xSx4[:, :, :, 1:, 3] -= start_Bx2x3x4[..., None, 3]
  flat = pose_Bx2x3xSx4.reshape(rows, 2, 3, -1)[..., 4:]
  return (start_Bx2x3x4[..., :3].swapaxes(-1, -2) @ flat).reshape(rows, 2, 3, steps, 4)


def lay_out(pose_3x4, hand_D):
  """Upper rows of poses [..., 3, 4] -> the first nine of the numbers [..., D] of a hand: xyz + rot6d (geometry.so3_to_rot6d)."""
  hand_D[..., :3] = pose_3x4[..., 3]
  rot6d = hand_D[..., 3:WRIST_DIM]
  rot6d.reshape(*rot6d.shape[:-1], 2, 3)[:] = pose_3x4[..., :2, :3]  # a view: the last axis alone is split


def lay_in(value_2x9, steps: int):
  """A number for each of the nine -> [2, 3, T, 4], where `relative` has them; 0 where it has what is not among them."""
  placed_2x3xTx4 = np.zeros((2, 3, steps, 4), value_2x9.dtype)
  placed_2x3xTx4[..., 3] = value_2x9[:, :3, None]
  placed_2x3xTx4[:, :2, :, :3] = value_2x9[:, 3:].reshape(2, 2, 1, 3)
  return placed_2x3xTx4


def make_chunk(T_world_wrist_Fx2x4x4, joints_Fx2xJ, valid_Fx2, start: int, horizon: int, stride: int = 1):
  """make_chunks of one window of an episode -> action [T, A] and its mask [T, A]; steps past the last frame are masked."""
  frames = start + stride * np.arange(horizon + 1)
  inside = np.minimum(frames, len(valid_Fx2) - 1)
  valid_Tx2 = valid_Fx2[inside] & (frames < len(valid_Fx2))[:, None]
  action, mask = make_chunks(T_world_wrist_Fx2x4x4[None, inside], joints_Fx2xJ[None, inside], valid_Tx2[None])
  return action[0], mask[0]


def label_weights(residual_m_BxTx2, num_joints: int, soft_m: float):
  """What each entry of `make_chunks` counts in the loss: [B, T, A] float32, 1 but for joints whose retargeting left the fingertips off.

  1 / (1 + (residual / soft_m)^2), so half at soft_m metres; 1 where nothing was retargeted (NaN).
  """
  weight_BxTx2xD = np.ones((*residual_m_BxTx2.shape, WRIST_DIM + num_joints), np.float32)
  residual = np.nan_to_num(residual_m_BxTx2, nan=0.0)
  weight_BxTx2xD[..., WRIST_DIM:] = (1.0 / (1.0 + (residual / soft_m) ** 2))[..., None]
  return weight_BxTx2xD.reshape(*residual_m_BxTx2.shape[:2], -1)


def split_chunk(action_TxA, num_joints: int):
  """[..., T, A] -> (T_start_wrist [..., T, 2, 4, 4], joints [..., T, 2, J]); the inverse of the layout."""
  hands = action_TxA.reshape(action_TxA.shape[:-1] + (2, WRIST_DIM + num_joints))
  rotation = geometry.rot6d_to_so3(hands[..., 3:9])
  return geometry.se3(rotation, hands[..., :3]), hands[..., 9:]


def join_chunk(T_start_wrist_Tx2x4x4, joints_Tx2xJ):
  """The inverse of split_chunk: -> [..., T, A]."""
  rot6d = geometry.so3_to_rot6d(T_start_wrist_Tx2x4x4[..., :3, :3])
  hands = np.concatenate([T_start_wrist_Tx2x4x4[..., :3, 3], rot6d, joints_Tx2xJ], axis=-1)
  return hands.reshape(*hands.shape[:-2], -1)


STATE_METRES = 0.5  # positions in the camera frame come out within about +-1


def has_state(data, embodiment: str) -> bool:
  """Robots have proprioception, human video has none (paper section 2.3), unless config.data.human_state."""
  return embodiment != schema.HUMAN or data.human_state


def make_state(T_world_camera, T_world_wrist_2x4x4, joints_2xJ):
  """Proprioception in the layout of an action: both wrists seen from the camera, and the joints as they are. [..., A], metres, radians.

  From the camera and not from the world, whose origin means nothing for a human. The world of a robot is its base: with the identity as
  T_world_camera its wrists are seen from there. NaN where a hand is missing.
  """
  camera, pose = T_world_camera[..., None, :3, :], np.array(T_world_wrist_2x4x4[..., :3, :])
  # Not geometry.se3_inverse and a product of 4 x 4, which make ten small arrays more: this is done for every record that is read.
  pose[..., 3] -= camera[..., 3]
  hands = np.empty((*joints_2xJ.shape[:-1], WRIST_DIM + joints_2xJ.shape[-1]), np.float32)
  lay_out(camera[..., :3].swapaxes(-1, -2) @ pose, hands)
  hands[..., WRIST_DIM:] = joints_2xJ
  return hands.reshape(*hands.shape[:-2], -1)


def normalize_state(state_A, normalizer):
  """Joints by the normaliser of the actions (they are the same joints), positions by STATE_METRES, rot6d as it is.

  Zero where the training data had no labels: a robot that tells its joints alone has no wrists.
  """
  hands = np.array(state_A).reshape(*state_A.shape[:-1], 2, -1)
  scaled = normalizer.normalize(state_A).reshape(hands.shape)
  hands[..., :3] /= STATE_METRES
  hands[..., WRIST_DIM:] = scaled[..., WRIST_DIM:]
  return np.where(normalizer.observed_A, hands.reshape(state_A.shape), 0.0)

"""Action chunks: the wrist relative to the chunk's start, the hand's joints absolute (paper section 2.1 and appendix D).

Step k of a chunk at time t (k = 1..T, `stride` frames apart): inverse(T_world_wrist[t]) @ T_world_wrist[t + k*stride] as xyz + rot6d,
and the joint targets at t + k*stride. The paper leaves open whether a chunk starts at its own time (identity) or one step on; we take
one step on. Layout: left then right, each 3 + 6 + J; A = 2 * (9 + J).
"""

import numpy as np

from egoscale_jax import geometry

WRIST_DIM = 9  # xyz + rot6d


def action_dim(num_joints: int) -> int:
  return 2 * (WRIST_DIM + num_joints)


def make_chunk(T_world_wrist_Fx2x4x4, joints_Fx2xJ, valid_Fx2, start: int, horizon: int, stride: int = 1):
  """-> action [T, A] float32 and its mask [T, A] bool; masked entries are NaN.

  A hand that is not valid at `start` has no frame to be relative to: all its steps are masked. Steps past the last frame are masked.
  """
  num_frames, _, num_joints = joints_Fx2xJ.shape
  frames = start + stride * np.arange(1, horizon + 1)
  inside = frames < num_frames
  frames = np.minimum(frames, num_frames - 1)
  valid_Tx2 = valid_Fx2[frames] & valid_Fx2[start] & inside[:, None]
  T_start_wrist = geometry.se3_inverse(T_world_wrist_Fx2x4x4[start]) @ T_world_wrist_Fx2x4x4[frames]
  wrist_Tx2x9 = np.concatenate([T_start_wrist[..., :3, 3], geometry.so3_to_rot6d(T_start_wrist[..., :3, :3])], axis=-1)
  hand_Tx2xD = np.concatenate([wrist_Tx2x9, joints_Fx2xJ[frames]], axis=-1)
  mask = np.broadcast_to(valid_Tx2[..., None], hand_Tx2xD.shape)
  action = np.where(mask, hand_Tx2xD, np.nan).astype(np.float32)
  return action.reshape(horizon, -1), mask.reshape(horizon, action_dim(num_joints))


def label_weight(residual_m_Fx2, start: int, horizon: int, num_joints: int, soft_m: float, stride: int = 1):
  """What each entry of `make_chunk` counts in the loss: [T, A] float32, 1 but for joints whose retargeting left the fingertips off.

  1 / (1 + (residual / soft_m)^2), so half at soft_m metres; 1 for all where soft_m is 0 and where nothing was retargeted (NaN).
  """
  weight_Tx2xD = np.ones((horizon, 2, WRIST_DIM + num_joints), np.float32)
  if soft_m:
    frames = np.minimum(start + stride * np.arange(1, horizon + 1), len(residual_m_Fx2) - 1)
    residual_Tx2 = np.nan_to_num(residual_m_Fx2[frames], nan=0.0)
    weight_Tx2xD[..., WRIST_DIM:] = (1.0 / (1.0 + (residual_Tx2 / soft_m) ** 2))[..., None]
  return weight_Tx2xD.reshape(horizon, -1)


def split_chunk(action_TxA, num_joints: int):
  """[..., T, A] -> (T_start_wrist [..., T, 2, 4, 4], joints [..., T, 2, J]); the inverse of the layout."""
  hands = action_TxA.reshape(action_TxA.shape[:-1] + (2, WRIST_DIM + num_joints))
  rotation = geometry.rot6d_to_so3(hands[..., 3:9])
  return geometry.se3(rotation, hands[..., :3]), hands[..., 9:]


STATE_METRES = 0.5  # positions in the camera frame come out within about +-1


def make_state(T_world_camera, T_world_wrist_2x4x4, joints_2xJ):
  """Proprioception in the layout of an action: both wrists seen from the camera, and the joints as they are. [A], metres, radians.

  From the camera and not from the world, whose origin means nothing; NaN where a hand is missing.
  """
  T_camera_wrist = geometry.se3_inverse(T_world_camera) @ T_world_wrist_2x4x4
  rot6d = geometry.so3_to_rot6d(T_camera_wrist[..., :3, :3])
  return np.concatenate([T_camera_wrist[..., :3, 3], rot6d, joints_2xJ], axis=-1).reshape(-1).astype(np.float32)


def normalize_state(state_A, normalizer):
  """Joints by the normaliser of the actions (they are the same joints), positions by STATE_METRES, rot6d as it is."""
  hands = np.array(state_A).reshape(2, -1)
  scaled = normalizer.normalize(state_A).reshape(2, -1)
  hands[:, :3] /= STATE_METRES
  hands[:, WRIST_DIM:] = scaled[:, WRIST_DIM:]
  return hands.reshape(-1)

"""What the chunks of a clip need of it, worked out once a record: its windows overlap, so each joint is in some ten of them.

Hands lie side by side with one float array a frame, since numpy's own cost of a row's copy is that of a hundred numbers. H = 12 + J.
"""

import dataclasses

import numpy as np

from egoscale_jax.data import actions, clips, schema
from egoscale_jax.data.statistics import Normalizer
from egoscale_jax.errors import UserError

_POSE = 12  # the upper three rows of T_world_wrist


@dataclasses.dataclass(frozen=True)
class Streams:
  slot: int  # of its embodiment
  hands_Fx2xH: np.ndarray  # float32: the wrist as it is, the joints normalised and 0 where they are no label
  told_Fx2xM: np.ndarray  # bool, M = 1 + J: the hand is valid; the joint is a label to be learnt
  residual_m_Fx2: np.ndarray
  state_NxA: np.ndarray | None  # float32 normalised proprioception at every picture, NaN where a hand is missing; None: it has none

  @property
  def nbytes(self) -> int:
    return self.hands_Fx2xH.nbytes + self.told_Fx2xM.nbytes + (0 if self.state_NxA is None else self.state_NxA.nbytes)


def make(clip: clips.Clip, slot: int, normalizer: Normalizer, state_NxA: np.ndarray | None) -> Streams:
  """normalizer: of the whole action, A = 2 * (9 + J). state_NxA: of state()."""
  frames, _, joints = clip.joints_Fx2xJ.shape
  hands = np.empty((frames, 2, _POSE + joints), np.float32)
  hands[..., :_POSE] = clip.T_world_wrist_Fx2x4x4[:, :, :3].reshape(frames, 2, _POSE)
  told = np.empty((frames, 2, 1 + joints), bool)
  told[..., 0] = clip.valid_Fx2
  part = normalizer.of(slice(actions.WRIST_DIM, None))
  told[..., 1:] = clip.valid_Fx2[..., None] & np.isfinite(clip.joints_Fx2xJ) & part.learnt_A
  hands[..., _POSE:] = np.where(told[..., 1:], part.normalize(clip.joints_Fx2xJ), 0.0)
  return Streams(slot, hands, told, clip.residual_m_Fx2, state_NxA)


def state(clip: clips.Clip, normalizer: Normalizer, from_camera: bool) -> np.ndarray:
  """Proprioception where each picture was taken, seen from the first camera or from the world's origin: [N, A]."""
  frames = np.minimum(clip.stride * np.arange(clip.num_images), len(clip.valid_Fx2) - 1)
  valid_Nx2 = clip.valid_Fx2[frames]
  wrist = np.where(valid_Nx2[..., None, None], clip.T_world_wrist_Fx2x4x4[frames], np.nan)
  joints = np.where(valid_Nx2[..., None], clip.joints_Fx2xJ[frames], np.nan)
  camera = clip.T_world_camera_CxNx4x4[0] if from_camera else np.eye(4, dtype=np.float32)
  if from_camera and clip.embodiment != schema.HUMAN and not np.isfinite(camera).all():
    raise UserError(
      f"config.data.base_state: found without {clip.embodiment!r}, whose recordings do not tell where the camera is: "
      "name it there, and its proprioception is seen from the robot's base"
    )
  return actions.normalize_state(actions.make_state(camera, wrist, joints), normalizer)


def gather(streams_B: list[Streams], frame_B: list[int], horizon: int, stride: int):
  """-> hands [B, T + 1, 2, H] and told [B, T + 1, 2, M]: the start, then the T steps. Nothing is told past the last frame."""
  steps, rows = stride * np.arange(horizon + 1), len(streams_B)
  hands = np.empty((rows, horizon + 1, *streams_B[0].hands_Fx2xH.shape[1:]), np.float32)
  told = np.empty((rows, horizon + 1, *streams_B[0].told_Fx2xM.shape[1:]), bool)
  for row, (streams, frame) in enumerate(zip(streams_B, frame_B)):
    last = len(streams.told_Fx2xM) - 1
    if frame + stride * horizon <= last:
      take = slice(frame, frame + stride * horizon + 1, stride)
      hands[row], told[row] = streams.hands_Fx2xH[take], streams.told_Fx2xM[take]
    else:
      take, past = np.minimum(frame + steps, last), frame + steps > last
      hands[row], told[row] = streams.hands_Fx2xH[take], streams.told_Fx2xM[take]
      hands[row, past, :, _POSE:], told[row, past] = 0.0, False
  return hands, told


def chunks(hands_BxTxH, told_BxTxM, wrists: Normalizer, action_BxTx2xD, mask_BxTx2xD):
  """What gather() gave -> actions, normalised, and their mask, written into the last two, which actions.make_chunks describes.

  wrists: normalizer.of(the first nine numbers). An action without a label is 0 and not NaN.
  """
  start_Bx1x2x1 = told_BxTxM[:, :1, :, :1]
  pose = hands_BxTxH[..., :_POSE].reshape(*hands_BxTxH.shape[:-1], 3, 4)
  wrist = wrists.normalize(actions.relative_wrists(pose))
  mask_wrist = (told_BxTxM[:, 1:, :, :1] & start_Bx1x2x1) & wrists.learnt_A
  if not np.isfinite(wrist.sum(dtype=np.float64)):  # one NaN anywhere, and the sum is one
    mask_wrist &= np.isfinite(wrist)
  action_BxTx2xD[..., : actions.WRIST_DIM], mask_BxTx2xD[..., : actions.WRIST_DIM] = wrist, mask_wrist
  action_BxTx2xD[..., actions.WRIST_DIM :], mask_BxTx2xD[..., actions.WRIST_DIM :] = hands_BxTxH[:, 1:, :, _POSE:], told_BxTxM[:, 1:, :, 1:]
  if not start_Bx1x2x1.all():
    mask_BxTx2xD[..., actions.WRIST_DIM :] &= start_Bx1x2x1
    action_BxTx2xD[..., actions.WRIST_DIM :][~mask_BxTx2xD[..., actions.WRIST_DIM :]] = 0.0
  if not mask_wrist.all():
    action_BxTx2xD[..., : actions.WRIST_DIM][~mask_wrist] = 0.0


def residuals(streams_B: list[Streams], frame_B: list[int], horizon: int, stride: int) -> np.ndarray:
  """-> [B, T, 2] metres at the steps of each chunk; past the last frame that of the last one."""
  steps = stride * np.arange(1, horizon + 1)
  rows = [s.residual_m_Fx2[np.minimum(frame + steps, len(s.residual_m_Fx2) - 1)] for s, frame in zip(streams_B, frame_B)]
  return np.stack(rows)

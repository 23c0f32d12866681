"""What the chunks of a clip need of it, worked out once a record: its windows overlap, so each joint is in some ten of them.

It is kept the way that a chunk takes it, as one slice of each array: numpy's own cost of a row's copy is that of a hundred numbers.
"""

import dataclasses

import numpy as np

from egoscale_jax.data import actions, clips, schema
from egoscale_jax.data.statistics import Normalizer
from egoscale_jax.errors import UserError


@dataclasses.dataclass(frozen=True, slots=True)
class Streams:
  slot: int  # of its embodiment
  pose_2x3xFx4: np.ndarray  # float32: the upper rows of T_world_wrist
  joints_Fx2xJ: np.ndarray  # float32, normalised, 0 where they are no label
  told_Fx2xD: np.ndarray  # bool, D = 9 + J: the hand is valid, and the number is one to be learnt
  whole: bool  # every hand is valid with every joint, every wrist finite and to be learnt: no chunk needs a closer look
  valid_Fx2: np.ndarray
  residual_m_Fx2: np.ndarray
  state_NxA: np.ndarray | None  # float32 normalised proprioception at every picture, NaN where a hand is missing; None: it has none

  @property
  def nbytes(self) -> int:
    kept = (self.pose_2x3xFx4, self.joints_Fx2xJ, self.told_Fx2xD, self.state_NxA)
    return sum(array.nbytes for array in kept if array is not None)


@dataclasses.dataclass(frozen=True, slots=True)
class Space:
  """Of a Normalizer what chunks need: the wrists' ranges where actions.relative has them, for every step, else numpy would go by fours."""

  low_2x3xTx4: np.ndarray
  scale_2x3xTx4: np.ndarray
  learnt_2xD: np.ndarray

  def normalize(self, relative_Bx2x3xTx4):
    """In place, number for number what Normalizer.normalize does."""
    relative_Bx2x3xTx4 -= self.low_2x3xTx4
    relative_Bx2x3xTx4 *= self.scale_2x3xTx4
    relative_Bx2x3xTx4 -= 1.0


def space(normalizer: Normalizer, horizon: int) -> Space:
  """normalizer: of the whole action."""
  part = normalizer.of(slice(actions.WRIST_DIM))
  low, scale = actions.lay_in(part.low_A, horizon), actions.lay_in(2.0 / (part.high_A - part.low_A), horizon)
  return Space(low, scale, normalizer.learnt_A.reshape(2, -1))


def make(clip: clips.Clip, slot: int, normalizer: Normalizer, state_NxA: np.ndarray | None) -> Streams:
  """normalizer: of the whole action, A = 2 * (9 + J). state_NxA: of state()."""
  pose = clip.T_world_wrist_Fx2x4x4[:, :, :3].transpose(1, 2, 0, 3).copy()
  learnt_2xD = normalizer.learnt_A.reshape(2, -1)
  told = clip.valid_Fx2[..., None] & learnt_2xD
  told[..., actions.WRIST_DIM :] &= np.isfinite(clip.joints_Fx2xJ)
  joints = normalizer.of(slice(actions.WRIST_DIM, None)).normalize(clip.joints_Fx2xJ)
  joints[~told[..., actions.WRIST_DIM :]] = 0.0
  whole = bool((told == learnt_2xD).all() and learnt_2xD[:, : actions.WRIST_DIM].all() and np.isfinite(pose).all())
  return Streams(slot, pose, joints, told, whole, clip.valid_Fx2, clip.residual_m_Fx2, state_NxA)


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


def chunks(streams_B: list[Streams], frame_B: list[int], stride: int, space: Space, action_BxTx2xD, mask_BxTx2xD):
  """Actions, normalised, and their mask, written into the last two, which actions.make_chunks describes.

  An action without a label is 0 and not NaN. Nothing is told past the last frame.
  """
  rows, horizon = action_BxTx2xD.shape[:2]
  pose_Bx2x3xSx4, short = np.empty((rows, 2, 3, horizon + 1, 4), np.float32), []
  mask_BxTx2xD[:] = space.learnt_2xD
  for row, (streams, frame) in enumerate(zip(streams_B, frame_B)):
    inside = min((len(streams.joints_Fx2xJ) - 1 - frame) // stride, horizon)
    end = frame + stride * inside + 1
    pose_Bx2x3xSx4[row, :, :, : inside + 1] = streams.pose_2x3xFx4[:, :, frame:end:stride]
    action_BxTx2xD[row, :inside, :, actions.WRIST_DIM :] = streams.joints_Fx2xJ[frame + stride : end : stride]
    if not streams.whole:
      mask_BxTx2xD[row, :inside] = streams.told_Fx2xD[frame + stride : end : stride]
    if inside < horizon:
      pose_Bx2x3xSx4[row, :, :, inside + 1 :] = 0.0
      short.append((row, inside))
  relative = actions.relative(pose_Bx2x3xSx4)
  space.normalize(relative)
  actions.lay_out(relative.transpose(0, 3, 1, 2, 4), action_BxTx2xD)
  for row, inside in short:
    action_BxTx2xD[row, inside:], mask_BxTx2xD[row, inside:] = 0.0, False
  partial = [row for row, streams in enumerate(streams_B) if not streams.whole]
  if partial:
    valid_Nx2 = np.stack([streams_B[row].valid_Fx2[frame_B[row]] for row in partial])
    mask = mask_BxTx2xD[partial] & valid_Nx2[:, None, :, None]
    action = action_BxTx2xD[partial]
    mask[..., : actions.WRIST_DIM] &= np.isfinite(action[..., : actions.WRIST_DIM])
    np.copyto(action, 0.0, where=~mask)
    action_BxTx2xD[partial], mask_BxTx2xD[partial] = action, mask


def residuals(streams_B: list[Streams], frame_B: list[int], horizon: int, stride: int) -> np.ndarray:
  """-> [B, T, 2] metres at the steps of each chunk; past the last frame that of the last one."""
  steps = stride * np.arange(1, horizon + 1)
  rows = [s.residual_m_Fx2[np.minimum(frame + steps, len(s.residual_m_Fx2) - 1)] for s, frame in zip(streams_B, frame_B)]
  return np.stack(rows)

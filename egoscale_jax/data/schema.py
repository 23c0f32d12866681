"""The one Episode that every reader makes, of a human or a robot: frames of reference and units are explicit.

Axis letters: F frames of an episode, C cameras, P = 21 keypoints (hands/keypoints.py), J joints of a hand, S and A the recorded state and
action; the axis of 2 is left hand, right hand. `world` in a name is the frame that `Episode.frame` tells.

Missing is NaN, never zero, and the masks `has_*` beside the arrays say where; they are made from the NaN, so the two cannot disagree.
"""

import dataclasses
import enum

import numpy as np

from egoscale_jax.hands import keypoints

HUMAN = "human"  # the embodiment of every human, filmed or simulated


class Frame(enum.StrEnum):
  """What the poses of an Episode are seen from. A reader that cannot tell it fails."""

  WORLD = "world"  # stands still in the room; its origin and its up mean nothing
  BASE = "base"  # the base of the robot
  CAMERA = "camera"  # the first camera, wherever it goes: nobody knows how it moved
  NONE = "none"  # there are no poses: joints alone


@dataclasses.dataclass(frozen=True)
class Recording:
  """A recording that was found but not yet read."""

  id: str  # unique below its directory, e.g. "basic_pick_and_place/0"
  files: tuple[str, ...]  # what read() opens; the first is the one an error names
  config: str = ""  # the file beside them that says what their columns mean, where there is one


@dataclasses.dataclass(frozen=True)
class Span:
  """What is done from start_s to end_s, in seconds from the first frame."""

  text: str
  start_s: float
  end_s: float
  side: str = ""  # "left" or "right" where it is of one hand


@dataclasses.dataclass(frozen=True)
class Episode:
  """One recording. A human has keypoints, a robot wrist poses, joints, state and action; the other's are NaN or have no columns."""

  id: str
  source: str  # the reader's name
  licence: str
  embodiment: str  # HUMAN, or the robot's name
  person: str  # "" where the recording does not tell
  scene: str  # recordings of one scene never straddle train and validation
  text: str  # the instruction
  spans: tuple[Span, ...]  # finer texts, where there are any; they may overlap
  rate_hz: float
  frame: Frame
  camera_names: tuple[str, ...]  # C >= 1; the first is the one that a policy sees
  jpeg_CxF: tuple[tuple[bytes, ...], ...]  # b"" where there is no picture
  image_size_C: tuple[tuple[int, int], ...]  # height, width of the JPEG frames
  intrinsics_Cx3x3: np.ndarray  # pixels of the JPEG frames, pinhole, float32
  T_world_camera_CxFx4x4: np.ndarray  # camera axes x right, y down, z forward; metres; float32
  keypoints_Fx2xPx3: np.ndarray  # metres, world; float32
  confidence_Fx2xP: np.ndarray  # 0..1, 0 where the keypoint is missing; float32
  # Of a robot. A human's wrist frames are made of the keypoints (labels.py), so that here is one truth only.
  T_world_wrist_Fx2x4x4: np.ndarray  # axes of hands/keypoints.py, metres; float32
  T_world_wrist_target_Fx2x4x4: np.ndarray  # what was commanded
  joint_names: tuple[tuple[str, ...], tuple[str, ...]]  # of the left and of the right hand or gripper, each at most J
  joints_Fx2xJ: np.ndarray  # in the recording's unit; NaN past a hand's own joints; float32
  joint_targets_Fx2xJ: np.ndarray
  state_names: tuple[str, ...]
  state_FxS: np.ndarray  # all that was recorded, as it was; float32
  action_names: tuple[str, ...]
  action_FxA: np.ndarray

  @property
  def num_frames(self) -> int:
    return len(self.jpeg_CxF[0])

  @property
  def jpeg_F(self) -> tuple[bytes, ...]:
    """Of the first camera, as the next three."""
    return self.jpeg_CxF[0]

  @property
  def image_size(self) -> tuple[int, int]:
    return self.image_size_C[0]

  @property
  def intrinsics_3x3(self) -> np.ndarray:
    return self.intrinsics_Cx3x3[0]

  @property
  def T_world_camera_Fx4x4(self) -> np.ndarray:
    return self.T_world_camera_CxFx4x4[0]

  @property
  def has_camera_CxF(self) -> np.ndarray:
    return np.isfinite(self.T_world_camera_CxFx4x4).all(axis=(2, 3))

  @property
  def has_keypoint_Fx2xP(self) -> np.ndarray:
    return np.isfinite(self.keypoints_Fx2xPx3).all(axis=-1)

  @property
  def has_wrist_Fx2(self) -> np.ndarray:
    return np.isfinite(self.T_world_wrist_Fx2x4x4).all(axis=(2, 3))

  @property
  def has_joint_Fx2xJ(self) -> np.ndarray:
    return np.isfinite(self.joints_Fx2xJ)


@dataclasses.dataclass(frozen=True)
class View:
  """One camera of a recording, as a reader decodes it; `views` makes the fields of an Episode of them."""

  name: str
  jpeg_F: tuple[bytes, ...]
  image_size: tuple[int, int]
  intrinsics_3x3: np.ndarray | None = None  # of the JPEG frames; None: unknown
  T_world_camera_Fx4x4: np.ndarray | None = None


def missing(*shape) -> np.ndarray:
  """NaN of a shape, float32."""
  return np.full(shape, np.nan, np.float32)


def views(*given: View) -> dict:
  """-> the fields of an Episode that are of its cameras; the first view is the one that a policy sees."""
  frames = len(given[0].jpeg_F)
  return {
    "camera_names": tuple(v.name for v in given),
    "jpeg_CxF": tuple(v.jpeg_F for v in given),
    "image_size_C": tuple(v.image_size for v in given),
    "intrinsics_Cx3x3": np.stack([_or_missing(v.intrinsics_3x3, 3, 3) for v in given]),
    "T_world_camera_CxFx4x4": np.stack([_or_missing(v.T_world_camera_Fx4x4, frames, 4, 4) for v in given]),
  }


def human(frames: int) -> dict:
  """-> the fields of an Episode of a human of F frames that only a robot fills."""
  return {"embodiment": HUMAN} | _no_robot(frames)


def robot(frames: int) -> dict:
  """-> the fields that only a human fills, and those of a robot's where nothing is known: for a reader to put its own over."""
  points = len(keypoints.NAMES)
  return {
    "person": "",
    "keypoints_Fx2xPx3": missing(frames, 2, points, 3),
    "confidence_Fx2xP": np.zeros((frames, 2, points), np.float32),
  } | _no_robot(frames)


def _no_robot(frames):
  return {
    "T_world_wrist_Fx2x4x4": missing(frames, 2, 4, 4),
    "T_world_wrist_target_Fx2x4x4": missing(frames, 2, 4, 4),
    "joint_names": ((), ()),
    "joints_Fx2xJ": missing(frames, 2, 0),
    "joint_targets_Fx2xJ": missing(frames, 2, 0),
    "state_names": (),
    "state_FxS": missing(frames, 0),
    "action_names": (),
    "action_FxA": missing(frames, 0),
  }


def _or_missing(array, *shape):
  return missing(*shape) if array is None else np.asarray(array, np.float32)


@dataclasses.dataclass(frozen=True)
class Labels:
  """What the checks and the retargeting add to an Episode; NaN where not valid."""

  T_world_wrist_Fx2x4x4: np.ndarray  # wrist frame of hands/keypoints.py; float32
  joints_Fx2xJ: np.ndarray  # radians, the robot hand's joints; float32
  residual_m_Fx2: np.ndarray  # mean fingertip error of the retargeting, metres; float32
  valid_Fx2: np.ndarray  # bool: this hand is usable as a label at this frame

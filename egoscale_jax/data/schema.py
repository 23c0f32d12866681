"""The one Episode that every reader makes: frames of reference and units are explicit.

Axis letters: F frames of an episode, P = 21 keypoints (hands/keypoints.py); the axis of 2 is left hand, right hand.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Recording:
  """A recording that was found but not yet read."""

  id: str  # unique below its directory, e.g. "basic_pick_and_place/0"
  files: tuple[str, ...]  # what read() opens; the first is the one an error names


@dataclasses.dataclass(frozen=True)
class Episode:
  """One human recording. Missing values are NaN (never zero); `confidence` is 0 where a keypoint is missing."""

  id: str
  source: str  # the reader's name
  text: str  # the instruction
  scene: str  # recordings of one scene never straddle train and validation
  licence: str
  rate_hz: float
  jpeg_F: tuple[bytes, ...]
  image_size: tuple[int, int]  # height, width of the JPEG frames
  intrinsics_3x3: np.ndarray  # pixels of the JPEG frames, float32
  T_world_camera_Fx4x4: np.ndarray  # camera axes x right, y down, z forward; metres; float32
  keypoints_Fx2xPx3: np.ndarray  # metres, world; float32
  confidence_Fx2xP: np.ndarray  # 0..1, float32

  @property
  def num_frames(self) -> int:
    return len(self.jpeg_F)


@dataclasses.dataclass(frozen=True)
class Labels:
  """What the checks and the retargeting add to an Episode; NaN where not valid."""

  T_world_wrist_Fx2x4x4: np.ndarray  # wrist frame of hands/keypoints.py; float32
  joints_Fx2xJ: np.ndarray  # radians, the robot hand's joints; float32
  residual_m_Fx2: np.ndarray  # mean fingertip error of the retargeting, metres; float32
  valid_Fx2: np.ndarray  # bool: this hand is usable as a label at this frame

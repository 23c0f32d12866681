"""What moves, of hands, camera and pictures, and the stretches where nothing does."""

import numpy as np

from egoscale_jax import geometry
from egoscale_jax.data import check_pictures, findings, schema
from egoscale_jax.hands import keypoints

# Clear movement, which a picture must show.
MOVE_METRES, MOVE_RADIANS, MOVE_SHARE = 0.05, 0.035, 0.1  # in half a second: of a wrist or camera, of a camera, of a state column's range
STEP_SPEED, STEP_SPIN, STEP_SHARE = 0.1, 0.1, 0.05  # m/s, rad/s, share a frame: from one frame to the next; video encoders skip less
# No movement: in half a second, all of it. Trackers' noise at rest is 3 mm in the real samples, an unused robot's state moves by 0.
IDLE_METRES, IDLE_RADIANS, IDLE_SHARE, IDLE_GREY = 0.01, 0.02, 0.01, 1.0
IDLE_SECONDS = 2.0  # a shorter rest is part of what people do
MIN_RANGE = 1e-3  # of a state column: below it, it is noise or a constant


def half_second(rate_hz) -> int:
  return max(1, round(0.5 * rate_hz))


def moves(episode, frames, metres, radians, share) -> np.ndarray:
  """[F] bool: from here to so many frames later a wrist or the camera moves by more than `metres`, the camera turns by more than `radians`,
  or a robot's state changes by more than `share` of its range. False where that is past the end.
  """
  wrist, camera, turn, state = (np.nan_to_num(x, nan=0.0) for x in _moved(episode, frames))
  moves_F = np.zeros(episode.num_frames, bool)
  moves_F[: len(wrist)] = (wrist > metres) | (camera > metres) | (turn > radians) | (state > share)
  return moves_F


def _moved(episode, frames):
  """-> by how much, in so many frames: wrists [F - frames] (metres), the camera (metres, radians), the state (share of its range)."""
  if episode.embodiment == schema.HUMAN:
    points_Fx2xPx3 = episode.keypoints_Fx2xPx3.astype(np.float64)
  else:
    points_Fx2xPx3 = episode.T_world_wrist_Fx2x4x4[:, :, None, :3, 3].astype(np.float64)
  camera_Fx4x4 = episode.T_world_camera_Fx4x4.astype(np.float64)
  known = np.isfinite(camera_Fx4x4).all(axis=(1, 2))
  camera_Fx4x4 = np.where(known[:, None, None], camera_Fx4x4, np.eye(4))
  both = known[frames:] & known[:-frames]
  shift = np.where(both, np.linalg.norm(camera_Fx4x4[frames:, :3, 3] - camera_Fx4x4[:-frames, :3, 3], axis=1), 0)
  turn = np.where(both, geometry.so3_angle(camera_Fx4x4[:-frames, :3, :3].swapaxes(1, 2) @ camera_Fx4x4[frames:, :3, :3]), 0)
  return _farthest(points_Fx2xPx3[:, :, keypoints.WRIST], frames), shift, turn, _state(episode, frames)


def _farthest(place_FxNx3, frames):
  """By how much the one that moves most moved, 0 where none is known."""
  place_FxNx3 = np.where(np.isfinite(place_FxNx3), place_FxNx3, np.nan)
  distance = np.linalg.norm(place_FxNx3[frames:] - place_FxNx3[:-frames], axis=-1)
  return np.nan_to_num(distance, nan=0.0).max(axis=1)


def _state(episode, frames):
  """By which share of its range the state's column that changes most changed."""
  finite_S = np.isfinite(episode.state_FxS).all(axis=0)
  state_FxS = episode.state_FxS[:, finite_S].astype(np.float64)
  range_S = np.ptp(state_FxS, axis=0)
  state_FxS, range_S = state_FxS[:, range_S > MIN_RANGE], range_S[range_S > MIN_RANGE]
  change = np.abs(state_FxS[frames:] - state_FxS[:-frames]) / range_S
  return change.max(axis=1, initial=0)


def check(episode, grey_FxYxX) -> list[findings.Finding]:
  """The finding of stretches of IDLE_SECONDS and more in which neither hands, camera, state nor picture moves."""
  frames = half_second(episode.rate_hz)
  if episode.num_frames < IDLE_SECONDS * episode.rate_hz:
    return []
  wrist, camera, turn, state = _moved(episode, frames)
  fingers = _farthest(episode.keypoints_Fx2xPx3.reshape(episode.num_frames, -1, 3), frames)
  still = (np.maximum(wrist, fingers) < IDLE_METRES) & (camera < IDLE_METRES) & (turn < IDLE_RADIANS) & (state < IDLE_SHARE)
  still &= check_pictures.difference(grey_FxYxX, frames) < IDLE_GREY
  idle_F = np.zeros(episode.num_frames, bool)
  for first, end in findings.runs(still):
    idle_F[first : end + frames] = end + frames - first >= IDLE_SECONDS * episode.rate_hz
  detail = f"neither hands nor pictures move for {IDLE_SECONDS:g} s and more, expected something to be done"
  return findings.warned("idle", "", idle_F, detail)

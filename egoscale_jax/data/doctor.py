"""Checks of an Episode: each fault has a name, is counted, and masks frames, rejects the episode or warns. docs/doctor.md tells them all.

`masked` frames stay in the shards and carry no label; a `rejected` episode is left out; a `warning` is for a person to look at. Nothing is
repaired. The checks themselves are in check_*.py, those across episodes in leaks.py, those of the retargeting in labels.py.
"""

import dataclasses

import numpy as np

from egoscale_jax.data import (
  check_camera,
  check_clock,
  check_hand,
  check_idle,
  check_motion,
  check_pair,
  check_pictures,
  check_robot,
  check_text,
  schema,
)
from egoscale_jax.data import findings as findings_lib
from egoscale_jax.data.findings import Finding
from egoscale_jax.data.sources import video
from egoscale_jax.hands import keypoints

MIN_VALID_SECONDS = 0.5  # of one hand, together
_METRIC = (
  "keypoints_Fx2xPx3",
  "T_world_camera_CxFx4x4",
  "intrinsics_Cx3x3",
  "T_world_wrist_Fx2x4x4",
  "joints_Fx2xJ",
  "joint_targets_Fx2xJ",
)


def check(episode: schema.Episode) -> tuple[np.ndarray, list[Finding]]:
  """-> valid [F, 2] bool (left, right) and the findings; the episode is usable where none of them has the severity "rejected"."""
  invalid_Fx2 = np.zeros((episode.num_frames, 2), bool)
  if episode.frame is schema.Frame.CAMERA:
    detail = "poses are seen from a camera whose own motion nobody knows, expected poses in a frame that stands still"
    return invalid_Fx2, [findings_lib.rejected("moving_frame", episode.num_frames, episode.num_frames, detail), *_check_source(episode)]
  episode = dataclasses.replace(episode, **{name: check_motion.sane(getattr(episode, name)) for name in _METRIC})
  found = _check_source(episode) + check_text.check(episode)
  if any(finding.name == "rate" for finding in found):
    return invalid_Fx2, found  # no speed would mean anything
  valid_Fx2, more = _check_human(episode) if episode.embodiment == schema.HUMAN else check_robot.check(episode)
  pictured_F, grey_FxYxX, of_pictures = _check_pictures(episode)
  valid_Fx2 = valid_Fx2 & pictured_F[:, None]
  found = more + found + of_pictures + check_idle.check(episode, grey_FxYxX)
  if episode.embodiment == schema.HUMAN:
    found += check_clock.check(episode, grey_FxYxX)
  if not any(finding.name == "too_short" for finding in found):  # which says it already
    found += check_valid(valid_Fx2, episode.rate_hz)
  return valid_Fx2, found


def check_valid(valid_Fx2, rate_hz) -> list[Finding]:
  """The finding "no_hand" where neither hand is valid for long enough; again asked once the labels are made."""
  count_2 = valid_Fx2.sum(axis=0)
  if (count_2 >= MIN_VALID_SECONDS * rate_hz).any():
    return []
  seconds = " and ".join(f"{side} {count / rate_hz:.2f} s" for side, count in zip(keypoints.SIDES, count_2))
  detail = f"valid {seconds}, expected one of the hands for {MIN_VALID_SECONDS} s"
  return [findings_lib.rejected("no_hand", len(valid_Fx2) - int(count_2.max()), len(valid_Fx2), detail)]


def _check_source(episode):
  """The finding "monocular" of every episode whose hands were guessed from one camera's pictures (docs/video.md has the errors)."""
  if episode.source != video.SOURCE:
    return []
  detail = "hands guessed from one camera: wrists off by 5 cm, palms by 18 degrees, often more; expected a tracker's"
  return [findings_lib.whole("monocular", findings_lib.WARNING, "", episode.num_frames, detail)]


def _check_human(episode):
  camera_F, found = check_camera.check(episode)
  valid_Fx2 = np.zeros((episode.num_frames, 2), bool)
  for i, side in enumerate(keypoints.SIDES):
    hand = episode.keypoints_Fx2xPx3[:, i], episode.confidence_Fx2xP[:, i]
    valid_Fx2[:, i], more = check_hand.check(*hand, episode.T_world_camera_Fx4x4, side, episode.rate_hz)
    found += more
  valid_Fx2 &= camera_F[:, None]
  pair_F, more = check_pair.check(episode.keypoints_Fx2xPx3, valid_Fx2)
  valid_Fx2 &= pair_F[:, None]
  view_Fx2, of_view = check_camera.view(episode, valid_Fx2)
  return valid_Fx2 & view_Fx2, found + more + of_view + check_camera.lens(episode)


def _check_pictures(episode):
  """-> good [F] of the first camera, its small grey pictures, and the findings of all cameras."""
  # From one frame to the next fingers alone need not show: of 1,000 clean robot episodes at 64 pixels an encoder repeated 12 such pictures.
  share = np.inf if np.isfinite(episode.T_world_wrist_Fx2x4x4).all(axis=(2, 3)).any() else check_idle.STEP_SHARE
  limits = check_idle.STEP_SPEED / episode.rate_hz, check_idle.STEP_SPIN / episode.rate_hz, share
  moves_F = check_idle.moves(episode, 1, *limits)
  limits = check_idle.MOVE_METRES, check_idle.MOVE_RADIANS, check_idle.MOVE_SHARE
  far_F = check_idle.moves(episode, check_idle.half_second(episode.rate_hz), *limits)
  is_human, found, first = episode.embodiment == schema.HUMAN, [], None
  for name, jpeg_F, image_size in zip(episode.camera_names, episode.jpeg_CxF, episode.image_size_C):
    small = check_pictures.decode(jpeg_F, image_size)
    good_F, more = check_pictures.check(small, name, first is None, moves_F, far_F, episode.rate_hz, is_human)
    found += more
    first = first or (good_F, small.grey_FxYxX)
  return *first, found

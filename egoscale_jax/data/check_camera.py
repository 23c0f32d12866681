"""Checks of the first camera, in which a human's hands are seen: its path, its lens, and whether the hands lie in its picture."""

import numpy as np

from egoscale_jax import geometry
from egoscale_jax.data import check_motion, findings
from egoscale_jax.hands import keypoints

FOCAL_SHARE = (0.2, 5.0)  # focal length over the picture's longer side: fields of view of 136 and of 11 degrees
MAX_ASPECT = 1.25  # between the two focal lengths: pixels are nearly square, a stretched picture's are not
# In the real samples a hand's centre is outside the picture on up to 18 % of the frames and never behind the camera.
MARGIN = 0.25  # of the picture, beyond its edge: a hand there may still be held by the tracker's other cameras
BEHIND_SHARE = 0.5  # of a hand's frames behind the camera: a hand beside the body may be, but not most of the time
OUTSIDE_SHARE = 0.9  # of the frames, of both hands


def check(episode):
  """-> valid [F] and findings; a camera that is lost or jumps takes both hands with it, for their world is its own."""
  pose_Fx4x4 = episode.T_world_camera_Fx4x4
  lost_F = ~np.isfinite(pose_Fx4x4).all(axis=(1, 2))
  found = findings.masked("camera_not_finite", "", lost_F, "pose of the camera is NaN or infinite")
  limits = check_motion.MAX_CAMERA_SPEED, check_motion.MAX_CAMERA_SPIN
  valid_F, more = check_motion.pose(pose_Fx4x4, "camera", "", episode.rate_hz, *limits)
  return valid_F, found + more


def lens(episode) -> list[findings.Finding]:
  """The finding of intrinsics, of any camera, that no lens has; unknown ones (NaN) are not judged."""
  found = []
  for name, K_3x3, (height, width) in zip(episode.camera_names, episode.intrinsics_Cx3x3.astype(np.float64), episode.image_size_C):
    if not np.isfinite(K_3x3).all():
      continue
    focal, centre = np.array([K_3x3[0, 0], K_3x3[1, 1]]), np.array([K_3x3[0, 2], K_3x3[1, 2]])
    share = focal / max(height, width)
    good = (share > FOCAL_SHARE[0]).all() and (share < FOCAL_SHARE[1]).all() and focal.max() < MAX_ASPECT * focal.min()
    if not good or not ((centre > 0) & (centre < (width, height))).all():
      detail = (
        f"focal lengths {focal[0]:.4g}, {focal[1]:.4g} and centre {centre[0]:.4g}, {centre[1]:.4g} in a picture of {width} x {height}"
      )
      detail = f"camera {name}: {detail}, expected intrinsics of these pixels"
      found.append(findings.whole("intrinsics", findings.WARNING, "", episode.num_frames, detail))
  return found


def view(episode, valid_Fx2):
  """-> [F, 2] bool and findings: the valid hands lie before the camera and, most of the time, in its picture."""
  keep_Fx2 = np.ones_like(valid_Fx2)
  K_3x3 = episode.intrinsics_3x3.astype(np.float64)
  if not np.isfinite(K_3x3).all() or not valid_Fx2.any():
    return keep_Fx2, []
  T_world_camera_Fx4x4 = episode.T_world_camera_Fx4x4.astype(np.float64)
  inside_Fx2, behind_Fx2 = _place(episode, K_3x3, geometry.se3_inverse(T_world_camera_Fx4x4), valid_Fx2)
  inverse_Fx2, _ = _place(episode, K_3x3, T_world_camera_Fx4x4, valid_Fx2)
  count, inside = valid_Fx2.sum(), inside_Fx2.sum()
  if inside < (1 - OUTSIDE_SHARE) * count and inverse_Fx2.sum() > 0.5 * count:
    detail = f"{inside / count:.0%} of the hands are in the picture, with the camera's pose inverted {inverse_Fx2.sum() / count:.0%}"
    detail += ": expected camera-to-world, found world-to-camera"
    return keep_Fx2, [findings.rejected("camera_inverted", episode.num_frames, episode.num_frames, detail)]
  found = []
  for i, side in enumerate(keypoints.SIDES):
    share = behind_Fx2[:, i].sum() / max(valid_Fx2[:, i].sum(), 1)
    if share > BEHIND_SHARE:
      detail = f"behind the camera on {share:.0%} of the frames, expected before it (z forward, y down)"
      found += findings.masked("behind_camera", side, behind_Fx2[:, i], detail)
      keep_Fx2[:, i] = ~behind_Fx2[:, i]
  seen_Fx2 = valid_Fx2 & ~behind_Fx2
  if seen_Fx2.any() and inside < (1 - OUTSIDE_SHARE) * seen_Fx2.sum():
    detail = (
      f"the hands are outside the picture on {1 - inside / seen_Fx2.sum():.0%} of the frames, expected in it: check pose and intrinsics"
    )
    found += findings.warned("out_of_view", "", (seen_Fx2 & ~inside_Fx2).any(axis=1), detail)
  return keep_Fx2, found


def _place(episode, K_3x3, T_camera_world_Fx4x4, valid_Fx2):
  """-> is the middle of a valid hand in the picture or near it [F, 2]; is it behind the camera [F, 2]."""
  known_Fx2xP = episode.has_keypoint_Fx2xP
  points_Fx2xPx3 = np.where(known_Fx2xP[..., None], episode.keypoints_Fx2xPx3.astype(np.float64), 0)
  centre_Fx2x3 = points_Fx2xPx3.sum(axis=2) / np.maximum(known_Fx2xP.sum(axis=2), 1)[..., None]
  local_Fx2x3 = geometry.transform(np.where(np.isfinite(T_camera_world_Fx4x4), T_camera_world_Fx4x4, 0), centre_Fx2x3)
  valid_Fx2 = valid_Fx2 & known_Fx2xP.any(axis=2)
  pixel_Fx2x2 = geometry.project(K_3x3, local_Fx2x3)  # NaN behind the camera, which is inside no picture
  size = np.array(episode.image_size[::-1])
  inside_Fx2 = ((pixel_Fx2x2 > -MARGIN * size) & (pixel_Fx2x2 < (1 + MARGIN) * size)).all(axis=2)
  return valid_Fx2 & inside_Fx2, valid_Fx2 & (local_Fx2x3[..., 2] <= 0)

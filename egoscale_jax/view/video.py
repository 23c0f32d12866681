"""`egoscale view`: an episode as a video or a sheet of frames, keypoints drawn, chunks too when a work directory is given."""

import numpy as np

from egoscale_jax.data import manifest
from egoscale_jax.hands import keypoints
from egoscale_jax.policy import Policy
from egoscale_jax.view import draw, episodes, scene
from egoscale_jax.view import output as output_lib

SHEET_FRAMES = 12
AXIS_METRES = 0.05


def annotate(footage, index, predictor=None, robot_Fx2xPx3=None):
  """Frame `index` with the keypoints; with a predictor, the wrists' true and predicted paths over the chunk's time and its last hands.

  robot: the labels' hands in the world; then a hand without a label is grey.
  """
  canvas = draw.Canvas.of(footage.frame(index))
  pixels = lambda points: draw.to_pixels(points, footage.T_world_camera_Fx4x4[index], footage.intrinsics_3x3)  # noqa: E731
  for side in range(2):
    masked = robot_Fx2xPx3 is not None and np.isnan(footage.joints_Fx2xJ[index, side]).all()
    canvas.skeleton(pixels(footage.keypoints_Fx2xPx3[index, side]), draw.MASKED if masked else draw.SIDE_COLOURS[side])
    if robot_Fx2xPx3 is not None:
      canvas.skeleton(pixels(robot_Fx2xPx3[index, side]), draw.LABELLED[side], width=1)
    if np.isnan(footage.keypoints_Fx2xPx3[index, side]).all():  # a robot has none: the axes of its wrist
      canvas.axes(pixels(_axes(footage.T_world_wrist_Fx2x4x4[index, side])))
  if predictor is not None:
    predicted = predictor(footage, index)
    future = np.array([footage.after(index, predictor.stride * step) for step in range(predictor.horizon + 1)])
    future = future[future < len(footage.jpeg_F)]
    for side in range(2):
      canvas.path(pixels(footage.T_world_wrist_Fx2x4x4[future, side, :3, 3]), draw.SIDE_COLOURS[side])
      canvas.path(pixels(predicted[:, side, keypoints.WRIST]), draw.PREDICTED[side])
      canvas.skeleton(pixels(predicted[-1, side]), draw.PREDICTED[side], width=1)
  legend = "true path blue/orange, predicted magenta/lime" if predictor is not None else _legend(footage)
  if robot_Fx2xPx3 is not None:
    legend += "; robot hand of the labels pale, no label grey"
  legend += "" if all(footage.jpeg_F) else "; no picture"
  canvas.caption(f"{footage.text}  [frame {index:04d}; {legend}]")  # of one length, so that all frames of a video are of one size
  return canvas.image


def _legend(footage):
  """Of what the whole episode has, not this frame."""
  if not np.isnan(footage.keypoints_Fx2xPx3).all():
    return "left blue, right orange"
  seen = np.isfinite(footage.T_world_wrist_Fx2x4x4).any() and np.isfinite(footage.T_world_camera_Fx4x4).any()
  return "axes of the wrists" if seen else "no pose to draw"


def _axes(T_world_wrist):
  """The origin and the ends of x, y, z [4, 3] in the world."""
  return np.concatenate([T_world_wrist[:3, 3:], T_world_wrist[:3, 3:] + AXIS_METRES * T_world_wrist[:3, :3]], axis=1).T


def view(path, output, episode=0, workdir=None, source=None, columns=""):
  """Draws one episode of a shards folder or, with a module of data/sources, of a folder of recordings to `output` (.mp4 or .png)."""
  output = output_lib.checked(output)
  footage = episodes.open_footage(path, episode, source, columns)
  predictor, robot = episodes.Predictor(Policy(workdir)) if workdir else None, None
  if predictor is None and footage.joints_Fx2xJ is not None:
    robot = _labels(footage, manifest.load(path)["hand"])
  drawn = lambda index: annotate(footage, index, predictor, robot)  # noqa: E731
  output_lib.write(output, drawn, len(footage.jpeg_F), footage.rate_hz, SHEET_FRAMES, 4)


def _labels(footage, hand):
  """The robot's hands [F, 2, P, 3] in the world, None where their description is not here."""
  known, points_Fx2xPx3 = scene.robot_points(hand, footage.joints_Fx2xJ, footage.T_world_wrist_Fx2x4x4)
  return points_Fx2xPx3 if known else None

"""What trackers do to the labels of a human: jitter of the keypoints, drift of the camera, hands that are lost for a while.

Sizes are of headset and monocular trackers, rounded: millimetres a frame, a centimetre and half a degree in ten seconds, some 3 % of the
frames of a hand lost. The hands are seen from the camera, so its drift moves them too.
"""

import numpy as np

from egoscale_jax import geometry
from egoscale_jax.sim import motion
from egoscale_jax.sim.bench import RATE_HZ

JITTER = 0.001  # metres, standard deviation: of a keypoint, frame by frame
WANDER = 0.003  # metres: of a whole hand, slowly
DRIFT_METRES, DRIFT_RADIANS = 0.010, 0.009  # of the camera, standard deviation after ten seconds of a random walk
LOST_EVERY, LOST_FRAMES = 12.0, (3, 9)  # seconds between losses of a hand, in the mean, and how long they last


def track(rng, T_world_camera_Fx4x4, T_world_body_Fx2xNx4x4):
  """-> camera [F, 4, 4] and bodies [F, 2, N, 4, 4] as tracked, and known [F, 2] bool: False where a hand was lost."""
  frames, _, count = T_world_body_Fx2xNx4x4.shape[:3]
  step = np.sqrt(1 / (10 * RATE_HZ))
  walk = np.cumsum(rng.normal(size=(frames, 6)) * step * ([DRIFT_METRES] * 3 + [DRIFT_RADIANS] * 3), axis=0)
  drift = geometry.se3(geometry.so3_exp(walk[:, 3:]), walk[:, :3])
  start = T_world_camera_Fx4x4[:1]  # it drifts about where the head was, not about the world's origin
  drift = start @ drift @ geometry.se3_inverse(start)
  bodies = drift[:, None, None] @ T_world_body_Fx2xNx4x4
  for i in range(2):
    bodies[:, i, :, :3, 3] += motion.sway(rng, frames, [WANDER] * 3)[:, None] + rng.normal(size=(frames, count, 3)) * JITTER
  return drift @ T_world_camera_Fx4x4, bodies, np.stack([_known(rng, frames) for _ in range(2)], axis=1)


def _known(rng, frames):
  known, frame = np.ones(frames, bool), 0
  while True:
    frame += int(rng.exponential(LOST_EVERY * RATE_HZ))
    if frame >= frames:
      return known
    length = int(rng.integers(*LOST_FRAMES))
    known[frame : frame + length] = False
    frame += length

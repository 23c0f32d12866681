"""The 21 keypoints of a hand and the wrist frame made from them, the same for a human and a robot.

Order (MANO / MediaPipe): wrist, then thumb, index, middle, ring, little, each from base to tip.
"""

import jax
import jax.numpy as jnp
import numpy as np

from egoscale_jax import geometry

ORDER = "wrist, then thumb, index, middle, ring, little, each base to tip"  # for messages
SIDES = ("left", "right")  # the order of every axis of two hands
FINGERS = ("thumb", "index", "middle", "ring", "little")
_JOINTS = {"thumb": ("cmc", "mcp", "ip", "tip")}
NAMES = ("wrist",) + tuple(f"{finger}_{joint}" for finger in FINGERS for joint in _JOINTS.get(finger, ("mcp", "pip", "dip", "tip")))
WRIST = 0
KNUCKLES = (5, 9, 13, 17)  # MCP of index, middle, ring, little
TIPS = (4, 8, 12, 16, 20)
BONES = tuple((0 if i % 4 == 1 else i - 1, i) for i in range(1, 21))  # (parent, child): for drawing and limb lengths


# Mean of `bends`, radians: below it the palm is where the back should be. The real samples stay above 0 at every joint and frame, a flat
# hand in the simulator at 4 degrees; nobody bends all eight joints back.
MIN_MEAN_BEND = np.radians(-8)


def wrist_frame(keypoints_Px3, side, fingers=(1, 2, 3, 4)):
  """Keypoints [..., 21, 3] of one hand in frame a, side "left" or "right" -> T_a_wrist [..., 4, 4].

  fingers: of FINGERS, whose knuckles to read, two or more: a human is measured with those that the robot has.

  ```
        x to the knuckles         origin: the wrist keypoint
        ^   (mean of them)        x: from the wrist to the mean of the finger knuckles
   y <--+                         z: out of the back of the hand, at right angles to x and to the line of knuckles
        z out of the back         y = z x x: to the thumb on a right hand, to the little finger on a left one
  ```
  A right hand mirrored at its x-z plane is a left hand with the same axes. NaN where a keypoint it needs is NaN or the palm has no area.
  """
  xp = jnp if isinstance(keypoints_Px3, jax.Array) else np
  wrist = keypoints_Px3[..., WRIST, :]
  knuckles = keypoints_Px3[..., np.asarray([KNUCKLES[finger - 1] for finger in fingers]), :]
  forward = xp.mean(knuckles, axis=-2) - wrist
  index_to_little = knuckles[..., -1, :] - knuckles[..., 0, :]
  normal = {"left": 1.0, "right": -1.0}[side] * xp.cross(forward, index_to_little)
  degenerate = xp.sum(normal * normal, axis=-1, keepdims=True) < 1e-12  # m^4: a palm of one square millimetre
  x = geometry.normalize(forward)
  z = geometry.normalize(xp.where(degenerate, xp.full_like(normal, xp.nan), normal))
  return geometry.se3(xp.stack([x, xp.cross(z, x), z], axis=-1), wrist)


def wrist_frames(keypoints_2xPx3):
  """Both hands, left then right: keypoints [..., 2, 21, 3] in frame a -> T_a_wrist [..., 2, 4, 4]."""
  xp = jnp if isinstance(keypoints_2xPx3, jax.Array) else np
  return xp.stack([wrist_frame(keypoints_2xPx3[..., i, :, :], side) for i, side in enumerate(SIDES)], axis=-3)


def bends(points_FxPx3, T_world_wrist_Fx4x4) -> np.ndarray:
  """Angles [F, 4 fingers, 2] of the middle and the end joint, radians, positive to the palm of a hand of that side."""
  local_FxPx3 = geometry.transform(geometry.se3_inverse(T_world_wrist_Fx4x4), points_FxPx3)
  chain_Fx4x4x3 = local_FxPx3[:, np.add.outer(KNUCKLES, range(4))]  # mcp, pip, dip, tip of four fingers
  bone = np.diff(chain_Fx4x4x3, axis=2)
  near, far = bone[:, :, :-1], bone[:, :, 1:]
  across = np.cross(near, far)[..., 1]  # about y, the line of the knuckles: from x (fingers) to -z (palm)
  return np.arctan2(across, (near * far).sum(axis=-1))

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

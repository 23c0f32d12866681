"""A human hand as a kinematic tree of capsules, with EgoDex's joint names; left is the right hand mirrored.

The simulator's own hand frame (both sides):
```
      x along the fingers       right: y to the thumb;  left: y to the little finger
      ^                         a left hand is a right hand mirrored at its x-z plane, with the same joint values
 y <--+  z out of the back
```
Every joint bends about its body's y (flexion: positive closes the hand) or z (abduction: positive towards the thumb; at the thumb's base:
out of the palm). Joint values are radians in the order of JOINTS. Lengths are those of a mean adult, scaled by the person's `scale`.
"""

import dataclasses

import mujoco
import numpy as np

FINGERS = ("Index", "Middle", "Ring", "Little")
HAND_GROUP = 1  # MuJoCo's geom group of all skin and sleeve capsules
TIP_RADIUS = 0.0075  # of the index and middle finger, at scale 1
MIRROR = np.diag([1.0, -1.0, 1.0])  # a right hand's frame to a left hand's

# finger: metacarpal base, knuckle (metres, right hand's frame), yaw of the straight finger (degrees), phalanges (metres), radii (metres)
_FINGERS = {
  "Index": ((0.024, 0.014, 0.0), (0.089, 0.026, 0.0), 4, (0.042, 0.026, 0.021), (0.0095, 0.0085, 0.0075)),
  "Middle": ((0.025, 0.004, 0.002), (0.093, 0.005, 0.003), 0, (0.046, 0.030, 0.022), (0.0095, 0.0088, 0.0075)),
  "Ring": ((0.025, -0.007, 0.002), (0.087, -0.015, 0.001), -5, (0.043, 0.028, 0.021), (0.009, 0.0082, 0.0072)),
  "Little": ((0.024, -0.017, 0.0), (0.077, -0.033, -0.003), -11, (0.034, 0.021, 0.019), (0.008, 0.0072, 0.0065)),
}
_THUMB = ((0.022, 0.022, -0.008), (0.045, 0.034, 0.026), (0.013, 0.0105, 0.009))
_THUMB_ALONG, _THUMB_PAD = (0.72, 0.60, -0.35), (0.35, -0.75, -0.45)  # the straight thumb; where its pad faces

# joint: range in degrees
_FINGER_RANGE = {"abduction": (-20, 20), "mcp": (-20, 95), "pip": (-5, 110), "dip": (-5, 80)}
_THUMB_RANGE = {"flexion": (-20, 50), "abduction": (-15, 60), "mcp": (-10, 60), "ip": (-15, 80)}
JOINTS = tuple(f"Thumb_{j}" for j in _THUMB_RANGE) + tuple(f"{f}_{j}" for f in FINGERS for j in _FINGER_RANGE)
LIMITS = np.radians([*_THUMB_RANGE.values(), *(list(_FINGER_RANGE.values()) * 4)])  # [20, 2]

_THUMB_NAMES = tuple(f"Thumb{part}" for part in ("Knuckle", "IntermediateBase", "IntermediateTip", "Tip"))
_FINGER_PARTS = ("Metacarpal", "Knuckle", "IntermediateBase", "IntermediateTip", "Tip")
BODIES = (
  "Hand",
  *_THUMB_NAMES,
  *(f"{f}Finger{part}" for f in FINGERS for part in _FINGER_PARTS),
)  # 25 a hand; EgoDex's names less the side
KEYPOINTS = tuple(name for name in BODIES if not name.endswith("Metacarpal"))  # the 21 of hands/keypoints.py, in its order

# A frame of EgoDex seen from the same frame here: left +X fingers, +Y palm, +Z little finger; right is minus all three.
EGODEX_AXES = {
  "left": np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
  "right": np.array([[-1.0, 0, 0], [0, 0, 1], [0, 1, 0]]),
}


@dataclasses.dataclass(frozen=True)
class Person:
  scale: float  # of a mean adult hand
  skin: tuple[float, float, float]  # linear RGB
  sleeve: tuple[float, float, float]


def posture(thumb, index, middle, ring, little):
  """Five tuples of four degrees (the order of JOINTS) -> joint values [20] in radians."""
  return np.radians(np.array([thumb, index, middle, ring, little], dtype=float)).reshape(-1)


def along(direction, pad):
  """Rotation whose x is `direction` and whose -z faces `pad` as far as it can."""
  x = np.asarray(direction, dtype=float) / np.linalg.norm(direction)
  z = -(np.asarray(pad, dtype=float) - x * np.dot(pad, x))
  z /= np.linalg.norm(z)
  return np.stack([x, np.cross(z, x), z], axis=1)


def _yaw(degrees):
  c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
  return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


class _Builder:
  """Adds the parts of one hand to an MjSpec, mirrored for the left."""

  def __init__(self, side, person):
    self.side, self.scale = side, person.scale
    self.mirror = MIRROR if side == "left" else np.eye(3)
    self.skin = np.append(person.skin, 1.0)

  def body(self, parent, name, position, rotation=None):
    """A child body: position [3] metres and rotation [3, 3] in the parent's frame of the right hand."""
    quat = np.zeros(4)
    mujoco.mju_mat2Quat(quat, (self.mirror @ (np.eye(3) if rotation is None else rotation) @ self.mirror).ravel())
    return parent.add_body(name=self.side + name, pos=self.mirror @ np.asarray(position) * self.scale, quat=quat)

  def hinge(self, body, joint, axis):
    low, high = LIMITS[JOINTS.index(joint)]
    # The axis of a turn is a pseudovector: a mirror keeps its y (the mirror's normal) and turns x and z about.
    sign = -1.0 if self.side == "left" and axis == "z" else 1.0
    vector = {"y": (0, 1, 0), "z": (0, 0, sign)}[axis]
    body.add_joint(name=self.side + joint, type=mujoco.mjtJoint.mjJNT_HINGE, axis=vector, range=np.degrees((low, high)), limited=True)

  def capsule(self, body, start, end, radius, tint=1.0):
    ends = np.concatenate([self.mirror @ np.asarray(p) * self.scale for p in (start, end)])
    colour = np.append(np.clip(self.skin[:3] * tint, 0, 1), 1)
    kind = mujoco.mjtGeom.mjGEOM_CAPSULE
    body.add_geom(type=kind, fromto=ends, size=[radius * self.scale, 0, 0], rgba=colour, group=HAND_GROUP, contype=0, conaffinity=0)


def _add_finger(make, hand, name):
  base, knuckle, splay, lengths, radii = _FINGERS[name]
  reach = np.subtract(knuckle, base)
  turn = along(reach, (0, 0, -1))
  metacarpal = make.body(hand, f"{name}FingerMetacarpal", base, turn)
  make.capsule(metacarpal, (0, 0, 0), (np.linalg.norm(reach), 0, -0.002), 0.0125)
  body = make.body(metacarpal, f"{name}FingerKnuckle", (np.linalg.norm(reach), 0, 0), turn.T @ _yaw(splay))
  make.hinge(body, f"{name}_abduction", "z")
  make.hinge(body, f"{name}_mcp", "y")
  for i, part in enumerate(("IntermediateBase", "IntermediateTip", "Tip")):
    # The keypoint of the tip is the end of the flesh, so the last capsule's axis stops one radius short of it.
    end = lengths[i] - (radii[i] if part == "Tip" else 0)
    make.capsule(body, (0, 0, 0), (end, 0, 0), radii[i], tint=1.0 + 0.07 * i)
    body = make.body(body, f"{name}Finger{part}", (lengths[i], 0, 0))
    if part != "Tip":
      make.hinge(body, f"{name}_{'pip' if i == 0 else 'dip'}", "y")


def _add_thumb(make, hand):
  base, lengths, radii = _THUMB
  body = make.body(hand, _THUMB_NAMES[0], base, along(_THUMB_ALONG, _THUMB_PAD))
  make.hinge(body, "Thumb_flexion", "y")
  make.hinge(body, "Thumb_abduction", "z")
  for i, name in enumerate(_THUMB_NAMES[1:]):
    end = lengths[i] - (radii[i] if name == "ThumbTip" else 0)
    make.capsule(body, (0, 0, 0), (end, 0, 0), radii[i], tint=1.0 + 0.07 * i)
    body = make.body(body, name, (lengths[i], 0, 0))
    if name != "ThumbTip":
      make.hinge(body, f"Thumb_{'mcp' if i == 0 else 'ip'}", "y")


def add_hand(spec, side, person):
  """Add one hand, free in space, and its forearm (a free body `<side>Forearm`, x towards the elbow) to an MjSpec."""
  make = _Builder(side, person)
  hand = spec.worldbody.add_body(name=f"{side}Hand")
  hand.add_freejoint(name=f"{side}Hand")
  make.capsule(hand, (0.008, 0.008, -0.003), (0.008, -0.008, -0.003), 0.0165)  # the heel of the hand
  make.capsule(hand, (0.030, 0.018, -0.010), (0.070, 0.014, -0.006), 0.013)  # the web to the thumb
  _add_thumb(make, hand)
  for name in FINGERS:
    _add_finger(make, hand, name)
  forearm = spec.worldbody.add_body(name=f"{side}Forearm")
  forearm.add_freejoint(name=f"{side}Forearm")
  make.capsule(forearm, (0, 0, 0), (0.08, 0, 0), 0.021)
  make.skin = np.append(person.sleeve, 1.0)
  make.capsule(forearm, (0.075, 0, 0), (0.45, 0, 0), 0.034)


class RightHand:
  """Forward kinematics of one right hand alone, its wrist at the origin: where the experts ask how far its fingers reach."""

  def __init__(self, scale):
    spec = mujoco.MjSpec()
    add_hand(spec, "right", Person(scale, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
    self.scale = scale
    self._model = spec.compile()
    self._data = mujoco.MjData(self._model)
    self._ids = [self._model.body("right" + name).id for name in KEYPOINTS]
    self._hinges = [self._model.joint("right" + name).qposadr[0] for name in JOINTS]

  def keypoints(self, joints):
    """Joint values [20] -> the 21 keypoints [21, 3] in the wrist frame, metres."""
    self._data.qpos[:7] = (0, 0, 0, 1, 0, 0, 0)
    self._data.qpos[self._hinges] = joints
    mujoco.mj_kinematics(self._model, self._data)
    return self._data.xpos[self._ids].copy()

"""The bodies that act on the bench: two hands each, carried by their wrists, with servos in the fingers.

What is carried is a heavy free body whose pose and speed world.py sets before every step of physics. A mocap body would stand still for the
solver: friction and the weld of a grasp then drag what is held behind it (25 ms, seen), and it is lost.

A body's hand shapes are three, in degrees of its right hand: at rest, and a pinch wide open and shut, between which `grip` finds the one
that holds a thing of a width. They were found once by least squares: tips that far apart, the last links of thumb and fingers straddling
the gap in one direction. Widths up to MAX_WIDTH can be held.
"""

import dataclasses
import functools
import pathlib
import re

import mujoco
import numpy as np

from egoscale_jax import geometry
from egoscale_jax.hands import hand as hand_lib
from egoscale_jax.hands.keypoints import SIDES, wrist_frame
from egoscale_jax.sim import human

MAX_WIDTH = 0.055  # metres
HAND_BIT, PROP_BIT = 1, 2  # MuJoCo's contype: hands meet props and the table, not each other
NEAR = 0.002  # metres: two shapes this close count as in contact; they push from 0 on
_MODELS = pathlib.Path(hand_lib.__file__).parent / "models"
_SERVO = {"kp": 3.0, "kv": 0.08, "limit": 1.0}  # N m / rad, N m s / rad, N m: 27 ms to follow, 10 N at a fingertip
_METAL, _DARK = (0.55, 0.58, 0.62, 1), (0.10, 0.10, 0.12, 1)


@dataclasses.dataclass(frozen=True)
class Body:
  name: str  # the embodiment of its recordings; a robot's is the name of its hand in hands/models
  rest: tuple  # degrees of the right hand's joints, as the two below
  wide: tuple  # a pinch, 60 mm open
  shut: tuple  # the same, 2 mm open
  opposing: tuple[str, ...]  # the fingers that meet the thumb
  person: human.Person | None = None  # of a human

  @property
  def prefix(self):
    """Of its joints' names in a MuJoCo model."""
    return "" if self.person is not None else "robot_"

  @property
  def hands(self):
    """(left, right) descriptions of a robot's."""
    return tuple(_hand(self.name, side) for side in SIDES)

  @property
  def joint_names(self):
    """Of the left and of the right hand, J each, in the order of commands and labels."""
    if self.person is not None:
      return tuple(tuple(side + name for name in human.JOINTS) for side in SIDES)
    return tuple(hand.joint_names for hand in self.hands)

  @property
  def limits_2xJx2(self):
    if self.person is not None:
      return np.stack([human.LIMITS] * 2)
    return np.stack([np.stack([hand.lower_J, hand.upper_J], axis=-1) for hand in self.hands]).astype(float)

  def both(self, degrees):
    """A shape of the right hand -> radians of both [2, J]: a joint whose range is mirrored on the left turns the other way there."""
    left, right = self.limits_2xJx2
    sign = np.where(np.isclose(left[:, 0], -right[:, 1]) & ~np.isclose(left[:, 0], right[:, 0]), -1.0, 1.0)
    shape = np.radians(np.asarray(degrees, float))
    return np.stack([sign * shape, shape])

  def add(self, spec):
    """Both hands and forearms into an MjSpec; the carried bodies are `leftHand`, `rightHand`, `leftForearm`, `rightForearm`."""
    for i, side in enumerate(SIDES):
      (_add_human if self.person is not None else _add_robot)(spec, side, self)
      for name, (low, high) in zip(self.joint_names[i], self.limits_2xJx2[i]):
        joint = spec.joint(self.prefix + name)
        joint.armature = 5e-4
        servo = spec.add_actuator(
          name=name, target=self.prefix + name, trntype=mujoco.mjtTrn.mjTRN_JOINT, ctrlrange=(low, high), ctrllimited=True
        )
        servo.set_to_position(kp=_SERVO["kp"], kv=_SERVO["kv"])
        servo.forcerange, servo.forcelimited = (-_SERVO["limit"], _SERVO["limit"]), True
    for geom in spec.geoms:
      if geom.group == human.HAND_GROUP:
        collides = "Forearm" not in geom.parent.name
        geom.contype, geom.conaffinity, geom.margin, geom.gap = HAND_BIT * collides, 0, NEAR, NEAR
        geom.friction, geom.density = (1.0, 0.01, 0.001), 300
        geom.parent.gravcomp = 1
    for side in SIDES:
      carried = spec.body(f"{side}Hand")
      carried.mass, carried.inertia, carried.explicitinertial, carried.gravcomp = 30.0, (0.3, 0.3, 0.3), True, 1

  def T_base_wrist_2x4x4(self):
    """From the wrist frame of hands/keypoints.py to the carried body."""
    if self.person is not None:
      return np.stack([wrist_frame(_human_keypoints(side), side) for side in SIDES])
    return np.stack([hand.T_base_wrist_4x4 for hand in self.hands]).astype(float)


HUMAN = Body(
  name="human",
  rest=(-6, 2, 26, 30, 2, 30, 40, 22, 0, 34, 44, 24, -2, 38, 48, 26, -4, 40, 48, 26),
  wide=(4, 31, 11, 16, -5, 44, 35, 8, 0, 45, 35, 8, -2, 55, 60, 33, -4, 58, 64, 35),
  shut=(24, 21, 12, 10, 6, 80, 19, -5, 0, 81, 19, -5, -2, 60, 62, 33, -4, 62, 66, 35),
  opposing=("index",),
  person=human.Person(1.0, (0.6, 0.4, 0.3), (0.2, 0.2, 0.5)),
)
SHARPA = Body(
  name="sharpa_wave",
  rest=(20, 0, 15, 0, 15, 30, 0, 35, 20, 32, 0, 38, 22, 34, 0, 40, 24, 0, 36, 0, 40, 24),
  wide=(41, -19, 19, -20, 9, 54, -1, 29, 3, 55, -3, 29, 3, 55, 0, 60, 35, 0, 60, -3, 65, 35),
  shut=(64, 12, -11, -20, 0, 60, -4, 26, 2, 61, -3, 26, 2, 55, 0, 60, 35, 0, 60, -3, 65, 35),
  opposing=("index",),
)
DEX3 = Body(
  name="dex3",
  rest=(0, 10, -40, 35, 20, 35, 20),
  wide=(-20, -2, -25, 10, 10, 59, 20),
  shut=(-31, -36, 0, 10, 10, 79, 13),
  opposing=("index",),  # both fingers are 57 mm apart: a small thing slips through between them
)
BODIES = {body.name: body for body in (HUMAN, SHARPA, DEX3)}


@functools.cache
def _hand(name, side):
  return hand_lib.load(name, side)


def _human_keypoints(side):
  """[21, 3] of a mean adult's flat hand in its own frame."""
  flat = human.RightHand(1.0).keypoints(np.zeros(len(human.JOINTS)))
  return flat @ human.MIRROR if side == "left" else flat


def _add_human(spec, side, body):
  human.add_hand(spec, side, body.person)
  spec.delete(spec.joint(f"{side}Forearm"))
  spec.body(f"{side}Forearm").mocap = True


def _add_robot(spec, side, body):
  """The description's tree of capsules below a carried body: dark palm, metal fingers with dark tips, a grey arm."""
  child = mujoco.MjSpec.from_file(str(_MODELS / f"{body.name}_{side}.xml"))
  child.compiler.degree = False
  for geom in child.geoms:
    name = geom.parent.name.lower()
    palm, tip = not re.search(r"proximal|middle|distal|_[012]_link|carpal", name), not geom.parent.bodies
    geom.size[0] = 0.011 if palm else 0.008 if tip else 0.0095
    geom.rgba, geom.group = (_DARK if palm or tip else _METAL), human.HAND_GROUP
  carried = spec.worldbody.add_body(name=f"{side}Hand")
  carried.add_freejoint(name=f"{side}Hand")
  for site in list(child.sites):
    site.name = f"{side}_{site.name}"
  carried.add_frame().attach_body(child.worldbody.first_body(), body.prefix, "")
  forearm = spec.worldbody.add_body(name=f"{side}Forearm", mocap=True)
  for ends, radius, colour in (((0, 0, 0, 0.07, 0, 0), 0.024, _DARK), ((0.075, 0, 0, 0.45, 0, 0), 0.028, (0.85, 0.85, 0.86, 1))):
    forearm.add_geom(type=mujoco.mjtGeom.mjGEOM_CAPSULE, fromto=ends, size=[radius, 0, 0], rgba=colour, group=human.HAND_GROUP)


def part(body_name):
  """Of which part of a hand a MuJoCo body is: "thumb", "index", "middle", "ring", "little", or "palm"."""
  name = body_name.lower().replace("pinky", "little")
  found = re.search(r"thumb|index|middle|ring|little", name)
  return "palm" if found is None or ("metacarpal" in name and "thumb" not in name) else found[0]


@dataclasses.dataclass(frozen=True)
class Grip:
  """How a right hand holds a width; vectors in its wrist frame."""

  open_J: np.ndarray  # radians: with room on both sides
  hold_J: np.ndarray  # what is commanded to hold: further than the thing lets the fingers go
  centre: np.ndarray  # the middle of the gap between the tips, metres
  axis: np.ndarray  # from the thumb to the fingers
  approach: np.ndarray  # where the tips point, at right angles to axis
  reach: float  # how far the tips' flesh goes beyond the centre along approach, metres


class Fingers:
  """Forward kinematics of a body's right hand alone."""

  def __init__(self, body):
    spec = mujoco.MjSpec()
    body.add(spec)
    self.body, self._model = body, spec.compile()
    self._data = mujoco.MjData(self._model)
    self._joints = [self._model.joint(body.prefix + name).qposadr[0] for name in body.joint_names[1]]
    self._inverse = geometry.se3_inverse(body.T_base_wrist_2x4x4()[1])
    self._carried = self._model.joint("rightHand").qposadr[0]
    self._tips = {finger: self._last_capsule(finger) for finger in ("thumb", *body.opposing)}
    self._shapes = body.both(body.wide)[1], body.both(body.shut)[1]

  def _last_capsule(self, finger):
    """The geom of a finger's last link."""
    m = self._model
    found = [g for g in range(m.ngeom) if "right" in (name := m.body(m.geom_bodyid[g]).name) and part(name) == finger]
    return max(found, key=lambda g: m.geom_bodyid[g])

  def tips(self, joints_J):
    """-> {finger: (middle of the tip's ball, unit direction of the last link, radius)} in the wrist frame."""
    m, d = self._model, self._data
    d.qpos[self._joints] = joints_J
    d.qpos[self._carried : self._carried + 7] = (0, 0, 0, 1, 0, 0, 0)
    mujoco.mj_kinematics(m, d)
    result = {}
    for finger, g in self._tips.items():
      joint, half = d.xpos[m.geom_bodyid[g]], m.geom_size[g, 1] * d.geom_xmat[g, 2::3]
      tip = max((d.geom_xpos[g] + half, d.geom_xpos[g] - half), key=lambda end: np.linalg.norm(end - joint))
      along = self._inverse[:3, :3] @ geometry.normalize(tip - joint)
      result[finger] = geometry.transform(self._inverse, tip[None])[0], along, m.geom_size[g, 0]
    return result

  def shape(self, share):
    """0: wide, 1: shut; beyond 1 it squeezes."""
    low_high = self.body.limits_2xJx2[1]
    return np.clip(self._shapes[0] + share * (self._shapes[1] - self._shapes[0]), *low_high.T)

  def _gap(self, share):
    tips = self.tips(self.shape(share))
    thumb, others = tips["thumb"], [tips[finger] for finger in self.body.opposing]
    finger = np.mean([tip for tip, _, _ in others], axis=0)
    return np.linalg.norm(finger - thumb[0]) - thumb[2] - others[0][2], thumb, finger, others

  def grip(self, width) -> Grip:
    if not 0 < width <= MAX_WIDTH:
      raise ValueError(f"a width of {width} m, expected more than 0 and at most {MAX_WIDTH}")
    low, high = 0.0, 1.1
    for _ in range(30):
      share = 0.5 * (low + high)
      low, high = (share, high) if self._gap(share)[0] > width else (low, share)
    _, thumb, finger, others = self._gap(share)
    axis = geometry.normalize(finger - thumb[0])
    approach = thumb[1] + np.mean([along for _, along, _ in others], axis=0)
    approach = geometry.normalize(approach - axis * (approach @ axis))
    wide = max(0.0, share - 0.45) if share > 0.45 else 0.0
    centre = 0.5 * (thumb[0] + finger) + 0.5 * axis * (thumb[2] - others[0][2])
    return Grip(self.shape(wide), self.shape(share + 0.3), centre, axis, approach, thumb[2])


@functools.lru_cache(maxsize=8)
def fingers(body) -> Fingers:
  return Fingers(body)

"""What the hand of an expert can do, in steps: every one is a generator of commands (T_world_wrist [2, 4, 4], joints [2, J]), one a frame.

Experts act with the right hand, and look at the world as it is (poses, contacts): what they do not see is how to finish by luck. The left
hand rests. A pinch comes from above: `heading` is where the wrist's x points in the table's plane (radians from the world's x; 90 degrees
is away from the person), `tilt` how far the fingers lean that way from straight down.

A reach has two phases, as a person's: a quick leg that ends above the thing, AIM off, and a correction by sight on the way down. Without it
nobody learns to correct: from a hover that is always right, straight down is right too, and a policy's own hover is not.
"""

import numpy as np

from egoscale_jax import geometry
from egoscale_jax.sim import motion
from egoscale_jax.sim.bench import RATE_HZ

HEADING = 1.75  # radians: a forearm that comes from the right
SPEED = 0.38  # m/s, mean over a leg
AIM = 0.025  # metres in the plane by which the quick leg of a reach is off, at most
CORRECT = 0.5  # share of the way down on which that is made good
_TRIES = 3


class Actor:
  def __init__(self, world, fingers, rng, idle, speed=1.0, tilt=0.0, yaw=0.0, shaky=0.0):
    """idle: [F, 4, 4] poses of the left wrist, one a frame, the last one for good; shaky: metres by which aims are off."""
    self.world, self.fingers, self.rng, self._idle = world, fingers, rng, idle
    self._speed, self._tilt, self._yaw, self._shaky = speed * SPEED, tilt, yaw, shaky
    self.wrist, self.joints = world.T_world_wrist_2x4x4[1].copy(), world.joint_targets_2xJ[1].copy()
    self._left = world.joint_targets_2xJ[0].copy()
    self._frame = 0

  # Moves

  def _command(self):
    self._frame += 1
    left = self._idle[min(self._frame, len(self._idle) - 1)]
    return np.stack([left, self.wrist]), np.stack([self._left, self.joints])

  def go(self, T_world_wrist, joints=None, lift=0.0, speed=1.0, fingers=(0.0, 1.0), pivot=None, frames=None):
    """A minimum-jerk leg, as motion.Leg has it."""
    joints = self.joints if joints is None else joints
    if frames is None:
      distance = np.hypot(np.linalg.norm(T_world_wrist[:3, 3] - self.wrist[:3, 3]), 2 * lift)
      angle = geometry.so3_angle(self.wrist[:3, :3].T @ T_world_wrist[:3, :3])
      frames = max(3, round(RATE_HZ * (distance + 0.08 * angle) / (self._speed * speed)))
    leg = motion.Leg("", frames, T_world_wrist, joints, lift, fingers, pivot)
    share = np.arange(1, frames + 1) / frames
    path = motion.poses(self.wrist, leg, motion.minimum_jerk(share))
    moved = motion.minimum_jerk(np.clip((share - fingers[0]) / (fingers[1] - fingers[0]), 0, 1))
    before = self.joints
    for pose, way in zip(path, moved):
      self.wrist, self.joints = pose, before + way * (joints - before)
      yield self._command()

  def shift(self, by, **how):
    """The wrist by [3] metres, its turn kept."""
    goal = self.wrist.copy()
    goal[:3, 3] += by
    yield from self.go(goal, **how)

  def fist(self, joints, frames=4):
    """Fingers alone."""
    yield from self.go(self.wrist.copy(), joints, frames=frames)

  def wait(self, frames):
    for _ in range(frames):
      yield self._command()

  def twist(self, centre, angle, rise, frames):
    """The wrist about the vertical through a point, by any angle (radians), and up by `rise`."""
    before = self.wrist
    for share in motion.minimum_jerk(np.arange(1, frames + 1) / frames):
      turn = geometry.so3_exp(np.array([0, 0, share * angle]))
      self.wrist = geometry.se3(turn @ before[:3, :3], centre + turn @ (before[:3, 3] - centre) + (0, 0, share * rise))
      yield self._command()

  # Pinches

  def pinch(self, grip, centre, heading, tilt=None):
    """T_world_wrist that has the gap of a grip at a point of the world."""
    tilt = self._tilt if tilt is None else tilt
    turn = heading + np.arctan2(grip.axis[1], grip.axis[0])
    axis = np.array([np.cos(turn), np.sin(turn), 0.0])
    lean = np.array([np.cos(heading), np.sin(heading), 0.0])
    lean = geometry.normalize(lean - axis * (axis @ lean))
    down = np.cos(tilt) * np.array([0, 0, -1.0]) + np.sin(tilt) * lean
    world = np.stack([axis, down, np.cross(axis, down)], axis=1)
    hand = np.stack([grip.axis, grip.approach, np.cross(grip.axis, grip.approach)], axis=1)
    rotation = world @ hand.T
    return geometry.se3(rotation, np.asarray(centre) - rotation @ grip.centre)

  def heading(self, grip, face=None):
    """The natural heading; with `face`, a horizontal direction in radians that the pinch has to be along, the nearest one that is."""
    if face is None:
      return HEADING + self._yaw
    turn = np.arctan2(grip.axis[1], grip.axis[0])
    choices = face - turn + np.pi * np.arange(-3, 4)
    return float(choices[np.argmin(np.abs(choices - HEADING))])

  def jitter(self, size=1.0):
    return self._shaky * size * self.rng.uniform(-1, 1, 3) * (1, 1, 0.3)

  def reach(self, down, joints=None, above=0.07, lift=0.02, fingers=(0.0, 0.7), speed=0.8):
    """The wrist to a pose from `above` metres above it, where it is off by AIM; the fingers' joints are there before it."""
    offset = AIM * self.rng.uniform(-1, 1, 3) * (1, 1, 0.4)
    for height, off, how in (
      (above, offset, dict(joints=joints, lift=lift, fingers=fingers)),
      (CORRECT * above, 0.0, {}),
      (0.0, 0.0, dict(speed=speed)),
    ):
      goal = down.copy()
      goal[:3, 3] += off + np.array([0, 0, height])
      yield from self.go(goal, **how)

  def pick(self, name, width, dz=0.0, faces=None, above=0.07, tilt=None, offset=(0.0, 0.0)):
    """Holds a thing: over it, down, close; again where it slipped.

    dz, offset: where, above and beside its origin, in the world; faces: directions of its own that a pinch may take, radians; None: all.
    """
    grip = self.fingers.grip(width)
    for attempt in range(_TRIES):
      thing = self.world.pose(name)
      yaw = np.arctan2(thing[1, 0], thing[0, 0])
      options = [self.heading(grip)] if faces is None else [self.heading(grip, yaw + face) for face in faces]
      heading = min(options, key=lambda h: abs(h - HEADING))
      centre = thing[:3, 3] + (*offset, dz) + self.jitter(1.0 if attempt == 0 else 0.3)
      down = self.pinch(grip, centre, heading, tilt)
      yield from self.reach(down, grip.open_J, above)
      yield from self.close(name, grip)
      if self.world.held[1] == name:
        return
      yield from self.fist(grip.open_J, 3)
      yield from self.shift((0, 0, above))

  def close(self, name, grip, frames=9):
    """Fingers to the squeeze, until the thing is held and two frames on."""
    begin, held = self.joints, 0
    for frame in range(1, frames + 1):
      self.joints = begin + min(1.0, frame / 4) * (grip.hold_J - begin)
      yield self._command()
      held += self.world.held[1] == name
      if held > 2 and frame >= 4:
        return

  def carried(self, by_name, to, yaw=0.0):
    """T_world_wrist that has the held thing's origin at a point; yaw: radians that it is turned about the vertical on the way."""
    thing = self.world.pose(by_name)
    turn = geometry.so3_exp(np.array([0, 0, yaw]))
    return geometry.se3(turn @ self.wrist[:3, :3], np.asarray(to) + turn @ (self.wrist[:3, 3] - thing[:3, 3]))

  def carry(self, by_name, to, lift=0.04, **how):
    """Moves the hand so that the held thing's origin comes to a point."""
    yield from self.go(self.carried(by_name, to), lift=lift, **how)

  def release(self, width, up=0.06, frames=4):
    """Opens and goes up."""
    yield from self.fist(self.fingers.grip(width).open_J, frames)
    yield from self.shift((0, 0, up))

  def home(self, rest, joints):
    yield from self.go(rest, joints, lift=0.03, fingers=(0.1, 0.7))

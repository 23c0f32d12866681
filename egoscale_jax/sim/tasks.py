"""The scripted experts: what lies on the table, the instruction, and the acting hand's legs.

An expert is written for a right hand; script.py mirrors it when the episode is left-handed. Each has distinct phases with distinct hand
shapes, so that one picture and the instruction tell what comes next: approach (the task's own open shape), act, retreat (a loose fist).
"""

import dataclasses

import numpy as np

from egoscale_jax import geometry
from egoscale_jax.sim import human, postures
from egoscale_jax.sim.motion import RATE_HZ, Leg, frames_for, orientation
from egoscale_jax.sim.scene import Thing


@dataclasses.dataclass(frozen=True)
class Act:
  """What an expert hands back, right-handed: `move(T_world_wrist_F, last)` -> {thing number: its poses [F, 4, 4]}."""

  text: str
  verbs: tuple[str, ...]
  things: list
  starts: list  # T_world_thing at the beginning
  ready: np.ndarray  # the hand shape at the beginning
  legs: list
  move: object
  goal: dict  # what the task promises, for its check


@dataclasses.dataclass
class Setting:
  """What every expert gets."""

  rng: np.random.Generator
  side: str
  hand: human.RightHand
  rest: np.ndarray  # T_world_wrist at the beginning
  speed: float
  colours: list  # shuffled names: take them from the end


def _at(x, y, z, yaw=0.0):
  """Pose of a thing: metres, radians."""
  return geometry.se3(geometry.so3_exp(np.array([0, 0, float(yaw)])), np.array([x, y, z], float))


def _wrist(rotation, point_world, point_hand):
  """The wrist pose that brings a point of the hand to a point of the world."""
  return geometry.se3(rotation, np.asarray(point_world) - rotation @ point_hand)


def above_table(hand, pose, joints, margin=0.012):
  """The wrist pose, raised so far that no keypoint of the hand comes nearer than `margin` metres to the table."""
  lowest = geometry.transform(pose, hand.keypoints(joints))[:, 2].min()
  pose = pose.copy()
  pose[2, 3] += max(0.0, margin - lowest)
  return pose


def _home(s):
  """Where the hand ends: near where it began."""
  pose = s.rest.copy()
  pose[:3, 3] += s.rng.uniform((-0.02, -0.02, 0.0), (0.02, 0.01, 0.02))
  return pose


def _retreat(s, start, lift=0.03, fingers=(0.0, 0.45)):
  home = _home(s)
  return Leg("retreat", frames_for(start, home, s.speed, lift), home, postures.LOOSE, lift, fingers)


def _solid(s, kinds=("ball", "cube", "can")):
  """A thing one hand can hold."""
  kind = kinds[s.rng.integers(len(kinds))]
  r, h = {"ball": (0.027, 0.027), "cube": (0.024, 0.024), "can": (0.024, 0.034)}[kind]
  k = s.rng.uniform(0.9, 1.15)
  return Thing(kind, s.colours.pop(), (r * k, h * k))


def _pick(s, phrases):
  return phrases[s.rng.integers(len(phrases))]


def _distractors(s, count, busy, clear=0.11):
  """Up to `count` things on free spots: -> (things, poses); `busy`: (x, y) that must stay clear."""
  things, poses, busy = [], [], [np.asarray(b[:2]) for b in busy]
  for _ in range(40):
    spot = s.rng.uniform((-0.21, 0.14), (0.21, 0.34))
    if len(things) < count and min(np.linalg.norm(spot - b) for b in busy) > clear:
      thing = _solid(s)
      things.append(thing)
      poses.append(_at(*spot, thing.size[1], s.rng.uniform(-0.7, 0.7)))
      busy.append(spot)
  return things, poses


def touch(s):
  """Point at the object, touch it with the index finger from above and in front, go back."""
  rng, target = s.rng, _solid(s)
  start = _at(rng.uniform(-0.13, 0.15), rng.uniform(0.20, 0.31), target.size[1], rng.uniform(-0.7, 0.7))
  tip = s.hand.keypoints(postures.POINT)[postures.INDEX_TIP]
  facing = np.array([0.12, -0.45, 0.88])
  depth = target.size[0] if target.kind == "ball" else target.size[1] / facing[2]
  contact = start[:3, 3] + facing * depth
  yaw = rng.uniform(5, 20) + 60 * (s.rest[0, 3] - contact[0])
  over = _wrist(orientation(yaw, rng.uniform(24, 34), rng.uniform(0, 15)), contact, tip)
  legs = [
    Leg("approach", frames_for(s.rest, over, s.speed, 0.05), over, postures.POINT, 0.05, (0.0, 0.5)),
    Leg("act", 3, over, postures.POINT),
    _retreat(s, over),
  ]
  others, poses = _distractors(s, rng.integers(1, 4), [start[:2, 3]])
  phrases = ("Touch the {} with the {} hand.", "Reach out and touch the {} with the {} index finger.", "Tap the {} with your {} hand.")
  return Act(
    text=_pick(s, phrases).format(target.name, s.side),
    verbs=("touch",),
    things=[target, *others],
    starts=[start, *poses],
    ready=postures.blend(postures.LOOSE, postures.POINT, 0.5),
    legs=legs,
    move=lambda wrist, last: {},
    goal={"target": 0},
  )


def _carry(wrist, grasp, release, start, rest_height):
  """Poses [F, 4, 4] of a thing that moves with the wrist between two frames and then falls to `rest_height`."""
  held = np.broadcast_to(start, (grasp, 4, 4))
  moving = wrist[grasp : release + 1] @ geometry.se3_inverse(wrist[grasp]) @ start
  fall = np.broadcast_to(moving[-1], (len(wrist) - release - 1, 4, 4)).copy()
  time = np.arange(1, len(fall) + 1) / RATE_HZ
  fall[:, 2, 3] = np.maximum(moving[-1, 2, 3] - 0.5 * 9.81 * time**2, rest_height)
  return np.concatenate([held, moving, fall])


def _container(s):
  """-> (thing, height of its floor above the table)."""
  kind = ("basket", "plate", "mat")[s.rng.integers(3)]
  size, floor = {"basket": ((0.062, 0.014), 0.008), "plate": ((0.064, 0.004), 0.0085), "mat": ((0.056, 0.003), 0.0065)}[kind]
  return Thing(kind, s.colours.pop(), size), floor


def pick_place(s):
  """Open over the object, close around it, carry it to the container, open, go back."""
  rng, target, (container, floor) = s.rng, _solid(s), _container(s)
  start = _at(rng.uniform(0.03, 0.17), rng.uniform(0.15, 0.26), target.size[1], rng.uniform(-0.4, 0.4))
  goal = _at(rng.uniform(-0.19, -0.11), rng.uniform(0.16, 0.28), container.size[1], rng.uniform(-0.3, 0.3))
  if rng.uniform() < 0.3:  # carry outwards
    start[0, 3], goal[0, 3] = start[0, 3] - 0.19, goal[0, 3] + 0.29
  joints, gap = postures.close_around(s.hand, postures.GRASP_OPEN, postures.GRASP_SHUT, 2 * target.size[0])
  over = _wrist(orientation(rng.uniform(8, 22), rng.uniform(10, 18), rng.uniform(20, 30)), start[:3, 3], gap)
  over = above_table(s.hand, over, joints)
  turn = rng.uniform(0.0, 0.3) * np.sign(start[0, 3] - goal[0, 3])
  set_down = _at(*goal[:2, 3], floor + target.size[1] + 0.008)
  set_down[:3, :3] = _at(0, 0, 0, turn)[:3, :3] @ start[:3, :3]
  drop = set_down @ geometry.se3_inverse(start) @ over
  lift = rng.uniform(0.055, 0.075)
  legs = [
    Leg("approach", frames_for(s.rest, over, s.speed, 0.05), over, postures.GRASP_OPEN, 0.05, (0.0, 0.5)),
    Leg("grasp", 7, over, joints),
    Leg("carry", frames_for(over, drop, s.speed, lift), drop, joints, lift),
    Leg("release", 6, drop, postures.blend(postures.GRASP_OPEN, joints, 0.2)),
    _retreat(s, drop, 0.05),
  ]
  others, poses = _distractors(s, rng.integers(0, 3), [start[:2, 3], goal[:2, 3]], clear=0.13)
  where = f"{'in' if container.kind == 'basket' else 'on'} the {container.name}"
  phrases = (
    "Pick up the {0} with the {1} hand and put it {2}.",
    "Use the {1} hand to place the {0} {2}.",
    "Put the {0} {2} with the {1} hand.",
  )

  def move(wrist, last):
    return {0: _carry(wrist, last["grasp"], last["carry"] + 2, start, floor + target.size[1])}

  return Act(
    text=_pick(s, phrases).format(target.name, s.side, where),
    verbs=("pick", "place"),
    things=[target, container, *others],
    starts=[start, goal, *poses],
    ready=postures.blend(postures.LOOSE, postures.GRASP_OPEN, 0.5),
    legs=legs,
    move=move,
    goal={"target": 0, "container": 1},
  )


def push(s):
  """Slide the object: across with the flat of the hand, or away with the fist."""
  rng, target = s.rng, _solid(s, ("cube", "can"))
  across = rng.uniform() < 0.5
  way = np.array([-1.0, 0, 0]) if across else np.array([0, 1.0, 0])
  low, high = ((0.06, 0.16), (0.16, 0.23)) if across else ((0.01, 0.14), (0.15, 0.23))
  start = _at(*rng.uniform(low, high), target.size[1])
  length = rng.uniform(0.13, 0.17)
  shape = postures.BLADE if across else postures.FIST
  k = s.hand.keypoints(shape)
  if across:  # the object meets the palm side of the fingers, thumb up
    rotation, touching = orientation(rng.uniform(-4, 8), rng.uniform(4, 10), rng.uniform(82, 92)), k[postures.MIDDLE_PIP] - [0, 0, 0.009]
  else:  # the object meets the row of first finger bones
    rotation, touching = orientation(rng.uniform(-4, 10), rng.uniform(-8, 2), rng.uniform(0, 10)), 0.5 * (k[9] + k[10]) + [0.010, 0, 0]
  meet = _wrist(rotation, start[:3, 3] - way * target.size[0], touching)
  meet = above_table(s.hand, meet, shape, 0.014)
  near = meet.copy()
  near[:3, 3] -= 0.035 * way
  end = meet.copy()
  end[:3, 3] += length * way
  legs = [
    Leg("approach", frames_for(s.rest, near, s.speed, 0.03), near, shape, 0.03, (0.0, 0.5)),
    Leg("act", frames_for(near, end, s.speed), end, shape),
    _retreat(s, end, 0.07, (0.2, 0.6)),  # the hand leaves the object before it closes
  ]
  others, poses = _distractors(s, rng.integers(1, 3), [start[:2, 3] + t * way[:2] for t in (-0.06, 0.0, 0.09, 0.18)] + [meet[:2, 3]])
  word = {"right": "left", "left": "right"}[s.side] if across else "away"
  to = f"to the {word}" if across else "away from you"
  phrases = ("Push the {} {} with the {} hand.", "Slide the {} {} using your {} hand.", "With the {2} hand, push the {0} {1}.")

  def move(wrist, last):
    pushed = np.clip((wrist[:, :3, 3] - meet[:3, 3]) @ way, 0, None)
    pushed[: last["approach"]] = 0
    poses = np.broadcast_to(start, (len(wrist), 4, 4)).copy()
    poses[:, :3, 3] += np.maximum.accumulate(np.minimum(pushed, length))[:, None] * way
    return {0: poses}

  return Act(
    text=_pick(s, phrases).format(target.name, to, s.side),
    verbs=("push",),
    things=[target, *others],
    starts=[start, *poses],
    ready=postures.blend(postures.LOOSE, shape, 0.6),
    legs=legs,
    move=move,
    goal={"target": 0, "way": word, "length": length},
  )


def turn_cap(s):
  """Pinch the jar's cap from above and turn it about the vertical, let go, go back."""
  rng = s.rng
  jar = Thing("jar", s.colours.pop(), (0.030 * rng.uniform(0.95, 1.1), rng.uniform(0.024, 0.032)))
  cap = Thing("cap", s.colours.pop(), (jar.size[0] * 0.92, 0.010))
  x, y = rng.uniform(-0.08, 0.13), rng.uniform(0.17, 0.26)
  start = _at(x, y, 2 * jar.size[1] + cap.size[1], rng.uniform(-np.pi, np.pi))
  left = rng.uniform() < 0.5  # turns counter-clockwise seen from above, in the right-handed world
  angle = np.radians(rng.uniform(65, 85)) * (1 if left else -1)
  joints, gap = postures.pinch_around(s.hand, 2 * cap.size[0])
  middle = orientation(rng.uniform(5, 15), rng.uniform(14, 22), rng.uniform(18, 26))
  grip = geometry.so3_exp(np.array([0, 0, -angle / 2])) @ middle
  over = _wrist(grip, start[:3, 3] + [0, 0, 0.004], gap)
  end = _wrist(geometry.so3_exp(np.array([0, 0, angle])) @ grip, start[:3, 3] + [0, 0, 0.004], gap)
  legs = [
    Leg("approach", frames_for(s.rest, over, s.speed, 0.06), over, postures.PINCH_OPEN, 0.06, (0.0, 0.5)),
    Leg("grasp", 6, over, joints),
    Leg("act", frames_for(over, end, s.speed), end, joints, pivot=start[:3, 3]),
    Leg("release", 5, end, postures.blend(postures.PINCH_OPEN, joints, 0.2)),
    _retreat(s, end, 0.05),
  ]
  others, poses = _distractors(s, rng.integers(0, 3), [(x, y), (x + 0.05, y - 0.06)], clear=0.13)
  counter = left == (s.side == "right")  # the mirror turns the direction about
  word = "counter-clockwise" if counter else "clockwise"
  phrases = ("Turn the {} {} with the {} hand.", "Twist the {} of the jar {} using your {} hand.", "With the {2} hand, turn the {0} {1}.")

  def move(wrist, last):
    poses = np.broadcast_to(start, (len(wrist), 4, 4)).copy()
    turned = wrist[:, :3, :3] @ over[:3, :3].T
    yaw = np.arctan2(turned[:, 1, 0], turned[:, 0, 0])
    yaw[: last["grasp"]], yaw[last["act"] :] = 0, angle
    poses[:, :3, :3] = geometry.so3_exp(yaw[:, None] * np.array([0, 0, 1.0])) @ start[:3, :3]
    return {0: poses}

  return Act(
    text=_pick(s, phrases).format(cap.name, word, s.side),
    verbs=("turn",),
    things=[cap, jar, *others],
    starts=[start, _at(x, y, jar.size[1]), *poses],
    ready=postures.blend(postures.LOOSE, postures.PINCH_OPEN, 0.5),
    legs=legs,
    move=move,
    goal={"target": 0, "angle": angle if s.side == "right" else -angle},
  )


TASKS = {"touch_object": touch, "pick_and_place": pick_place, "push_object": push, "turn_cap": turn_cap}

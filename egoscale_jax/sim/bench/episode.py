"""(task, body, split, seed, take) -> a trial: its world, goal and camera; and what an expert does in it.

Scene and goal follow from (task, split, seed) alone, so that humans and robots can be given the same: takes of it are aligned recordings.
"""

import dataclasses
import zlib

import numpy as np

from egoscale_jax import geometry
from egoscale_jax.errors import UserError
from egoscale_jax.sim import motion, render, scene
from egoscale_jax.sim.bench import RATE_HZ, actor, bodies, looks, task, world

FOV_DEGREES = 52.0
EYE, LOOK = np.array([0.0, -0.11, 0.43]), np.array([0.0, 0.165, 0.015])  # of a robot's head camera
_PLACES = {"scene": 0, "body": 1, "expert": 2, "camera": 3, "tracker": 4}


@dataclasses.dataclass
class Trial:
  """A world at its beginning, and what is asked of it. `reached` grows as the task's watch sees stages."""

  task: task.Task
  body: bodies.Body
  split: str
  seed: int
  take: int
  world: world.World
  goal: dict
  person: looks.Person | None  # of a human
  room: looks.Room
  things: tuple[int, ...]  # numbers
  home: int
  T_world_camera_4x4: np.ndarray  # at the beginning; a robot's stays there
  rest_2x4x4: np.ndarray
  reached: set
  plans: list = dataclasses.field(default_factory=list)  # (chunk, stride) of an agent that plans, in the order in which it did

  def step(self, T_world_wrist_2x4x4, joints_2xJ):
    """One frame of the world, and what it reaches."""
    self.world.step(T_world_wrist_2x4x4, joints_2xJ)
    self.task.tick(self.world, self.goal)
    self.reached.update(self.task.watch(self.world, self.goal))

  @property
  def score(self):
    return self.task.score(self.reached)

  @property
  def success(self):
    return self.task.success(self.reached)


def generator(of, name, split, seed, take=0):
  if split not in looks.SPLITS:
    raise UserError(f"split: found {split!r}, expected one of {', '.join(looks.SPLITS)}")
  return np.random.default_rng([_PLACES[of], zlib.crc32(name.encode()), looks.SPLITS.index(split), seed, take])


def start(the_task, body, split, seed, take=0, robot_camera=True) -> Trial:
  """robot_camera: a human is filmed by the robot's camera too (aligned recordings), else from their own head."""
  rng = generator("scene", the_task.name, split, seed)
  home = looks.home(split, rng)
  lay = task.Lay(rng, home)
  goal = the_task.build(lay)
  room = looks.room(looks.draw("room", home, rng))
  camera = scene.look_at(EYE + rng.uniform(-0.006, 0.006, 3), LOOK + rng.uniform(-0.004, 0.004, 3))
  rng = generator("body", the_task.name, split, seed, take)
  person = None
  if body.person is not None:
    person = looks.person(looks.draw("person", home, rng))
    body = dataclasses.replace(body, person=person.body)
    if not robot_camera:
      camera = scene.look_at(person.eye, person.look)
  rest = _rest(rng)
  made = world.World(body, lay.table, room, rest, body.both(body.rest))
  return Trial(the_task, body, split, seed, take, made, goal, person, room, tuple(lay.things), home, camera, rest, set())


def _rest(rng):
  """Both wrists beside the work area, palms down."""
  right = []
  for _ in range(2):
    turn = motion.orientation(rng.uniform(5, 20), rng.uniform(0, 10), rng.uniform(5, 15))
    right.append(geometry.se3(turn, rng.uniform((0.15, -0.07, 0.12), (0.19, -0.03, 0.15))))
  return np.stack([motion.mirror_hand(right[0]), right[1]])


def commands(trial):
  """What an expert commands in a trial, frame by frame; it ends at rest."""
  rng = generator("expert", trial.task.name, trial.split, trial.seed, trial.take)
  idle, style = trial.rest_2x4x4[:1], {"speed": rng.uniform(0.95, 1.1), "yaw": rng.uniform(-0.1, 0.1), "shaky": 0.002}
  if trial.person is not None:
    drift = motion.sway(rng, 40 * RATE_HZ, [0.006] * 3 + [0.04] * 3)
    left = trial.rest_2x4x4[0]
    idle = geometry.se3(left[:3, :3] @ geometry.so3_exp(drift[:, 3:] - drift[:1, 3:]), left[:3, 3] + drift[:, :3] - drift[:1, :3])
    style = {"speed": trial.person.speed, "tilt": trial.person.tilt, "yaw": trial.person.yaw, "shaky": 0.004}
  hand = actor.Actor(trial.world, bodies.fingers(trial.body), rng, idle, **style)
  yield from trial.task.expert(hand, trial.goal)
  end = trial.rest_2x4x4[1].copy()
  end[:3, 3] += rng.uniform(-0.015, 0.015, 3)
  yield from hand.home(end, trial.world.body.both(trial.body.rest)[1])


class Camera:
  """The head camera of a trial, to be asked once a frame. A human's own head sways and follows the right hand a little."""

  def __init__(self, trial, image_size, robot_camera=True):
    self._trial = trial
    self.K_3x3 = render.intrinsics((image_size, image_size), FOV_DEGREES)
    self._renderer = render.Renderer(trial.world, self.K_3x3, (image_size, image_size), trial.room.texture)
    self._moves = trial.person is not None and not robot_camera
    if self._moves:
      rng = generator("camera", trial.task.name, trial.split, trial.seed, trial.take)
      self._sway = trial.person.sway * motion.sway(rng, 90 * RATE_HZ, (0.010, 0.008, 0.006, 0.012, 0.010, 0.0))
      self._followed, self._frame = trial.world.T_world_wrist_2x4x4[1, :3, 3], 0

  def pose(self):
    """T_world_camera of this frame; to be asked for once a frame."""
    if not self._moves:
      return self._trial.T_world_camera_4x4
    sway, self._frame = self._sway[min(self._frame, len(self._sway) - 1)], self._frame + 1
    self._followed = self._followed + 0.1 * (self._trial.world.T_world_wrist_2x4x4[1, :3, 3] - self._followed)
    look = self._trial.person.look + 0.12 * (self._followed - self._trial.person.look)
    return scene.look_at(self._trial.person.eye + sway[:3], look + sway[3:])

  def picture(self, T_world_camera_4x4):
    """[Y, X, 3] uint8."""
    return self._renderer.frame(T_world_camera_4x4)

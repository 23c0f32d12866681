"""Still pictures to learn to see by: scenes with everything moved about, and where in the picture each thing lies that can be seen.

What a vision-language model brings along, the bench's small backbones have to learn somewhere (train/ground.py), and recordings are few
scenes seen often. Here things that stand in each other stay together, all else is set down anywhere, some of it in the air, and hands are
where hands come: beside the table, or above it with open or closed fingers. Nobody does anything, and there is no instruction.
"""

import dataclasses

import mujoco
import numpy as np

from egoscale_jax import geometry
from egoscale_jax.sim import motion, render
from egoscale_jax.sim.bench import actor, bodies, episode, tasks

TASKS = ("pick_place", "card", "unscrew", "syringe", "fork", "play")  # whose things are shown: of no held-out task
BODIES = ("human", "sharpa_wave", "dex3")
MOST = 10  # things of a picture that are told
_LOW, _HIGH, _CLEAR = (-0.22, 0.11), (0.22, 0.32), 0.07  # metres: where things are put, and how far apart
_TOGETHER = 1e-3  # metres in the plane between the origins of what stands in each other
_GRIPS = np.linspace(0.005, 0.045, 5)  # metres wide


@dataclasses.dataclass(frozen=True)
class Plan:
  """`arrangements` pictures of each scene."""

  split: str
  seed: int
  scenes: int
  arrangements: int
  image_size: int


@dataclasses.dataclass(frozen=True)
class Still:
  picture_YxXx3: np.ndarray
  names: tuple[str, ...]  # of the things that are seen, as an instruction calls them
  place_Nx2: np.ndarray  # their origins: shares of the picture's width and height
  position_Nx3: np.ndarray  # the same from the camera, metres


def scene(plan, index) -> list[Still]:
  """All pictures of a plan's scene; one on which no thing is seen is left out."""
  rng = np.random.default_rng([plan.seed, index])
  name, body = TASKS[index // len(BODIES) % len(TASKS)], bodies.BODIES[BODIES[index % len(BODIES)]]
  trial = episode.start(tasks.TASKS[name], body, plan.split, plan.seed * 1_000_000 + index, robot_camera=bool(rng.integers(2)))
  table, camera = _Table(trial.world), episode.Camera(trial, plan.image_size)
  hands = _Hands(trial, rng)
  result = []
  for _ in range(plan.arrangements):
    table.arrange(rng)
    hands.pose(rng)
    mujoco.mj_kinematics(trial.world.model, trial.world.data)
    T_world_camera = trial.T_world_camera_4x4 @ geometry.se3(geometry.so3_exp(rng.uniform(-0.03, 0.03, 3)), rng.uniform(-0.01, 0.01, 3))
    names, place, position = table.seen(T_world_camera, camera.K_3x3, plan.image_size)
    if names:
      result.append(Still(camera.picture(T_world_camera), names, place, position))
  return result


class _Table:
  """The things of a world, in groups of what stands in each other."""

  def __init__(self, world):
    self._world, model, data = world, world.model, world.data
    self._start, self._base, self._first = data.xpos.copy(), model.body_pos.copy(), data.qpos.copy()
    roots = [b for b in range(1, model.nbody) if model.body_parentid[b] == 0]
    self._things = [b for b in roots if not model.body(b).name.endswith(("Hand", "Forearm"))]
    self.groups = []
    for body in self._things:
      near = (g for g in self.groups if np.linalg.norm(self._start[g[0], :2] - self._start[body, :2]) < _TOGETHER)
      group = next(near, None)
      self.groups.append([body]) if group is None else group.append(body)
    self._group = np.full(model.nbody, -1)
    for number, group in enumerate(self.groups):
      self._group[group] = number

  def arrange(self, rng):
    spots = []
    for group in self.groups:
      for _ in range(50):
        spot = rng.uniform(_LOW, _HIGH)
        if all(np.linalg.norm(spot - other) > _CLEAR for other in spots):
          break
      spots.append(spot)
      rise = rng.uniform(0, 0.12) if len(group) == 1 and rng.uniform() < 0.15 else 0.0
      for body in group:
        self._put(body, spot, rise, rng.uniform(-0.8, 0.8) if len(group) == 1 else None)

  def _put(self, body, spot, rise, yaw):
    """Only what lies loose is turned or lifted."""
    model, data = self._world.model, self._world.data
    joint = model.body_jntadr[body]
    if model.body_jntnum[body] == 1 and model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_FREE:
      at = model.jnt_qposadr[joint]
      data.qpos[at : at + 3] = (*spot, self._first[at + 2] + rise)
      if yaw is not None:
        data.qpos[at + 3 : at + 7] = (np.cos(yaw / 2), 0, 0, np.sin(yaw / 2))
    else:
      first = self.groups[self._group[body]][0]
      model.body_pos[body, :2] = self._base[body, :2] + spot - self._start[first, :2]

  def seen(self, T_world_camera, K_3x3, image_size):
    """-> names, places [N, 2], positions [N, 3] of the things whose origin is in the picture, and behind nothing but what it stands in."""
    model, at = self._world.model, self._world.data.xpos[self._things]
    position = geometry.transform(geometry.se3_inverse(T_world_camera), at)
    inside = position @ K_3x3.T
    place = inside[:, :2] / inside[:, 2:] / image_size
    geom, distance, _ = render.cast(self._world, T_world_camera[:3, 3], at - T_world_camera[:3, 3])
    met = np.where(distance < 1.0, self._group[model.body_rootid[model.geom_bodyid[geom]]], self._group[self._things])
    shown = ((place > 0) & (place < 1)).all(axis=1) & (met == self._group[self._things])
    kept = np.flatnonzero(shown)[:MOST]
    return tuple(model.body(self._things[i]).name for i in kept), place[kept].astype(np.float32), position[kept].astype(np.float32)


class _Hands:
  """Wherever hands may be seen; the right one is in use more often."""

  def __init__(self, trial, rng):
    fingers = bodies.fingers(trial.body)
    self._world, self._rest_2x4x4, self._joints_2xJ = trial.world, trial.rest_2x4x4, trial.world.joint_targets_2xJ
    self._actor = actor.Actor(trial.world, fingers, rng, trial.rest_2x4x4[:1])
    self._grips = [fingers.grip(width) for width in _GRIPS]

  def pose(self, rng):
    T_2x4x4, joints_2xJ = self._rest_2x4x4.copy(), self._joints_2xJ.copy()
    if rng.uniform() < 0.2:
      T_2x4x4[0] = motion.mirror_hand(_anywhere(rng))
    where = rng.uniform()
    if where < 0.55:
      grip = self._grips[rng.integers(len(self._grips))]
      centre = rng.uniform((*_LOW, 0.015), (*_HIGH, 0.15))
      T_2x4x4[1] = self._actor.pinch(grip, centre, rng.uniform(1.1, 2.4), tilt=rng.uniform(0, 0.4))
      joints_2xJ[1] = grip.open_J + rng.uniform() * (grip.hold_J - grip.open_J)
    elif where < 0.75:
      T_2x4x4[1] = _anywhere(rng)
    self._world.place(T_2x4x4, joints_2xJ)


def _anywhere(rng):
  """T_world_wrist of a right hand, palm down."""
  turn = motion.orientation(rng.uniform(-15, 30), rng.uniform(-10, 20), rng.uniform(0, 40))
  return geometry.se3(turn, rng.uniform((-0.10, -0.07, 0.05), (0.20, 0.25, 0.20)))

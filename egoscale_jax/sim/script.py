"""A task and a random generator in; every pose of one episode out: both hands, the things, the moving head camera."""

import dataclasses

import numpy as np

from egoscale_jax import geometry
from egoscale_jax.hands.keypoints import SIDES
from egoscale_jax.sim import human, motion, postures, scene, tasks

MEAN_SPEED = 0.33  # m/s over a leg; the peak is 1.9 times that


@dataclasses.dataclass(frozen=True)
class Take:
  """One episode before it is filmed, in the simulator's world. N things, in the order of scene.things."""

  task: str
  text: str
  verbs: tuple[str, ...]
  objects: tuple[str, ...]
  side: str  # the acting hand
  scene: scene.Scene
  T_world_wrist_Fx2x4x4: np.ndarray
  joints_Fx2x20: np.ndarray
  T_world_thing_FxNx4x4: np.ndarray
  T_world_camera_Fx4x4: np.ndarray
  goal: dict  # what the task promises, for its check (tests/sim)


def _rest(rng, hand):
  """A right hand at rest beside the work area, palm down, its fingers above the table whether they are loose or open."""
  position = rng.uniform((0.135, -0.07, 0.085), (0.18, -0.03, 0.11))
  pose = geometry.se3(motion.orientation(rng.uniform(8, 24), rng.uniform(-2, 8), rng.uniform(5, 15)), position)
  return tasks.above_table(hand, tasks.above_table(hand, pose, postures.LOOSE, 0.03), postures.OPEN, 0.03)


def _idle(rng, hand, frames):
  """The other hand, as a right one: at rest, breathing a little -> (poses [F, 4, 4], joints [F, 20])."""
  rest, drift = _rest(rng, hand), motion.sway(rng, frames, [0.008] * 3 + [0.05] * 3)
  poses = geometry.se3(rest[:3, :3] @ geometry.so3_exp(drift[:, 3:]), rest[:3, 3] + drift[:, :3])
  shape = postures.blend(postures.LOOSE, postures.OPEN, rng.uniform(0.40, 0.50))
  return poses, shape + motion.sway(rng, frames, [0.04]) * (postures.LOOSE - postures.OPEN)


def _camera(rng, acting_Fx3):
  """A head above and behind the table that looks between the work area and the acting hand -> T_world_camera [F, 4, 4]."""
  frames = len(acting_Fx3)
  position = rng.uniform((-0.02, -0.15, 0.41), (0.02, -0.10, 0.45)) + motion.sway(rng, frames, (0.010, 0.008, 0.006))
  middle = np.array([0.0, 0.125, 0.02]) + motion.sway(rng, frames, (0.012, 0.010, 0.0))
  kernel = np.hanning(31) / np.hanning(31).sum()
  followed = np.stack([np.convolve(np.pad(a, 15, mode="edge"), kernel, mode="valid") for a in acting_Fx3.T], axis=1)
  target = middle + 0.12 * (followed - middle)
  return np.stack([scene.look_at(p, t) for p, t in zip(position, target)])


def script(task, rng):
  """Everything of one episode of `task` (a key of tasks.TASKS) -> Take."""
  person = scene.sample_person(rng)
  side = SIDES[rng.integers(2)]
  colours = list(rng.permutation(list(scene.COLOURS)))
  hand = human.RightHand(person.scale)
  s = tasks.Setting(rng, side, hand, _rest(rng, hand), MEAN_SPEED * rng.uniform(0.85, 1.15), [str(c) for c in colours])
  act = tasks.TASKS[task](s)
  wrist, joints, last = motion.play(s.rest, act.ready, act.legs)
  frames = len(wrist)
  moved = act.move(wrist, last)
  things = np.stack([moved.get(i, np.broadcast_to(start, (frames, 4, 4))) for i, start in enumerate(act.starts)], axis=1)
  other, other_joints = _idle(rng, hand, frames)
  if side == "right":
    wrists, all_joints = [motion.mirror_hand(other), wrist], [other_joints, joints]
  else:
    wrists, all_joints, things = [motion.mirror_hand(wrist), other], [joints, other_joints], motion.mirror_thing(things)
  wrists = np.stack(wrists, axis=1)
  camera = _camera(rng, wrists[:, SIDES.index(side), :3, 3])
  world = scene.sample_scene(rng, person, act.things)
  names = tuple(thing.name for thing in act.things[: 1 + ("container" in act.goal)])
  goal = {**act.goal, "phases": last}
  return Take(task, act.text, act.verbs, names, side, world, wrists, np.stack(all_joints, axis=1), things, camera, goal)

"""Takes of experts -> recordings, which `egoscale prepare` reads like any other: success-filtered, as people record.

A human: EgoDex files (`--source=simulated`), labels with a tracker's noise. A robot: a LeRobot 3.0 data set (`--source=lerobot`). Wrists
are where they were carried, and joints are the commanded ones: a label is what is to be commanded, and a servo that presses on a thing
stands short of its command. The measured joints are in the state.
"""

import dataclasses
import functools
import os
import pathlib
import shutil

import numpy as np

import egoscale_jax
from egoscale_jax import progress
from egoscale_jax.data import export_lerobot, schema, workers
from egoscale_jax.data.sources import mp4, simulated
from egoscale_jax.errors import UserError
from egoscale_jax.hands.keypoints import SIDES
from egoscale_jax.sim import human, record
from egoscale_jax.sim.bench import RATE_HZ, bodies, episode, noise, tasks

TRIES = 4  # takes of one scene until one succeeds


@dataclasses.dataclass(frozen=True)
class Plan:
  """What to record: episode i is of task i mod their number, `takes` of each scene one after the other."""

  body: str
  tasks: tuple[str, ...]
  split: str
  seed: int
  episodes: int
  takes: int = 1
  image_size: int = 64
  aligned: bool = False  # a human before the robot's camera
  clean: bool = False  # without the noise of trackers

  def place(self, index):
    """-> (task, seed of the scene, take)."""
    scene, name = divmod(index // self.takes, len(self.tasks))
    return self.tasks[name], self.seed * 1_000_000 + scene, index % self.takes


@dataclasses.dataclass(frozen=True)
class Take:
  trial: episode.Trial
  picture_FxYxXx3: np.ndarray
  K_3x3: np.ndarray
  T_world_camera_Fx4x4: np.ndarray
  T_world_wrist_Fx2x4x4: np.ndarray
  joint_targets_Fx2xJ: np.ndarray
  joints_Fx2xJ: np.ndarray
  T_world_body_Fx2x25x4x4: np.ndarray | None  # of a human


def perform(plan, index, attempt=0) -> Take:
  """What an expert does in a trial, seen before every command and once at the end."""
  name, seed, take = plan.place(index)
  trial = episode.start(tasks.TASKS[name], bodies.BODIES[plan.body], plan.split, seed, take + 1000 * attempt, plan.aligned)
  camera = episode.Camera(trial, plan.image_size, plan.aligned)
  world, seen = trial.world, []
  parts = world.ids([[side + part for part in human.BODIES] for side in SIDES]) if trial.person is not None else None

  def see():
    pose = camera.pose()
    body = world.poses(parts) if parts is not None else None
    seen.append((camera.picture(pose), pose, world.T_world_wrist_2x4x4, world.joint_targets_2xJ, world.joints_2xJ, body))

  see()
  for command in episode.commands(trial):
    trial.step(*command)
    see()
  columns = [None if column[0] is None else np.stack(column) for column in zip(*seen)]
  return Take(trial, columns[0], camera.K_3x3, *columns[1:])


def successful(plan, index):
  """-> (the first take that succeeds or None, attempts)."""
  for attempt in range(TRIES):
    take = perform(plan, index, attempt)
    if take.trial.success:
      return take, attempt + 1
  return None, TRIES


def stem(plan, index):
  name, seed, take = plan.place(index)
  return f"{name}/{plan.split}_{seed:08d}_{take:03d}"


def write_human(directory, plan, index):
  """Two files; the video first: where an HDF5 is, the episode is whole. -> attempts, 0 where none succeeded."""
  take, attempts = successful(plan, index)
  if take is None:
    return 0
  name, seed, number = plan.place(index)
  camera, hands = take.T_world_camera_Fx4x4, take.T_world_body_Fx2x25x4x4
  known = np.ones(hands.shape[:2], bool)
  if not plan.clean:
    camera, hands, known = noise.track(episode.generator("tracker", name, plan.split, seed, number), camera, hands)
  poses = record.transforms(camera, np.where(known[..., None, None, None], hands, np.nan))
  confidences = {side + part: known[:, i].astype(np.float32) for i, side in enumerate(SIDES) for part in human.BODIES}
  path = pathlib.Path(directory) / stem(plan, index)
  path.parent.mkdir(exist_ok=True, parents=True)
  record.write_mp4(path.with_suffix(".mp4"), take.picture_FxYxXx3, RATE_HZ)
  partial = path.with_suffix(".partial")
  record.write_hdf5(partial, take.K_3x3, poses, _attributes(take.trial), confidences)
  os.replace(partial, path.with_suffix(".hdf5"))
  return attempts


def _attributes(trial):
  """As record.attributes; a recording's scene is its home."""
  text = trial.goal["text"]
  told = {"annotated": True, "annotator_version": 0.3, "task": trial.task.name, "type": "reset", "llm_type": "reset"}
  told |= {"description": text, "llm_description": text, "llm_description2": "None", "session_name": f"home {trial.home}"}
  return told | {"simulated": True, "generator": f"egoscale_jax {egoscale_jax.__version__}", "person": f"{trial.person.number}"}


def robot_episode(plan, index):
  """-> (schema.Episode or None, attempts)."""
  take, attempts = successful(plan, index)
  if take is None:
    return None, attempts
  frames = len(take.joints_Fx2xJ)
  names = take.trial.body.joint_names
  corner = np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])  # the renderer counts pixels from a corner, an Episode from their centres
  jpegs = tuple(mp4.encode(picture) for picture in take.picture_FxYxXx3)
  view = schema.View("ego", jpegs, (plan.image_size,) * 2, take.K_3x3 - corner, take.T_world_camera_Fx4x4)
  fields = schema.robot(frames) | schema.views(view)
  fields |= {"T_world_wrist_Fx2x4x4": take.T_world_wrist_Fx2x4x4.astype(np.float32), "joint_names": names}
  fields |= {"joints_Fx2xJ": schema.missing(*take.joints_Fx2xJ.shape), "joint_targets_Fx2xJ": take.joint_targets_Fx2xJ.astype(np.float32)}
  fields |= {"state_names": sum(names, ()), "state_FxS": take.joints_Fx2xJ.reshape(frames, -1).astype(np.float32)}
  told = {"id": stem(plan, index), "source": "bench", "licence": simulated.LICENCE, "embodiment": take.trial.body.name, "spans": ()}
  told |= {"scene": f"home {take.trial.home}", "text": take.trial.goal["text"], "rate_hz": float(RATE_HZ), "frame": schema.Frame.WORLD}
  return schema.Episode(**fields, **told), attempts


def record_all(directory, plan: Plan, num_workers=1) -> tuple[int, int, int]:
  """-> episodes written, those whose first take succeeded, those left out since none did. The files do not depend on num_workers."""
  directory = pathlib.Path(os.path.abspath(directory))
  _check(directory, plan)
  human_body = bodies.BODIES[plan.body].person is not None
  partial = directory.with_name(f"{directory.name}.partial-{os.getpid()}")
  if human_body:
    write = functools.partial(write_human, partial, plan)
  else:
    write, writer = functools.partial(robot_episode, plan), export_lerobot.Writer(partial)
  tries = []
  try:
    partial.mkdir(parents=True, exist_ok=True)
    with progress.bar(plan.episodes, "record", "episode") as bar:
      for _, made in workers.run(write, range(plan.episodes), num_workers, functools.partial(stem, plan)):
        if isinstance(made, UserError):
          raise made
        if not human_body:
          made, attempts = made
          if made is not None:
            writer.add(made)
          made = attempts if made is not None else 0
        tries.append(made)
        bar.update()
    if not any(tries):
      raise UserError(f"{plan.tasks}: no take of {len(tries)} scenes succeeded")
    if not human_body:
      writer.finish()
    os.rename(partial, directory)
  finally:
    shutil.rmtree(partial, ignore_errors=True)
  return sum(t > 0 for t in tries), sum(t == 1 for t in tries), sum(t == 0 for t in tries)


def _check(directory, plan):
  if plan.body not in bodies.BODIES:
    raise UserError(f"body: found {plan.body!r}, expected one of {', '.join(bodies.BODIES)}")
  unknown = [name for name in plan.tasks if name not in tasks.TASKS]
  if unknown or not plan.tasks:
    raise UserError(f"tasks: found {', '.join(unknown) or 'none'}, expected some of {', '.join(tasks.TASKS)}")
  if min(plan.episodes, plan.takes) < 1 or plan.seed < 0:
    raise UserError(f"episodes={plan.episodes}, takes={plan.takes}, seed={plan.seed}: expected at least 1, 1 and 0")
  if plan.image_size < 32 or plan.image_size % 2:
    raise UserError(f"image_size={plan.image_size}: expected an even number of pixels, at least 32")
  if os.path.lexists(directory):
    raise UserError(f"{directory}: exists, expected the name of a new folder")

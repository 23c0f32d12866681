"""Closed-loop trials on the bench: scenes that follow from a seed, a policy's chunks carried out frame by frame, scores with intervals.

A predictor is asked for a chunk, of which `execute` steps are carried out before it is asked again; between two steps, `stride` frames
apart, poses and joints are interpolated. A trial is one process's alone: its result does not depend on how many there are. The same seeds
give the same trials to the bit on machines of one kind; `digest` is of every frame's state.
"""

import dataclasses
import functools
import hashlib
import json
import math
import os
import pathlib
import zlib
from collections.abc import Callable

import numpy as np

from egoscale_jax import geometry, progress
from egoscale_jax.data import actions, workers
from egoscale_jax.errors import UserError
from egoscale_jax.evaluate import film as film_lib
from egoscale_jax.sim.bench import RATE_HZ, bodies, episode, looks, tasks

VIDEO_SIZE = 192  # pixels
BEST, MEDIAN, WORST = "best", "median", "worst"


@dataclasses.dataclass(frozen=True)
class Settings:
  tasks: tuple[str, ...]
  body: str = "sharpa_wave"
  split: str = "validation"
  seed: int = 0
  trials: int = 50  # of each task
  image_size: int = 64  # of the picture that a policy sees

  def check(self):
    unknown = [name for name in self.tasks if name not in tasks.TASKS]
    if unknown or not self.tasks:
      raise UserError(f"tasks: found {', '.join(unknown) or 'none'}, expected some of {', '.join(tasks.TASKS)}")
    if self.body not in bodies.BODIES:
      raise UserError(f"body: found {self.body!r}, expected one of {', '.join(bodies.BODIES)}")
    if self.split not in looks.SPLITS:
      raise UserError(f"split: found {self.split!r}, expected one of {', '.join(looks.SPLITS)}")
    if self.trials < 1 or self.seed < 0 or self.image_size < 32:
      raise UserError(f"trials={self.trials}, seed={self.seed}, image_size={self.image_size}: expected at least 1, 0 and 32")


@dataclasses.dataclass(frozen=True)
class Seen:
  """What a predictor is told."""

  picture_YxXx3: np.ndarray
  text: str
  T_world_camera_4x4: np.ndarray
  T_world_wrist_2x4x4: np.ndarray
  joint_targets_2xJ: np.ndarray
  joint_names: tuple[str, ...]  # of the body's left hand, J
  seed: int  # of this question

  def state(self, from_camera=True):
    """Proprioception, as data/actions.py has it."""
    return actions.make_state(self.T_world_camera_4x4 if from_camera else np.eye(4), self.T_world_wrist_2x4x4, self.joint_targets_2xJ)


@dataclasses.dataclass(frozen=True)
class Pending:
  """The chunk that was being carried out when a predictor is asked again."""

  chunk: object
  done: int  # its steps that are over
  T_start_now_2x4x4: np.ndarray  # the wrists now, seen from where it began


# Agents: agent(trial, see) yields commands for ever; see() -> Seen, the picture drawn when it is called.


def hold_still(trial, see):
  """Baseline: everything stays as it is."""
  while True:
    yield trial.world.T_world_wrist_2x4x4, trial.world.joint_targets_2xJ


def expert(trial, see):
  """The scripted expert, which sees the world itself; then it rests."""
  yield from episode.commands(trial)
  yield from hold_still(trial, see)


class Chunked:
  """A predictor's chunks. predict(seen, pending or None) -> an object with T_start_wrist_Tx2x4x4 and joints_Tx2xJ."""

  def __init__(self, predict: Callable, execute: int, stride: int):
    if execute < 1 or stride < 1:
      raise UserError(f"execute={execute}, stride={stride}: expected at least 1 step of a chunk, and 1 frame a step")
    self.predict, self.execute, self.stride = predict, execute, stride

  def __call__(self, trial, see):
    world, pending = trial.world, None
    while True:
      start = world.T_world_wrist_2x4x4
      chunk = self.predict(see(), pending)
      trial.plans.append((chunk, self.stride))
      steps = min(self.execute, len(chunk.joints_Tx2xJ))
      for k in range(steps):
        yield from _step(world, start @ chunk.T_start_wrist_Tx2x4x4[k], chunk.joints_Tx2xJ[k], self.stride)
      pending = Pending(chunk, steps, geometry.se3_inverse(start) @ world.T_world_wrist_2x4x4)


def _step(world, wrist_2x4x4, joints_2xJ, stride):
  """From where the body is to a chunk's step in `stride` frames."""
  begin, joints = world.T_world_wrist_2x4x4, world.joint_targets_2xJ
  turn = geometry.so3_log(begin[:, :3, :3].swapaxes(1, 2) @ wrist_2x4x4[:, :3, :3])
  for share in np.arange(1, stride + 1) / stride:
    rotation = begin[:, :3, :3] @ geometry.so3_exp(share * turn)
    place = begin[:, :3, 3] + share * (wrist_2x4x4[:, :3, 3] - begin[:, :3, 3])
    yield geometry.se3(rotation, place), joints + share * (joints_2xJ - joints)


@dataclasses.dataclass(frozen=True)
class Replay:
  """Baseline: what the expert commands in this very trial, as labels of data/actions.py, open loop: what a perfect policy would say."""

  horizon: int = 16

  def __call__(self, trial, see):
    twin = episode.start(trial.task, bodies.BODIES[trial.body.name], trial.split, trial.seed, trial.take)
    wrists, joints = [twin.world.T_world_wrist_2x4x4], [twin.world.joint_targets_2xJ]
    for command in episode.commands(twin):
      twin.step(*command)
      wrists.append(twin.world.T_world_wrist_2x4x4)
      joints.append(twin.world.joint_targets_2xJ)
    wrists, joints = np.stack(wrists).astype(np.float32), np.stack(joints).astype(np.float32)
    valid, count = np.ones(wrists.shape[:2], bool), joints.shape[-1]
    for frame in range(0, len(joints) - 1, self.horizon):
      action, _ = actions.make_chunk(wrists, joints, valid, frame, min(self.horizon, len(joints) - 1 - frame))
      relative, targets = actions.split_chunk(action.astype(np.float64), count)
      start = trial.world.T_world_wrist_2x4x4
      for pose, target in zip(relative, targets):
        yield start @ pose, target
    yield from hold_still(trial, see)


BASELINES = {"hold_still": hold_still, "expert": expert, "replay": Replay()}


def baseline(name):
  """For `run`: a baseline by its name."""
  if name not in BASELINES:
    raise UserError(f"baseline: found {name!r}, expected one of {', '.join(BASELINES)}")
  return BASELINES[name]


def run_trial(make_agent, settings, film, place):
  """One trial -> its row; place: (task, number). film: what evaluate/film.py saw of it too, under "film"."""
  name, number = place
  trial = episode.start(tasks.TASKS[name], bodies.BODIES[settings.body], settings.split, settings.seed * 1_000_000 + number)
  camera = episode.Camera(trial, settings.image_size)
  witness = film_lib.Film(trial, VIDEO_SIZE) if film else None
  world, digest = trial.world, hashlib.sha256()
  key = zlib.crc32(f"{name}/{trial.seed}".encode())

  def see():
    pose = camera.pose()
    names = trial.body.joint_names[0]
    asked = (key + frame) % 2**31
    return Seen(camera.picture(pose), trial.goal["text"], pose, world.T_world_wrist_2x4x4, world.joint_targets_2xJ, names, asked)

  frame, last = 0, round(trial.task.seconds * RATE_HZ)
  for command in _agent(make_agent)(trial, see):
    if film:
      witness.see()
    if trial.success or frame == last:
      break
    trial.step(*command)
    digest.update(world.data.qpos.tobytes())
    frame += 1
  row = {"task": name, "trial": number, "seed": trial.seed, "score": trial.score, "success": trial.success, "frames": frame}
  row |= {"reached": [stage for stage, _ in trial.task.rubric if stage in trial.reached], "text": trial.goal["text"]}
  row |= {"digest": digest.hexdigest()[:32]}
  return row | ({"film": witness.content()} if film else {})


@functools.cache
def _agent(make_agent):
  """Once a process: a policy is loaded and compiled."""
  return make_agent()


def run(make_agent, settings: Settings, output_dir, num_workers=1, films=True) -> dict:
  """make_agent() -> an agent; it is called in every process. Writes trials.jsonl, summary.json and, with films, videos -> the summary."""
  settings.check()
  output = pathlib.Path(os.path.abspath(output_dir))
  if output.is_dir() and any(output.iterdir()):
    raise UserError(f"{output}: not empty, expected a new or an empty folder")
  output.mkdir(parents=True, exist_ok=True)
  places = [(name, number) for name in settings.tasks for number in range(settings.trials)]
  rows = []
  with progress.bar(len(places), "rollout", "trial") as bar, open(output / "trials.jsonl", "w", encoding="utf-8") as file:
    for _, row in _run(make_agent, settings, False, places, num_workers):
      file.write(json.dumps(row) + "\n")
      file.flush()
      rows.append(row)
      bar.update()
  summary = dataclasses.asdict(settings) | {"results": {name: figures([r for r in rows if r["task"] == name]) for name in settings.tasks}}
  summary["results"]["all"] = figures(rows)
  (output / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
  if films:
    _videos(make_agent, settings, rows, output, num_workers)
  return summary


def _run(make_agent, settings, film, places, num_workers):
  one = functools.partial(run_trial, make_agent, settings, film)
  for place, row in workers.run(one, places, num_workers, lambda p: f"{p[0]}, trial {p[1]}"):
    if isinstance(row, UserError):
      raise row
    yield place, row


def _videos(make_agent, settings, rows, output, num_workers):
  """Of the best, the median and the worst trial of each task: they are run again, to the bit. An .npz beside each (film.py)."""
  chosen = {}
  for name in settings.tasks:
    order = sorted((row for row in rows if row["task"] == name), key=lambda row: (-row["score"], row["frames"], row["trial"]))
    for what, row in ((BEST, order[0]), (MEDIAN, order[len(order) // 2]), (WORST, order[-1])):
      chosen.setdefault((name, row["trial"]), (row, []))[1].append(what)
  for place, row in _run(make_agent, settings, True, list(chosen), num_workers):
    first, names = chosen[place]
    if row["digest"] != first["digest"]:
      raise RuntimeError(f"{place}: run again it went another way: digest {row['digest']}, before {first['digest']}")
    for what in names:
      film_lib.save(row["film"], output / f"{place[0]}_{what}_{place[1]:03d}.mp4")


def wilson(successes, trials, z=1.96) -> tuple[float, float]:
  """Wilson's interval of a share (95 % by default): right for few trials and for shares near 0 and 1, where the normal one is not."""
  if trials == 0:
    return 0.0, 1.0
  share, spread = successes / trials, z * z / trials
  middle = (share + spread / 2) / (1 + spread)
  half = z * math.sqrt(share * (1 - share) / trials + spread / (4 * trials)) / (1 + spread)
  return max(0.0, middle - half), min(1.0, middle + half)


def figures(rows) -> dict:
  """Success with its interval, mean score with its standard error, over trials."""
  scores, successes = np.array([row["score"] for row in rows]), sum(row["success"] for row in rows)
  error = float(scores.std(ddof=1) / math.sqrt(len(scores))) if len(scores) > 1 else float("nan")
  low, high = wilson(successes, len(rows))
  told = {"trials": len(rows), "successes": successes, "success": successes / len(rows), "low": low, "high": high}
  return told | {"score": float(scores.mean()), "score_error": error, "frames": float(np.mean([row["frames"] for row in rows]))}


def table(summary) -> list[str]:
  lines = [f"{'task':<12}{'trials':>8}{'success':>9}{'95 %':>15}{'score':>8}{'seconds':>9}"]
  for name, f in summary["results"].items():
    interval = f"{f['low']:.2f} to {f['high']:.2f}"
    lines.append(f"{name:<12}{f['trials']:>8}{f['success']:>9.2f}{interval:>15}{f['score']:>8.2f}{f['frames'] / RATE_HZ:>9.1f}")
  return lines

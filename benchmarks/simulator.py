"""How fast the bench is on one core, and how much of it is MuJoCo's own step and the bare ray caster:

  python benchmarks/simulator.py [--episodes=3] [--image_size=64]

A step is a frame of the bench (1/15 s, 20 steps of MuJoCo); a frame is a picture. Both bare figures replay the very states and rays.
"""

import argparse
import time

import mujoco
import numpy as np

from egoscale_jax.sim import render
from egoscale_jax.sim.bench import bodies, episode, tasks, world


def main():
  parser = argparse.ArgumentParser(allow_abbrev=False)
  parser.add_argument("--episodes", type=int, default=3)
  parser.add_argument("--image_size", type=int, default=64)
  arguments = parser.parse_args()
  print(f"{'body':<13}{'steps/s':>9}{'mj_step':>9}{'frames/s':>10}{'rays':>7}{'start ms':>10}{'both/s':>8}")
  for body in bodies.BODIES.values():
    total = np.zeros(6)  # frames; seconds: all of step, bare mj_step, picture, bare rays, start
    for name in tasks.TASKS:
      for seed in range(arguments.episodes):
        total += measure(tasks.TASKS[name], body, seed, arguments.image_size)
    frames, step, bare, picture, rays, start = total
    trials = len(tasks.TASKS) * arguments.episodes
    rates = f"{frames / step:>9.0f}{bare / step:>9.0%}{frames / picture:>10.0f}{rays / picture:>7.0%}"
    print(f"{body.name:<13}{rates}{1000 * start / trials:>10.0f}{frames / (step + picture):>8.0f}", flush=True)


def measure(task, body, seed, image_size):
  clock = time.process_time
  begin = clock()
  trial = episode.start(task, body, "train", seed)
  camera = episode.Camera(trial, image_size)
  seconds = np.array([0, 0, 0, 0, 0, clock() - begin])
  twin = mujoco.MjData(trial.world.model)
  for command in episode.commands(trial):
    mujoco.mj_copyData(twin, trial.world.model, trial.world.data)
    begin = clock()
    trial.step(*command)
    seconds[1] += clock() - begin
    begin = clock()
    for _ in range(world.SUBSTEPS):  # the same model from the same state; hands that are not carried
      mujoco.mj_step(trial.world.model, twin)
    seconds[2] += clock() - begin
    cast, asked = render.cast, []
    render.cast = lambda stage, origin, rays: asked.append((origin, rays)) or cast(stage, origin, rays)  # noqa: B023
    begin = clock()
    camera.picture(camera.pose())
    seconds[3] += clock() - begin
    render.cast = cast
    prepared = [(np.array(o).reshape(3, 1), np.ascontiguousarray(r).reshape(-1, 1), *_room(len(r))) for o, r in asked]
    begin = clock()
    for origin, rays, geom, distance, normal in prepared:
      args = (trial.world.model, trial.world.data, origin, rays, render._GROUPS, True, -1, geom, distance, normal, len(geom), render._FAR)
      mujoco.mj_multiRay(*args)
    seconds[4] += clock() - begin
    seconds[0] += 1
  return seconds


def _room(count):
  return np.empty((count, 1), np.int32), np.empty((count, 1)), np.empty((3 * count, 1))


if __name__ == "__main__":
  main()

"""Speed, exactness and size of the actions' statistics (egoscale_jax/data/statistics.py) on random smooth episodes.

  python benchmarks/action_statistics.py [--steps=10000000]

Two hands of 22 joints: 62 dims. Two processes each accumulate half of the steps, write their state, and it is merged and finished. The
episodes have 300 frames; the timing leaves out the making of them.
"""

import argparse
import concurrent.futures
import itertools
import multiprocessing
import resource
import time

import numpy as np

from egoscale_jax import geometry, zen4
from egoscale_jax.data import schema, statistics

FRAMES, JOINTS = 300, 22
NAMES = tuple(tuple(f"{side}_{i}" for i in range(JOINTS)) for side in ("left", "right"))
EXACT_STEPS = (300_000, 1_200_000)  # held whole, to be sorted; the second is past wrist_pairs.ALL_PAIRS_FRAMES
LAGS = (1, 8, 40, 64)


def smooth(rng, shape, amplitude):
  """Sums of three slow waves along the first axis, at 30 frames a second."""
  time_F = np.arange(FRAMES).reshape(-1, *(1,) * len(shape)) / 30
  waves = [rng.normal(size=shape) * np.sin(rng.uniform(0.5, 6, shape) * time_F + rng.uniform(0, 6, shape)) for _ in range(3)]
  return amplitude * sum(waves)


def episodes(count, seed):
  """Yields Labels, every episode another; a twelfth of a hand's frames masked in one run."""
  rng = np.random.default_rng(seed)
  for _ in range(count):
    jitter_2xFx2x3 = rng.normal(0, 1, (2, FRAMES, 2, 3)) * np.reshape([0.01, 0.002], (2, 1, 1, 1))  # of a tracker: radians, metres
    moved, turned = smooth(rng, (2, 3), 0.1) + jitter_2xFx2x3[1], smooth(rng, (2, 3), 0.4) + jitter_2xFx2x3[0]
    pose = geometry.se3(geometry.so3_exp(turned), moved).astype(np.float32)
    joints = smooth(rng, (2, JOINTS), 0.3).astype(np.float32) + rng.normal(0, 0.2, (2, JOINTS)).astype(np.float32)
    valid = np.ones((FRAMES, 2), bool)
    start = rng.integers(FRAMES - 25)
    valid[start : start + 25, rng.integers(2)] = False
    yield schema.Labels(pose, joints, np.zeros((FRAMES, 2), np.float32), valid)


def peak_mb():
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def accumulate(steps, seed):
  """-> bytes of the state; wall and CPU seconds of the work alone; peak memory in MB before it and after."""
  accumulator = statistics.Accumulator("a_hand", NAMES)
  wall = cpu = 0.0
  before = peak_mb()
  for labels in itertools.chain(episodes(steps // FRAMES, seed), [None]):
    began = time.perf_counter(), time.process_time()
    if labels is None:
      data = accumulator.to_bytes()
    else:
      accumulator.add(labels)
    wall, cpu = wall + time.perf_counter() - began[0], cpu + time.process_time() - began[1]
  return data, wall, cpu, before, peak_mb()


def worst_rank_error(steps):
  """Merged from ten parts against every pair of frames and every frame, sorted -> the worst over dims and lags, in %.

  Of each of joints and wrists at the two quantiles that are kept, 0.01 and 0.99, and over 999.
  """
  parts = [list(episodes(steps // 10 // FRAMES, seed)) for seed in range(10)]
  whole = statistics.Accumulator("a_hand", NAMES)
  seconds = 0.0
  for part in parts:
    accumulator = statistics.Accumulator("a_hand", NAMES)
    for labels in part:
      accumulator.add(labels)
    data = accumulator.to_bytes()
    began = time.perf_counter()
    whole.merge(statistics.Accumulator.from_bytes(data, "part"))
    seconds += time.perf_counter() - began
  print(f"| a part of {steps // 10} steps: state, MB | {len(data) / 1e6:.0f} |\n| reading and merging it, seconds | {seconds / 10:.2f} |")
  ranks = np.linspace(0.001, 0.999, 999)
  found_QxLxA = whole.quantiles(ranks)
  errors = {"joints": np.zeros(2), "wrists": np.zeros(2)}
  every = [labels for part in parts for labels in part]
  for side in range(2):
    first = side * (9 + JOINTS)
    joints = np.concatenate([labels.joints_Fx2xJ[1:, side][labels.valid_Fx2[1:, side]] for labels in every])
    for j in range(JOINTS):
      errors["joints"] = np.maximum(errors["joints"], rank_error(joints[:, j], found_QxLxA[:, 0, first + 9 + j], ranks))
    for lag in LAGS:
      rows = np.concatenate([lagged(labels, side, lag) for labels in every], axis=1)
      for i in range(9):
        errors["wrists"] = np.maximum(errors["wrists"], rank_error(rows[i], found_QxLxA[:, lag - 1, first + i], ranks))
  return errors


def lagged(labels, side, lag):
  target_N = np.arange(lag, FRAMES)
  target_N = target_N[labels.valid_Fx2[target_N, side] & labels.valid_Fx2[target_N - lag, side]]
  pose = labels.T_world_wrist_Fx2x4x4[:, side].astype(np.float64)
  moved = geometry.se3_inverse(pose[target_N - lag]) @ pose[target_N]
  return np.concatenate([moved[:, :3, 3], geometry.so3_to_rot6d(moved[:, :3, :3])], axis=-1).astype(np.float32).T


def rank_error(values_N, found_Q, ranks):
  error_Q = 100 * np.abs(np.searchsorted(np.sort(values_N), found_Q) / len(values_N) - ranks)
  return np.array([error_Q[np.isclose(ranks, 0.01) | np.isclose(ranks, 0.99)].max(), error_Q.max()])


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--steps", type=int, default=10_000_000)
  steps = parser.parse_args().steps
  zen4.tell()  # in the two processes, as it is in the workers of `egoscale prepare`
  context = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(2, context) as pool:
    parts = list(pool.map(accumulate, [steps // 2] * 2, (1, 2)))
  began = time.perf_counter()
  whole = statistics.Accumulator.from_bytes(parts[0][0], "part 0")
  whole.merge(statistics.Accumulator.from_bytes(parts[1][0], "part 1"))
  stats = whole.finish()
  merging = time.perf_counter() - began
  states, wall, cpu, before, after = zip(*parts)
  print(f"| steps x dims | {steps} x {len(stats.action_names)} |\n|---|---|")
  print(f"| two processes, seconds (CPU seconds of one) | {max(wall):.1f} ({max(cpu):.1f}) |")
  print(f"| steps a CPU second | {steps / sum(cpu):,.0f} |\n| merging both and finishing, seconds | {merging:.1f} |")
  print(f"| state of a process, MB | {len(states[0]) / 1e6:.0f} |\n| its memory above the imports', MB | {max(after) - min(before):.0f} |")
  for count in EXACT_STEPS:
    for name, (kept, every) in worst_rank_error(min(steps, count)).items():
      print(f"| worst rank error of {name}, {min(steps, count)} steps: q01 and q99; of 999 | {kept:.3f} %; {every:.3f} % |")


if __name__ == "__main__":
  main()

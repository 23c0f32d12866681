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
EXACT_STEPS = (300_000, 1_230_000)  # of ten parts; the second is just past wrist_pairs.ALL_PAIRS_FRAMES, where half the pairs are fewest
LAGS = (1, 5, 16, 40, 64)
RANKS = np.linspace(0.001, 0.999, 999)


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


def merged(datas):
  """-> the whole; mean seconds of reading and merging one."""
  began = time.perf_counter()
  whole = statistics.Accumulator.from_bytes(datas[0], "part")
  for data in datas[1:]:
    whole.merge(statistics.Accumulator.from_bytes(data, "part"))
  return whole, (time.perf_counter() - began) / len(datas)


def side_errors(side, parts, found_QxLxA):
  """Against every pair of frames and every frame of one hand, sorted -> for joints and for wrists the worst over dims and lags, in %.

  Each of the two quantiles that are kept, 0.01 and 0.99, and of all of RANKS. The episodes are made again: they fill no memory so.
  """
  first = side * (9 + JOINTS)
  rows = {0: []} | {lag: [] for lag in LAGS}  # 0: the joints
  for labels in itertools.chain.from_iterable(episodes(steps // FRAMES, seed) for steps, seed in parts):
    rows[0].append(labels.joints_Fx2xJ[1:, side][labels.valid_Fx2[1:, side]].T)
    for lag in LAGS:
      rows[lag].append(lagged(labels, side, lag))
  worst = {"joints": np.zeros(2), "wrists": np.zeros(2)}
  for lag, whole in ((lag, np.concatenate(rows.pop(lag), axis=1)) for lag in (0, *LAGS)):
    what, row, offset = ("wrists", lag - 1, 0) if lag else ("joints", 0, 9)
    for i, values_N in enumerate(whole):
      worst[what] = np.maximum(worst[what], rank_error(values_N, found_QxLxA[:, row, first + offset + i]))
  return worst


def print_errors(pool, parts, whole):
  sides = list(pool.map(side_errors, (0, 1), [parts] * 2, [whole.quantiles(RANKS)] * 2))
  for what in sides[0]:
    kept, every = np.maximum(sides[0][what], sides[1][what])
    total = f"{len(parts)} parts, {sum(steps for steps, _ in parts)} steps"
    print(f"| worst rank error of {what}, {total}: q01 and q99; of 999 | {kept:.3f} %; {every:.3f} % |", flush=True)


def lagged(labels, side, lag):
  target_N = np.arange(lag, FRAMES)
  target_N = target_N[labels.valid_Fx2[target_N, side] & labels.valid_Fx2[target_N - lag, side]]
  pose = labels.T_world_wrist_Fx2x4x4[:, side].astype(np.float64)
  moved = geometry.se3_inverse(pose[target_N - lag]) @ pose[target_N]
  return np.concatenate([moved[:, :3, 3], geometry.so3_to_rot6d(moved[:, :3, :3])], axis=-1).astype(np.float32).T


def rank_error(values_N, found_Q):
  error_Q = 100 * np.abs(np.searchsorted(np.sort(values_N), found_Q) / len(values_N) - RANKS)
  return np.array([error_Q[np.isclose(RANKS, 0.01) | np.isclose(RANKS, 0.99)].max(), error_Q.max()])


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--steps", type=int, default=10_000_000)
  steps = parser.parse_args().steps
  zen4.tell()  # in the two processes, as it is in the workers of `egoscale prepare`
  with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
    parts = [(steps // 2, 1), (steps // 2, 2)]
    states, wall, cpu, before, after = zip(*pool.map(accumulate, *zip(*parts)))
    began = time.perf_counter()
    whole, _ = merged(states)
    stats = whole.finish()
    merging = time.perf_counter() - began
    print(f"| steps x dims | {steps} x {len(stats.action_names)} |\n|---|---|")
    print(f"| two processes, seconds (CPU seconds of one) | {max(wall):.1f} ({max(cpu):.1f}) |")
    print(f"| steps a CPU second | {steps / sum(cpu):,.0f} |\n| merging both and finishing, seconds | {merging:.1f} |")
    print(f"| state of a process, MB | {len(states[0]) / 1e6:.0f} |")
    print(f"| its memory above the imports', MB | {max(after) - min(before):.0f} |", flush=True)
    print_errors(pool, parts, whole)
    for count in EXACT_STEPS:
      parts = [(count // 10, seed) for seed in range(10)]
      states = [data for data, *_ in pool.map(accumulate, *zip(*parts))]
      whole, seconds = merged(states)
      print(f"| a part of {count // 10} steps: state, MB | {len(states[0]) / 1e6:.0f} |")
      print(f"| reading and merging it, seconds | {seconds:.2f} |")
      print_errors(pool, parts, whole)


if __name__ == "__main__":
  main()

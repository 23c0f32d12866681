"""Every hand on every recorded trajectory, left and right: does it converge, stay finite, within the limits and smooth?

    python benchmarks/retarget_all.py HANDS_DIR HUMAN_DIR [HAND ...]

HANDS_DIR holds URDF and MJCF files (any depth), HUMAN_DIR .npy or .pkl files of right hands [T, 21, 3]; the built-in hands run as well.
A left hand follows the mirrored recording. Columns: joints, frames; mean fingertip error on the robot's scale (mm), mean |jerk| (rad/s^3),
joint samples outside the limits of the description, seconds of the first call.
"""

import pathlib
import pickle
import sys
import time

import numpy as np

from egoscale_jax.hands import hand, keypoints, retarget


def trajectory(path):
  if path.suffix == ".npy":
    return np.load(path).astype(np.float64)
  with open(path, "rb") as file:
    content = pickle.load(file, encoding="latin1")
  return np.asarray(content["world_hand_joints"] if isinstance(content, dict) else np.stack(content), np.float64)


def sides(path):
  """A file named for a side serves that side."""
  name = path.stem.lower()
  named = [side for side in keypoints.SIDES if side in name or name.endswith(f"_{side[0]}")]
  return named or keypoints.SIDES


def row(label, model, name, points_FxPx3):
  start = time.perf_counter()
  result = retarget.retarget(points_FxPx3, model, model.side)
  seconds = time.perf_counter() - start
  joints = result.joints_FxJ.astype(np.float64)
  outside = int(((joints < model.lower_J) | (joints > model.upper_J)).sum())
  jerk = np.abs(np.diff(joints, n=3, axis=0)).mean() * 30**3
  finite = "finite" if np.isfinite(joints).all() else "NOT FINITE"
  print(
    f"{label:44s} {model.side:5s} {name:20s} J {model.num_joints:2d} T {len(joints):4d}  "
    f"tips {1e3 * np.nanmean(result.residual_m_F):6.2f} mm  "
    f"jerk {jerk:6.1f}  outside {outside}  {finite}  first {seconds:5.1f} s",
    flush=True,
  )


def main(hands_dir, human_dir, *only):
  files = sorted(p for p in pathlib.Path(hands_dir).rglob("*") if p.suffix in (".urdf", ".xml") and "package" not in p.name)
  hands = [(name, side) for name in hand.BUILT_IN for side in keypoints.SIDES]
  hands += [(str(path), side) for path in files if path.name != "keyframes.xml" for side in sides(path)]
  people = sorted(p for p in pathlib.Path(human_dir).rglob("*") if p.suffix in (".npy", ".pkl"))
  for name, side in hands:
    if only and not any(word in name for word in only):
      continue
    model = hand.load(name, side)
    for person in people:
      points = trajectory(person) * ([-1, 1, 1] if side == "left" else [1, 1, 1])
      row("/".join(pathlib.Path(name).parts[-2:]), model, person.stem, points)


if __name__ == "__main__":
  main(*sys.argv[1:])

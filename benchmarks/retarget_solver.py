"""This package's solvers for a side-by-side bench: each `make` takes the bench's description of a hand and returns what it times.

The bench fixes the frame (the robot's base), the place of the wrist and the scale, so these enter below `retarget`'s own alignment.
"""

import dataclasses
import pathlib

import jax
import numpy as np

from egoscale_jax.hands import alignment, costs, description, hand, keypoints, retarget

jax.config.update("jax_compilation_cache_dir", None)  # the first call is timed with its compilation


class Solver:
  def __init__(self, spec, follow):
    tips = ",".join(f"{finger}:{link}" for finger, link in zip(keypoints.FINGERS, spec.tips))
    self.hand = hand.load(spec.urdf, "right", tips)
    self.joint_names = list(self.hand.joint_names)
    self.scale, self.follow = spec.scale, follow
    self.origin_3 = description.read(pathlib.Path(spec.urdf)).frame(spec.origin).position_3

  def solve(self, keypoints_Fx21x3):
    target_Fx21x3 = self.origin_3 + self.scale * (keypoints_Fx21x3 - keypoints_Fx21x3[:, :1])
    return self.follow(alignment.Targets(target_Fx21x3, self.hand, self.scale)).joints_FxJ


def make(spec):
  """Trajectory mode, default weights."""
  return Solver(spec, retarget.follow)


def frames(spec):
  """Frame mode, default weights."""
  return Solver(spec, retarget.follow_frames)


def tips(spec):
  """Frame mode, fingertips alone: to hold against the floor."""
  return Solver(spec, lambda source: retarget.follow_frames(source, costs.TIPS_ONLY))


def varied(**weights):
  return lambda spec: Solver(
    spec, lambda source: retarget.follow(source, dataclasses.replace(retarget.DEFAULT, **weights), max_jerk=np.inf)
  )


# The trade of error against jerk, and the ablation: what each cost does.
jerk_1, jerk_2, jerk_6, jerk_12 = (varied(jerk=jerk) for jerk in (1e-5, 2e-5, 6e-5, 12e-5))
quadratic = varied(jerk=5e-6, jerk_soft=np.inf)
no_pinch, no_bone, hard_tip, knuckle = varied(pinch=0.0), varied(bone=0.0, direction=0.0), varied(tip_soft_m=np.inf), varied(knuckle=0.3)

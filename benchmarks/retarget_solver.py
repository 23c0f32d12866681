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


class Smoothed:
  """The bench's DexPilot, its joints passed through a zero-phase Gaussian: the best of the peers' answers to noise."""

  def __init__(self, spec, sigma_frames):
    from solvers import dex  # the bench's

    self.solver, self.sigma_frames = dex.dexpilot(spec), sigma_frames
    self.joint_names = self.solver.joint_names

  def solve(self, keypoints_Fx21x3):
    import scipy.ndimage

    return scipy.ndimage.gaussian_filter1d(np.asarray(self.solver.solve(keypoints_Fx21x3)), self.sigma_frames, axis=0, mode="nearest")


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
  """One solution with these weights, however large its jerk."""
  return lambda spec: Solver(
    spec, lambda source: retarget.follow(source, dataclasses.replace(retarget.DEFAULT, **weights), max_jerk=np.inf)
  )


def smoothed(sigma_frames):
  return lambda spec: Smoothed(spec, sigma_frames)


# The trade of error against jerk, ours and that of the best peer.
jerk_05, jerk_1, jerk_2, jerk_3, jerk_4, jerk_8 = (varied(jerk=jerk) for jerk in (0.5e-5, 1e-5, 2e-5, 3e-5, 4e-5, 8e-5))
gauss_05, gauss_1, gauss_2, gauss_3, gauss_5 = (smoothed(sigma) for sigma in (0.5, 1.0, 2.0, 3.0, 5.0))

# The ablation: what each cost does.
plain = varied()
quadratic = varied(jerk=3e-6, jerk_soft=np.inf)
no_pinch, hard_tip, no_direction = varied(pinch=0.0), varied(tip_soft_m=np.inf), varied(direction=0.0)
bone, knuckle = varied(bone=0.02), varied(knuckle=0.3)

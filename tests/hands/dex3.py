"""The hand of the solvers' tests: small, so that it compiles quickly; targets for it that some of its joints cannot reach."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egoscale_jax.hands import hand, kinematics


@pytest.fixture(autouse=True)
def double():
  """For every test of a file that imports it."""
  with jax.enable_x64(True):
    yield


@functools.cache
def model():
  return hand.load("dex3", "right")


def rest():
  return np.asarray(0.4 * model().lower_J + 0.6 * model().upper_J, np.float64)


def wild_targets(frames, rng):
  """[21, 3, F]: random poses plus 3 cm of noise, so that some joints end at their bounds."""
  with jax.enable_x64(True):
    joints_FxJ = rng.uniform(model().lower_J, model().upper_J, (frames, model().num_joints))
    target_Px3xF = np.array(jax.jit(kinematics.keypoints, static_argnums=0)(model(), jnp.asarray(joints_FxJ))).transpose(1, 2, 0)
  return target_Px3xF + 0.03 * rng.normal(size=target_Px3xF.shape)

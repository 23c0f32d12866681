"""Costs: linear in the keypoints, the pinch weight's shape, and the bone targets."""

import jax
import jax.numpy as jnp
import numpy as np

from egoscale_jax.hands import costs, hand, keypoints
from egoscale_jax.hands.costs import Weights

RNG = np.random.default_rng(0)


def test_the_same_rows_for_an_error_and_for_its_jacobian():
  points_Px3, direction_Px3 = (jnp.asarray(RNG.normal(size=(21, 3)), jnp.float32) for _ in range(2))
  weight_4 = jnp.array([1.0, 0.5, 0.2, 0.0])
  for rows in (
    lambda p: costs.fingertips(p, Weights()),
    lambda p: costs.pinches(p, weight_4),
    lambda p: costs.phalanges(p, Weights()),
  ):
    _, derivative = jax.jvp(rows, (points_Px3,), (direction_Px3,))
    np.testing.assert_allclose(rows(direction_Px3[..., None])[..., 0], derivative, atol=1e-6)


def test_each_cost_reads_its_keypoints_only():
  """Moved alone, a keypoint changes these many rows of (fingertips, pinches, phalanges)."""
  expected = {
    "wrist": (0, 0, 0),
    "thumb_cmc": (0, 0, 1),
    "thumb_tip": (1, 4, 1),
    "index_mcp": (0, 0, 1),
    "index_pip": (0, 0, 2),
    "index_tip": (1, 1, 1),
  }
  for name, counts in expected.items():
    moved_Px3 = jnp.zeros((21, 3)).at[keypoints.NAMES.index(name)].set(1.0)
    rows = (costs.fingertips(moved_Px3, Weights()), costs.pinches(moved_Px3, jnp.ones(4)), costs.phalanges(moved_Px3, Weights()))
    assert tuple(int((jnp.abs(r).max(-1) > 0).sum()) for r in rows) == counts, name


def test_pinch_weight_rises_as_the_fingers_close():
  def weight_of(gap_m):
    points_Px3 = jnp.zeros((21, 3)).at[jnp.asarray(keypoints.TIPS[1:]), 0].set(gap_m)
    return np.asarray(costs.pinch_weights(points_Px3, Weights()))

  weights = np.stack([weight_of(gap) for gap in (0.0, 0.02, 0.04, 0.06, 0.15)])
  assert (np.diff(weights, axis=0) < 0).all()
  np.testing.assert_allclose(weights[2], Weights().pinch / 2, rtol=1e-6)
  assert (weights[0] > 0.98 * Weights().pinch).all()
  assert (weights[-1] < 1e-5).all()


def test_phalanx_target_has_the_robots_lengths_and_the_humans_directions():
  robot_Px3 = hand.load("sharpa_wave", "right").keypoint_Px3
  human_Px3 = jnp.asarray(RNG.normal(size=(21, 3)), jnp.float32)
  ends = costs._PHALANX_ENDS
  bone, robot_bone, human_bone = (
    np.asarray(p[ends] - p[ends - 1]) for p in (costs.phalanx_target(human_Px3, robot_Px3), robot_Px3, human_Px3)
  )
  lengths = np.linalg.norm(robot_bone, axis=-1)
  np.testing.assert_allclose(np.linalg.norm(bone, axis=-1), lengths, rtol=1e-4)
  np.testing.assert_allclose((bone * human_bone).sum(-1), lengths * np.linalg.norm(human_bone, axis=-1), rtol=1e-4)  # parallel

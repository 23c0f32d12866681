"""Costs: the normal equations against automatic differentiation, which keypoints each reads, and the pinches' shape."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egoscale_jax.hands import costs, hand, keypoints, kinematics
from egoscale_jax.hands.costs import Weights

ALL = dataclasses.replace(
  Weights(pinch_joints=0), knuckle=0.3, bone=0.5, direction=0.4, rest=0.1
)  # every cost, and none too faint to be seen


@functools.cache
def load(name):
  return hand.load(name, "right")


def random_problem(model, weights, frames=3, seed=0):
  """Joints [J, F], and aims as far away as a tip's reach: softened and not."""
  rng = np.random.default_rng(seed)
  count = len(costs.rows(model, weights))
  joints = rng.uniform(model.lower_J, model.upper_J, (frames, model.num_joints)).T
  aims = costs.Aims(jnp.asarray(rng.normal(size=(count, 3, frames)) * 0.1), jnp.asarray(rng.uniform(0.0, 2.0, (count, frames))))
  return jnp.asarray(joints), aims, rng.uniform(-0.5, 0.5, model.num_joints)


@pytest.mark.parametrize("name", ["dex3", "inspire"])  # a hand without two fingers, and one whose joints are coupled
def test_normal_equations_are_those_of_automatic_differentiation(name):
  model = load(name)
  rows = costs.rows(model, ALL)
  with jax.enable_x64(True):
    joints, aims, rest_J = random_problem(model, ALL)
    cost, gradient, matrix = jax.jit(lambda q: costs.normal_equations(model, ALL, aims, rest_J, list(q)))(joints)
    of = jax.jit(lambda q: costs.cost(model, ALL, aims, rest_J, list(q)))
    np.testing.assert_allclose(cost, of(joints), rtol=1e-12)
    half = 0.5 * jax.jit(jax.grad(lambda q: jnp.sum(of(q))))(joints)
    np.testing.assert_allclose(jnp.stack(gradient), half, rtol=1e-9, atol=1e-12)
    points = jax.jit(kinematics.keypoints, static_argnums=0)(model, joints.T)
    jacobian = jax.jit(jax.vmap(jax.jacfwd(functools.partial(kinematics.keypoints, model))))(joints.T)  # [F, 21, 3, J]

  points, jacobian = np.asarray(points), np.asarray(jacobian)
  expected = np.tile(ALL.rest**2 * np.eye(model.num_joints), (3, 1, 1))
  total = ALL.rest**2 * ((np.asarray(joints) - rest_J[:, None]) ** 2).sum(0)
  for r, row in enumerate(rows):
    start = 0.0 if row.start is None else points[:, row.start]
    square = ((points[:, row.end] - start - np.asarray(aims.vector_Rx3)[r].T) ** 2).sum(-1)
    derivative = jacobian[:, row.end] - (0.0 if row.start is None else jacobian[:, row.start])
    limit = ALL.tip_soft_m if row.cost == "tip" else np.inf
    weight = np.asarray(aims.weight_R)[r]
    expected += np.einsum("f,fai,faj->fij", weight / np.sqrt(1.0 + square / limit**2), derivative, derivative)
    total += weight * (2.0 * limit**2 * (np.sqrt(1.0 + square / limit**2) - 1.0) if np.isfinite(limit) else square)
  np.testing.assert_allclose(cost, total, rtol=1e-9)
  assert sorted(matrix) == costs.pattern(model, ALL)
  found = np.zeros_like(expected)
  for (i, j), entry in matrix.items():
    assert i >= j
    found[:, i, j] = found[:, j, i] = entry
  np.testing.assert_allclose(found, expected, atol=1e-10)


@pytest.mark.parametrize("name", ["dex3", "shadow"])  # fingers that meet in pinches alone, and in a wrist as well
def test_with_groups_cost_and_gradient_are_the_same_and_the_matrix_is_nowhere_less(name):
  model = load(name)
  groups = costs.groups(model)
  assert sorted(j for group in groups for j in group) == list(range(model.num_joints))
  tips = [p for p in keypoints.TIPS if model.present[p]]
  of_tip = [{model.source[n] for n in kinematics.moving(model, p)} for p in tips]
  shared = set.intersection(*of_tip)
  assert bool(shared) == (name == "shadow")
  expected = [joints - shared for joints in of_tip] + ([shared] if shared else [])
  assert {frozenset(group) for group in groups} == {frozenset(joints) for joints in expected}
  with jax.enable_x64(True):
    joints, aims, rest_J = random_problem(model, ALL)
    exact = costs.normal_equations(model, ALL, aims, rest_J, list(joints))
    split = costs.normal_equations(model, ALL, aims, rest_J, list(joints), groups)
    exact, split = jax.tree.map(np.asarray, exact), jax.tree.map(np.asarray, split)
  np.testing.assert_array_equal(split[0], exact[0])
  np.testing.assert_array_equal(np.stack(split[1]), np.stack(exact[1]))
  assert sorted(split[2]) == costs.pattern(model, ALL, groups)
  group_of = {j: g for g, group in enumerate(groups) for j in group}
  assert all(group_of[i] == group_of[j] for i, j in split[2])
  more = np.zeros((3, model.num_joints, model.num_joints))
  for sign, matrix in ((-1.0, exact[2]), (1.0, split[2])):
    for (i, j), entry in matrix.items():
      more[:, i, j] += sign * entry
      more[:, j, i] = more[:, i, j]
  least = np.linalg.eigvalsh(more)
  assert least.min() > -1e-12
  assert least.max() > 1e-3


def test_soft_is_the_square_when_small_and_linear_when_large():
  with jax.enable_x64(True):
    small, weight = costs.soft(jnp.float64(1e-6) ** 2, 0.02)
    np.testing.assert_allclose([small, weight], [1e-12, 1.0], rtol=1e-6)
    (two, _), (four, pull) = costs.soft(jnp.float64(20.0) ** 2, 0.02), costs.soft(jnp.float64(40.0) ** 2, 0.02)
    np.testing.assert_allclose(four / two, 2.0, rtol=1e-3)
    np.testing.assert_allclose(pull * 40.0, 0.02, rtol=1e-3)  # the force no longer grows
    np.testing.assert_allclose(costs.soft(jnp.float64(9.0), np.inf), [9.0, 1.0])


def aims_of(model, weights, target_Px3, seen_P=None, scale=1.0):
  seen_P = np.ones(21) if seen_P is None else seen_P
  found = costs.aims(model, weights, jnp.asarray(target_Px3, jnp.float32), jnp.asarray(seen_P, jnp.float32), scale)
  return np.asarray(found.vector_Rx3), np.asarray(found.weight_R)


def test_each_row_reads_its_keypoints_only():
  """Moved alone, a human's keypoint changes these many rows of (tip, knuckle, pinch, bone, direction)."""
  model, rows = load("sharpa_wave"), costs.rows(load("sharpa_wave"), ALL)
  human_Px3 = model.keypoint_Px3 * 0.2  # tips near each other: the pinches' weights are not zero
  vector, weight = aims_of(model, ALL, human_Px3)
  expected = {
    "wrist": (0, 0, 0, 0, 0),
    "thumb_cmc": (0, 0, 0, 1, 0),
    "thumb_mcp": (0, 1, 0, 2, 0),
    "thumb_tip": (1, 0, 4, 0, 1),
    "index_mcp": (0, 0, 0, 1, 0),
    "index_pip": (0, 1, 0, 2, 0),
    "index_dip": (0, 0, 0, 1, 1),
    "index_tip": (1, 0, 1, 0, 1),
  }
  for name, counts in expected.items():
    p = keypoints.NAMES.index(name)
    moved_Px3 = human_Px3.copy()
    moved_Px3[p] += [0.007, -0.006, 0.008]
    other, other_weight = aims_of(model, ALL, moved_Px3)
    changed = {r for r in range(len(rows)) if np.abs(other[r] - vector[r]).max() > 1e-7 or abs(other_weight[r] - weight[r]) > 1e-7}
    reading = {r for r, row in enumerate(rows) if p in (row.end, row.start)}
    assert changed <= reading, name
    hidden = aims_of(model, ALL, human_Px3, (np.arange(21) != p).astype(float))[1]
    assert {r for r in range(len(rows)) if hidden[r] == 0 < weight[r]} == reading, name
    kinds = collections.Counter(rows[r].cost for r in reading)
    assert tuple(kinds[kind] for kind in ("tip", "knuckle", "pinch", "bone", "direction")) == counts, name


def test_a_weight_of_zero_and_a_keypoint_that_is_absent_give_no_row():
  assert {row.cost for row in costs.rows(load("sharpa_wave"), costs.TIPS_ONLY)} == {"tip"}
  for name in ("dex3", "inspire", "allegro"):
    model = load(name)
    assert not all(model.present)
    rows = costs.rows(model, ALL)
    assert all(model.present[p] for row in rows for p in (row.end, row.start) if p is not None)
    tips = [p for p in keypoints.TIPS if model.present[p]]
    assert [row.end for row in rows if row.cost == "tip"] == tips
    assert [(row.end, row.start) for row in rows if row.cost == "pinch"] == [(tips[0], p) for p in tips[1:]]


def test_a_hand_of_few_joints_or_too_large_does_not_pinch():
  can = {name: costs.pinches(load(name), Weights(), 1.0) for name in ("sharpa_wave", "shadow", "allegro", "dex3", "inspire")}
  assert can == {"sharpa_wave": True, "shadow": True, "allegro": True, "dex3": False, "inspire": False}
  assert costs.pinches(load("allegro"), Weights(), float("nan"))  # no frame told its scale
  assert not costs.pinches(load("allegro"), Weights(), 1.6)
  for name, pinches in can.items():
    assert any(row.cost == "pinch" for row in costs.rows(load(name), Weights())) == pinches
  assert costs.pinches(load("dex3"), Weights(pinch_joints=2), 1.0)


def test_a_pinch_weighs_more_and_asks_for_touch_as_the_fingers_close():
  model, weights = load("sharpa_wave"), Weights()
  pinches = [r for r, row in enumerate(costs.rows(model, weights)) if row.cost == "pinch"]

  def at(gap_m, scale=1.0):
    human_Px3 = np.zeros((21, 3))
    human_Px3[list(keypoints.TIPS[1:]), 0] = gap_m * scale
    vector, weight = aims_of(model, weights, human_Px3, scale=scale)
    return np.linalg.norm(vector[pinches], axis=-1), np.sqrt(weight[pinches])

  gaps = (0.0, 0.01, weights.touch_m, 0.025, weights.open_m, 0.04, 0.06, 0.15)
  wanted, weight = (np.stack(column) for column in zip(*map(at, gaps)))
  assert (np.diff(weight[:-1], axis=0) < 0).all()
  np.testing.assert_allclose(at(weights.pinch_near_m)[1], weights.pinch / 2, rtol=1e-5)
  assert (weight[0] > 0.98 * weights.pinch).all()
  assert (weight[-1] < 1e-5).all()
  assert (wanted[:3] < 1e-9).all()
  assert (wanted[3] > 0.001).all()
  assert (wanted[3] < 0.025).all()
  np.testing.assert_allclose(wanted[4:], np.tile(np.asarray(gaps)[4:, None], 4), rtol=1e-5)
  np.testing.assert_allclose(at(0.025, scale=1.4)[0], 1.4 * wanted[3], rtol=1e-4)  # the human's own gap decides, not the robot's
  np.testing.assert_allclose(at(0.025, scale=1.4)[1], weight[3], rtol=1e-4)
  assert (at(0.025, scale=weights.pinch_scale + 0.01)[1] == 0).all()


def test_a_bone_has_the_robots_length_and_the_humans_direction():
  model = load("sharpa_wave")
  human_Px3 = np.random.default_rng(0).normal(size=(21, 3))
  vector, _ = aims_of(model, ALL, human_Px3)
  bones = [(r, row) for r, row in enumerate(costs.rows(model, ALL)) if row.cost in ("bone", "direction")]
  assert len(bones) == 15
  for r, row in bones:
    bone, length = human_Px3[row.end] - human_Px3[row.start], np.linalg.norm(model.keypoint_Px3[row.end] - model.keypoint_Px3[row.start])
    np.testing.assert_allclose(vector[r], bone * length / np.linalg.norm(bone), atol=1e-6)


def test_tip_error_is_the_mean_over_the_tips_that_are_seen():
  model = load("dex3")
  joints_J = jnp.asarray(0.5 * (model.lower_J + model.upper_J))
  target_Px3 = np.array(kinematics.keypoints(model, joints_J))
  tips = [p for p in keypoints.TIPS if model.present[p]]
  for n, p in enumerate(tips):
    target_Px3[p, 1] += 0.01 * (n + 1)

  def error(seen_P):
    return float(costs.tip_error(model, joints_J, jnp.asarray(target_Px3), jnp.asarray(seen_P, jnp.float32)))

  assert error(np.ones(21)) == pytest.approx(0.01 * np.arange(1, len(tips) + 1).mean(), abs=1e-6)
  assert error(np.arange(21) == tips[1]) == pytest.approx(0.02, abs=1e-6)
  assert np.isnan(error(np.zeros(21)))

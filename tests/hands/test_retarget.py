"""Retargeting: known answers, invariances, refusals, and the real hands of EgoDex."""

import functools

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egoscale_jax import geometry
from egoscale_jax.errors import UserError
from egoscale_jax.hands import hand, keypoints, kinematics, retarget

CHUNK = 128  # of every call here: one shape, so the whole file compiles the solver once
forward = jax.jit(kinematics.keypoints)
solve = functools.partial(retarget.retarget, chunk=CHUNK)


@pytest.fixture(scope="module")
def hands():
  return {side: hand.load("sharpa_wave", side) for side in keypoints.SIDES}


def reachable(model, count, seed=0):
  """Joints [F, J] and their keypoints. The little finger's CMC stays 0: it moves a knuckle that the human's wrist frame is read from."""
  joints_FxJ = np.random.default_rng(seed).uniform(model.lower_J, model.upper_J, (count, model.num_joints)).astype(np.float32)
  joints_FxJ[:, [name.endswith("pinky_CMC") for name in model.joint_names]] = 0.0
  return joints_FxJ, np.asarray(forward(model, jnp.asarray(joints_FxJ)), np.float64)


@pytest.mark.parametrize("side", keypoints.SIDES)
def test_round_trip(hands, side):
  """A robot's own keypoints come back as its joints: the rest pose's pull is all that is left."""
  joints_FxJ, points_FxPx3 = reachable(hands[side], 256)
  result = solve(points_FxPx3, hands[side], side)
  assert result.valid_F.all()
  assert result.joints_FxJ.dtype == np.float32
  assert result.scale == pytest.approx(1.0, abs=1e-5)
  error_F = np.degrees(np.abs(result.joints_FxJ - joints_FxJ)).max(1)
  assert np.median(error_F) < 0.5
  assert np.percentile(error_F, 95) < 1.0
  assert error_F.max() < 2.0  # the DIP joints: 26 mm of arm against the rest pose
  back_FxPx3 = np.asarray(forward(hands[side], jnp.asarray(result.joints_FxJ)))
  distance_Fx5 = np.linalg.norm(back_FxPx3 - points_FxPx3, axis=-1)[:, keypoints.TIPS]
  assert distance_Fx5.max() < 2e-3
  np.testing.assert_allclose(result.residual_m_F, distance_Fx5.mean(1), atol=1e-6)


def test_round_trip_with_a_bent_palm(hands):
  """With the little finger's CMC bent the wrist frames of human and robot differ by up to 3 degrees; the tips still agree to 2 mm."""
  model = hands["right"]
  joints_FxJ, _ = reachable(model, 128)
  joints_FxJ[:, 17] = np.random.default_rng(1).uniform(model.lower_J[17], model.upper_J[17], 128)
  result = solve(np.asarray(forward(model, jnp.asarray(joints_FxJ))), model, "right")
  assert result.residual_m_F.max() < 2e-3


def test_moving_and_scaling_the_input_changes_nothing(hands):
  """A rigid motion a frame, far from the origin, and a smaller human."""
  _, points_FxPx3 = reachable(hands["left"], 128)
  rng = np.random.default_rng(2)
  pose_Fx4x4 = geometry.se3(geometry.so3_exp(rng.normal(size=(128, 3))), 10.0 * rng.normal(size=(128, 3)))
  plain = solve(points_FxPx3, hands["left"], "left")
  moved = solve(geometry.transform(pose_Fx4x4, 0.8 * points_FxPx3), hands["left"], "left")
  np.testing.assert_allclose(moved.joints_FxJ, plain.joints_FxJ, atol=2e-3)  # float32 targets, 20 steps, poorly determined directions
  np.testing.assert_allclose(moved.residual_m_F, plain.residual_m_F, atol=2e-6)
  assert moved.scale == pytest.approx(plain.scale / 0.8, rel=1e-6)


def test_a_mirrored_left_hand_is_the_right_hand(hands):
  _, points_FxPx3 = reachable(hands["right"], 128)
  right = solve(points_FxPx3, hands["right"], "right")
  left = solve(points_FxPx3 * [1, -1, 1], hands["left"], "left")
  np.testing.assert_allclose(left.joints_FxJ, right.joints_FxJ, atol=1e-3)


def test_frames_do_not_know_each_other(hands):
  _, points_FxPx3 = reachable(hands["right"], 128)
  order = np.random.default_rng(3).permutation(128)
  plain = solve(points_FxPx3, hands["right"], "right")
  mixed = solve(points_FxPx3[order], hands["right"], "right")
  np.testing.assert_allclose(mixed.joints_FxJ, plain.joints_FxJ[order], atol=1e-6)
  some = solve(points_FxPx3[:40], hands["right"], "right")
  np.testing.assert_allclose(some.joints_FxJ, plain.joints_FxJ[:40], atol=1e-3)  # the scale's median moves in the last digits


def test_limits_are_never_left(hands):
  """Hands that no robot can follow: bent backwards, tangled, ten times longer fingers."""
  rng = np.random.default_rng(4)
  model = hands["right"]
  wild_FxPx3 = model.keypoint_Px3 + np.where(np.arange(21)[:, None] % 4 == 1, 0.0, 0.1) * rng.normal(size=(128, 21, 3))
  result = solve(wild_FxPx3, model, "right")
  assert result.valid_F.all()
  assert (result.joints_FxJ >= model.lower_J).all()
  assert (result.joints_FxJ <= model.upper_J).all()
  assert ((result.joints_FxJ == model.lower_J) | (result.joints_FxJ == model.upper_J)).mean() > 0.1, "wild enough to close the bounds"


def test_missing_keypoints_are_flagged_and_nothing_is_invented(hands):
  _, points_FxPx3 = reachable(hands["right"], 128)
  plain = solve(points_FxPx3, hands["right"], "right")
  holed_FxPx3 = points_FxPx3.copy()
  for frame, keypoint in ((0, 0), (1, keypoints.TIPS[2]), (2, keypoints.KNUCKLES[3]), (3, 7)):
    holed_FxPx3[frame, keypoint, 1] = np.nan
  holed_FxPx3[4] = 0.0  # zeros for a missing hand: no palm
  holed_FxPx3[5, keypoints.NAMES.index("thumb_cmc")] = np.nan
  result = solve(holed_FxPx3, hands["right"], "right")
  bad_F = np.arange(128) < 6
  np.testing.assert_array_equal(result.valid_F, ~bad_F)
  assert np.isnan(result.joints_FxJ[bad_F]).all()
  assert np.isnan(result.residual_m_F[bad_F]).all()
  np.testing.assert_allclose(result.joints_FxJ[~bad_F], plain.joints_FxJ[~bad_F], atol=1e-3)


@pytest.mark.parametrize("frames", [0, 3])
def test_no_valid_frame_at_all(hands, frames):
  result = solve(np.full((frames, 21, 3), np.nan), hands["left"], "left")
  assert result.joints_FxJ.shape == (frames, 22)
  assert np.isnan(result.joints_FxJ).all()
  assert not result.valid_F.any()
  assert np.isnan(result.scale)


def test_other_units_shapes_and_sides_are_refused_in_one_line(hands):
  points_FxPx3 = reachable(hands["right"], 4)[1]
  for factor in (1000.0, 100.0, 0.001):
    with pytest.raises(UserError, match=r"^keypoints: wrist to middle knuckle is .* metres: another unit\?$"):
      solve(points_FxPx3 * factor, hands["right"], "right")
  with pytest.raises(UserError, match=r"expected \[frames, 21, 3\], found \[4, 25, 3\]"):
    solve(np.zeros((4, 25, 3)), hands["right"], "right")
  with pytest.raises(UserError, match="left hand cannot go to the right hand"):
    solve(points_FxPx3, hands["right"], "left")


def test_both_sides_and_all_lengths_compile_once(hands):
  points_FxPx3 = {side: reachable(hands[side], 200)[1] for side in hands}
  solve(points_FxPx3["right"], hands["right"], "right")
  compiled = retarget.solve_frames._cache_size()
  for side, frames in (("left", 5), ("right", 129), ("left", 200)):
    solve(points_FxPx3[side][:frames], hands[side], side)
  assert retarget.solve_frames._cache_size() == compiled


def test_single_precision_throughout(hands):
  jaxpr = jax.make_jaxpr(retarget.solve_frames)(hands["left"], retarget.Weights(), jnp.zeros((2, 21, 3)))
  assert "f64" not in str(jaxpr)


def egodex_keypoints(path, side):
  """EgoDex names -> 21 keypoints [F, 21, 3]; its Metacarpal is the base of the palm bone and no keypoint of ours."""
  bones = ("Knuckle", "IntermediateBase", "IntermediateTip", "Tip")
  fingers = ("Thumb", "IndexFinger", "MiddleFinger", "RingFinger", "LittleFinger")
  names = [f"{side}Hand"] + [f"{side}{finger}{bone}" for finger in fingers for bone in bones]
  with h5py.File(path) as file:
    return np.stack([file["transforms"][name][:, :3, 3] for name in names], axis=1)


@pytest.mark.parametrize("side", keypoints.SIDES)
def test_real_hands(shared, hands, side):
  """Measured over all eight recordings: mean 2.9 mm, and joints that move as smoothly as the human's (99 % of steps below 0.4 rad)."""
  points_FxPx3 = egodex_keypoints(shared / "recordings/egodex/basic_pick_and_place/0.hdf5", side)[:256]
  result = solve(points_FxPx3, hands[side], side)
  assert result.valid_F.all()
  assert 1.0 < result.scale < 1.3  # the Sharpa hand is larger than a human's
  assert result.residual_m_F.mean() < 5e-3
  assert result.residual_m_F.max() < 12e-3
  step_F = np.abs(np.diff(result.joints_FxJ, axis=0)).max(1)
  assert np.percentile(step_F, 99) < 0.5  # radians a frame at 30 Hz

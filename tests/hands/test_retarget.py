"""Retargeting: known answers, invariances, gaps, refusals, and the real hands of EgoDex.

Most of it runs on the Dex3, which compiles in a third of the time; a human who has all 21 keypoints is made around its own.
"""

import dataclasses
import functools

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egoscale_jax import geometry
from egoscale_jax.errors import UserError
from egoscale_jax.hands import alignment, hand, keypoints, kinematics, retarget
from egoscale_jax.hands.costs import Weights

forward = jax.jit(kinematics.keypoints_in_wrist, static_argnums=0)
# A robot's own keypoints ask for its own joints, but for what moves targets on purpose: tips that touch, and the pull to the rest pose.
# Every bone speaks, since tips and their directions alone leave a thumb of five joints two ways to bend.
FAITHFUL = dataclasses.replace(Weights(), pinch=0.0, rest=1e-5, tip_soft_m=float("inf"), bone=0.02)
NEVER = {"max_jerk": float("inf")}  # one solution, however noisy


@functools.cache
def load(name="dex3", side="right"):
  return hand.load(name, side)


def human(model, joints_FxJ):
  """The hand's keypoints in its wrist frame [F, 21, 3]; the middle DIP on the way to the tip, so the chain's length is the hand's."""
  points = np.array(forward(model, jnp.asarray(joints_FxJ, jnp.float32)), np.float64)
  if not model.present[11]:
    points[:, 11] = 0.5 * (points[:, 10] + points[:, 12])
  for p in np.flatnonzero(~np.asarray(model.present)):
    if p != 11:
      points[:, p] = 9.0  # never read
  return points


def reachable(model, count, seed=0):
  """Joints [F, J] away from the limits; no joint that moves a knuckle, from which the human's wrist frame is read."""
  share = np.random.default_rng(seed).uniform(0.1, 0.9, (count, model.num_joints))
  return still_knuckles(model, model.lower_J + share * (model.upper_J - model.lower_J))


def wave(model, frames, seed=0, rate_hz=30.0):
  """Slow sines in every joint."""
  rng = np.random.default_rng(seed)
  phase = 2 * np.pi * rng.uniform(0.1, 0.3, model.num_joints) * np.arange(frames)[:, None] / rate_hz + rng.uniform(0, 6, model.num_joints)
  middle, reach = 0.5 * (model.lower_J + model.upper_J), 0.5 * (model.upper_J - model.lower_J)
  return still_knuckles(model, middle + 0.6 * reach * np.sin(phase))


def still_knuckles(model, joints_FxJ):
  moving = {model.source[n] for p in keypoints.KNUCKLES if model.present[p] for n in kinematics.moving(model, p)}
  own = {j for j in moving if np.abs(knuckle_speed(model)[j]) > 1e-6}
  joints_FxJ[:, sorted(own)] = np.clip(0.0, model.lower_J, model.upper_J)[sorted(own)]
  return joints_FxJ


@functools.cache
def knuckle_speed(model):
  """[J]: how fast each joint moves any knuckle; a knuckle lies on its own joint's axis."""
  _, jacobian = kinematics.keypoints_and_jacobian(model, jnp.asarray(0.5 * (model.lower_J + model.upper_J)))
  return np.abs(np.asarray(jacobian))[[p for p in keypoints.KNUCKLES if model.present[p]]].max((0, 1))


def solve(points, model=None, **options):
  return retarget.retarget(
    points, model or load(), (model or load()).side, FAITHFUL, **{"rate_hz": 30.0, "fine": False, **NEVER, **options}
  )


def alone(points, model=None, **options):
  return retarget.retarget_frames(points, model or load(), (model or load()).side, FAITHFUL, **options)


def worst_degrees(found_FxJ, joints_FxJ):
  return np.degrees(np.abs(found_FxJ - joints_FxJ)).max(1)


def assert_within_limits(joints_FxJ, model):
  assert (joints_FxJ.astype(np.float64) >= model.lower_J.astype(np.float64)).all()
  assert (joints_FxJ.astype(np.float64) <= model.upper_J.astype(np.float64)).all()


@functools.cache
def smooth_run():
  """800 frames, three windows: (joints, keypoints, result). Read, never written."""
  joints_FxJ = wave(load(), 800)
  points = human(load(), joints_FxJ)
  return joints_FxJ, points, solve(points)


def test_round_trip_of_single_frames():
  joints_FxJ = reachable(load(), 512)
  result = alone(human(load(), joints_FxJ))
  assert result.valid_F.all()
  assert not result.bridged_F.any()
  assert result.joints_FxJ.dtype == result.residual_m_F.dtype == np.float32
  assert result.scale == pytest.approx(1.0, abs=1e-5)
  error_F = worst_degrees(result.joints_FxJ, joints_FxJ)
  assert np.median(error_F) < 0.01
  assert np.percentile(error_F, 99) < 1.0
  assert np.median(result.residual_m_F) < 1e-5


def test_round_trip_of_a_trajectory():
  joints_FxJ, _, result = smooth_run()
  assert result.valid_F.all()
  error_F = worst_degrees(result.joints_FxJ, joints_FxJ)
  assert np.median(error_F) < 0.3
  assert np.percentile(error_F, 99) < 1.0
  assert np.median(result.residual_m_F) < 1e-4
  assert result.residual_m_F.max() < 3e-3


@pytest.mark.parametrize("run", [solve, alone])
def test_moving_and_scaling_the_whole_hand_changes_nothing(run):
  """Another rigid motion each frame, far from the origin, and a smaller human."""
  points = smooth_run()[1][:128]
  rng = np.random.default_rng(2)
  pose_Fx4x4 = geometry.se3(geometry.so3_exp(rng.normal(size=(128, 3))), 10.0 * rng.normal(size=(128, 3)))
  plain, moved = run(points), run(geometry.transform(pose_Fx4x4, 0.8 * points))
  np.testing.assert_allclose(moved.joints_FxJ, plain.joints_FxJ, atol=1e-4)
  np.testing.assert_allclose(moved.residual_m_F, plain.residual_m_F, atol=1e-6)
  assert moved.scale == pytest.approx(plain.scale / 0.8, rel=1e-6)


def test_a_mirrored_left_hand_is_the_right_hand():
  left, right = load(side="left"), load()
  assert [name.replace("left", "right") for name in left.joint_names] == list(right.joint_names)
  turned = ~np.isclose(left.lower_J, right.lower_J, atol=1e-3)  # the maker turned some axes round
  sign_J = np.where(turned, -1.0, 1.0)
  points = human(right, reachable(right, 200))
  mirrored = alone(points * [1, -1, 1], left)
  plain = alone(points)
  off = np.abs(mirrored.joints_FxJ * sign_J - plain.joints_FxJ).max(1)
  assert np.percentile(off, 99) < 1e-3
  np.testing.assert_allclose(mirrored.residual_m_F, plain.residual_m_F, atol=1e-4)


def test_single_frames_do_not_know_each_other():
  points = human(load(), reachable(load(), 1100))  # more than one piece
  order = np.random.default_rng(3).permutation(1100)
  plain = alone(points, scale=1.0)
  mixed = alone(points[order], scale=1.0)
  np.testing.assert_allclose(mixed.joints_FxJ, plain.joints_FxJ[order], atol=1e-6)
  np.testing.assert_allclose(mixed.residual_m_F, plain.residual_m_F[order], atol=1e-7)


@pytest.mark.parametrize("frames", [0, 1, 31, retarget.WINDOW, retarget.WINDOW + 1, 800, 1000, 4321])
def test_windows_share_every_frame(frames):
  total = np.zeros(frames)
  for start, stop, share_F in retarget.windows(frames):
    assert 0 < stop - start == len(share_F) <= retarget.WINDOW
    assert (share_F >= 0).all()
    total[start:stop] += share_F
  np.testing.assert_allclose(total, 1.0, atol=1e-6)


def test_windows_leave_no_seam():
  _, points, whole = smooth_run()
  borders = [start for start, *_ in retarget.windows(800)][1:]
  assert borders == [256, 512]
  seam = np.zeros(799, bool)
  for border in borders:
    seam[border - 1 : border + retarget.OVERLAP] = True
  step_F = np.abs(np.diff(whole.joints_FxJ, n=2, axis=0)).max(1)  # bends: a seam of a milliradian shows
  assert step_F[seam[1:]].max() < 1.5 * step_F[~seam[1:]].max()
  other = solve(points[112:400], scale=whole.scale)  # one window across the first border
  np.testing.assert_allclose(other.joints_FxJ[40:-40], whole.joints_FxJ[152:360], atol=1e-2)
  first = solve(points[: retarget.WINDOW], scale=whole.scale)
  core = retarget.WINDOW - retarget.OVERLAP
  np.testing.assert_allclose(first.joints_FxJ[:core], whole.joints_FxJ[:core], atol=1e-6)


@pytest.mark.parametrize("run", [solve, alone])
def test_limits_are_never_left(run):
  """Hands that no robot can follow."""
  rng = np.random.default_rng(4)
  wild = human(load(), reachable(load(), 400))
  fingers = np.arange(21) % 4 != 1  # not the knuckles, which tell the palm
  fingers[0] = False
  wild[:, fingers] += 0.1 * rng.normal(size=(400, fingers.sum(), 3))
  result = run(wild, scale=1.0)
  assert result.valid_F.all()
  assert_within_limits(result.joints_FxJ, load())
  if run is alone:
    assert ((result.joints_FxJ == load().lower_J) | (result.joints_FxJ == load().upper_J)).mean() > 0.1, "wild enough to close the bounds"


def test_gaps_are_bridged_where_short_and_left_open_where_long():
  joints_FxJ, points, plain = smooth_run()
  holed = points[:300].copy()
  short, long, start, end = slice(50, 65), slice(100, 116), slice(0, 4), slice(297, 300)  # half a second is 15 frames
  for gap in (short, long, start, end):
    holed[gap] = np.nan
  result = solve(holed, scale=plain.scale)
  bad_F = np.isnan(holed).any((1, 2))
  np.testing.assert_array_equal(result.valid_F, ~bad_F)
  np.testing.assert_array_equal(np.isnan(result.residual_m_F), bad_F)
  np.testing.assert_array_equal(np.flatnonzero(result.bridged_F), np.arange(50, 65))
  np.testing.assert_array_equal(np.isnan(result.joints_FxJ).all(1), bad_F & ~result.bridged_F)
  np.testing.assert_array_equal(np.isnan(result.joints_FxJ).any(1), bad_F & ~result.bridged_F)
  far_F = np.convolve(bad_F, np.ones(21), "same") == 0
  assert far_F.sum() > 150
  np.testing.assert_allclose(result.joints_FxJ[far_F], solve(points[:300], scale=plain.scale).joints_FxJ[far_F], atol=0.02)
  assert worst_degrees(result.joints_FxJ[short], joints_FxJ[short]).max() < 15.0  # a guess, but a near one
  wider = solve(holed, scale=plain.scale, max_gap_s=0.6)
  assert wider.bridged_F[long].all()
  assert not wider.bridged_F[:4].any()
  assert not alone(holed, scale=plain.scale).bridged_F.any()
  assert np.isnan(alone(holed, scale=plain.scale).joints_FxJ[bad_F]).all()


def test_one_missing_keypoint_flags_its_frame_and_the_others_still_speak():
  """The index finger bends while the middle finger's tip is hidden."""
  model = load()
  joints_FxJ = wave(model, 200)
  index = [j for j, name in enumerate(model.joint_names) if "index" in name]
  middle = [j for j, name in enumerate(model.joint_names) if "middle" in name]
  joints_FxJ[:, index] = 0.4
  joints_FxJ[93:108, index] += 0.6 * np.sin(np.linspace(0, np.pi, 15))[:, None] ** 2
  points = human(model, joints_FxJ)
  plain = solve(points, scale=1.0)
  points[95:106, 12] = np.nan
  result = solve(points, scale=1.0)
  np.testing.assert_array_equal(np.flatnonzero(result.bridged_F), np.arange(95, 106))
  np.testing.assert_array_equal(result.valid_F, ~result.bridged_F)
  np.testing.assert_allclose(result.joints_FxJ[:, index], plain.joints_FxJ[:, index], atol=1e-2)
  assert result.joints_FxJ[100, index[0]] > 0.8
  assert np.abs(result.joints_FxJ[95:106, middle] - joints_FxJ[95:106, middle]).max() < 0.3


@pytest.mark.parametrize("run", [solve, alone])
def test_low_confidence_is_missing_and_what_it_hides_changes_nothing(run):
  points = smooth_run()[1][:200]
  confidence = np.ones((200, 21))
  confidence[[20, 21, 22], :] = 0.0
  confidence[60, 8] = 0.49
  confidence[61, 8] = 0.5  # enough
  missing, poisoned = points.copy(), points.copy()
  missing[confidence < 0.5] = np.nan
  poisoned[confidence < 0.5] = 1e3
  expected, found = run(missing), run(poisoned, confidence_Fx21=confidence)
  assert np.flatnonzero(~found.valid_F).tolist() == [20, 21, 22, 60]
  for field in dataclasses.fields(expected):
    np.testing.assert_array_equal(getattr(found, field.name), getattr(expected, field.name))


@pytest.mark.parametrize("run", [solve, alone])
@pytest.mark.parametrize("frames", [0, 1, 3, 400])
def test_no_valid_frame_at_all(run, frames):
  result = run(np.full((frames, 21, 3), np.nan))
  assert result.joints_FxJ.shape == (frames, 7)
  assert result.joints_FxJ.dtype == np.float32
  assert np.isnan(result.joints_FxJ).all()
  assert result.residual_m_F.shape == result.valid_F.shape == result.bridged_F.shape == (frames,)
  assert np.isnan(result.residual_m_F).all()
  assert not result.valid_F.any()
  assert not result.bridged_F.any()
  assert np.isnan(result.scale)


def test_one_frame_is_a_recording():
  joints_FxJ = reachable(load(), 1, seed=5)
  result = solve(human(load(), joints_FxJ))
  assert result.valid_F.all()
  assert worst_degrees(result.joints_FxJ, joints_FxJ).max() < 2.0


def test_zeros_for_a_missing_hand_are_no_palm():
  points = smooth_run()[1][:40].copy()
  points[10] = 0.0
  assert np.flatnonzero(~solve(points).valid_F).tolist() == [10]


def test_arrays_to_write_into():
  points = smooth_run()[1][:400]
  out = np.full((400, 7), 7.0, np.float32), np.full(400, 7.0, np.float32)
  result = solve(points, out=out)
  assert result.joints_FxJ is out[0]
  assert result.residual_m_F is out[1]
  np.testing.assert_array_equal(out[0], solve(points).joints_FxJ)


def test_other_units_shapes_and_sides_are_refused_in_one_line():
  points = smooth_run()[1][:4]
  for factor in (1000.0, 100.0, 0.001):
    with pytest.raises(UserError, match=r"^keypoints: wrist to middle knuckle is .* metres: another unit\?$"):
      solve(points * factor)
  with pytest.raises(UserError, match=r"expected \[frames, 21, 3\] \(wrist, then thumb.*\), found \[4, 25, 3\]"):
    solve(np.zeros((4, 25, 3)))
  with pytest.raises(UserError, match=r"confidence: expected \[4, 21\], found \[3, 21\]"):
    solve(points, confidence_Fx21=np.ones((3, 21)))
  with pytest.raises(UserError, match="left hand cannot go to the right hand"):
    retarget.retarget(points, load(), "left", FAITHFUL)
  for scale in (0.0, -1.0, float("nan"), float("inf")):
    with pytest.raises(UserError, match="scale: expected a positive number"):
      solve(points, scale=scale)


def mean_jerk(joints_FxJ):
  return np.abs(np.diff(joints_FxJ.astype(np.float64), n=3, axis=0)).mean() * 30.0**3


def test_noise_does_not_reach_the_joints():
  """3 mm of noise in every coordinate at 30 Hz: a tenth of the jerk of frames on their own, and the tips stay at their places."""
  points = smooth_run()[1]
  noisy = points[:300] + 0.003 * np.random.default_rng(6).normal(size=(300, 21, 3))
  calm = solve(noisy, scale=1.0)
  assert mean_jerk(calm.joints_FxJ) < 0.1 * mean_jerk(alone(noisy, scale=1.0).joints_FxJ)
  tips = [p for p in keypoints.TIPS if load().present[p]]
  distance = np.linalg.norm(human(load(), calm.joints_FxJ)[:, tips] - points[:300, tips], axis=-1)
  assert distance.mean() < 4e-3


def test_too_much_jerk_is_solved_again_with_more_smoothing():
  noisy = smooth_run()[1][:300] + 0.01 * np.random.default_rng(7).normal(size=(300, 21, 3))
  free = mean_jerk(solve(noisy, scale=1.0).joints_FxJ)
  held = mean_jerk(solve(noisy, scale=1.0, max_jerk=0.5 * free).joints_FxJ)
  assert held < 0.65 * free


def test_another_weight_of_the_jerk_compiles_nothing():
  points, usual = smooth_run()[1][:300], FAITHFUL.jerk
  mild, strong = (dataclasses.replace(FAITHFUL, jerk=factor * usual) for factor in (0.5, 20.0))
  quick = retarget.retarget(points, load(), "right", mild, scale=1.0, **NEVER)
  programs = retarget.refine_windows._cache_size(), retarget.start_windows._cache_size()
  calm = retarget.retarget(points, load(), "right", strong, scale=1.0, **NEVER)
  assert programs == (retarget.refine_windows._cache_size(), retarget.start_windows._cache_size())
  assert mean_jerk(calm.joints_FxJ) < 0.9 * mean_jerk(quick.joints_FxJ)


@pytest.mark.parametrize("finger", ["middle", "index", "ring"])
def test_the_scale_is_of_a_finger_that_the_hand_has(finger):
  """A hand of thumb, little and one more: without a middle finger it was 0, and every target the wrist itself."""
  own = hand.load("sharpa_wave", "right", fingers=f"thumb:thumb_tip,little:little_tip,{finger}:{finger}_tip")
  whole = np.asarray(hand.load("sharpa_wave", "right").keypoint_Px3, np.float64)
  assert alignment.Human(np.tile(whole / 1.25, (3, 1, 1)), own, "right", None, 0.5, None).scale == pytest.approx(1.25, rel=0.02)


@pytest.mark.parametrize("scale", [1.0, 1.6])
def test_every_frame_free_is_nearer_with_no_more_jerk(scale):
  """By itself where the robot does not pinch, as too large or with too few joints: much is out of its reach."""
  points = smooth_run()[1][:300] + 0.002 * np.random.default_rng(9).normal(size=(300, 21, 3))
  weights = Weights(pinch_joints=0)
  coarse, fine, usual = (retarget.retarget(points, load(), "right", weights, scale=scale, fine=fine) for fine in (False, True, None))
  np.testing.assert_array_equal(usual.joints_FxJ, (fine if scale > weights.pinch_scale else coarse).joints_FxJ)
  assert fine.valid_F.all()
  assert_within_limits(fine.joints_FxJ, load())
  assert mean_jerk(fine.joints_FxJ) <= 100.0
  assert fine.residual_m_F.mean() < coarse.residual_m_F.mean() - 5e-5


def egodex_keypoints(path, side):
  """EgoDex names -> 21 keypoints [F, 21, 3]; its Metacarpal is the base of the palm bone and no keypoint of ours."""
  bones = ("Knuckle", "IntermediateBase", "IntermediateTip", "Tip")
  fingers = ("Thumb", "IndexFinger", "MiddleFinger", "RingFinger", "LittleFinger")
  names = [f"{side}Hand"] + [f"{side}{finger}{bone}" for finger in fingers for bone in bones]
  with h5py.File(path) as file:
    return np.stack([file["transforms"][name][:, :3, 3] for name in names], axis=1)


def test_real_hands(shared):
  """As users call it: the default weights on the five fingers of the Sharpa hand."""
  model = load("sharpa_wave")
  points = egodex_keypoints(shared / "recordings/egodex/basic_pick_and_place/0.hdf5", "right")[:256]
  result = retarget.retarget(points, model, "right")
  assert result.valid_F.all()
  assert 1.0 < result.scale < 1.3  # the Sharpa hand is larger than a human's
  assert result.residual_m_F.mean() < 5e-3
  assert_within_limits(result.joints_FxJ, model)
  assert mean_jerk(result.joints_FxJ) < 100.0
  back = np.asarray(kinematics.keypoints(model, jnp.asarray(result.joints_FxJ[:1])))[0]
  scaled = geometry.transform(
    model.T_base_wrist_4x4.astype(np.float64),
    result.scale * geometry.transform(geometry.se3_inverse(keypoints.wrist_frame(points[0], "right")), points[0]),
  )
  tips = list(keypoints.TIPS)
  assert result.residual_m_F[0] == pytest.approx(np.linalg.norm(back[tips] - scaled[tips], axis=-1).mean(), abs=1e-5)


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name == "dex3" else pytest.mark.slow) for name in hand.BUILT_IN])
def test_every_hand_follows_a_human(name):
  """A human with the Sharpa hand's proportions; minutes of compiling for all."""
  model, five = load(name), load("sharpa_wave")
  points = human(five, wave(five, 30, seed=8))
  for result in (alone(points, model), solve(points, model)):
    assert result.valid_F.all()
    assert np.isfinite(result.joints_FxJ).all()
    assert_within_limits(result.joints_FxJ, model)
    assert result.residual_m_F.mean() < 0.03


@pytest.mark.slow
def test_round_trip_of_five_fingers():
  model = load("sharpa_wave")
  joints_FxJ = reachable(model, 256)
  error_F = worst_degrees(alone(human(model, joints_FxJ), model).joints_FxJ, joints_FxJ)
  assert np.median(error_F) < 0.05
  assert np.percentile(error_F, 99) < 1.0

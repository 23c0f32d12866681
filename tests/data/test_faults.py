"""Planted faults of hands, cameras and clocks: each is found by its name at its frames, wherever it is planted; a clean one has none."""

import dataclasses

import faults
import numpy as np
import pytest
import recordings
from faults import ALL, Fault, array, camera, fields, hand

from egoscale_jax import geometry
from egoscale_jax.data import check_clock, doctor, schema
from egoscale_jax.hands import keypoints

POINTS = "keypoints_Fx2xPx3"
JUMPS = ("wrist_jump", "wrist_spin")
MIRROR = np.array([1, -1, 1])
TURN = geometry.se3(geometry.so3_exp(np.array([0, 0, 1.2])), np.zeros(3)).astype(np.float32)
FLIP = np.diag([1, -1, -1, 1]).astype(np.float32)  # OpenGL's camera: y up, z backward


def backwards(local_FxPx3):
  """The end of the index finger bent 90 degrees back."""
  bent = local_FxPx3.copy()
  bent[:, 7:9] = bent[:, 6:7] + (bent[:, 7:9] - bent[:, 6:7]) @ geometry.so3_exp(np.array([0, -np.pi / 2, 0])).T
  return bent


def grown(local_FxPx3):
  return local_FxPx3 * np.linspace(0.92, 1.08, len(local_FxPx3))[:, None, None]


def frozen_in_the_picture(episode, frames):
  pose = episode.T_world_camera_Fx4x4.astype(np.float64)
  points = episode.keypoints_Fx2xPx3.copy()
  local = geometry.transform(geometry.se3_inverse(pose[frames.start]), points[frames.start, 0])
  points[frames, 0] = geometry.transform(pose[frames], np.repeat(local[None], frames.stop - frames.start, axis=0))
  return dataclasses.replace(episode, keypoints_Fx2xPx3=points)


def repeated(episode, frames):
  """Poses measured at a third of the rate, repeated."""
  at = np.arange(episode.num_frames) // 2 * 2
  points = episode.keypoints_Fx2xPx3.copy()
  points[:, 1] = points[at, 1]
  return dataclasses.replace(episode, keypoints_Fx2xPx3=points)


def aside(episode, frames):
  """Hands three metres to the right of where the camera looks."""
  right = episode.T_world_camera_Fx4x4[:, None, None, :3, 0]
  return dataclasses.replace(episode, keypoints_Fx2xPx3=episode.keypoints_Fx2xPx3 + 3 * right)


def inverted(episode, frames):
  """World-to-camera where camera-to-world is asked for, in a world of other axes."""
  turned = geometry.se3(geometry.so3_exp(np.array([0.3, 1.0, -0.5])), np.array([2.0, -1.0, 1.0])).astype(np.float32)
  pose = geometry.se3_inverse(turned @ episode.T_world_camera_CxFx4x4)
  points = geometry.transform(turned, episode.keypoints_Fx2xPx3)
  return dataclasses.replace(episode, T_world_camera_CxFx4x4=pose, keypoints_Fx2xPx3=points)


def late(lag):
  """The video lags so many frames behind the poses, or runs before them."""

  def damage(episode, frames):
    jpeg_F = faults.film(faults.FRAMES + 40)
    turns = faults.looks(faults.FRAMES + 40)[20:-20]
    start = 20 - lag
    pose = faults.cameras(turns)[None]
    return dataclasses.replace(episode, T_world_camera_CxFx4x4=pose, jpeg_CxF=(jpeg_F[start : start + episode.num_frames],))

  return damage


def turns(change):
  return fields(T_world_camera_CxFx4x4=faults.cameras(change(faults.looks(faults.FRAMES)))[None])


HANDS = {
  "a keypoint is NaN": Fault(array(POINTS, "right", lambda p: p * np.nan, (slice(7, 8),)), "not_finite", "right"),
  "a keypoint is infinite": Fault(array(POINTS, "left", lambda p: p + np.inf, (slice(3, 5),)), "not_finite", "left"),
  "a hand is missing": Fault(array(POINTS, "left", lambda p: p * np.nan), "missing", "left"),
  "the tracker is unsure": Fault(array("confidence_Fx2xP", "left", lambda c: c * 0 + 0.05), "low_confidence", "left"),
  "the wrist jumps": Fault(array(POINTS, "right", lambda p: p + np.float32([0.4, 0, 0])), "wrist_jump", "right", where="ends"),
  "the hand turns around": Fault(hand("right", lambda p: p * (-1, -1, 1)), "wrist_spin", "right", where="ends"),
  "bones are longer": Fault(hand("left", lambda p: p * 1.5), "bone_drift", "left"),
  "points of the other hand": Fault(hand("right", lambda p: p * MIRROR), "mirrored", "right", implied=("wrist_spin",)),
  "a finger is bent back": Fault(hand("right", backwards), "finger_backwards", "right"),
  "hands are exchanged": Fault(
    lambda e, f: array(POINTS, None, lambda p: p[:, ::-1])(e, f), "swapped", implied=(*JUMPS, "mirrored", "hand_growth")
  ),
  "one hand twice": Fault(
    lambda e, f: array(POINTS, "left", lambda p: e.keypoints_Fx2xPx3[f, 1])(e, f), "hands_identical", implied=(*JUMPS, "mirrored")
  ),
  "the camera's pose is NaN": Fault(camera(lambda T: T * np.nan), "camera_not_finite"),
  "the camera jumps": Fault(camera(lambda T: T + 0.3 * np.eye(4, k=3, dtype=np.float32)), "camera_jump", where="ends"),
  "the camera turns at once": Fault(camera(lambda T: T @ TURN), "camera_spin", where="ends"),
  "the camera is stretched": Fault(camera(lambda T: T * np.float32([1.1, 1, 1, 1])), "camera_not_rigid"),
  "the camera is mirrored": Fault(camera(lambda T: T * np.float32([-1, 1, 1, 1])), "camera_not_rigid", implied=("behind_camera",)),
}
LONG = {  # for half a second and more
  "a hand stands still in the world": Fault(array(POINTS, "right", lambda p: p[:1]), "hand_frozen", "right"),
  "a hand stands still in the picture": Fault(frozen_in_the_picture, "hand_frozen", "left"),
}
WHOLE = {
  "a hand is never there": Fault(array(POINTS, "left", lambda p: p * np.nan), "missing", "left"),
  "a hand in another unit": Fault(hand("left", lambda p: p * 3), "hand_size", "left"),
  "a mirrored hand": Fault(hand("left", lambda p: p * MIRROR), "mirrored", "left"),
  "a hand grows": Fault(hand("left", grown), "hand_growth", "left", "warning"),
  "hands of two people": Fault(hand("right", lambda p: p * 1.25), "sides_differ", "", "warning"),
  "world-to-camera": Fault(inverted, "camera_inverted", "", "rejected", implied=("camera_jump", "clock_lag")),
  "OpenGL's camera": Fault(camera(lambda T: T @ FLIP), "behind_camera", "left", implied=("no_hand", "camera_reversed")),
  "intrinsics of another size": Fault(
    fields(intrinsics_Cx3x3=(recordings.INTRINSICS * np.float32([[6], [6], [1]]))[None]),
    "intrinsics",
    "",
    "warning",
    implied=("out_of_view",),
  ),
  "hands beside the picture": Fault(aside, "out_of_view", "", "warning"),
  "the pictures are late": Fault(late(6), "clock_lag", "", "warning"),
  "the pictures are early": Fault(late(-9), "clock_lag", "", "warning"),
  "the camera turns the other way": Fault(turns(lambda x: -x), "camera_reversed", "", "warning"),
  "the camera's pose stands still": Fault(turns(lambda x: 0 * x), "camera_still", "", "warning"),
  "poses come at half the rate": Fault(repeated, "poses_repeat", "right", "warning", where="repeats"),
  "a camera that nobody tracked": Fault(fields(frame=schema.Frame.CAMERA), "moving_frame", "", "rejected"),
  "a rate of milliseconds": Fault(fields(rate_hz=30000.0), "rate", "", "rejected"),
}


def test_a_clean_episode_has_none():
  valid, findings = doctor.check(faults.human())
  assert findings == []
  assert valid.all()


def places(seed, shortest, longest):
  """Where a fault is planted: away from the ends, three times."""
  rng = np.random.default_rng(seed)
  for _ in range(3):
    length = int(rng.integers(shortest, longest + 1))
    first = int(rng.integers(3, faults.FRAMES - length - 3))
    yield slice(first, first + length)


@pytest.mark.parametrize("name", HANDS)
def test_a_fault_of_some_frames_is_found_there(name):
  for frames in places(0, 1, 6):
    found = doctor.check(HANDS[name].damage(faults.human(), frames))
    faults.check_found(HANDS[name], *found, frames, faults.FRAMES)


@pytest.mark.parametrize("name", LONG)
def test_a_fault_of_half_a_second_is_found_there(name):
  for frames in places(1, 17, 40):
    found = doctor.check(LONG[name].damage(faults.human(), frames))
    faults.check_found(dataclasses.replace(LONG[name], where="around", implied=JUMPS), *found, frames, faults.FRAMES)
  found = doctor.check(LONG[name].damage(faults.human(), slice(30, 40)))[1]
  assert not [f for f in found if f.name == "hand_frozen"]  # a third of a second is a rest


@pytest.mark.parametrize("name", WHOLE)
def test_a_fault_of_the_whole_episode_is_found(name):
  fault = WHOLE[name]
  valid, findings = doctor.check(fault.damage(faults.human(), ALL))
  if fault.where == "repeats":
    (finding,) = findings
    assert (finding.name, finding.side, finding.severity) == (fault.name, fault.side, fault.severity)
    assert finding.count == faults.FRAMES // 2
  else:
    faults.check_found(dataclasses.replace(fault, where="whole"), valid, findings, ALL, faults.FRAMES)


def test_the_lag_is_told_in_frames():
  for lag, told in ((6, "late by 6 frames"), (-9, "early by 9 frames")):
    (finding,) = doctor.check(late(lag)(faults.human(), ALL))[1]
    assert told in finding.detail
  assert doctor.check(late(1)(faults.human(), ALL))[1] == []  # one frame is what a shutter may be off by


@pytest.mark.parametrize("lag", [-2, -1, 0, 1, 2])
def test_a_lag_of_one_frame_is_let_pass(lag, monkeypatch):
  """Even where a head shakes so fast that one frame matters; told by shifts without any likeness from frame to frame."""
  told = np.random.default_rng(0).normal(size=(faults.FRAMES - 1, 2))
  monkeypatch.setattr(check_clock, "predicted", lambda episode, scale: told)
  monkeypatch.setattr(check_clock, "shifts", lambda grey_FxYxX: np.roll(told, lag, axis=0))
  found = check_clock.check(faults.human(), np.zeros((faults.FRAMES, 32, 32), np.float32))
  assert [f.name for f in found] == (["clock_lag"] if abs(lag) == 2 else [])


def test_swaps_of_any_length_mask_the_fewer_frames():
  rng = np.random.default_rng(5)
  for first, last in [(5, 80), *(np.sort(rng.choice(np.arange(2, faults.FRAMES - 2), 2, replace=False)) for _ in range(4))]:
    points = faults.human().keypoints_Fx2xPx3.copy()
    points[first:last] = points[first:last, ::-1]
    finding = next(f for f in doctor.check(dataclasses.replace(faults.human(), keypoints_Fx2xPx3=points))[1] if f.name == "swapped")
    assert finding.count == min(last - first, faults.FRAMES - (last - first))


def test_two_faults_are_both_told():
  first = HANDS["a keypoint is NaN"].damage(faults.human(), slice(4, 6))
  both = HANDS["the camera jumps"].damage(first, slice(50, 53))
  assert {f.name for f in doctor.check(both)[1]} == {"not_finite", "camera_jump"}
  assert [f.side for f in doctor.check(both)[1] if f.name == "not_finite"] == [keypoints.SIDES[1]]

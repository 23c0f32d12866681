import dataclasses
import re

import faults
import numpy as np
import pytest
import recordings
from conftest import ROOT

from egoscale_jax.data import check_hand, doctor, manifest, schema


def only(findings):
  assert len(findings) == 1, findings
  return findings[0]


def test_a_clean_episode_has_no_finding():
  valid, findings = doctor.check(recordings.episode())
  assert valid.all()
  assert valid.shape == (40, 2)
  assert findings == []


def test_non_finite_keypoints_mask_that_hand_alone():
  episode = recordings.change_points(recordings.episode(), (slice(3, 5), 1, 7), lambda p: p * np.nan)
  valid, findings = doctor.check(episode)
  assert recordings.bad_frames(valid[:, 1]) == [3, 4]
  assert valid[:, 0].all()
  finding = only(findings)
  assert (finding.name, finding.severity, finding.side, finding.count, finding.first_frame) == ("not_finite", "masked", "right", 2, 3)


def test_non_finite_camera_masks_both_hands():
  camera = recordings.episode().T_world_camera_Fx4x4.copy()
  camera[6:9] = np.nan
  valid, findings = doctor.check(recordings.episode(T_world_camera_Fx4x4=camera))
  assert recordings.bad_frames(valid[:, 0]) == recordings.bad_frames(valid[:, 1]) == [6, 7, 8]
  assert (only(findings).name, only(findings).side, only(findings).count) == ("camera_not_finite", "", 3)


def test_low_confidence_is_of_the_fingers_not_of_the_wrist():
  confidence = recordings.episode().confidence_Fx2xP.copy()
  confidence[10, 0, 1:] = 0.09
  confidence[10, 0, 0] = 1.0
  confidence[20, 1, 0] = 0.0
  valid, findings = doctor.check(recordings.episode(confidence_Fx2xP=confidence))
  assert recordings.bad_frames(valid[:, 0]) == [10]
  assert valid[:, 1].all()
  assert only(findings).name == "low_confidence"
  assert "0.090" in only(findings).detail


def test_a_spike_masks_both_sides_and_a_step_masks_its_two_frames():
  spike = recordings.change_points(recordings.episode(), (12, 0), lambda p: p + np.float32(0.4))
  valid, findings = doctor.check(spike)
  assert recordings.bad_frames(valid[:, 0]) == [11, 12, 13]
  assert only(findings).name == "wrist_jump"
  step = recordings.change_points(recordings.episode(), (slice(12, None), 0), lambda p: p + np.float32(0.4))
  assert recordings.bad_frames(doctor.check(step)[0][:, 0]) == [11, 12]
  small = recordings.change_points(recordings.episode(), (slice(12, None), 0), lambda p: p + np.float32(0.1))
  assert doctor.check(small)[0].all()


def test_a_jump_over_a_gap_counts_the_gap_s_time():
  def with_gap(step):
    episode = recordings.change_points(recordings.episode(), (slice(10, 14), 0), lambda p: p * np.nan)
    return doctor.check(recordings.change_points(episode, (slice(14, None), 0), lambda p: p + np.float32(step) * np.float32([1, 1, -1])))[
      0
    ][:, 0]

  assert recordings.bad_frames(with_gap(0.6)) == [10, 11, 12, 13]  # 1 m in 5 frames is a movement
  assert recordings.bad_frames(with_gap(2.0)) == [9, 10, 11, 12, 13, 14]


def test_a_camera_jump_masks_both_hands():
  camera = recordings.episode().T_world_camera_Fx4x4.copy()
  camera[20:, 0, 3] += 0.25
  valid, findings = doctor.check(recordings.episode(T_world_camera_Fx4x4=camera))
  assert recordings.bad_frames(valid[:, 0]) == recordings.bad_frames(valid[:, 1]) == [19, 20]
  assert "7.5 m/s, expected at most 6" in only(findings).detail


def test_bone_drift_is_judged_against_the_episode_s_median():
  episode = recordings.episode()
  wrist = episode.keypoints_Fx2xPx3[15, 1, :1]
  drifted = recordings.change_points(episode, (15, 1), lambda p: wrist + 1.35 * (p - wrist))
  valid, findings = doctor.check(drifted)
  assert recordings.bad_frames(valid[:, 1]) == [15]
  assert only(findings).name == "bone_drift"
  assert "35%" in only(findings).detail
  assert doctor.check(recordings.change_points(episode, (15, 1), lambda p: wrist + 1.25 * (p - wrist)))[0].all()


def test_another_unit_masks_the_hand_and_rejects_the_episode():
  episode = recordings.episode()
  centimetres = dataclasses.replace(episode, keypoints_Fx2xPx3=episode.keypoints_Fx2xPx3 * np.float32(3))
  valid, findings = doctor.check(centimetres)
  assert not valid.any()
  assert [(f.name, f.severity) for f in findings] == [("hand_size", "masked"), ("hand_size", "masked"), ("no_hand", "rejected")]


def test_an_episode_of_less_than_half_a_second_is_rejected():
  assert doctor.check(recordings.episode(frames=15))[1] == []
  assert only(doctor.check(recordings.episode(frames=14))[1]).detail == "14 frames in 0.47 s, expected at least 2 in 0.5 s"
  assert doctor.check(recordings.episode(frames=3, rate_hz=5.0))[1] == []  # a slow robot's rate: the time counts, not the frames


def test_one_hand_for_half_a_second_is_enough():
  nan = recordings.change_points(recordings.episode(), (slice(None), 0), lambda p: p * np.nan)
  assert {f.severity for f in doctor.check(nan)[1]} == {"masked"}
  for frames, severity in ((25, "masked"), (26, "rejected")):  # 15 or 14 of 40 frames are left
    both = recordings.change_points(nan, (slice(frames), 1), lambda p: p * np.nan)
    assert doctor.check(both)[1][-1].severity == severity


@pytest.mark.parametrize("valid_frames", [14, 15])
def test_check_valid_at_its_limit(valid_frames):
  valid = np.zeros((40, 2), bool)
  valid[:valid_frames, 1] = True
  assert bool(doctor.check_valid(valid, 30.0)) == (valid_frames < 15)


def test_a_keypoint_that_the_tracker_never_has_is_not_missed():
  """Project Aria has no base of the thumb: absent throughout it is no fault, absent at some frames it is one; no other may be absent."""
  episode = recordings.episode()
  never = recordings.change_points(episode, (slice(None), slice(None), 1), lambda p: p * np.nan)
  confidence = episode.confidence_Fx2xP.copy()
  confidence[:, :, 1] = 0
  valid, findings = doctor.check(dataclasses.replace(never, confidence_Fx2xP=confidence))
  assert valid.all()
  assert findings == []
  assert check_hand.absent(never.keypoints_Fx2xPx3[:, 0]) == [1]
  sometimes = recordings.change_points(episode, (slice(3, 6), 0, 1), lambda p: p * np.nan)
  assert recordings.bad_frames(doctor.check(sometimes)[0][:, 0]) == [3, 4, 5]
  other = recordings.change_points(episode, (slice(None), 0, 2), lambda p: p * np.nan)
  assert not doctor.check(other)[0][:, 0].any()


def test_poses_from_a_camera_that_nobody_tracked_make_no_labels():
  valid, findings = doctor.check(recordings.episode(frame=schema.Frame.CAMERA))
  assert not valid.any()
  assert (only(findings).name, only(findings).severity) == ("moving_frame", "rejected")


def test_the_document_tells_every_finding():
  told = (ROOT / "docs" / "doctor.md").read_text()
  names = set()
  for path in (ROOT / "egoscale_jax" / "data").glob("*.py"):
    names |= set(re.findall(r'(?:masked|warned|rejected|whole|told)\(\s*"(\w+)"', path.read_text()))
  assert len(names) > 40
  assert [name for name in sorted(names) if name not in told] == []


def test_whatever_the_numbers_are_the_checks_return():
  """Arrays of NaN, infinity, zeros and huge numbers, pictures of no bytes: findings, and neither a crash nor a warning of numpy's."""
  rng = np.random.default_rng(0)
  for _ in range(60):
    episode = (faults.human(), faults.robot())[rng.integers(2)]
    changed = {}
    for name, values in vars(episode).items():
      if isinstance(values, np.ndarray) and values.size and rng.random() < 0.5:
        changed[name] = values.copy()
        at = rng.integers(0, values.size, max(1, int(values.size * rng.choice([1e-3, 0.05, 1.0]))))
        changed[name].reshape(-1)[at] = rng.choice([np.nan, np.inf, -np.inf, 0, 1e30, -1, 1e-30])
    jpeg_F = list(episode.jpeg_F)
    jpeg_F[rng.integers(len(jpeg_F))] = (b"", b"x", jpeg_F[0][:200], jpeg_F[0])[rng.integers(4)]
    valid, findings = doctor.check(dataclasses.replace(episode, **changed, jpeg_CxF=(tuple(jpeg_F),)))
    assert valid.shape == (episode.num_frames, 2)
    assert all(f.count > 0 and 0 <= f.first_frame <= f.last_frame < episode.num_frames for f in findings)


def test_a_warning_counts_no_masked_frames():
  episode = recordings.episode(text="")
  entry = manifest.entry(schema.Recording("a", ("a.hdf5",)), episode, findings=doctor.check(episode)[1])
  assert [(f["name"], f["severity"]) for f in entry["findings"]] == [("no_text", "warning")]
  assert entry["status"] == manifest.KEPT
  assert manifest.totals([entry | {"split": "train", "clips": 3}])["masked"] == {}

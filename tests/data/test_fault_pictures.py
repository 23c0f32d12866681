"""Planted faults of pictures, of the text and of stretches where nothing moves; and those of a second camera, which only warn."""

import dataclasses

import faults
import numpy as np
import pytest
import recordings
import simplejpeg
from faults import ALL, FRAMES, Fault, fields, pictures

from egoscale_jax.data import check_clock, check_pictures, doctor, schema

GREY = np.full((recordings.HEIGHT, recordings.WIDTH), 128.0)
SMOOTH = GREY + np.linspace(-6, 6, recordings.WIDTH)  # what a defocused lens leaves


def becomes(picture):
  """-> damage: these frames are that picture."""

  def change(jpeg_F, frames):
    jpeg_F[frames] = [faults.encode(picture)] * (frames.stop - frames.start)
    return jpeg_F

  return pictures(change)


def at(index):
  """-> damage: frame i becomes frame index(i, frames)."""
  return pictures(lambda jpeg_F, frames: [jpeg_F[index(i, frames)] for i in range(len(jpeg_F))])


def held(i, frames):
  return frames.start if frames.start <= i < frames.stop else i


def other_scene(jpeg_F, frames):
  return jpeg_F[: frames.start] + list(faults.film(FRAMES, seed=1))[frames.start :]


def smaller(jpeg_F, frames):
  half = simplejpeg.decode_jpeg(jpeg_F[frames.start])[::2, ::2].copy()
  jpeg_F[frames] = [simplejpeg.encode_jpeg(half)] * (frames.stop - frames.start)
  return jpeg_F


def broken(jpeg_F, frames):
  jpeg_F[frames] = [b"\xff\xd8 no picture"] * (frames.stop - frames.start)
  return jpeg_F


def still(episode, frames):
  """Hands, camera and pictures rest at these frames, and go on from there."""
  index = np.arange(FRAMES) - np.clip(np.arange(FRAMES) - frames.start, 0, frames.stop - frames.start - 1)
  noise = np.random.default_rng(0).normal(0, 3e-4, episode.keypoints_Fx2xPx3.shape)  # a tracker's: without it the hands would be frozen
  points = (episode.keypoints_Fx2xPx3[index] + noise).astype(np.float32)
  changed = dataclasses.replace(episode, keypoints_Fx2xPx3=points, T_world_camera_CxFx4x4=episode.T_world_camera_CxFx4x4[:, index])
  return at(lambda i, frames: index[i])(changed, frames)


EMPTY = {
  "black": Fault(becomes(GREY * 0 + 2), "black"),
  "over-exposed": Fault(becomes(GREY * 0 + 254), "over_exposed"),
  "a plain wall": Fault(becomes(GREY), "uniform"),
  "out of focus": Fault(becomes(SMOOTH), "blurred"),
}
SOME = {
  "not a JPEG": Fault(pictures(broken), "not_a_picture", "", "rejected", "whole"),
  "another size": Fault(pictures(smaller), "picture_size", "", "rejected", "whole"),
}


def span(*args):
  return fields(spans=(schema.Span(*args),))


WHOLE = {
  "every third picture twice": Fault(at(lambda i, f: i - (i % 3 == 2)), "pictures_repeat", "", "warning"),
  "no instruction": Fault(fields(text=" "), "no_text", "", "warning"),
  "a span past the end": Fault(span("pour", 1.0, 9.0), "span_outside", "", "warning"),
  "a span before the start": Fault(span("pour", -2.0, 1.0, "left"), "span_outside", "left", "warning"),
  "a span that runs back": Fault(span("pour", 2.0, 1.0), "span_inverted", "", "warning"),
  "a span without text": Fault(span(" ", 0.0, 1.0), "span_empty", "", "warning"),
}


def places(shortest, longest):
  rng = np.random.default_rng(3)
  for _ in range(3):
    length = int(rng.integers(shortest, longest + 1))
    first = int(rng.integers(5, FRAMES - length - 5))
    yield slice(first, first + length)


@pytest.mark.parametrize("name", [*EMPTY, *SOME])
def test_a_spoiled_picture_is_found(name):
  fault = (EMPTY | SOME)[name]
  for frames in places(1, 6):
    faults.check_found(fault, *doctor.check(fault.damage(faults.human(), frames)), frames, FRAMES)


@pytest.mark.parametrize("name", EMPTY)
def test_a_second_camera_s_fault_is_a_warning(name):
  episode = faults.human()
  spoiled = EMPTY[name].damage(episode, slice(20, 25)).jpeg_F
  views = [
    schema.View(n, jpeg, episode.image_size, episode.intrinsics_3x3, episode.T_world_camera_Fx4x4)
    for n, jpeg in (("head", episode.jpeg_F), ("wrist", spoiled))
  ]
  valid, findings = doctor.check(dataclasses.replace(episode, **schema.views(*views)))
  assert valid.all()
  assert {(f.severity, "camera wrist" in f.detail) for f in findings} == {("warning", True)}
  assert (findings[0].name, findings[0].spans) == (EMPTY[name].name, ((20, 24),))


@pytest.mark.parametrize("name", WHOLE)
def test_a_fault_of_all_pictures_or_of_the_text_is_found(name):
  fault = WHOLE[name]
  valid, findings = doctor.check(fault.damage(faults.human(), ALL))
  assert [(f.name, f.side, f.severity) for f in findings] == [(fault.name, fault.side, "warning")]
  assert valid.all()


def test_a_text_of_a_third_of_the_time_is_a_gap():
  (finding,) = doctor.check(fields(text="", spans=(schema.Span("pour", 1.0, 2.0),))(faults.human(), ALL))[1]
  assert (finding.name, finding.spans) == ("text_gap", ((0, 29), (60, 89)))
  assert doctor.check(fields(text="", spans=(schema.Span("pour", 0.0, 2.0),))(faults.human(), ALL))[1] == []


def test_a_frozen_picture_is_masked_and_a_short_one_is_none():
  fault = Fault(at(held), "frozen", implied=("clock_lag",))
  for frames in places(18, 35):
    faults.check_found(fault, *doctor.check(fault.damage(faults.human(), frames)), frames, FRAMES)
  names = {f.name for f in doctor.check(fault.damage(faults.human(), slice(30, 40)))[1]}
  assert "duplicated" in names
  assert "frozen" not in names  # nine repeats: too short a stop to mask


def test_a_repeated_picture_is_told():
  for frames in places(2, 2):
    (finding,) = doctor.check(at(held)(faults.human(), frames))[1]
    assert (finding.name, finding.severity, finding.spans) == ("duplicated", "warning", ((frames.start + 1, frames.start + 1),))


def test_a_cut_masks_its_two_frames():
  for frames in places(2, 2):
    valid, findings = doctor.check(pictures(other_scene)(faults.human(), frames))
    (finding,) = findings
    assert (finding.name, finding.spans) == ("cut", ((frames.start - 1, frames.start),))
    assert np.flatnonzero(~valid[:, 0]).tolist() == [frames.start - 1, frames.start]


def test_a_white_arm_that_crosses_a_still_picture_is_no_cut():
  """45 of 100 pixels in one frame, as of a robot whose camera stands still; of 80 it is another picture."""
  room_YxX = np.random.default_rng(0).uniform(60, 100, (20, 20)).astype(np.float32)
  for covered, expected in ((6, []), (13, ["cut"])):
    arm_FxYxX = np.repeat(room_YxX[None], 40, axis=0)
    arm_FxYxX[:20, :, -3:] = 240.0
    arm_FxYxX[20:, :, :covered] = 240.0
    _, findings = check_pictures._cuts(arm_FxYxX, np.ones(40, bool), "ego", check_pictures.findings.masked)
    assert [f.name for f in findings] == expected


def test_a_rest_of_two_seconds_is_idle_and_a_shorter_one_is_not():
  (finding,) = doctor.check(still(faults.human(), slice(10, 80)))[1]
  assert (finding.name, finding.severity) == ("idle", "warning")
  assert abs(finding.first_frame - 10) <= 2
  assert abs(finding.last_frame - 79) <= 2
  assert [f.name for f in doctor.check(still(faults.human(), slice(10, 60)))[1]] == []


def test_a_picture_that_stands_still_where_nothing_moves_is_not_frozen():
  episode = still(faults.human(), ALL)
  assert {f.name for f in doctor.check(episode)[1]} == {"idle"}


def test_shifts_are_those_of_the_panorama():
  """Phase correlation against the truth: the small picture moves by focal length x turn."""
  small = check_pictures.decode(faults.film(), (recordings.HEIGHT, recordings.WIDTH))
  told = check_clock.predicted(faults.human(), small.grey_FxYxX.shape[1] / recordings.HEIGHT)
  seen = np.median([check_clock.shifts(q) for q in check_clock.quarters(small.grey_FxYxX)], axis=0)
  turn = np.diff(np.tan(faults.looks(FRAMES)), axis=0)[:, ::-1] * (-1, 1)
  np.testing.assert_allclose(told, turn * 150 * small.grey_FxYxX.shape[1] / 180, atol=0.05)
  assert np.abs(seen - told).mean() < 0.15
  assert check_clock.likeness(seen, told, 0) > 0.95


def test_pictures_are_decoded_small():
  small = check_pictures.decode(faults.film(), (recordings.HEIGHT, recordings.WIDTH))
  assert check_pictures.SMALL <= min(small.grey_FxYxX.shape[1:]) < 2 * check_pictures.SMALL
  assert not small.odd_F.any()

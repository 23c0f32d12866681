"""Checks of the pictures of every camera, decoded small and grey: there, of one size, with something on them, new at every frame.

A fault of the first camera, the one that a policy sees, masks both hands; one of another camera is a warning.
"""

import dataclasses

import numpy as np
import simplejpeg

from egoscale_jax.data import check_hand, findings

SMALL = 32  # pixels, the shorter side that a picture keeps at least; JPEG decodes at 1/2 to 1/8 for 0.03 to 0.13 ms
BLACK, WHITE = 6.0, 249.0  # mean of 0..255; the real samples have 70 to 202
UNIFORM = 2.0  # standard deviation of the grey; the real samples have 22 at least
BLURRED = 0.2  # of the episode's median difference between neighbouring pixels; hands that move fast leave 0.7 at least
# Mean differences of grey between two pictures. A picture that a video encoder repeats is 0 off, a frozen one that it refines below
# 0.25; half a second of a real head camera is 0.7 at least. A robot's camera stands still: there only an exact repeat tells.
EQUAL = 0.01
FROZEN_HEAD, FROZEN_ROBOT = 0.25, EQUAL
FROZEN_SECONDS = 0.5
# Correlation of neighbouring pictures: 0.76 at least in the simulator, 0.88 in real samples. A cut is one low value among high ones:
# where a head turns fast, the neighbours are low too.
CUT, AROUND_CUT = 0.4, 0.7
# And it leaves no half of the picture as it was: 26 to 47 % of the pixels differ by CHANGED grey levels where a robot's white arm crosses
# what a still camera sees, 49 to 100 % between two rooms (the 5 % quantile and the most of 400 pairs, both in the simulator).
CHANGED, CHANGED_SHARE = 8.0, 0.5


@dataclasses.dataclass(frozen=True)
class Small:
  """The pictures of a camera."""

  grey_FxYxX: np.ndarray  # float32, 0..255; 0 where unreadable
  unreadable_F: np.ndarray
  odd_F: np.ndarray  # of another size than the episode says


def decode(jpeg_F, image_size) -> Small:
  """JPEG frames -> small grey ones."""
  grey_F, odd_F = [], np.zeros(len(jpeg_F), bool)
  for i, jpeg in enumerate(jpeg_F):
    try:
      odd_F[i] = simplejpeg.decode_jpeg_header(jpeg)[:2] != tuple(image_size)
      grey_F.append(simplejpeg.decode_jpeg(jpeg, "GRAY", fastdct=True, min_height=SMALL, min_width=SMALL)[..., 0])
    except ValueError:
      grey_F.append(None)
  shapes = [grey.shape for grey in grey_F if grey is not None]
  shape = max(set(shapes), key=shapes.count) if shapes else (SMALL, SMALL)
  unreadable_F = np.array([grey is None for grey in grey_F])
  grey_FxYxX = np.zeros((len(grey_F), *shape), np.float32)
  for i, grey in enumerate(grey_F):
    if grey is not None and grey.shape == shape:
      grey_FxYxX[i] = grey
  return Small(grey_FxYxX, unreadable_F, odd_F)


def check(small, camera, is_first, moves_F, moves_half_second_F, rate_hz, is_human):
  """-> good [F] of one camera and findings. moves_F: hands or camera move to the next frame; moves_half_second_F: clearly, till then."""
  told = findings.masked if is_first else findings.warned
  found, num_frames = [], len(small.odd_F)
  for name, bad_F, what in (
    ("not_a_picture", small.unreadable_F, "cannot be decoded, expected JPEG"),
    ("picture_size", small.odd_F & ~small.unreadable_F, "of another size than the episode says, expected one size"),
  ):
    if bad_F.any():
      detail = f"camera {camera}: {bad_F.sum()} of {num_frames} pictures are {what}, the first is frame {np.argmax(bad_F)}"
      found.append(findings.rejected(name, int(bad_F.sum()), num_frames, detail))
  sound_F = ~(small.unreadable_F | small.odd_F)
  empty_F, more = _empty(small.grey_FxYxX, sound_F, camera, told)
  found += more
  sound_F &= ~empty_F
  frozen_F, more = _frozen(small.grey_FxYxX, sound_F, camera, told, moves_half_second_F, rate_hz, FROZEN_HEAD if is_human else FROZEN_ROBOT)
  found += more + _repeats(small.grey_FxYxX, sound_F & ~frozen_F, camera, moves_F)
  cut_F, more = _cuts(small.grey_FxYxX, sound_F & ~frozen_F, camera, told)  # where a frozen one ends, much has moved
  return sound_F & ~(frozen_F | cut_F), found + more


def difference(grey_FxYxX, frames=1) -> np.ndarray:
  """Mean difference of each picture from the one so many frames later [F - frames]."""
  return np.abs(grey_FxYxX[frames:] - grey_FxYxX[:-frames]).mean(axis=(1, 2))


def _empty(grey_FxYxX, sound_F, camera, told):
  """-> [F] bool and findings: pictures without a content."""
  mean_F, spread_F = grey_FxYxX.mean(axis=(1, 2)), grey_FxYxX.std(axis=(1, 2))
  edge_F = np.abs(np.diff(grey_FxYxX, axis=2)).mean(axis=(1, 2))
  black_F, white_F = sound_F & (mean_F < BLACK), sound_F & (mean_F > WHITE)
  uniform_F = sound_F & ~black_F & ~white_F & (spread_F < UNIFORM)
  content_F = sound_F & ~(black_F | white_F | uniform_F)
  median = np.median(edge_F[content_F]) if content_F.any() else 0.0
  blurred_F = content_F & (edge_F < BLURRED * median)
  mean, spread = f"camera {camera}: mean grey", f"camera {camera}: grey varies by"
  found = told("black", "", black_F, f"{mean} down to {_least(mean_F, black_F):.1f} of 255, expected at least {BLACK:g}")
  found += told("over_exposed", "", white_F, f"{mean} above {WHITE:g} of 255, expected below")
  found += told("uniform", "", uniform_F, f"{spread} down to {_least(spread_F, uniform_F):.2f} of 255, expected at least {UNIFORM:g}")
  detail = f"camera {camera}: edges down to {_least(edge_F, blurred_F) / max(median, 1e-6):.0%} of the median, expected {BLURRED:.0%}"
  found += told("blurred", "", blurred_F, detail)
  return sound_F & ~(content_F & ~blurred_F), found


def _least(value_F, bad_F):
  return value_F[bad_F].min() if bad_F.any() else 0.0


def _frozen(grey_FxYxX, sound_F, camera, told, moves_half_second_F, rate_hz, tolerance):
  """-> [F] bool and findings: the same picture for long while hands or camera move."""
  frames = max(1, round(FROZEN_SECONDS * rate_hz))
  frozen_F = np.zeros(len(sound_F), bool)
  if len(sound_F) > frames:
    same = (difference(grey_FxYxX) < tolerance) & sound_F[1:] & sound_F[:-1]
    for first, end in findings.runs(same):
      starts = np.arange(first, end - frames + 1)
      far = np.abs(grey_FxYxX[starts + frames] - grey_FxYxX[starts]).mean(axis=(1, 2)) < tolerance
      if (far & moves_half_second_F[starts]).any():
        frozen_F[first : end + 1] = True
  detail = f"camera {camera}: the same picture for {FROZEN_SECONDS} s and more while hands or camera move, expected it to change"
  return frozen_F, told("frozen", "", frozen_F, detail)


def _repeats(grey_FxYxX, sound_F, camera, moves_F):
  """Findings: pictures that repeat the one before while something moves; at equal gaps, they were brought to a higher rate so."""
  repeat_F = np.zeros(len(sound_F), bool)
  repeat_F[1:] = (difference(grey_FxYxX) < EQUAL) & sound_F[1:] & sound_F[:-1] & moves_F[:-1]
  every, regular_F = check_hand.periodic(repeat_F)
  detail = f"camera {camera}: every {every}. picture is the one before it again, expected a lower rate of frames or new pictures"
  found = findings.warned("pictures_repeat", "", regular_F, detail)
  detail = f"camera {camera}: the picture is the one before it again while hands or camera move, expected a new one"
  return found + findings.warned("duplicated", "", repeat_F & ~regular_F, detail)


def _cuts(grey_FxYxX, sound_F, camera, told):
  """-> [F] bool and findings: both sides of a sudden change of the whole picture."""
  centred = grey_FxYxX - grey_FxYxX.mean(axis=(1, 2), keepdims=True)
  norm_F = np.sqrt((centred**2).sum(axis=(1, 2)))
  likeness = (centred[1:] * centred[:-1]).sum(axis=(1, 2)) / np.maximum(norm_F[1:] * norm_F[:-1], 1e-6)
  known = sound_F[1:] & sound_F[:-1]
  cut = np.zeros(len(likeness), bool)
  for i in np.flatnonzero(known & (likeness < CUT)):
    near = slice(max(i - 3, 0), i + 4)
    all_over = (np.abs(grey_FxYxX[i + 1] - grey_FxYxX[i]) > CHANGED).mean() > CHANGED_SHARE
    cut[i] = all_over and np.median(likeness[near][known[near]]) > AROUND_CUT
  lowest = likeness[cut].min() if cut.any() else 1.0
  detail = (
    f"camera {camera}: a picture is {lowest:.2f} like the one before, expected at least {CUT} where its neighbours are above {AROUND_CUT}"
  )
  cut_F = findings.both_ends(cut)
  return cut_F, told("cut", "", cut_F, detail)

"""Do the pictures move as the poses say? The camera's turns predict how its picture shifts; correlating both tells a lag of the clocks.

The shift of a small grey picture is the median of its four quarters', each by phase correlation: a hand that moves fills one or two of
them, a turn of the head moves all. In the real EgoDex samples the two correlate by 0.63 to 0.95, best at a lag of 0, for shifts of 0.05
pixels a frame and more. Where it is not decisive, nothing is said; no finding here masks a frame.
"""

import numpy as np

from egoscale_jax import geometry
from egoscale_jax.data import findings

DEPTH = 0.6  # metres: how far away what a head camera sees is, for the part of the shift that its movement makes; hands work at 0.3 to 0.7
MIN_SHIFT = 0.08  # small pixels a frame, root mean square: below it the hands outweigh the head
MIN_LIKENESS = 0.6  # correlation at the best lag, for either sign
MIN_GAIN = 0.2  # of it over the correlation at lag 0
MIN_LAG = 2  # frames: one is within what shutter and tracker differ by
MAX_LAG_SECONDS = 0.5
MIN_SECONDS = 2.0  # of the episode
STILL_SHIFT = 0.005  # small pixels a frame: the poses say that the camera stands
MIN_AGREEMENT = 0.5  # median correlation between the shifts of two quarters; moving hands leave 0.2, a turn of the head 0.68


def check(episode, grey_FxYxX) -> list[findings.Finding]:
  """The findings clock_lag, camera_reversed, camera_still."""
  num_frames = episode.num_frames
  max_lag = round(MAX_LAG_SECONDS * episode.rate_hz)
  known = np.isfinite(episode.T_world_camera_Fx4x4).all() and np.isfinite(episode.intrinsics_3x3).all()
  if not known or num_frames < max(MIN_SECONDS * episode.rate_hz, 3 * max_lag) or min(grey_FxYxX.shape[1:]) < 16:
    return []
  told_Sx2 = predicted(episode, grey_FxYxX.shape[1] / episode.image_size[0])
  told = _size(told_Sx2)
  if STILL_SHIFT <= told < MIN_SHIFT:
    return []
  quarter_4xSx2 = np.stack([shifts(quarter) for quarter in quarters(grey_FxYxX)])
  seen_Sx2 = np.median(quarter_4xSx2, axis=0)
  seen = _size(seen_Sx2)
  if told < STILL_SHIFT and seen > MIN_SHIFT:
    agreement = np.median([likeness(quarter_4xSx2[i], quarter_4xSx2[j], 0) for i in range(4) for j in range(i)])
    if agreement > MIN_AGREEMENT:
      detail = f"the pictures shift by {seen:.2f} small pixels a frame as one, the camera's pose is constant; expected it to move"
      return [findings.whole("camera_still", findings.WARNING, "", num_frames, detail)]
  if told < MIN_SHIFT or seen < MIN_SHIFT:
    return []
  lags = np.arange(-max_lag, max_lag + 1)
  likeness_L = np.array([likeness(seen_Sx2, told_Sx2, lag) for lag in lags])
  now = likeness_L[max_lag]
  if -likeness_L.min() > MIN_LIKENESS and -likeness_L.min() > likeness_L.max() + MIN_GAIN:
    detail = (
      f"pictures shift against what the camera's pose says, correlation {likeness_L.min():.2f}, expected above 0: is its turn inverted?"
    )
    return [findings.whole("camera_reversed", findings.WARNING, "", num_frames, detail)]
  best = int(likeness_L.argmax())
  if likeness_L[best] > MIN_LIKENESS and likeness_L[best] > now + MIN_GAIN and abs(lags[best]) >= MIN_LAG:
    late = f"{'late' if lags[best] > 0 else 'early'} by {abs(lags[best])} frames ({abs(lags[best]) / episode.rate_hz:.3f} s)"
    detail = f"the pictures are {late} against the poses: correlation {likeness_L[best]:.2f} there and {now:.2f} without, expected no lag"
    return [findings.whole("clock_lag", findings.WARNING, "", num_frames, detail)]
  return []


def _size(shift_Sx2):
  """Root mean square."""
  return float(np.sqrt((shift_Sx2**2).mean()))


def quarters(grey_FxYxX):
  height, width = grey_FxYxX.shape[1] // 2, grey_FxYxX.shape[2] // 2
  return [grey_FxYxX[:, y, x] for y in (slice(height), slice(-height, None)) for x in (slice(width), slice(-width, None))]


def shifts(grey_FxYxX) -> np.ndarray:
  """How what is seen moves from a picture to the next, (x, y) in pixels [F - 1, 2], by phase correlation, the peak fitted."""
  count, height, width = grey_FxYxX.shape
  window = (np.hanning(height + 2)[1:-1, None] * np.hanning(width + 2)[1:-1]).astype(np.float32)
  spectrum = np.fft.rfft2((grey_FxYxX - grey_FxYxX.mean(axis=(1, 2), keepdims=True)) * window)
  cross = spectrum[:-1].conj() * spectrum[1:]
  size = np.abs(cross)
  cross /= size + 1e-3 * size.mean() + 1e-9
  smooth = np.exp(-20 * (np.fft.fftfreq(height)[:, None] ** 2 + np.fft.rfftfreq(width) ** 2)).astype(
    np.float32
  )  # a peak some pixels wide, for the fit
  peak_Sxyxx = np.fft.irfft2(cross * smooth, s=(height, width))
  y, x = np.divmod(peak_Sxyxx.reshape(count - 1, -1).argmax(axis=1), width)
  at = lambda dy, dx: peak_Sxyxx[np.arange(count - 1), (y + dy) % height, (x + dx) % width]  # noqa: E731
  fine_x, fine_y = x + _vertex(at(0, -1), at(0, 0), at(0, 1)), y + _vertex(at(-1, 0), at(0, 0), at(1, 0))
  return np.stack([(fine_x + width / 2) % width - width / 2, (fine_y + height / 2) % height - height / 2], axis=1)


def _vertex(before, top, after):
  """Where the parabola through three values is highest, -0.5..0.5 from the middle one."""
  curve = before - 2 * top + after
  return np.where(curve < -1e-12, 0.5 * (before - after) / np.where(curve < -1e-12, curve, 1), 0.0)


def predicted(episode, scale) -> np.ndarray:
  """How a point DEPTH metres before the camera moves in the picture, (x, y) in pixels of `scale` [F - 1, 2], if the poses are right."""
  T_world_camera_Fx4x4, K_3x3 = episode.T_world_camera_Fx4x4.astype(np.float64), episode.intrinsics_3x3.astype(np.float64)
  T_next_now = geometry.se3_inverse(T_world_camera_Fx4x4[1:]) @ T_world_camera_Fx4x4[:-1]
  pixel = geometry.project(K_3x3, geometry.transform(T_next_now, np.array([[0, 0, DEPTH]])))[:, 0]
  return np.nan_to_num((pixel - K_3x3[:2, 2]) * scale)


def likeness(a_Sx2, b_Sx2, lag) -> float:
  """Correlation of a with b `lag` steps before: positive where a comes late."""
  a, b = (a_Sx2[lag:], b_Sx2[: len(b_Sx2) - lag]) if lag >= 0 else (a_Sx2[:lag], b_Sx2[-lag:])
  a, b = a - a.mean(axis=0), b - b.mean(axis=0)
  return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum() + 1e-12))

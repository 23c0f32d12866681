"""Checks of what an episode says about itself: its length, its rate, its instruction and the spans of the finer ones."""

import numpy as np

from egoscale_jax.data import findings

MIN_SECONDS, MIN_FRAMES = 0.5, 2  # a shorter episode holds no movement; two frames make one step
RATE_HZ = (1.0, 250.0)  # robots are recorded at 3 Hz and more, the fastest cameras at 240
MIN_COVER = 0.5  # of the time with an instruction
SLACK_SECONDS = 0.5  # that a span may end past the last frame: annotators round


def check(episode) -> list[findings.Finding]:
  return _length(episode) + _text(episode)


def _length(episode):
  seconds, frames = episode.num_frames / episode.rate_hz, episode.num_frames
  if not RATE_HZ[0] <= episode.rate_hz <= RATE_HZ[1]:
    detail = f"{episode.rate_hz:g} frames a second, expected {RATE_HZ[0]:g} to {RATE_HZ[1]:g}: milliseconds taken for seconds?"
    return [findings.rejected("rate", frames, frames, detail)]
  if seconds >= MIN_SECONDS and frames >= MIN_FRAMES:
    return []
  detail = f"{frames} frames in {seconds:.2f} s, expected at least {MIN_FRAMES} in {MIN_SECONDS} s"
  return [findings.rejected("too_short", frames, frames, detail)]


def _text(episode):
  """An instruction for every frame: the episode's, or that of a span."""
  frames, rate_hz = episode.num_frames, episode.rate_hz
  length = frames / rate_hz
  time_F = (np.arange(frames) + 0.5) / rate_hz
  covered_F, found = np.zeros(frames, bool), []
  for span in episode.spans:
    told = f"{span.text!r:.40} from {span.start_s:g} to {span.end_s:g} s"
    if not span.end_s > span.start_s:
      detail = f"{told} ends before it begins, expected a time"
      found.append(findings.whole("span_inverted", findings.WARNING, span.side, frames, detail))
    elif span.start_s < -SLACK_SECONDS or span.end_s > length + SLACK_SECONDS:
      detail = f"{told} lies outside the episode, expected within 0 to {length:.2f} s"
      found.append(findings.whole("span_outside", findings.WARNING, span.side, frames, detail))
    if not span.text.strip():
      found.append(findings.whole("span_empty", findings.WARNING, span.side, frames, f"{told} has no text, expected an instruction"))
    else:
      covered_F |= (span.start_s <= time_F) & (time_F < span.end_s)
  if episode.text.strip():
    return found
  if not covered_F.any():
    return [*found, findings.whole("no_text", findings.WARNING, "", frames, "no instruction, expected what is done here")]
  if covered_F.mean() < MIN_COVER:
    detail = f"an instruction on {covered_F.mean():.0%} of the frames and none for the episode, expected on {MIN_COVER:.0%}"
    found += findings.warned("text_gap", "", ~covered_F, detail)
  return found

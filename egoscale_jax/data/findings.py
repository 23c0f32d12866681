"""A Finding, and the runs of frames that it is made of. Every check (check_*.py) returns a list of them."""

import dataclasses

import numpy as np

REJECTED, MASKED, WARNING = SEVERITIES = ("rejected", "masked", "warning")  # the worst first
MAX_SPANS = 32  # of a finding; more are joined over their shortest gaps, so that a noisy hour does not fill a manifest


@dataclasses.dataclass(frozen=True)
class Finding:
  """One fault of an episode."""

  name: str
  severity: str  # "rejected": the episode is left out, "masked": these frames carry no label, "warning": nothing is done
  side: str  # "left", "right", or "" where it is not of one hand
  count: int  # frames
  first_frame: int
  last_frame: int  # of them
  detail: str  # what was found, what was expected
  spans: tuple[tuple[int, int], ...] = ()  # (first, last) frame of each run of them


def masked(name, side, bad_F, detail) -> list[Finding]:
  """The finding of the frames where bad_F, or none; as the next one."""
  return _of_frames(name, MASKED, side, bad_F, detail)


def warned(name, side, bad_F, detail) -> list[Finding]:
  return _of_frames(name, WARNING, side, bad_F, detail)


def rejected(name, count, num_frames, detail) -> Finding:
  """The finding of an episode as a whole, for the sake of `count` of its frames."""
  return Finding(name, REJECTED, "", count, 0, num_frames - 1, detail, ((0, num_frames - 1),))


def whole(name, severity, side, num_frames, detail) -> Finding:
  """The finding of all frames."""
  return Finding(name, severity, side, num_frames, 0, num_frames - 1, detail, ((0, num_frames - 1),))


def _of_frames(name, severity, side, bad_F, detail):
  if not bad_F.any():
    return []
  at = np.flatnonzero(bad_F)
  return [Finding(name, severity, side, len(at), int(at[0]), int(at[-1]), detail, _spans(at))]


def _spans(at):
  """Sorted frames -> (first, last) of their runs, at most MAX_SPANS."""
  gaps = np.diff(at)
  cuts = np.flatnonzero(gaps > 1)
  if len(cuts) >= MAX_SPANS:
    cuts = np.sort(cuts[np.argsort(-gaps[cuts], kind="stable")[: MAX_SPANS - 1]])
  firsts, lasts = [at[0], *at[cuts + 1]], [*at[cuts], at[-1]]
  return tuple((int(first), int(last)) for first, last in zip(firsts, lasts))


def runs(true_F) -> list[tuple[int, int]]:
  """[F] bool -> (first, past the last) of its runs."""
  edges = np.flatnonzero(np.diff(np.concatenate([[False], true_F, [False]]).astype(np.int8)))
  return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2])]


def long_runs(true_F, shortest) -> np.ndarray:
  """[F] bool -> the same without runs of fewer frames than `shortest`."""
  kept_F = np.zeros(len(true_F), bool)
  for first, end in runs(true_F):
    kept_F[first:end] = end - first >= shortest
  return kept_F


def both_ends(step_bool) -> np.ndarray:
  """Steps between neighbours [F - 1] bool -> the frames on either side of them [F]."""
  frame_F = np.zeros(len(step_bool) + 1, bool)
  frame_F[:-1] |= step_bool
  frame_F[1:] |= step_bool
  return frame_F


def within(still_step, shortest) -> np.ndarray:
  """Steps [F - 1] bool -> the frames [F] of runs of at least `shortest` such steps."""
  return both_ends(long_runs(still_step, shortest))

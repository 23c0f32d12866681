"""The one progress bar: rate and remaining time; on a terminal alive, in a log file a line every ten seconds."""

import sys

import tqdm


def bar(total, what, unit):
  """A tqdm bar on the standard error."""
  interval = 0.2 if sys.stderr.isatty() else 10.0
  return tqdm.tqdm(total=total, desc=what, unit=unit, file=sys.stderr, mininterval=interval, smoothing=0.05)

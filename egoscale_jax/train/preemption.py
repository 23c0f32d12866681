"""SIGTERM: the machine is being taken away. The step in progress is finished and saved, and the process says so by its exit code.

One process: a flag that the handler sets. Several: JAX's own handler tells the others, and all stop after the same step; in a validation,
which has no steps, none of them hears it, so what is due is saved before it begins.
"""

import signal
import threading

import jax
from jax.experimental import multihost_utils


class Preemption:
  """A context; outside of it, and away from the main thread, SIGTERM does what it did before."""

  def __init__(self):
    self.noticed = False

  def __enter__(self):
    self._ours = jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
    if self._ours:
      self._before = signal.signal(signal.SIGTERM, self._notice)
    return self

  def __exit__(self, *_):
    if self._ours:
      signal.signal(signal.SIGTERM, self._before)

  def _notice(self, *_):
    self.noticed = True

  def after(self, step):
    """Is `step` the last one? Asked once a step, by every process."""
    return self.noticed or (jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step))

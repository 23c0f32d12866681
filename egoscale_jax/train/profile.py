"""A profile of the steps config.profile = (first, last) into workdir/profile, for TensorBoard's profiler or xprof; of process 0."""

import jax

from egoscale_jax.train import distributed


class Profile:
  """A context, so that a run that ends in between leaves its profile too."""

  def __init__(self, workdir, steps):
    self._folder, self._steps, self._on = workdir / "profile", tuple(steps) if distributed.is_first() else (), False

  def before(self, step):
    if self._steps and self._steps[0] == step:
      jax.profiler.start_trace(self._folder)
      self._on = True

  def after(self, step, values):
    """values: of the step, waited for if it is the last one of the profile."""
    if self._on and self._steps[1] == step:
      jax.block_until_ready(values)
      self._end()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._end()

  def _end(self):
    if self._on:
      jax.profiler.stop_trace()
      print(f"wrote {self._folder}", flush=True)
    self._on = False

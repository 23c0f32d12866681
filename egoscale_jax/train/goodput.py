"""Goodput: the share of the wall time since a run's first start in which steps ran that still count.

What is not in it: compiling, restoring, waiting for data, validation, saves that block, steps that a kill threw away, and the time in which
the run was down. `seconds` of a line of metrics.jsonl is what its step took without the data wait; a start's first step compiles and has
none.
"""

import json
import time

from egoscale_jax.train import checkpoint

FILE = "started.json"


class Goodput:
  def __init__(self, workdir, lines):
    """lines: of metrics.jsonl, those that are kept."""
    path = workdir / FILE
    if not path.exists():
      checkpoint.write_json(path, {"unix_seconds": time.time()})
    self.started = json.loads(path.read_text(encoding="utf-8"))["unix_seconds"]
    self.productive = sum(line.get("seconds", 0.0) for line in lines)

  def add(self, seconds):
    self.productive += seconds

  def share(self):
    return self.productive / max(time.time() - self.started, 1e-9)

"""A strict session: 8 fake CPU devices, rank promotion raises, warnings are errors (pyproject.toml)."""

import os
import pathlib
import re
import sys

# In the environment, so that processes that tests start are as strict and share what is compiled: the tests compile much and run little.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# LLVM's optimizations are nearly half of all compiling and save less than that here; no test is about them, and XLA's own passes stay.
# So do the older emitters of fused loops: a train step compiles in 4 s of a core, not in 10, retargeting to 22 joints in 3.5, not in 10.
# JAX_DISABLE_MOST_OPTIMIZATIONS=0 XLA_FLAGS= ./launch/test.sh has the programs that users run.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).resolve().parents[1] / ".venv" / "jax_cache"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # small programs too: no slower cold, four times as fast the next time

import jax
import pytest
import xdist.scheduler
from absl import flags

ROOT = pathlib.Path(__file__).resolve().parents[1]
jax.config.update("jax_num_cpu_devices", 8)
flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags

SHARED = ROOT.parent / "shared"
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "data")]  # helpers: tiny.py, recordings.py

# The files that take longest, in this order, so that no process is left alone with one of them at the end; a file that is not here comes
# after them. Those of `shards` come first of all: they compile retargeting, which the other process then finds in the cache.
LONGEST = (
  *("shards", "tests/train/test_step.py", "tests/train/test_sharding.py", "tests/data/test_builder.py", "tests/data/test_prepare.py"),
  *("tests/hands/test_retarget.py", "tests/test_colabs.py", "tests/models/test_flops.py", "tests/data/test_statistics.py"),
  *("tests/hands/test_implicit.py", "tests/train/test_plan.py", "tests/hands/test_kinematics.py", "tests/models/test_vla.py"),
)


class ByFile(xdist.scheduler.LoadFileScheduling):
  """A file to a process, the longest first, and all files that need `shards` or `tiny_run` to the same one: they are made once."""

  def _split_scope(self, nodeid):
    file = nodeid.split("::")[0]
    needed = re.search(r"^def .*[(, ](shards|tiny_run)[,)]", (ROOT / file).read_text(), re.MULTILINE)
    return "shards" if needed else file

  def _assign_work_unit(self, node):
    for scope in reversed(LONGEST):
      if scope in self.workqueue:
        self.workqueue.move_to_end(scope, last=False)
    super()._assign_work_unit(node)


@pytest.hookimpl(optionalhook=True)  # rather than marks and loadgroup, which xdist 3.8 loses under pytest 9.2
def pytest_xdist_make_scheduler(config, log):
  return ByFile(config, log)


@pytest.fixture(scope="session")
def shared():
  """Real recordings and hand descriptions beside the checkout: read, never copied."""
  if not SHARED.is_dir():
    pytest.skip("the folder ../shared with real recordings and hands is absent")
  return SHARED


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
  """Six synthetic recordings, prepared: five scenes to train on and one held out."""
  import recordings

  from egoscale_jax.data import prepare
  from egoscale_jax.data.sources import egodex

  folder = tmp_path_factory.mktemp("shards")
  for i in range(6):
    recordings.write(folder / "in", f"pour/{i}", frames=50 + i, seed=i, llm_description=f"Pour tea into cup {i}.")
  prepare.prepare(egodex, folder / "in", folder / "out", "sharpa_wave", workers=1, image_size=64, validation=0.1)
  return folder / "out"


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, shards):
  """The work directory of a finished `egoscale train` on `shards`: tiny.RUN."""
  import tiny

  folder = tmp_path_factory.mktemp("run")
  with open(folder / "log", "w") as log:
    assert tiny.train(shards, folder / "run", log).wait(300) == 0, (folder / "log").read_text()
  return folder / "run"

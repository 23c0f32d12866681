"""A plan is of the true train step on chips that are not there; what they cannot be is one line."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from egoscale_jax import cli
from egoscale_jax.train import chips, plan


def run(*arguments):
  """In a process of its own, since libtpu stays in the one that loads it."""
  return subprocess.run(
    [sys.executable, "-m", "egoscale_jax.cli", "plan", *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
    env=os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "XLA_FLAGS": ""},
  )


@pytest.mark.parametrize(
  ("topology", "expected"),
  [
    ("v4:4x4x4", "--topology=v4:4x4x4: found 'v4', expected v5e, v5p or v6e, as in v5p:4x8x8"),
    ("v6e:4x4x4", "--topology=v6e:4x4x4: found '4x4x4', expected 2 sizes, as in v6e:4x4"),
    ("v5p:4xax4", "--topology=v5p:4xax4: found '4xax4', expected 3 sizes, as in v5p:4x4x4"),
  ],
)
def test_a_slice_that_there_is_none_of_is_one_line(capsys, topology, expected):
  """Told before the compiler is asked, hence in this process."""
  assert cli.main(["plan", f"--config={ROOT}/configs/pretrain.py:debug", f"--topology={topology}"]) == 1
  assert capsys.readouterr().err == f"egoscale plan: {expected}\n"


def test_chips_of_a_slice():
  assert chips.parse("v5p:4x8x8") == (chips.V5P, 256)
  assert chips.parse("v6e:16x16") == (chips.V6E, 256)


def test_without_the_compiler_the_line_says_how_to_get_it():
  if plan.LIBTPU.is_file():
    pytest.skip("libtpu is installed: the other tests compile with it")
  told = run("--config=configs/pretrain.py:debug", "--topology=v5p:2x2x1")
  assert told.returncode == 1
  assert "needs the TPU compiler: pip install --no-deps --target=" in told.stderr
  assert told.stderr.count("\n") == 1


@pytest.mark.skipif(not plan.LIBTPU.is_file(), reason="libtpu is not installed: launch/setup.sh does")
def test_a_plan_adds_up(tmp_path):
  overrides = ["--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.model.expert.layers=2", "--config.model.language.layers=1"]
  overrides += ["--config.model.vision.depth=1", "--config.model.mixer.layers=0"]
  told = run("--config=configs/pretrain.py:debug", "--topology=v5p:2x2x1", f"--json={tmp_path / 'plan.json'}", *overrides)
  assert told.returncode == 0, told.stderr
  assert told.stderr == ""
  made = json.loads((tmp_path / "plan.json").read_text())
  assert made["fits"]
  assert made["chips"] == 4
  assert made["mesh"] == {"data": 2, "fsdp": 2, "tensor": 1}
  memory = made["hbm_bytes"]
  assert memory["peak"] == memory["arguments"] + memory["temporaries"] + memory["program"]
  assert memory["arguments"] > 3 * 4 * made["parameters"] / 4  # parameters and two moments, at most fsdp apart
  rate = made["batch_size"] / made["step_seconds"]
  assert made["examples_per_second"] == pytest.approx(rate)
  assert made["model_flop_utilization"] == pytest.approx(made["flops_per_example"] * rate / 4 / chips.V5P.flops)
  assert made["days"] == pytest.approx(300 * made["step_seconds"] / 86400)
  assert made["chip_hours"] == pytest.approx(24 * 4 * made["days"])
  # The gradients of all parameters cross the links, and so do the gathered parameters: no less than once each, no more than ten times.
  assert 4 * made["parameters"] < sum(made["link_bytes"].values()) < 40 * made["parameters"]
  assert "fits: peak" in told.stdout

"""numpy is told to sort by AVX2 on the one kind of processor where that is faster."""

import os
import subprocess
import sys

import pytest

from egoscale_jax import zen4

ZEN4 = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nflags\t\t: fpu avx2 avx512f\n\nprocessor\t: 1\n"


@pytest.fixture(autouse=True)
def unset(monkeypatch):
  monkeypatch.setenv(zen4._VARIABLE, "")  # so that it is put back afterwards
  monkeypatch.delenv(zen4._VARIABLE)


def told(tmp_path, cpuinfo):
  (tmp_path / "cpuinfo").write_text(cpuinfo)
  zen4.tell(tmp_path / "cpuinfo")
  return os.environ.get(zen4._VARIABLE)


def test_zen_4_alone(tmp_path):
  assert "AVX512_ICL" in told(tmp_path, ZEN4)


@pytest.mark.parametrize("change", [("AuthenticAMD", "GenuineIntel"), (": 25", ": 26"), (": 25", ": 23"), (" avx512f", "")])
def test_no_other(tmp_path, change):
  assert told(tmp_path, ZEN4.replace(*change)) is None


def test_a_choice_of_the_user_s_and_a_machine_without_cpuinfo_are_left_alone(tmp_path, monkeypatch):
  zen4.tell(tmp_path / "none")
  assert zen4._VARIABLE not in os.environ
  monkeypatch.setenv(zen4._VARIABLE, "FMA3")
  assert told(tmp_path, ZEN4) == "FMA3"


def test_this_numpy_knows_the_names(tmp_path):
  """A name that it does not know is an ImportWarning; one that this processor lacks is none."""
  told(tmp_path, ZEN4)
  subprocess.run([sys.executable, "-W", "error", "-c", "import numpy"], check=True)


def test_a_process_that_has_numpy_already_is_left_alone():
  zen4.sort_by_avx2()
  assert "numpy" in sys.modules
  assert zen4._VARIABLE not in os.environ

"""numpy's AVX-512 sort takes four times as long as its AVX2 sort on AMD's Zen 4, whose compress-store is microcode
(numpy/x86-simd-sort#6): 13.7 against 3.5 ns a value, and sorting is a third of the statistics' time (data/sketch.py)."""

import importlib.metadata
import os
import pathlib
import sys

_VARIABLE = "NPY_DISABLE_CPU_FEATURES"  # read when numpy is imported, and inherited by worker processes


def sort_by_avx2():
  """For this process and its workers. Does nothing where numpy is imported already: workers would then sum in another order."""
  if "numpy" not in sys.modules:
    tell()


def tell(cpuinfo=pathlib.Path("/proc/cpuinfo")):
  """Sets the variable for processes to come; not on any other processor, or where it is set."""
  if _VARIABLE not in os.environ and cpuinfo.is_file() and _is_zen4(cpuinfo.read_text()):
    version = tuple(int(part) for part in importlib.metadata.version("numpy").split(".")[:2])
    # numpy warns at a name that it does not know: 2.4 has put the AVX-512 of the first server processors into one group.
    first = "X86_V4" if version >= (2, 4) else "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL"
    os.environ[_VARIABLE] = f"{first} AVX512_ICL"


def _is_zen4(cpuinfo):
  """Of the first processor's lines. Family 25 is Zen 3 and Zen 4; only the latter has AVX-512, and Zen 5 is family 26."""
  fields = dict(map(str.strip, line.split(":", 1)) for line in cpuinfo.split("\n\n")[0].splitlines() if ":" in line)
  return (fields.get("vendor_id"), fields.get("cpu family")) == ("AuthenticAMD", "25") and "avx512f" in fields.get("flags", "").split()

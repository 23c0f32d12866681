"""The accelerators that `egoscale plan` knows: published figures of one chip, its links and its host.

Peak, memory, links: cloud.google.com/tpu/docs (v5e, v5p, v6e) and jax-ml.github.io/scaling-book (2025), which gives a link's rate one way.
hbm_bytes is what the compiler lets a program have. Clocks: those with which the compiler's cycles meet its own microseconds.
"""

import dataclasses
import math
import re

from egoscale_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
  name: str
  flops: float  # bfloat16, a second
  hbm_bytes: float
  hbm_rate: float  # bytes a second
  clock_hz: float
  link_rate: float  # bytes a second, one way, one link
  links: int  # axes of the torus; each has a link in both directions
  network_rate: float  # bytes a second and chip between slices (DCN)
  host_chips: int  # chips that one host feeds, in slices of several hosts
  host_cores: int  # vCPUs of that host


V5E = Chip("v5e", 197e12, 15.75 * 2**30, 8.1e11, 1.5e9, 4.5e10, 2, 3.1e9, 4, 112)
V5P = Chip("v5p", 459e12, 95.74 * 2**30, 2.77e12, 1.75e9, 9e10, 3, 6.2e9, 4, 208)
V6E = Chip("v6e", 918e12, 31.25 * 2**30, 1.64e12, 1.75e9, 9e10, 2, 12.5e9, 4, 180)


def parse(topology: str) -> tuple[Chip, int]:
  """ "v5p:4x8x8" -> (the chip, how many of it); UserError where there is no such slice."""
  name, _, shape = topology.partition(":")
  chip = {"v5e": V5E, "v5p": V5P, "v6e": V6E}.get(name)
  if chip is None:
    raise UserError(f"--topology={topology}: found {name!r}, expected v5e, v5p or v6e, as in v5p:4x8x8")
  if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) or shape.count("x") + 1 != chip.links:
    raise UserError(f"--topology={topology}: found {shape!r}, expected {chip.links} sizes, as in {name}:{'x'.join('4' * chip.links)}")
  return chip, math.prod(int(n) for n in shape.split("x"))


# bfloat16 FLOPs a second without sparsity, by how jax names the kind of device. TPUs as above, v4: cloud.google.com/tpu/docs/v4; GPUs: the
# data sheets of their SXM forms.
_PEAKS = (
  (r"TPU v5 ?lite|TPU v5e", V5E.flops),
  (r"TPU v5p?", V5P.flops),
  (r"TPU v6 ?lite|TPU v6e", V6E.flops),
  (r"TPU v4", 275e12),
  (r".*\b(GB200|B200).*", 2250e12),
  (r".*\b(GH200|H100|H200)\b(?! (PCIe|NVL)).*", 989e12),
  (r".*\bA100\b.*", 312e12),
)


def peak_flops(device_kind: str) -> float:
  """Of one device; 0.0 where it is not known."""
  return next((peak for pattern, peak in _PEAKS if re.fullmatch(pattern, device_kind)), 0.0)

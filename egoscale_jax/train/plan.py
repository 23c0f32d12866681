"""`egoscale plan`: will it fit, how fast will it go, what will it cost? The true train step, compiled for a pod that is not there.

libtpu compiles for any slice without a TPU. What fits is what its memory analysis says; the step's time is the sum of its own cycles
(hlo.py), so it is an estimate of the compute alone: what the links carry comes beside it, as the most that it can add.
"""

import contextlib
import dataclasses
import importlib.metadata
import itertools
import os
import pathlib
import re
import sys
import tempfile
import time

import jax

from egoscale_jax.data import spec
from egoscale_jax.errors import UserError
from egoscale_jax.models import flops, vla
from egoscale_jax.train import chips, hlo, optim, run, sharding
from egoscale_jax.train import step as step_lib

# JPEG pictures of 224 x 224 that one core makes into examples a second (docs/data.md); a planning figure, not a promise.
PICTURES_A_CORE = 7000
# Not an ordinary dependency: where it can be imported every JAX program without a TPU complains on its standard error.
LIBTPU = pathlib.Path(sys.prefix) / "libtpu" / "libtpu" / "libtpu.so"
# Without these libtpu asks the network what machine it is on.
_ENVIRONMENT = {
  "TPU_SKIP_MDS_QUERY": "1",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_ACCELERATOR_TYPE": "v5p-8",
  "TPU_WORKER_HOSTNAMES": "localhost",
}
CHOICES = ("mesh.data=-1", "mesh.fsdp=16,64,256", "model.remat=none,branches,full")


@dataclasses.dataclass(frozen=True)
class Plan:
  """Bytes and FLOPs are a chip's and a step's where nothing else is said; docs/pods.md describes every key. None: it does not fit."""

  topology: str
  chips: int
  mesh: dict
  batch_size: int
  remat: str
  fits: bool
  parameters: int
  flops_per_example: float  # of the model, forward and backward; what is recomputed does not count
  hbm_bytes: dict  # peak, limit; where it fits, of the peak: arguments, temporaries, program
  compile_seconds: float
  step_seconds: float | None = None  # the compiler's own, compute only
  model_flop_utilization: float | None = None
  link_bytes: dict | None = None  # {axis: bytes that a chip sends}
  link_seconds: float | None = None  # the most that the links add: nothing overlaps
  examples_per_second: float | None = None
  days: float | None = None
  chip_hours: float | None = None
  loader_cores_per_host: float | None = None
  host_cores: int | None = None
  kernels: int | None = None  # calls of hand-written kernels, whose time is not in step_seconds
  top_operations: dict | None = None  # seconds of the costliest ones

  def keys(self) -> dict:
    """As --json writes them."""
    return dataclasses.asdict(self)

  def lines(self):
    gib, memory = lambda n: f"{n / 2**30:.1f} GiB", self.hbm_bytes
    lines = [
      f"{self.topology}: {self.chips} chips, mesh {self.mesh}, batch {self.batch_size}, remat {self.remat}",
      f"  parameters      {self.parameters / 1e9:.3f} B; {self.flops_per_example / 1e12:.2f} TFLOP an example (forward and backward)",
      f"  memory a chip   {'fits' if self.fits else 'DOES NOT FIT'}: peak {gib(memory['peak'])} of {gib(memory['limit'])}",
    ]
    if not self.fits:
      return lines
    lines[-1] += f" ({', '.join(f'{name} {gib(memory[name])}' for name in ('arguments', 'temporaries', 'program'))})"
    kernels = f"; {self.kernels} calls of hand-written kernels NOT COUNTED" if self.kernels else ""
    use = f"{self.model_flop_utilization:.1%} model-FLOP use{kernels}"
    links = ", ".join(f"{axis} {n / 1e9:.2f} GB" for axis, n in self.link_bytes.items()) or "nothing"
    return [
      *lines,
      f"  step            {self.step_seconds:.3f} s by the compiler's own cycles: {use}",
      f"  links a chip    {links}; at most {self.link_seconds:.3f} s more, if nothing overlaps",
      f"  rate            {self.examples_per_second:.0f} examples/s",
      f"  the stage       {self.days:.2f} days, {self.chip_hours:.0f} chip-hours",
      f"  loaders         {self.loader_cores_per_host:.1f} of a host's {self.host_cores} cores",
      f"  compiled in     {self.compile_seconds:.0f} s",
    ]

  def row(self):
    if not self.fits:
      return f"does not fit: {self.hbm_bytes['peak'] / 2**30:.1f} GiB"
    return (
      f"{self.step_seconds:.3f} s, {self.model_flop_utilization:.1%} model-FLOP use, links at most {self.link_seconds:.3f} s more,"
      f" peak {self.hbm_bytes['peak'] / 2**30:.1f} GiB"
    )


def make(config, topology, slices=1) -> Plan:
  """UserError where there is no such slice, no libtpu, or where the config does not divide. Takes minutes and a few GB."""
  chip, count = chips.parse(topology)
  mesh = sharding.make_mesh(config, _devices(topology, slices))
  with tempfile.TemporaryDirectory() as folder, _fresh():
    began = time.perf_counter()
    shapes, lowered = lower(config, mesh)
    trained = optim.trainable(shapes.params, config.train_parts)
    known = Plan(
      topology=topology,
      chips=count * slices,
      mesh=dict(mesh.shape),
      batch_size=config.batch_size,
      remat=config.model.remat,
      fits=False,
      parameters=sum(leaf.size for leaf in jax.tree.leaves(shapes.params)),
      flops_per_example=flops.training(config, [part for part, tree in trained.items() if any(jax.tree.leaves(tree))]),
      hbm_bytes=dict(limit=chip.hbm_bytes),
      compile_seconds=0.0,
    )
    try:
      compiled = lowered.compile(compiler_options={"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
    except jax.errors.JaxRuntimeError as error:
      needed = re.search(r"total memory required for HLO temporaries \(([\d.]+)G\)|Used ([\d.]+)G of", str(error))
      if "RESOURCE_EXHAUSTED" not in str(error) or not needed:
        raise
      memory = dict(peak=float(needed[1] or needed[2]) * 2**30, limit=chip.hbm_bytes)
      return dataclasses.replace(known, hbm_bytes=memory, compile_seconds=time.perf_counter() - began)
    (dump,) = pathlib.Path(folder).glob("*jit_train_step*after_codegen.txt")
    with open(dump, encoding="utf-8", errors="replace") as file:
      cost = hlo.cost(*hlo.parse(file))
    known = dataclasses.replace(known, compile_seconds=time.perf_counter() - began)
  return _timed(known, config, chip, slices, mesh, compiled.memory_analysis(), cost)


def sweep(parse, topology, slices, choices):
  """Every combination of `choices` ("model.remat=none,full"; none: CHOICES), told as it comes -> [(choice, Plan)], the fastest first.

  parse(overrides) -> config. What does not fit is told and left out; UserError where nothing fits.
  """
  lists = [[f"--config.{key}={value}" for value in values.split(",")] for key, _, values in (c.partition("=") for c in choices or CHOICES)]
  made = []
  for overrides in itertools.product(*lists):
    choice = " ".join(override.removeprefix("--config.") for override in overrides)
    try:
      plan = make(parse(overrides), topology, slices)
    except UserError as error:  # a mesh that these chips do not have
      print(f"{choice}: {error}", flush=True)
      continue
    print(f"{choice}: {plan.row()}", flush=True)
    if plan.fits:
      made.append((choice, plan))
  if not made:
    raise UserError(f"--sweep: none of the choices fits {topology}")
  made.sort(key=lambda pair: pair[1].step_seconds + pair[1].link_seconds)
  print("\n".join(["", *(f"{rank}. {choice}: {plan.row()}" for rank, (choice, plan) in enumerate(made, 1))]))
  return made


def lower(config, mesh):
  """-> shapes of the state, and the true train step lowered for the mesh, without a parameter or a batch."""
  model = vla.VLA(config.model, mesh.abstract_mesh)
  batch = spec.batch_shapes(config, run.make_prompt(config).length)
  shapes = jax.eval_shape(lambda batch: step_lib.init_state(model, config, batch), batch)
  return shapes, step_lib.jit_train_step(model, config, sharding.state_shardings(shapes, mesh), mesh, batch).lower(shapes, batch)


def _devices(topology, slices):
  """Of a slice that is not there, as libtpu describes them."""
  for name, value in _ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  if LIBTPU.is_file():
    os.environ.setdefault("TPU_LIBRARY_PATH", str(LIBTPU))
  from jax.experimental import topologies

  more = {"num_slices": slices} if slices > 1 else {}
  try:
    return topologies.get_topology_desc(platform="tpu", topology_name=topology, **more).devices
  except (RuntimeError, ValueError, NotImplementedError) as error:
    why = " ".join(str(error).split())
    if "not installed" in why:
      (wanted,) = {r.split(";")[0].strip() for r in importlib.metadata.requires("jax") if r.startswith("libtpu")}
      why = f"needs the TPU compiler: pip install --no-deps --target={LIBTPU.parents[1]} '{wanted}'"
    raise UserError(f"--topology={topology}: {why[:300]}") from error


@contextlib.contextmanager
def _fresh():
  """Without the cache of compiled programs: what comes from it leaves no dump."""
  cache = jax.config.jax_enable_compilation_cache
  jax.config.update("jax_enable_compilation_cache", False)
  try:
    yield
  finally:
    jax.config.update("jax_enable_compilation_cache", cache)


def _timed(known, config, chip, slices, mesh, memory, cost):
  seconds = cost.cycles / chip.clock_hz + cost.untimed_bytes / chip.hbm_rate
  rate = config.batch_size / seconds
  parts = dict(
    arguments=memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes,
    temporaries=memory.temp_size_in_bytes,
    program=memory.generated_code_size_in_bytes,
  )
  sent = link_bytes(cost, mesh)
  across = sum(n for axes, n in sent.items() if "data" in axes or axes == "all")
  slow = across / chip.network_rate if slices > 1 else 0.0
  hours = config.steps * seconds / 3600
  return dataclasses.replace(
    known,
    fits=sum(parts.values()) <= chip.hbm_bytes,
    hbm_bytes=parts | dict(peak=sum(parts.values()), limit=chip.hbm_bytes),
    step_seconds=seconds,
    model_flop_utilization=known.flops_per_example * config.batch_size / known.chips / chip.flops / seconds,
    link_bytes=sent,
    link_seconds=sum(sent.values()) / (2 * chip.link_rate * chip.links) + slow,
    examples_per_second=rate,
    days=hours / 24,
    chip_hours=hours * known.chips,
    loader_cores_per_host=rate / known.chips * chip.host_chips * len(config.data.cameras) / PICTURES_A_CORE,
    host_cores=chip.host_cores,
    kernels=cost.kernels,
    top_operations={name: cycles / chip.clock_hz for name, cycles in cost.by_name.most_common(20)},
  )


def link_bytes(cost, mesh):
  """{axis of the mesh, or axes: bytes that a chip sends a step}, told apart by how many chips a collective joins."""
  shape = {axis: size for axis, size in mesh.shape.items() if size > 1}
  names = {size: " or ".join(axis for axis in shape if shape[axis] == size) for size in shape.values()}
  names.setdefault(mesh.size, "all")
  result = {}
  for (_, size), sent in cost.sent_bytes.items():
    name = names.get(size, "neighbours" if size == 2 else f"groups of {size}")
    result[name] = result.get(name, 0.0) + sent
  return result

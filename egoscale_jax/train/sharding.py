"""The mesh and the one table that says how every parameter is sharded.

Axes: `data` (batch), `fsdp` (batch, and one axis of every large parameter), `tensor` (heads and mlp). A rule is a regular expression
on the parameter's path and the PartitionSpec of its *last* axes; leading axes (scanned blocks, embodiments) are replicated. Every
parameter matches exactly one rule, every rule is used, or it is an error: nothing is replicated by accident. Optimizer moments follow
their parameter.
"""

import re

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from egoscale_jax.errors import UserError
from egoscale_jax.models.pinning import AXES, BATCH, fit_spec

RULES = (
  (r"vision/patch_embed/kernel", P("fsdp", "tensor")),
  (r"vision/position", P(None, "fsdp")),
  (r"language/embedding", P("tensor", "fsdp")),
  (r"expert/memory/(key|value)/kernel", P("fsdp", None, "tensor", None)),
  (r"(?!expert/memory/).*/(query|key|value)/kernel", P("fsdp", "tensor", None)),
  (r".*/(query|key|value)/bias", P("tensor", None)),
  (r".*/attention/out/kernel|language/.*/out/kernel", P("tensor", None, "fsdp")),
  (r".*/(mlp/up|gate)/kernel|language/(deepstack_)?blocks/up/kernel", P("fsdp", "tensor")),
  (r".*/mlp/down/kernel|language/(deepstack_)?blocks/down/kernel", P("tensor", "fsdp")),
  (r"expert/(state_encoder|action_encoder)/.*/kernel|expert/action_decoder/up/kernel", P(None, "fsdp")),
  (r"expert/action_decoder/down/kernel", P("fsdp", None)),  # 132 actions divide by nothing
  (r"expert/((groups|rest)/.*/time|time_in|time_out|modulate_out|out)/kernel", P("fsdp", "tensor")),
  (r"expert/position", P(None, "fsdp")),
  (r"expert/missing_state|.*norm[^/]*/(scale|bias)|(?!.*/(query|key|value)/).*/bias", P()),
)


def make_mesh(config, devices=None):
  """config.mesh = {axis: size, one of them -1 for all that is left} -> Mesh."""
  devices = jax.devices() if devices is None else devices
  sizes = [config.mesh[axis] for axis in AXES]
  if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
    raise UserError(f"config.mesh: found {dict(zip(AXES, sizes))}, expected sizes from 1, or of one of them -1 for all that is left")
  if -1 in sizes:
    rest = int(np.prod([size for size in sizes if size != -1]))
    sizes[sizes.index(-1)] = max(len(devices) // rest, 1)
  if int(np.prod(sizes)) != len(devices):
    raise UserError(f"config.mesh: found {dict(zip(AXES, sizes))}, expected a product of {len(devices)} devices")
  rows, n = sizes[0] * sizes[1], config.accumulate
  if config.batch_size % (rows * n):
    what = f"data x fsdp = {rows}" if n == 1 else f"data x fsdp x config.accumulate = {rows} x {n}"
    raise UserError(f"config.batch_size: found {config.batch_size}, expected a multiple of {what}")
  # Auto, not make_mesh's default Explicit, under which Linen modules fail.
  kinds = (AxisType.Auto,) * len(AXES)
  slices = 1 + max(getattr(device, "slice_index", 0) or 0 for device in devices)
  if slices > 1:
    return jax.sharding.Mesh(_across_slices(sizes, slices, devices), AXES, axis_types=kinds)
  try:
    return jax.make_mesh(tuple(sizes), AXES, axis_types=kinds, devices=devices)
  except NotImplementedError as error:  # JAX's, where the axes cannot lie on whole axes of the torus
    raise UserError(f"config.mesh: found {dict(zip(AXES, sizes))}, {' '.join(str(error).split())[:250]}") from error


def _across_slices(sizes, slices, devices):
  """Devices of several TPU slices as an array [data, fsdp, tensor]: only `data` crosses the slow network between them."""
  if sizes[0] % slices:
    raise UserError(f"config.mesh.data: found {sizes[0]}, expected a multiple of the {slices} slices, between which only the batch is cut")
  within = (sizes[0] // slices, *sizes[1:])
  return mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1), devices=devices)


def path_name(path):
  """Key path of a leaf -> "vision/blocks/attention/query/kernel"."""
  return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def param_specs(shapes):
  """Tree of shapes of the parameters -> tree of PartitionSpecs; ValueError on zero or two matches and on a rule that no leaf uses."""
  used = set()

  def spec(path, leaf):
    name = path_name(path)
    matches = [i for i, (pattern, _) in enumerate(RULES) if re.fullmatch(pattern, name)]
    if len(matches) != 1:
      raise ValueError(f"{name}: matches {len(matches)} sharding rules {[RULES[i][0] for i in matches]}, expected one")
    used.add(matches[0])
    rule = RULES[matches[0]][1]
    return P(*(None,) * (len(leaf.shape) - len(rule)), *rule)

  specs = jax.tree_util.tree_map_with_path(spec, shapes)
  unused = [RULES[i][0] for i in range(len(RULES)) if i not in used]
  if unused:
    raise ValueError(f"sharding rules that match no parameter: {unused}")
  return specs


def param_shardings(shapes, mesh):
  """Tree of shapes of the parameters -> tree of NamedShardings."""
  specs = param_specs(shapes)
  return jax.tree.map(lambda leaf, spec: NamedSharding(mesh, fit_spec(spec, leaf.shape, mesh)), shapes, specs)


def state_shardings(state_shapes, mesh):
  """TrainState of shapes -> TrainState of NamedShardings. A moment has its parameter's path as its tail and takes its rule."""
  specs = {path_name(path): spec for path, spec in jax.tree_util.tree_leaves_with_path(param_specs(state_shapes.params))}

  def sharding(path, leaf):
    names = path_name(path).split("/")
    tails = ("/".join(names[i:]) for i in range(len(names)))
    spec = next((specs[tail] for tail in tails if tail in specs), P())
    return NamedSharding(mesh, fit_spec(spec, leaf.shape, mesh))

  return jax.tree_util.tree_map_with_path(sharding, state_shapes)


def to_global(batch, mesh):
  """This process's rows of a Batch (numpy) -> global arrays, sharded over data and fsdp."""
  sharding = NamedSharding(mesh, BATCH)
  return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch)

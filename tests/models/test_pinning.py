"""Activations lie where they should: by the sharding of what comes out of jit, on 8 fake devices."""

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from egoscale_jax.models import pinning
from egoscale_jax.models.pinning import pin


class Module:
  """Stands for one of Linen: a mesh and methods."""

  def __init__(self, mesh):
    self.mesh = mesh

  @pinning.on_mesh
  def heads(self, x):
    return pin(x, split=-2)

  @pinning.on_mesh
  def mlp(self, x):
    return pin(x, split=-1)


def test_batch_over_data_and_fsdp_and_heads_or_mlp_over_tensor():
  mesh = jax.make_mesh((2, 2, 2), pinning.AXES, axis_types=(AxisType.Auto,) * 3)
  module = Module(mesh.abstract_mesh)
  x = jax.device_put(np.zeros((8, 3, 4, 6), np.float32), NamedSharding(mesh, P(None, None, None, "fsdp")))
  assert jax.jit(module.heads)(x).sharding.spec == P(("data", "fsdp"), None, "tensor")
  assert jax.jit(module.mlp)(x).sharding.spec == P(("data", "fsdp"), None, None, "tensor")
  odd = jax.device_put(np.zeros((8, 3, 4, 5), np.float32), NamedSharding(mesh, P("data")))
  assert jax.jit(module.mlp)(odd).sharding.spec == P(("data", "fsdp")), "5 does not divide by 2: whole"


def test_without_a_mesh_nothing_is_said():
  x = np.zeros((2, 4), np.float32)
  assert Module(None).mlp(x) is x
  one = jax.sharding.AbstractMesh((1, 1, 1), pinning.AXES, axis_types=(AxisType.Auto,) * 3)
  assert Module(one).mlp(x) is x

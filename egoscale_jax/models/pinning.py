"""Where activations lie on the mesh: the batch over data and fsdp, heads and mlp over tensor, the width whole.

Left to itself XLA carries the residual stream of a scan with its width over fsdp or tensor: FSDP becomes tensor parallelism. With data,
fsdp and tensor all above 1 its partitioner even computes wrong values (jax 0.10.2, CPU): a product of [B over (data, fsdp), L, N over
tensor, H] with a kernel [N over tensor, H, D over fsdp], its result wanted with D over tensor, comes back with its rows interchanged. So
every block says where its activations lie, and first of all where the results of such products do.
"""

import contextlib
import functools

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp", "tensor")
BATCH = P(("data", "fsdp"))


def on_mesh(method):
  """A module's method in which `pin` means self.mesh, a jax.sharding.AbstractMesh; None: it means nothing (one device, tests)."""

  @functools.wraps(method)
  def inside(self, *args, **kwargs):
    with contextlib.nullcontext() if self.mesh is None else jax.sharding.use_abstract_mesh(self.mesh):
      return method(self, *args, **kwargs)

  return inside


def fit_spec(spec, shape, mesh):
  """Drops mesh axes that do not divide their dimension: toy sizes on many devices. A full-size model loses none (a test shows it)."""
  size = lambda axes: int(np.prod([mesh.shape[a] for a in (axes if isinstance(axes, tuple) else (axes,))]))  # noqa: E731
  return P(*(axes if axes is not None and dim % size(axes) == 0 else None for dim, axes in zip(shape, spec)))


def pin(x, split=None):
  """x with its first axis over data and fsdp, its axis `split` (heads: -2, mlp: -1) over tensor, and every other axis whole."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return x
  spec = [*BATCH, *(None,) * (x.ndim - 1)]
  if split is not None:
    spec[split] = "tensor"
  return jax.lax.with_sharding_constraint(x, fit_spec(spec, x.shape, mesh))


def platform():
  """ "cpu", "gpu" or "tpu": of the mesh that is on, which may be a pod that is only compiled for, or of this process."""
  device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
  return jax.default_backend() if device is None else device.platform

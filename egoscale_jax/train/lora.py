"""Low-rank adapters on chosen kernels, as a transform of the parameter tree: kernel + alpha / rank * a @ b.

The model knows nothing of them: the loss merges them into the parameters, and so does whatever opens a finished run.
"""

import math
import re

import jax
import jax.numpy as jnp

from egoscale_jax.errors import UserError
from egoscale_jax.train import optim
from egoscale_jax.train.sharding import path_name


def init(params, patterns, rank, seed):
  """-> tree like `params`: {"a": [..., in, rank], "b": [..., rank, out]} at the kernels whose path matches, None elsewhere. b is zero."""
  leaves = [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]
  optim.check_patterns("config.lora.paths", patterns)
  for pattern in patterns:
    if not any(re.fullmatch(pattern, name) and name.endswith("/kernel") for name, _ in leaves):
      example = next(name for name, _ in leaves if name.endswith("/kernel"))
      raise UserError(f"config.lora.paths: {pattern!r} matches no kernel, expected a path such as {example!r}")
  keys = jax.random.split(jax.random.key(seed), len(leaves))
  adapters = [_adapter(name, leaf, patterns, rank, key) for (name, leaf), key in zip(leaves, keys)]
  return jax.tree.unflatten(jax.tree.structure(params), adapters)


def _adapter(name, kernel, patterns, rank, key):
  if not (name.endswith("/kernel") and any(re.fullmatch(pattern, name) for pattern in patterns)):
    return None
  lead, inner, outer = _axes(name, kernel.shape)
  a = jax.random.normal(key, (*lead, inner, rank)) / math.sqrt(inner)
  return {"a": a, "b": jnp.zeros((*lead, rank, outer))}


def _axes(name, shape):
  """-> stacked axes (scanned blocks, embodiments), size of what comes in, size of what goes out."""
  lead = int(bool(re.search(r"/(blocks|deepstack_blocks|groups|state_encoder|action_encoder|action_decoder)/", name)))
  first_out = lead + 1 if name.split("/")[-2] in ("query", "key", "value") else len(shape) - 1
  return shape[:lead], math.prod(shape[lead:first_out]), math.prod(shape[first_out:])


def merge(params, adapters, scale):
  """-> parameters with the adapters in them; scale = alpha / rank."""

  def one(kernel, adapter):
    if adapter is None:
      return kernel
    return kernel + (scale * jnp.matmul(adapter["a"], adapter["b"])).reshape(kernel.shape)

  leaves, structure = jax.tree.flatten(params)
  return jax.tree.unflatten(structure, map(one, leaves, structure.flatten_up_to(adapters)))

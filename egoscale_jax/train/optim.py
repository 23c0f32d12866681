"""AdamW with a cosine schedule; frozen parts have no gradient and no optimizer state."""

import re

import jax
import optax

from egoscale_jax.errors import UserError
from egoscale_jax.train.sharding import path_name


def schedule(config):
  """Learning rate of a step: linear warm-up, then cosine to zero (GR00T N1's Table 6; the paper is silent)."""
  warmup = max(1, round(config.optim.warmup * config.steps))
  return optax.warmup_cosine_decay_schedule(0.0, config.optim.learning_rate, warmup, max(config.steps, warmup + 1))


def make_optimizer(config):
  o = config.optim
  return optax.chain(
    optax.clip_by_global_norm(o.clip_norm),
    optax.adamw(schedule(config), b1=o.b1, b2=o.b2, eps=o.eps, weight_decay=o.weight_decay, mask=is_matrix),
  )


def is_matrix(params):
  """True for kernels and tables: norms and biases are not decayed."""
  return jax.tree_util.tree_map_with_path(lambda path, _: path_name(path).rsplit("/", 1)[-1] not in ("bias", "scale"), params)


def trainable(params, patterns):
  """Tree of bool: does a parameter's path match one of config.train_parts? A pattern that matches nothing is a UserError."""
  names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
  for pattern in patterns:
    if not any(re.fullmatch(pattern, name) for name in names):
      raise UserError(f"config.train_parts: {pattern!r} matches no parameter, expected a path such as {names[0]!r}")
  match = lambda path, _: any(re.fullmatch(pattern, path_name(path)) for pattern in patterns)  # noqa: E731
  return jax.tree_util.tree_map_with_path(match, params)


def select(params, mask, value):
  """`params` where mask is `value`, None elsewhere: None is an empty subtree, so it takes no memory and no gradient."""
  return jax.tree.map(lambda leaf, flag: leaf if flag == value else None, params, mask)


def merge(trained, frozen):
  """The inverse of two `select`s."""
  return jax.tree.map(lambda a, b: b if a is None else a, trained, frozen, is_leaf=lambda leaf: leaf is None)

"""AdamW, or Muon on the matrices, with a cosine schedule and a factor a part; frozen parts have no gradient and no optimizer state.

What is learned is (trained parameters, adapters): a name here is a path without that first index, "vision/blocks/mlp/up/kernel".
"""

import re

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from egoscale_jax.errors import UserError
from egoscale_jax.train.sharding import path_name

_ADAMS_RMS = 0.2  # of an update: what AdamW's is about (arXiv:2502.16982)
_STACKED = {"blocks", "deepstack_blocks", "groups", "state_encoder", "action_encoder", "action_decoder"}  # a block or an embodiment each
_OUTER = ("patch_embed", "state_encoder/up", "action_encoder/action", "action_decoder/down")  # what reads from, or speaks to, the outside


def schedule(config):
  """Learning rate of a step: linear warm-up, then cosine to zero (GR00T N1's Table 6; the paper is silent)."""
  warmup = max(1, round(config.optim.warmup * config.steps))
  return optax.warmup_cosine_decay_schedule(0.0, config.optim.learning_rate, warmup, max(config.steps, warmup + 1))


def make_optimizer(config):
  o = config.optim
  check_rates(o.rates)
  return optax.chain(
    optax.clip_by_global_norm(o.clip_norm),
    muon(config) if o.muon else optax.adamw(schedule(config), b1=o.b1, b2=o.b2, eps=o.eps, weight_decay=o.weight_decay, mask=is_matrix),
    optax.stateless(lambda updates, _: scale_parts(updates, o.rates)),
  )


def muon(config):
  """Orthogonalised momentum for hidden matrices (arXiv:2502.16982: as large as Adam's steps, times config.optim.muon), NAdam for the rest.

  A matrix is taken whole: on a mesh that cuts it each step gathers it. Meant for small models from scratch.
  """
  o, rate = config.optim, schedule(config)
  if not 0 < o.muon <= 10:
    raise UserError(f"config.optim.muon: found {o.muon}, expected a factor above 0 and at most 10, or 0 for AdamW alone")
  return optax.contrib.muon(
    lambda step: o.muon * rate(step),
    adam_learning_rate=rate,
    adam_b1=o.b1,
    adam_b2=o.b2,
    eps=o.eps,
    weight_decay=o.weight_decay,
    weight_decay_mask=is_matrix,
    consistent_rms=_ADAMS_RMS,
    muon_weight_dimension_numbers=lambda learned: jax.tree_util.tree_map_with_path(_matrix, learned),
  )


def _matrix(path, leaf):
  """What of a hidden kernel is input and output, of several heads together, each block and embodiment apart; None: no matrix of Muon's.

  The maps that read pictures, states and actions and say actions are Adam's, as are tables, norms and biases.
  """
  name = learned_name(path)
  *parents, last = name.split("/")
  if last != "kernel" or name.removesuffix("/kernel").endswith(_OUTER):
    return None
  first = 1 - _STACKED.isdisjoint(parents)
  inputs = 2 if parents[-1] == "out" and leaf.ndim - first == 3 else 1
  return optax.contrib.MuonDimensionNumbers(tuple(range(first, first + inputs)), tuple(range(first + inputs, leaf.ndim)))


def scale_parts(updates, rates):
  """rates: ((pattern, factor), ...) as in config.optim.rates; the first pattern that a name matches wins, and without one it is 1.

  The factor is of the learning rate, so the weight decay has it too. UserError on a pattern that no trained parameter takes.
  """
  leaves, structure = jax.tree_util.tree_flatten_with_path(updates)
  names, taken = [learned_name(path) for path, _ in leaves], []
  for name in names:
    taken.append(next((i for i, (pattern, _) in enumerate(rates) if re.fullmatch(pattern, name)), None))
  for i, (pattern, _) in enumerate(rates):
    if i not in taken:
      raise UserError(f"config.optim.rates: {pattern!r} matches no trained parameter that an earlier pattern has not, as {names[0]!r}")
  return structure.unflatten([leaf if i is None else leaf * rates[i][1] for i, (_, leaf) in zip(taken, leaves)])


def check_rates(rates):
  for pair in rates:
    if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], int | float) and pair[1] > 0):
      raise UserError(f'config.optim.rates: found {pair!r}, expected pairs of a pattern and a factor above 0, as ("vision/.*", 0.1)')
  check_patterns("config.optim.rates", [pattern for pattern, _ in rates])


def check_patterns(field, patterns):
  for pattern in patterns:
    try:
      re.compile(pattern)
    except re.error as error:
      raise UserError(f"{field}: found {pattern!r}, expected a regular expression: {error}") from error


def learned_name(path):
  """Of a leaf of (trained parameters, adapters)."""
  return path_name(path[1:])


def part_norms(learned, name):
  """-> {"<name>/<part>": norm}; a part is the first word of a parameter's path, with its adapters."""
  squares = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(learned):
    squares.setdefault(learned_name(path).split("/")[0], []).append(jnp.sum(jnp.square(leaf)))
  return {f"{name}/{part}": jnp.sqrt(sum(parts)) for part, parts in sorted(squares.items())}


def is_matrix(params):
  """True for kernels and tables: norms and biases are not decayed."""
  return jax.tree_util.tree_map_with_path(lambda path, _: path_name(path).rsplit("/", 1)[-1] not in ("bias", "scale"), params)


def trainable(params, patterns):
  """Tree of bool: does a parameter's path match one of config.train_parts? A pattern that matches nothing is a UserError."""
  names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
  check_patterns("config.train_parts", patterns)
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

"""Pointing at what is named: how a backbone without public weights learns to see. Its heads are of this training alone; no policy has them.

A picture has G cells (the vision encoder's patches), in merged order. Three questions are asked of every picture:
  naming    where is each thing that is seen in it, by its name alone; from the vision encoder's tokens: dense, so that it is quick
  pointing  where is the first, and the second, thing that a sentence names; from the mixer's output, which the action expert reads
  reading   how far is that from the camera, along each axis; from all of the mixer's tokens by attention, as the action expert reads
A place is a cell, by cross-entropy, and where in it. (Rejected: reading alone, by a squared error: after as many pictures 58 mm off where
pointing is 10, docs/evidence.md. And pointing alone: an answer that is a token's number need not be in the token.)
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from egoscale_jax.models import vision, vla

NAMED = 2  # things of a sentence that are pointed at
_WIDTH, _PRECISION = 64, 10.0  # of names; of the place within a cell, or from the camera, beside the cell
_QUERIES, _UNIT = 4, 0.1  # of the reader; metres


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Asked:
  """B pictures with Q things each, and a sentence that names some of them. Places are shares of the picture's width and height."""

  image_BxYxXx3: jax.Array
  token_BxL: jax.Array  # of the sentence's prompt
  token_mask_BxL: jax.Array
  name_BxQxW: jax.Array  # token ids of the things' names
  name_mask_BxQxW: jax.Array  # all False: no thing
  place_BxQx2: jax.Array
  position_BxQx3: jax.Array  # from the camera, metres
  said_BxN: jax.Array  # which things the sentence names, in its order
  said_mask_BxN: jax.Array


class Heads(nn.Module):
  """merge: cells of a token, along each side."""

  merge: int

  @nn.compact
  def __call__(self, token_BxIxD, name_BxQxD, feature_BxIxD, every_BxLxD, mask_BxL):
    """-> naming, pointing: (logit [B, Q or NAMED, G], offset from the cell's middle [B, Q or NAMED, G, 2]); reading [B, NAMED, 3] m."""
    cells, b = self.merge**2, len(token_BxIxD)
    spread = lambda name: nn.Dense(cells * _WIDTH, name=name)(nn.LayerNorm(name=f"{name}_norm")(token_BxIxD)).reshape(b, -1, _WIDTH)  # noqa: E731
    name = nn.Dense(_WIDTH, name="name")(name_BxQxD)
    logit = jnp.einsum("bqe,bge->bqg", name, spread("cell")) / np.sqrt(_WIDTH)
    offset = nn.Dense(2, name="within")(nn.gelu(name[:, :, None] + spread("detail")[:, None]))
    x = nn.gelu(nn.Dense(2 * _WIDTH, name="up")(nn.LayerNorm(name="feature_norm")(feature_BxIxD)))
    pointed = nn.Dense(cells * NAMED * 3, name="down")(x).reshape(b, -1, NAMED, 3).swapaxes(1, 2)
    return (logit, offset), (pointed[..., 0], pointed[..., 1:]), self._read(every_BxLxD, mask_BxL)

  def _read(self, every_BxLxD, mask_BxL):
    normal, width = nn.LayerNorm(name="every_norm")(every_BxLxD), every_BxLxD.shape[-1]
    query = self.param("query", nn.initializers.normal(1.0), (_QUERIES, width))
    score = jnp.einsum("qd,bld->bql", query, nn.Dense(width, name="key")(normal)) / np.sqrt(width)
    weight = jax.nn.softmax(jnp.where(mask_BxL[:, None], score, -1e9))
    found = jnp.einsum("bql,bld->bqd", weight, nn.Dense(width, name="value")(normal)).reshape(len(normal), -1)
    x = nn.gelu(nn.Dense(2 * _WIDTH, name="read_up")(found))
    return nn.Dense(NAMED * 3, name="read_down")(x).reshape(-1, NAMED, 3) * _UNIT


class Grounder(nn.Module):
  """The backbone of a VLA (vision, language, mixer) under their own names, and the heads."""

  config: ml_collections.ConfigDict  # config.model
  grid: tuple[int, int]  # rows and columns of cells

  def setup(self):
    self.backbone, self.heads = vla.VLA(self.config), Heads(self.config.vision.merge)

  def __call__(self, asked):
    """-> naming, pointing, reading, as Heads has them."""
    (rows, cols), v, b = self.grid, self.config.vision, len(asked.image_BxYxXx3)
    cut = vision.patches(asked.image_BxYxXx3, v.patch, v.merge, v.temporal_patch)
    tokens, taps = self.backbone.vision(cut, self.grid)
    there, merged = jnp.ones(tokens.shape[:2], bool), jnp.broadcast_to(jnp.asarray([rows // v.merge, cols // v.merge]), (b, 1, 2))
    hidden, mask, is_image = self.backbone.read(asked.token_BxL, asked.token_mask_BxL, tokens, taps, there, merged)
    every = self.backbone.mixer(hidden, mask, False)
    first = jnp.argmax(is_image, axis=1)  # a picture's tokens stand together, where the text's length lets them
    feature = jnp.take_along_axis(every, (first[:, None] + jnp.arange(tokens.shape[1])[None])[..., None], axis=1)
    word = self.backbone.language.embed(asked.name_BxQxW) * asked.name_mask_BxQxW[..., None]
    name = word.sum(axis=2) / jnp.maximum(asked.name_mask_BxQxW.sum(axis=2), 1)[..., None]
    return self.heads(tokens, name, feature, every, mask)


def cells(grid, merge, place_xx2):
  """Places [..., 2] -> (cell [...], offset from its middle [..., 2] in cells)."""
  rows, cols = grid
  order = vision.merged_order(rows, cols, merge)
  number = np.empty((rows, cols), int)
  number[order[0], order[1]] = np.arange(rows * cols)
  x, y = place_xx2[..., 0] * cols, place_xx2[..., 1] * rows
  column, row = jnp.clip(x.astype(int), 0, cols - 1), jnp.clip(y.astype(int), 0, rows - 1)
  return jnp.asarray(number)[row, column], jnp.stack([x - column, y - row], axis=-1) - 0.5


def places(grid, merge, answer):
  """(logit [..., G], offset [..., G, 2]) -> the likeliest place [..., 2]."""
  rows, cols = grid
  order = vision.merged_order(rows, cols, merge)
  logit, offset = answer
  best = jnp.argmax(logit, axis=-1)
  x, y = (jnp.asarray(order[1 - axis] + 0.5)[best] + _at(offset, best)[..., axis] for axis in (0, 1))
  return jnp.stack([x / cols, y / rows], axis=-1)


def loss(grid, merge, asked, naming, pointing, reading):
  """-> scalar: of naming, pointing and reading, each the mean over what is asked."""
  cell, offset = cells(grid, merge, asked.place_BxQx2)
  there = asked.name_mask_BxQxW.any(axis=-1)
  said = lambda a: jnp.take_along_axis(a, asked.said_BxN.reshape(*asked.said_BxN.shape, *[1] * (a.ndim - 2)), axis=1)  # noqa: E731
  far = optax.huber_loss(reading / _UNIT, said(asked.position_BxQx3) / _UNIT, delta=0.1).sum(axis=-1)
  read = _PRECISION * _mean(far, asked.said_mask_BxN)
  return _error(naming, cell, offset, there) + _error(pointing, said(cell), said(offset), asked.said_mask_BxN) + read


def _error(answer, cell, offset, mask):
  logit, guess = answer
  wrong = optax.softmax_cross_entropy_with_integer_labels(logit, cell)
  beside = optax.huber_loss(_at(guess, cell), offset, delta=0.1).sum(axis=-1)
  return _mean(wrong + _PRECISION * beside, mask)


def _mean(value, mask):
  return jnp.sum(mask * value) / jnp.maximum(mask.sum(), 1)


def _at(offset_xGx2, cell):
  return jnp.take_along_axis(offset_xGx2, cell[..., None, None], axis=-2)[..., 0, :]

"""Language decoder in the shape of Qwen3: grouped queries, RMSNorm on queries and keys, SwiGLU, interleaved M-RoPE, DeepStack inputs."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from egoscale_jax.models import attention, layers
from egoscale_jax.models.pinning import pin


def mrope_positions(is_image_BxL, token_mask_BxL, grid_BxCx2):
  """Positions [3, B, L] (time, row, column) of every token; `grid` holds the rows and columns of each image's merged tokens, in order.

  ```
  token   <s> i i i i </s> go      grid (2, 2)
  time     0  1 1 1 1  3   4       an image's tokens count from the next free position,
  row      0  1 1 2 2  3   4       the text after it from the largest + 1;
  column   0  1 2 1 2  3   4       padding does not count
  ```
  """
  grid_BxCx2 = jnp.asarray(grid_BxCx2, jnp.int32)
  counts = (is_image_BxL & token_mask_BxL).astype(jnp.int32)  # an absent image takes no room, but has its grid
  size_BxC = jnp.prod(grid_BxCx2, axis=-1)
  end_BxC = jnp.cumsum(size_BxC, axis=1)
  place_BxL = jnp.cumsum(is_image_BxL, axis=1) - 1  # among the image tokens of the example
  image_BxL = jnp.sum(place_BxL[:, :, None] >= end_BxC[:, None, :], axis=-1)
  of_image = lambda value_BxC: jnp.take_along_axis(value_BxC, jnp.minimum(image_BxL, value_BxC.shape[1] - 1), axis=1)  # noqa: E731
  within = place_BxL - of_image(end_BxC - size_BxC)  # a token's place in its own image
  cols = of_image(grid_BxCx2[..., 1])
  last = (within == of_image(size_BxC) - 1) & (counts > 0)
  advance = jnp.where(counts > 0, jnp.where(last, of_image(jnp.max(grid_BxCx2, axis=-1)), 0), token_mask_BxL.astype(jnp.int32))
  base = jnp.cumsum(advance, axis=1) - advance
  row = jnp.where(counts > 0, within // cols, 0)
  column = jnp.where(counts > 0, within % cols, 0)
  return jnp.stack([base, base + row, base + column])


def mrope_angles(position_3xBxL, head_dim, theta, sections):
  """Angles [B, L, H/2]: frequency i reads row where i % 3 == 1 and i < 3 * sections[1], column where i % 3 == 2 and i < 3 * sections[2]."""
  half = head_dim // 2
  index = np.arange(half)
  axis = np.where((index % 3 == 1) & (index < 3 * sections[1]), 1, np.where((index % 3 == 2) & (index < 3 * sections[2]), 2, 0))
  frequency = jnp.asarray(theta ** (-index / half), jnp.float32)
  position = jnp.moveaxis(position_3xBxL, 0, -1).astype(jnp.float32)[..., axis]
  return position * frequency[None, None, :]


class Block(nn.Module):
  heads: int
  kv_heads: int
  head_dim: int
  mlp: int
  attention: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BxLxD, extra_BxLxD, angle_BxLxR, token_mask_BxL):
    norm = lambda name: nn.RMSNorm(epsilon=1e-6, dtype=self.dtype, name=name)  # noqa: E731
    y = pin(norm("norm_attention")(x_BxLxD))
    heads = lambda name, count: pin(layers.dense((count, self.head_dim), name, self.dtype, bias=False)(y), split=-2)  # noqa: E731
    q = norm("norm_query")(heads("query", self.heads))
    k, v = norm("norm_key")(heads("key", self.kv_heads)), heads("value", self.kv_heads)
    q, k = layers.rotate(q, angle_BxLxR), layers.rotate(k, angle_BxLxR)
    out = attention.attend(q, k, v, token_mask_BxL, causal=True, how=self.attention)
    out = checkpoint_name(pin(out, split=-2), "attended")
    x_BxLxD += checkpoint_name(pin(layers.dense(x_BxLxD.shape[-1], "out", self.dtype, bias=False, axis=(-2, -1))(out)), "branch")

    y = pin(norm("norm_mlp")(x_BxLxD))
    wide = lambda name: pin(layers.dense(self.mlp, name, self.dtype, bias=False)(y), split=-1)  # noqa: E731
    hidden = nn.silu(wide("gate")) * wide("up")
    x_BxLxD += checkpoint_name(pin(layers.dense(x_BxLxD.shape[-1], "down", self.dtype, bias=False)(hidden)), "branch")
    if extra_BxLxD is not None:  # DeepStack: an earlier vision tap, added to the image tokens
      x_BxLxD += extra_BxLxD
    return x_BxLxD, None


class Language(nn.Module):
  """Embedded tokens [B, L, D] -> features [B, L, D] of the last kept layer, before the final norm.

  The action head never reads that norm; its scale is a parameter all the same, so that a checkpoint goes back as complete as it came.
  """

  layers: int
  width: int
  heads: int
  kv_heads: int
  head_dim: int
  mlp: int
  vocab: int
  rope_theta: float
  mrope_sections: tuple[int, int, int]
  remat: str
  attention: str
  dtype: jnp.dtype

  def setup(self):
    self.embedding = self.param("embedding", layers.truncated, (self.vocab, self.width))

  def embed(self, token_BxL):
    return pin(jnp.take(self.embedding, token_BxL, axis=0).astype(self.dtype))

  @nn.compact
  def __call__(self, x_BxLxD, deepstack, position_3xBxL, token_mask_BxL):
    """`deepstack`: list of [B, L, D], zero off the image tokens, one for each of the first blocks."""
    angle = mrope_angles(position_3xBxL, self.head_dim, self.rope_theta, self.mrope_sections)
    x_BxLxD, deepstack = pin(x_BxLxD), [pin(tap) for tap in deepstack]
    sizes = (self.heads, self.kv_heads, self.head_dim, self.mlp, self.attention, self.dtype)
    early = len(deepstack)
    if early:
      run = layers.scan_blocks(Block, early, self.remat, in_axes=(0, nn.broadcast, nn.broadcast))
      x_BxLxD, _ = run(*sizes, name="deepstack_blocks")(x_BxLxD, jnp.stack(deepstack), angle, token_mask_BxL)
    if self.layers > early:
      run = layers.scan_blocks(Block, self.layers - early, self.remat, in_axes=nn.broadcast)
      x_BxLxD, _ = run(*sizes, name="blocks")(x_BxLxD, None, angle, token_mask_BxL)
    nn.RMSNorm(epsilon=1e-6, dtype=self.dtype, name="norm_final")(x_BxLxD)  # a parameter, not a computation: nobody reads it
    return x_BxLxD

"""Vision encoder in the shape of Qwen3-VL: patches, 2-D rotary, a learned position table read bilinearly, 2 x 2 merger, DeepStack taps."""

import einops
import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from egoscale_jax.models import layers
from egoscale_jax.models.pinning import pin


def merged_order(rows, cols, merge):
  """Row and column [rows * cols] of every patch, patches of one merge x merge block together: the order of all tokens here."""
  grid = np.stack(np.meshgrid(np.arange(rows), np.arange(cols), indexing="ij"), axis=-1)
  return einops.rearrange(grid, "(r a) (c b) rc -> rc (r c a b)", a=merge, b=merge)


def bilinear_table(side, rows, cols):
  """Weights [rows * cols, side * side] that read a side x side table at a rows x cols grid, corners on corners (row-major)."""

  def axis(n):
    position = np.linspace(0.0, side - 1.0, n)
    low = np.floor(position).astype(int)
    high = np.minimum(low + 1, side - 1)
    weight = np.zeros((n, side))
    np.add.at(weight, (np.arange(n), low), 1.0 - (position - low))
    np.add.at(weight, (np.arange(n), high), position - low)
    return weight

  return np.einsum("ri,cj->rcij", axis(rows), axis(cols)).reshape(rows * cols, side * side).astype(np.float32)


class Block(nn.Module):
  heads: int
  mlp: int
  attention: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BxLxD, angle_1xLxR):
    width = x_BxLxD.shape[-1]
    y = layers.layer_norm("norm_attention", self.dtype)(x_BxLxD)
    x_BxLxD += layers.Attention(self.heads, width // self.heads, self.attention, self.dtype, name="attention")(y, angle_BxLxR=angle_1xLxR)
    y = layers.layer_norm("norm_mlp", self.dtype)(x_BxLxD)
    x_BxLxD += layers.Mlp(self.mlp, width, self.dtype, name="mlp")(y)
    return x_BxLxD, x_BxLxD


class Merger(nn.Module):
  """merge x merge neighbouring tokens -> one of the language model's width. The norm stands before the shuffle, or after it (DeepStack)."""

  merge: int
  out: int
  norm_after_shuffle: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BxLxD):
    norm = layers.layer_norm("norm", self.dtype)
    if not self.norm_after_shuffle:
      x_BxLxD = norm(x_BxLxD)
    x = einops.rearrange(x_BxLxD, "b (l m) d -> b l (m d)", m=self.merge**2)
    if self.norm_after_shuffle:
      x = norm(x)
    return layers.Mlp(x.shape[-1], self.out, self.dtype, approximate_gelu=False, name="mlp")(x)


def patches(image_BxYxXx3, patch, merge, temporal_patch):
  """uint8 image of any whole number of cells -> [B, rows * cols, 3 * temporal_patch * patch * patch] in -1 .. 1, in merged order."""
  pixels = image_BxYxXx3.astype(jnp.float32) / 127.5 - 1.0
  cells = einops.rearrange(pixels, "b (r a p) (c d q) ch -> b (r c a d) ch p q", a=merge, d=merge, p=patch, q=patch)
  return einops.repeat(cells, "b l ch p q -> b l (ch t p q)", t=temporal_patch)


class Vision(nn.Module):
  """patches [B, L', P] of one rows x cols grid -> (tokens [B, L, out], one [B, L, out] a DeepStack tap); L = L' / merge^2.

  The grid is static: a config has one, and images of another are another program (parity.py has several).
  """

  depth: int
  width: int
  heads: int
  mlp: int
  patch: int
  merge: int
  temporal_patch: int  # a still image is repeated this often
  position_side: int
  deepstack: tuple[int, ...]  # the blocks whose outputs are tapped
  out: int
  remat: str
  attention: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, patch_BxLxP, grid):
    rows, cols = grid
    x = layers.dense(self.width, "patch_embed", self.dtype)(patch_BxLxP)

    order = merged_order(rows, cols, self.merge)
    table = self.param("position", layers.sinusoid_init, (self.position_side**2, self.width))
    weights = bilinear_table(self.position_side, rows, cols)[order[0] * cols + order[1]]
    x = pin(x + jnp.asarray(weights @ table, self.dtype)[None])

    rotary = self.width // self.heads // 2  # half of a head turns with the row, half with the column
    frequency = 10000.0 ** (-np.arange(0, rotary, 2) / rotary)
    angle = jnp.asarray(np.concatenate([order[0][:, None] * frequency, order[1][:, None] * frequency], axis=-1)[None], jnp.float32)

    blocks = layers.scan_blocks(Block, self.depth, self.remat, in_axes=nn.broadcast)(
      self.heads, self.mlp, self.attention, self.dtype, name="blocks"
    )
    x, taps = blocks(x, angle)
    merged = Merger(self.merge, self.out, False, self.dtype, name="merger")(x)
    deepstack = [
      Merger(self.merge, self.out, True, self.dtype, name=f"deepstack_{i}")(taps[block]) for i, block in enumerate(self.deepstack)
    ]
    return merged, deepstack

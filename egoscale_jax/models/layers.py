"""Building blocks that the encoder, the decoder and the expert share. Parameters are float32; `dtype` is the dtype of the arithmetic."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from egoscale_jax.errors import UserError
from egoscale_jax.models import attention
from egoscale_jax.models.pinning import pin

# config.model.remat: what a block keeps for the backward pass; the rest is computed again there. From most memory to least.
REMAT = {
  "none": None,  # everything is kept
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # the linear maps' outputs; not the attention's products
  "branches": jax.checkpoint_policies.save_only_these_names("attended", "branch"),  # what the attention reads, what a branch adds
  "full": jax.checkpoint_policies.nothing_saveable,  # only the block's input
}

truncated = nn.initializers.truncated_normal(0.02)


def sinusoid_init(key, shape, dtype=jnp.float32):
  """Table of positions [N, D] or, N = side * side, of a square grid [side, side, D]: sines and cosines of row and column.

  A table that starts near zero has to be learned before anything can be located; these start told apart, and are learned from there.
  """
  side = int(np.sqrt(shape[0]))
  square = side * side == shape[0]
  axes = np.divmod(np.arange(shape[0]), side) if square else (np.arange(shape[0]),)
  width = -(-shape[1] // (2 * len(axes)))
  frequency = (np.pi / 2) * max(side if square else shape[0], 2) ** -(np.arange(width) / width)
  waves = [wave(np.outer(axis, frequency)) for axis in axes for wave in (np.sin, np.cos)]
  return jnp.asarray(0.5 * np.concatenate(waves, axis=1)[:, : shape[1]], dtype)


def layer_norm(name, dtype, affine=True, eps=1e-6):
  return nn.LayerNorm(epsilon=eps, use_bias=affine, use_scale=affine, dtype=dtype, name=name)


def dense(features, name, dtype, bias=True, axis=-1):
  """Linear map. The last one of a residual branch ("out", "down") starts small, so that a deep stack starts near the identity."""
  init = truncated if name in ("out", "down") else nn.initializers.lecun_normal()
  return nn.DenseGeneral(features, axis=axis, use_bias=bias, dtype=dtype, kernel_init=init, name=name)


def rotate(x_BxLxNxH, angle_BxLxR):
  """Rotary embedding, halves convention: angles [B or 1, L, H/2] in radians turn the pairs (x[i], x[i + H/2])."""
  cos, sin = (f(angle_BxLxR.astype(jnp.float32))[:, :, None, :] for f in (jnp.cos, jnp.sin))
  first, second = jnp.split(x_BxLxNxH.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_BxLxNxH.dtype)


def sinusoid(position, width, spacing, cos_first):
  """position [...] -> [..., width]: sines and cosines of frequencies 10000^(-i / spacing), i < width / 2, one half after the other."""
  frequency = jnp.asarray(np.exp(-np.log(10000.0) * np.arange(width // 2) / spacing), jnp.float32)
  angle = position.astype(jnp.float32)[..., None] * frequency.reshape((1,) * position.ndim + (-1,))
  halves = (jnp.cos(angle), jnp.sin(angle)) if cos_first else (jnp.sin(angle), jnp.cos(angle))
  return jnp.concatenate(halves, axis=-1)


class Mlp(nn.Module):
  """Linear, activation, linear, with biases."""

  hidden: int
  out: int
  dtype: jnp.dtype
  approximate_gelu: bool = True

  @nn.compact
  def __call__(self, x):
    x = nn.gelu(pin(dense(self.hidden, "up", self.dtype)(pin(x)), split=-1), approximate=self.approximate_gelu)
    return checkpoint_name(pin(dense(self.out, "down", self.dtype)(x)), "branch")


class Attention(nn.Module):
  """Multi-head attention with biases; reads itself, or `memory` = keys and values [B', M, N, H] if given; B is a multiple of B'.

  Used by the vision encoder and the expert.
  """

  heads: int
  head_dim: int
  attention: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BxLxD, memory=None, key_mask_BxM=None, angle_BxLxR=None):
    x_BxLxD = pin(x_BxLxD)
    linear = lambda name: pin(dense((self.heads, self.head_dim), name, self.dtype)(x_BxLxD), split=-2)  # noqa: E731
    q = linear("query")
    k, v = memory or (linear("key"), linear("value"))
    if angle_BxLxR is not None:
      q, k = rotate(q, angle_BxLxR), rotate(k, angle_BxLxR)
    folded = q.reshape(k.shape[0], -1, *q.shape[2:])  # all rows that read the same memory are queries of one attention
    out = attention.attend(folded, k, v, key_mask_BxM, how=self.attention).reshape(q.shape)
    out = checkpoint_name(pin(out, split=-2), "attended")
    return checkpoint_name(pin(dense(x_BxLxD.shape[-1], "out", self.dtype, axis=(-2, -1))(out)), "branch")


class EmbodimentLinear(nn.Module):
  """One linear map an embodiment: weights [E, in, out], chosen by its slot (paper section 2.3, GR00T N1)."""

  embodiments: int
  features: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BxTxI, slot_B):
    shape = (self.embodiments, x_BxTxI.shape[-1], self.features)
    kernel, x_BxTxI = self.param("kernel", nn.initializers.lecun_normal(batch_axis=0), shape), pin(x_BxTxI)
    bias = self.param("bias", nn.initializers.zeros, (self.embodiments, self.features))
    out = jnp.einsum("bti,bio->bto", x_BxTxI.astype(self.dtype), jnp.take(kernel, slot_B, axis=0).astype(self.dtype))
    return pin(out + jnp.take(bias, slot_B, axis=0)[:, None].astype(self.dtype))


class EmbodimentMlp(nn.Module):
  """Two-layer ReLU MLP, one an embodiment."""

  embodiments: int
  hidden: int
  out: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BxTxI, slot_B):
    x = jax.nn.relu(EmbodimentLinear(self.embodiments, self.hidden, self.dtype, name="up")(x_BxTxI, slot_B))
    return EmbodimentLinear(self.embodiments, self.out, self.dtype, name="down")(x, slot_B)


def remat_block(block, remat, prevent_cse=True):
  """The block's class, with what it keeps for the backward pass as REMAT says."""
  if remat not in REMAT:
    raise UserError(f"config.model.remat: found {remat!r}, expected one of {', '.join(REMAT)}")
  return block if REMAT[remat] is None else nn.remat(block, policy=REMAT[remat], prevent_cse=prevent_cse)


def scan_blocks(block, length, remat, **kwargs):
  """nn.scan over `length` equal blocks with stacked parameters; `remat`: a name of REMAT."""
  return nn.scan(
    remat_block(block, remat, prevent_cse=False),  # a scan's body shares nothing with what is around it
    variable_axes={"params": 0},
    split_rngs={"params": True, "dropout": True},
    length=length,
    **kwargs,
  )

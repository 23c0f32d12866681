"""The action expert: a diffusion transformer over [state token | T action tokens] that reads the backbone's features (GR00T N1.7's shape).

```
                     noisy action_BxTxA        state_BxS or none
                            |                        |
                   action encoder (a slot each)  state encoder (a slot each) | learned placeholder
                            + position               |
                             [state | action tokens] x_BxKxD, K = 1 + T
  block % 4 == 0   reads the text tokens of the features       (adaptive norm from the flow time before each attention)
  block % 4 == 1   reads itself
  block % 4 == 2   reads the image tokens
  block % 4 == 3   reads itself
                            |
                   adaptive norm, linear, action decoder (a slot each) -> velocity_BxTxA
```
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from egoscale_jax.models import layers


class FeatureBlock(nn.Module):
  """Self-attention over the backbone's features ("vlln" blocks)."""

  heads: int
  head_dim: int
  dropout: float
  train: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BxLxD, mask_Bx1xL):
    drop = nn.Dropout(self.dropout, deterministic=not self.train)
    width = x_BxLxD.shape[-1]
    y = layers.layer_norm("norm_attention", self.dtype, eps=1e-5)(x_BxLxD)
    x_BxLxD += drop(layers.Attention(self.heads, self.head_dim, self.dtype, name="attention")(y, mask_BxLxM=mask_Bx1xL))
    y = layers.layer_norm("norm_mlp", self.dtype, eps=1e-5)(x_BxLxD)
    x_BxLxD += drop(layers.Mlp(4 * width, width, self.dtype, name="mlp")(y))
    return x_BxLxD, None


class Block(nn.Module):
  """One block of the expert: reads `source` where it is given, itself otherwise."""

  heads: int
  head_dim: int
  dropout: float
  train: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BxKxD, time_BxD, source_BxLxD, mask_BxKxL):
    drop = nn.Dropout(self.dropout, deterministic=not self.train)
    width = x_BxKxD.shape[-1]
    scale_BxD, shift_BxD = jnp.split(layers.dense(2 * width, "time", self.dtype)(nn.silu(time_BxD)), 2, axis=-1)
    y = layers.layer_norm("norm_attention", self.dtype, affine=False, eps=1e-5)(x_BxKxD)
    y = y * (1 + scale_BxD[:, None]) + shift_BxD[:, None]
    x_BxKxD += drop(layers.Attention(self.heads, self.head_dim, self.dtype, name="attention")(y, source_BxLxD, mask_BxKxL))
    y = layers.layer_norm("norm_mlp", self.dtype, affine=False, eps=1e-5)(x_BxKxD)
    x_BxKxD += drop(layers.Mlp(4 * width, width, self.dtype, name="mlp")(y))
    return x_BxKxD


class BlockGroup(nn.Module):
  """Four blocks: text, self, image, self; the unit that is scanned."""

  heads: int
  head_dim: int
  dropout: float
  train: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BxKxD, time_BxD, features_BxLxD, text_Bx1xL, image_Bx1xL, self_Bx1xK):
    block = lambda name: Block(self.heads, self.head_dim, self.dropout, self.train, self.dtype, name=name)  # noqa: E731
    x_BxKxD = block("read_text")(x_BxKxD, time_BxD, features_BxLxD, text_Bx1xL)
    x_BxKxD = block("self_0")(x_BxKxD, time_BxD, None, self_Bx1xK)
    x_BxKxD = block("read_image")(x_BxKxD, time_BxD, features_BxLxD, image_Bx1xL)
    x_BxKxD = block("self_1")(x_BxKxD, time_BxD, None, self_Bx1xK)
    return x_BxKxD, None


class ActionEncoder(nn.Module):
  """Noisy action and flow time -> tokens: W1 a, concatenated with a sinusoid of the time, W2, swish, W3; one set an embodiment."""

  embodiments: int
  width: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, action_BxTxA, bucket_B, slot_B):
    linear = lambda name: layers.EmbodimentLinear(self.embodiments, self.width, self.dtype, name=name)  # noqa: E731
    x = linear("action")(action_BxTxA, slot_B)
    time_BxD = layers.sinusoid(bucket_B, self.width, spacing=self.width // 2, cos_first=False).astype(self.dtype)
    x = jnp.concatenate([x, jnp.broadcast_to(time_BxD[:, None], x.shape)], axis=-1)
    return linear("out")(nn.silu(linear("with_time")(x, slot_B)), slot_B)


class FeatureMixer(nn.Module):
  """LayerNorm and self-attention over the backbone's features, once an observation ("vlln")."""

  layers: int
  heads: int
  head_dim: int
  mask_padding: bool  # N1.7 lets these blocks read padding; we do not, so that padding changes nothing
  dropout: float
  remat: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BxLxD, token_mask_BxL, train):
    x = layers.layer_norm("norm", self.dtype, eps=1e-5)(x_BxLxD)
    mask = token_mask_BxL[:, None, :] if self.mask_padding else None
    if self.layers:
      run = layers.scan_blocks(FeatureBlock, self.layers, self.remat, in_axes=nn.broadcast)
      x, _ = run(self.heads, self.head_dim, self.dropout, train, self.dtype, name="blocks")(x, mask)
    return x


class ActionExpert(nn.Module):
  """Velocity of the flow at (x_t, t), given the backbone's features."""

  layers: int  # a multiple of four: one group is text, self, image, self
  heads: int
  head_dim: int  # width = heads * head_dim
  output: int  # width of the last linear and of the adapters' hidden layers
  action_dim: int
  embodiments: int
  max_positions: int
  time_buckets: int
  dropout: float
  state_dropout: float
  remat: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, features_BxLxD, token_mask_BxL, is_image_BxL, state_BxS, state_mask_B, slot_B, x_BxTxA, step_mask_BxT, time_B, train):
    width = self.heads * self.head_dim
    bucket_B = jnp.floor(time_B * self.time_buckets)

    state_Bx1xD = self._encode_state(width, state_BxS, state_mask_B, slot_B, train)
    action_BxTxD = ActionEncoder(self.embodiments, width, self.dtype, name="action_encoder")(x_BxTxA, bucket_B, slot_B)
    position = self.param("position", layers.sinusoid_init, (self.max_positions, width))
    action_BxTxD += position[None, : x_BxTxA.shape[1]].astype(self.dtype)
    x = jnp.concatenate([state_Bx1xD, action_BxTxD], axis=1)

    time_BxD = layers.dense(width, "time_in", self.dtype)(layers.sinusoid(bucket_B, 256, spacing=127, cos_first=True).astype(self.dtype))
    time_BxD = layers.dense(width, "time_out", self.dtype)(nn.silu(time_BxD))
    text_Bx1xL = (token_mask_BxL & ~is_image_BxL)[:, None]
    image_Bx1xL = (token_mask_BxL & is_image_BxL)[:, None]
    self_Bx1xK = jnp.concatenate([jnp.ones_like(step_mask_BxT[:, :1]), step_mask_BxT], axis=1)[:, None]
    run = layers.scan_blocks(BlockGroup, self.layers // 4, self.remat, in_axes=nn.broadcast)
    sizes = (self.heads, self.head_dim, self.dropout, train, self.dtype)
    x, _ = run(*sizes, name="groups")(x, time_BxD, features_BxLxD, text_Bx1xL, image_Bx1xL, self_Bx1xK)

    shift_BxD, scale_BxD = jnp.split(layers.dense(2 * width, "modulate_out", self.dtype)(nn.silu(time_BxD)), 2, axis=-1)
    x = layers.layer_norm("norm_out", self.dtype, affine=False)(x) * (1 + scale_BxD[:, None]) + shift_BxD[:, None]
    x = layers.dense(self.output, "out", self.dtype)(x[:, 1:])
    return layers.EmbodimentMlp(self.embodiments, self.output, self.action_dim, self.dtype, name="action_decoder")(x, slot_B)

  def _encode_state(self, width, state_BxS, state_mask_B, slot_B, train):
    """-> [B, 1, D]. Without proprioception a learned placeholder stands in (paper section 2.3). Dropout zeroes the state (N1.7)."""
    state_BxS = jnp.where(state_mask_B[:, None], state_BxS, 0.0)
    encoder = layers.EmbodimentMlp(self.embodiments, self.output, width, self.dtype, name="state_encoder")
    encoded = encoder(state_BxS[:, None], slot_B)
    if train and self.state_dropout:
      keep = jax.random.bernoulli(self.make_rng("dropout"), 1.0 - self.state_dropout, (encoded.shape[0], 1, 1))
      encoded = jnp.where(keep, encoded, 0.0)
    placeholder = self.param("missing_state", layers.truncated, (width,))
    return jnp.where(state_mask_B[:, None, None], encoded, placeholder[None, None].astype(self.dtype))

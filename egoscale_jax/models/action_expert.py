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
(`text_every` = 2: of the blocks that read the features every second reads text.) The keys and values of the features are the same at every
flow step and for every draw of the noise, so they are made once an observation (FeatureMemory). With several draws the expert's batch is a
multiple of the features': an example's draws stand together.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from egoscale_jax.models import layers
from egoscale_jax.models.pinning import pin


class FeatureBlock(nn.Module):
  """Self-attention over the backbone's features ("vlln" blocks)."""

  heads: int
  head_dim: int
  dropout: float
  train: bool
  attention: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BxLxD, mask_BxL):
    drop = nn.Dropout(self.dropout, deterministic=not self.train)
    width = x_BxLxD.shape[-1]
    y = layers.layer_norm("norm_attention", self.dtype, eps=1e-5)(x_BxLxD)
    x_BxLxD += drop(layers.Attention(self.heads, self.head_dim, self.attention, self.dtype, name="attention")(y, key_mask_BxM=mask_BxL))
    y = layers.layer_norm("norm_mlp", self.dtype, eps=1e-5)(x_BxLxD)
    x_BxLxD += drop(layers.Mlp(4 * width, width, self.dtype, name="mlp")(y))
    return x_BxLxD, None


class FeatureMemory(nn.Module):
  """Keys and values [B, L, M, N, H] of the features for each of the M blocks that read them."""

  blocks: int
  heads: int
  head_dim: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BxLxD):
    x_BxLxD = pin(x_BxLxD)
    linear = lambda name: pin(layers.dense((self.blocks, self.heads, self.head_dim), name, self.dtype)(x_BxLxD), split=-2)  # noqa: E731
    return linear("key"), linear("value")


def modulation(both_BxGx2D, clean_BxK):
  """-> first and second half [B, K or 1, D] of what the flow time says. G = 2 where some tokens are clean: the second is theirs, t = 1."""
  if clean_BxK is not None:
    both_BxGx2D = jnp.where(clean_BxK[:, :, None], both_BxGx2D[:, 1:], both_BxGx2D[:, :1])
  return jnp.split(both_BxGx2D, 2, axis=-1)


class Block(nn.Module):
  """One block of the expert: reads `memory` = keys and values [B, L, N, H] where it is given, itself otherwise."""

  heads: int
  head_dim: int
  dropout: float
  train: bool
  attention: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BxKxD, time_BxGxD, clean_BxK, memory, mask_BxL):
    drop = nn.Dropout(self.dropout, deterministic=not self.train)
    width = x_BxKxD.shape[-1]
    scale_BxKxD, shift_BxKxD = modulation(pin(layers.dense(2 * width, "time", self.dtype)(pin(nn.silu(time_BxGxD)))), clean_BxK)
    y = layers.layer_norm("norm_attention", self.dtype, affine=False, eps=1e-5)(x_BxKxD)
    y = y * (1 + scale_BxKxD) + shift_BxKxD
    x_BxKxD += drop(layers.Attention(self.heads, self.head_dim, self.attention, self.dtype, name="attention")(y, memory, mask_BxL))
    y = layers.layer_norm("norm_mlp", self.dtype, affine=False, eps=1e-5)(x_BxKxD)
    x_BxKxD += drop(layers.Mlp(4 * width, width, self.dtype, name="mlp")(y))
    return x_BxKxD


class BlockGroup(nn.Module):
  """Blocks text, self, then image, self, as many as `blocks`; the unit that is scanned."""

  blocks: int
  heads: int
  head_dim: int
  dropout: float
  train: bool
  attention: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BxKxD, memory_MxBxLxNxH, time_BxGxD, clean_BxK, text_BxL, image_BxL):
    for i in range(self.blocks):
      block = Block(self.heads, self.head_dim, self.dropout, self.train, self.attention, self.dtype, name=f"block_{i}")
      memory = jax.tree.map(lambda a: a[i // 2], memory_MxBxLxNxH) if i % 2 == 0 else None  # noqa: B023
      x_BxKxD = block(x_BxKxD, time_BxGxD, clean_BxK, memory, None if i % 2 else image_BxL if i else text_BxL)
    return x_BxKxD, None


class ActionEncoder(nn.Module):
  """Noisy action and flow time -> tokens: W1 a, concatenated with a sinusoid of the time, W2, swish, W3; one set an embodiment."""

  embodiments: int
  width: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, action_BxTxA, bucket_BxT, slot_B):
    linear = lambda name: layers.EmbodimentLinear(self.embodiments, self.width, self.dtype, name=name)  # noqa: E731
    x = linear("action")(action_BxTxA, slot_B)
    time_BxTxD = layers.sinusoid(bucket_BxT, self.width, spacing=self.width // 2, cos_first=False).astype(self.dtype)
    x = jnp.concatenate([x, jnp.broadcast_to(time_BxTxD, x.shape)], axis=-1)
    return linear("out")(nn.silu(linear("with_time")(x, slot_B)), slot_B)


class FeatureMixer(nn.Module):
  """LayerNorm and self-attention over the backbone's features, once an observation ("vlln")."""

  layers: int
  heads: int
  head_dim: int
  mask_padding: bool  # N1.7 lets these blocks read padding; we do not, so that padding changes nothing
  dropout: float
  remat: str
  attention: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BxLxD, token_mask_BxL, train):
    x = pin(layers.layer_norm("norm", self.dtype, eps=1e-5)(x_BxLxD))
    mask = token_mask_BxL if self.mask_padding else None
    if self.layers:
      run = layers.scan_blocks(FeatureBlock, self.layers, self.remat, in_axes=nn.broadcast)
      x, _ = run(self.heads, self.head_dim, self.dropout, train, self.attention, self.dtype, name="blocks")(x, mask)
    return x


class ActionExpert(nn.Module):
  """Velocity of the flow at (x_t, t), given the backbone's features."""

  layers: int
  text_every: int  # of the blocks that read the features, every so many reads text, the others images
  heads: int
  head_dim: int  # width = heads * head_dim
  output: int  # width of the last linear and of the adapters' hidden layers
  action_dim: int
  embodiments: int
  max_positions: int
  mask_actions: bool  # N1.7 reads noise in the action dimensions that an embodiment lacks; we do not, so that they change nothing
  time_buckets: int
  dropout: float
  state_dropout: float
  remat: str
  attention: str
  dtype: jnp.dtype

  def setup(self):
    self.memory = FeatureMemory(-(-self.layers // 2), self.heads, self.head_dim, self.dtype)
    self.state_encoder = layers.EmbodimentMlp(self.embodiments, self.output, self.heads * self.head_dim, self.dtype)
    self.missing_state = self.param("missing_state", layers.truncated, (self.heads * self.head_dim,))

  def remember(self, features_BxLxD):
    """-> keys and values [B, L, M, N, H]."""
    return self.memory(features_BxLxD)

  @nn.compact
  def __call__(self, features, batch, x_BxTxA, time_B, executed_BxT, train):
    """features: vla.Features; batch: spec.Batch; executed: the steps of x that are clean actions, at t = 1, or None."""
    width, slot_B = self.heads * self.head_dim, batch.embodiment_B
    bucket_BxG = jnp.floor(time_B * self.time_buckets)[:, None]
    bucket_BxT, clean_BxK = bucket_BxG, None
    if executed_BxT is not None:
      bucket_BxG = jnp.concatenate([bucket_BxG, jnp.full_like(bucket_BxG, self.time_buckets)], axis=1)
      bucket_BxT = jnp.where(executed_BxT, bucket_BxG[:, 1:], bucket_BxG[:, :1])
      clean_BxK = jnp.pad(executed_BxT, ((0, 0), (1, 0)))
    if self.mask_actions:
      x_BxTxA = jnp.where(batch.action_dims_BxA[:, None], x_BxTxA, 0.0)

    state_Bx1xD = self.encode_state(batch.state_BxS, batch.state_mask_B, slot_B, train)
    action_BxTxD = ActionEncoder(self.embodiments, width, self.dtype, name="action_encoder")(x_BxTxA, bucket_BxT, slot_B)
    position = self.param("position", layers.sinusoid_init, (self.max_positions, width))
    action_BxTxD += position[None, : x_BxTxA.shape[1]].astype(self.dtype)
    x = pin(jnp.concatenate([state_Bx1xD, action_BxTxD], axis=1))

    wave_BxGx256 = layers.sinusoid(bucket_BxG, 256, spacing=127, cos_first=True).astype(self.dtype)
    time_BxGxD = nn.silu(pin(layers.dense(width, "time_in", self.dtype)(wave_BxGx256), split=-1))
    time_BxGxD = pin(layers.dense(width, "time_out", self.dtype)(pin(time_BxGxD)))
    text_BxL = features.token_mask_BxL & ~features.is_image_BxL
    image_BxL = features.token_mask_BxL & features.is_image_BxL
    x = self._blocks(x, features.memory, (time_BxGxD, clean_BxK, text_BxL, image_BxL), train)

    shift_BxKxD, scale_BxKxD = modulation(pin(layers.dense(2 * width, "modulate_out", self.dtype)(pin(nn.silu(time_BxGxD)))), clean_BxK)
    x = layers.layer_norm("norm_out", self.dtype, affine=False)(x) * (1 + scale_BxKxD) + shift_BxKxD
    x = pin(layers.dense(self.output, "out", self.dtype)(pin(x[:, 1:])))
    return layers.EmbodimentMlp(self.embodiments, self.output, self.action_dim, self.dtype, name="action_decoder")(x, slot_B)

  def _blocks(self, x_BxKxD, memory, shared, train):
    """All whole groups in one scan, then what is left of one."""
    size = 2 * self.text_every
    groups, left = divmod(self.layers, size)
    memory_MxBxLxNxH = jax.tree.map(lambda a: jnp.moveaxis(a, 2, 0), memory)
    sizes = (self.heads, self.head_dim, self.dropout, train, self.attention, self.dtype)
    if groups:
      scanned = groups * self.text_every
      stacked = jax.tree.map(lambda a: a[:scanned].reshape(groups, self.text_every, *a.shape[1:]), memory_MxBxLxNxH)
      run = layers.scan_blocks(BlockGroup, groups, self.remat, in_axes=(0, *(nn.broadcast,) * len(shared)))
      x_BxKxD, _ = run(size, *sizes, name="groups")(x_BxKxD, stacked, *shared)
    if left:
      rest = jax.tree.map(lambda a: a[groups * self.text_every :], memory_MxBxLxNxH)
      x_BxKxD, _ = layers.remat_block(BlockGroup, self.remat)(left, *sizes, name="rest")(x_BxKxD, rest, *shared)
    return x_BxKxD

  def encode_state(self, state_BxS, state_mask_B, slot_B, train):
    """-> [B, 1, D]. Without proprioception a learned placeholder stands in (paper section 2.3). Dropout zeroes the state (N1.7)."""
    state_BxS = jnp.where(state_mask_B[:, None], state_BxS, 0.0)
    encoded = self.state_encoder(state_BxS[:, None], slot_B)
    if train and self.state_dropout:
      keep = jax.random.bernoulli(self.make_rng("dropout"), 1.0 - self.state_dropout, (encoded.shape[0], 1, 1))
      encoded = jnp.where(keep, encoded, 0.0)
    return jnp.where(state_mask_B[:, None, None], encoded, self.missing_state[None, None].astype(self.dtype))

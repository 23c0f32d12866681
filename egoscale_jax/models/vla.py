"""The policy: vision and language -> features (once an observation); action expert -> velocity (once a flow step)."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from egoscale_jax.data import spec
from egoscale_jax.models import action_expert, attention, flow, language, pinning, vision


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Features:
  """What the expert reads, computed once an observation."""

  memory: tuple[jax.Array, jax.Array]  # keys and values [B, L, M, N, H] of the M blocks that read the features
  token_mask_BxL: jax.Array
  is_image_BxL: jax.Array


class VLA(nn.Module):
  """All sizes from `config.model` (see configs/base.py); `mesh`: where activations are pinned (pinning.py), None on one device."""

  config: ml_collections.ConfigDict
  mesh: jax.sharding.AbstractMesh | None = None

  def setup(self):
    c = self.config
    dtype = jnp.dtype(c.dtype)
    how = dict(remat=c.remat, attention=c.attention, dtype=dtype)
    self.vision = vision.Vision(**c.vision, out=c.language.width, **how)
    self.language = language.Language(**c.language, **how)
    self.mixer = action_expert.FeatureMixer(**c.mixer, dropout=c.dropout, **how)
    self.expert = action_expert.ActionExpert(**c.expert, action_dim=c.action_dim, dropout=c.dropout, **how)

  @pinning.on_mesh
  def features(self, batch, train=False):
    """Batch -> Features. An absent image's tokens are masked; so is padding."""
    b, c, y, x = batch.image_BxCxYxXx3.shape[:4]
    cell = self.config.vision.patch * self.config.vision.merge
    v = self.config.vision
    cut = vision.patches(batch.image_BxCxYxXx3.reshape(b * c, y, x, 3), v.patch, v.merge, v.temporal_patch)
    tokens, taps = self.vision(cut, (y // v.patch, x // v.patch))
    rows = lambda a: a.reshape(b, -1, a.shape[-1])  # noqa: E731  # an example's images, one after the other
    present = jnp.repeat(batch.image_mask_BxC, (y // cell) * (x // cell), axis=1)
    grid = jnp.broadcast_to(jnp.asarray([y // cell, x // cell]), (b, c, 2))
    hidden, token_mask, is_image = self.read(
      batch.token_BxL, batch.token_mask_BxL, rows(tokens), [rows(tap) for tap in taps], present, grid
    )
    return self.remember(self.mixer(hidden, token_mask, train), token_mask, is_image)

  @pinning.on_mesh
  def read(self, token_BxL, token_mask_BxL, image_BxIxD, taps_BxIxD, present_BxI, grid_BxCx2):
    """Text and image tokens -> the decoder's output [B, L, D], which tokens are there and which are an image's [B, L].

    An example's image tokens stand in the I axis in their order, whatever the grid [rows, cols] of each image; unused places may follow.
    """
    is_image = (token_BxL == self.config.image_token) & token_mask_BxL
    place = jnp.maximum(jnp.cumsum(is_image, axis=1) - 1, 0)  # which image token stands here
    token_mask = token_mask_BxL & (~is_image | jnp.take_along_axis(present_BxI, place, axis=1))

    def scatter(tokens_BxIxD):  # -> [B, L, D], zero off the image tokens
      return jnp.where(is_image[..., None], jnp.take_along_axis(tokens_BxIxD, place[..., None], axis=1), 0)

    embedded = jnp.where(is_image[..., None], scatter(image_BxIxD), self.language.embed(token_BxL))
    position = language.mrope_positions(is_image, token_mask, grid_BxCx2)
    return self.language(embedded, [scatter(tap) for tap in taps_BxIxD], position, token_mask), token_mask, is_image

  @pinning.on_mesh
  def remember(self, feature_BxLxD, token_mask_BxL, is_image_BxL):
    """The mixer's output -> Features."""
    return Features(self.expert.remember(feature_BxLxD), token_mask_BxL, is_image_BxL)

  @pinning.on_mesh
  def velocity(self, features, batch, x_BxTxA, time_B, train=False, executed_BxT=None):
    """Velocity [B, T, A] float32 at (x_t, t). Dimensions that the embodiment lacks are zeroed before they are read.

    B may be a multiple of the features' batch: the draws of an example stand together.
    """
    out = self.expert(features, batch, x_BxTxA, time_B, executed_BxT, train)
    return out.astype(jnp.float32)

  def __call__(self, batch):
    """Touches every parameter: for init."""
    return self.velocity(self.features(batch), batch, batch.action_BxTxA, jnp.zeros(batch.position_B.shape))


def blank_batch(c, size, **fields):
  """A Batch of one image token and one image cell an example, every mask on, but for the fields given; c: config.model."""
  side, action = c.vision.patch * c.vision.merge, np.zeros((size, c.horizon, c.action_dim), np.float32)
  blank = dict(
    image_BxCxYxXx3=np.zeros((size, 1, side, side, 3), np.uint8),
    image_mask_BxC=np.ones((size, 1), bool),
    token_BxL=np.full((size, 1), c.image_token, np.int32),
    token_mask_BxL=np.ones((size, 1), bool),
    state_BxS=np.zeros((size, c.state_dim), np.float32),
    state_mask_B=np.ones(size, bool),
    action_BxTxA=action,
    action_mask_BxTxA=np.ones(action.shape, bool),
    action_dims_BxA=np.ones((size, c.action_dim), bool),
    action_weight_BxTxA=np.ones(action.shape, np.float32),
    embodiment_B=np.zeros(size, np.int32),
    position_B=np.zeros(size, np.int32),
  )
  return spec.Batch(**{**blank, **fields})


def param_shapes(model):
  """The parameters' tree of shapes; they depend on no image's size and on no length."""
  return jax.eval_shape(model.init, jax.random.key(0), blank_batch(model.config, 1))["params"]


def attention_choices(config, tokens, platform):
  """-> {attention.Choice: the parts that it holds for} of a training step on a platform ("cpu", "gpu", "tpu"); tokens: of a prompt."""
  c, (height, width) = config.model, config.data.image_size
  patches, steps = (height // c.vision.patch) * (width // c.vision.patch), 1 + c.horizon
  sizes = {
    "vision": (patches, patches, c.vision.width // c.vision.heads),
    "language": (tokens, tokens, c.language.head_dim),
    "mixer": (tokens, tokens, c.mixer.head_dim),
    "expert on features": (config.flow_draws * steps, tokens, c.expert.head_dim),
    "expert on itself": (steps, steps, c.expert.head_dim),
  }
  parts = {}
  for part, lengths in sizes.items():
    parts.setdefault(attention.choose(c.attention, platform, c.dtype, *lengths), []).append(part)
  return parts


def loss(model, params, batch, seed, draws, train=True):
  """Flow-matching loss, masked; `draws` (noise, time) pairs for one pass of the backbone, which costs most of a step. -> scalar float32."""
  return loss_and_guess(model, params, batch, seed, draws, train)[0]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Guess:
  """What the velocity says of the action, in one step from x_t to t = 1: normalised, without gradient; R = B * draws rows."""

  action_RxTxA: jax.Array
  truth_RxTxA: jax.Array
  mask_RxTxA: jax.Array  # of the loss: without what is executed
  embodiment_R: jax.Array


def loss_and_guess(model, params, batch, seed, draws, train=True):
  """-> what `loss` gives, and the Guess that it is the error of."""
  total, (count, guess) = loss_sum(model, params, batch, seed, draws, train)
  return flow.mean(total, count), guess


def loss_sum(model, params, batch, seed, draws, train=True):
  """-> the loss as its sum over all labelled entries; (how many they are, the Guess): what parts of a batch are added up by."""
  c = model.config.flow
  key_B = flow.example_keys(seed, batch.position_B)
  dropout = jax.random.fold_in(jax.random.key(seed), batch.position_B[0])
  dropout_features, dropout_velocity = jax.random.split(dropout)
  features = model.apply(params, batch, train, method=VLA.features, rngs={"dropout": dropout_features})

  key_B = jax.vmap(lambda key: jax.random.split(key, draws))(key_B).reshape(-1)  # [B * draws], an example's draws together
  batch = jax.tree.map(lambda a: jnp.repeat(a, draws, axis=0), dataclasses.replace(batch, image_BxCxYxXx3=None, token_BxL=None))
  noise_key, time_key = jnp.moveaxis(jax.vmap(jax.random.split)(key_B), 1, 0)
  action = flow.held(batch.action_BxTxA, batch.action_mask_BxTxA)
  noise = flow.sample_noise(noise_key, action.shape[1:])
  time_B = flow.sample_time(time_key, c.alpha, c.scale)
  x_t, mask, executed = flow.interpolate(noise, action, time_B), batch.action_mask_BxTxA, None
  if c.prefix:
    executed = flow.executed_steps(jax.vmap(jax.random.fold_in, in_axes=(0, None))(key_B, 2), c.prefix, action.shape[1])
    x_t, mask = jnp.where(executed[..., None], action, x_t), mask & ~executed[..., None]
  rngs = {"dropout": dropout_velocity}
  velocity = model.apply(params, features, batch, x_t, time_B, train, executed, method=VLA.velocity, rngs=rngs)
  guess = jax.lax.stop_gradient(x_t + (1.0 - time_B)[:, None, None] * velocity)
  total, count = flow.masked_sum((velocity - (action - noise)) ** 2, mask, batch.action_weight_BxTxA)
  return total, (count, Guess(guess, action, mask, batch.embodiment_B))


def sample(model, params, features, batch, noise_BxTxA, steps, known_BxTxA=None, keep_BxT=None):
  """Action chunk [B, T, A], normalised, from noise: `steps` Euler steps; what stands in dimensions that the embodiment lacks is of no use.

  Real-time chunking: `known` = what is being executed, keep = 1 for the steps that are certain, falling to 0 (flow.euler). A model that was
  trained with config.model.flow.prefix reads the certain steps as they are, at t = 1.
  """
  executed = keep_BxT >= 1 if known_BxTxA is not None and model.config.flow.prefix else None

  def velocity(x, t):
    x = x if executed is None else jnp.where(executed[..., None], known_BxTxA, x)
    return model.apply(params, features, batch, x, t, False, executed, method=VLA.velocity)

  return flow.euler(velocity, noise_BxTxA, steps, known_BxTxA, keep_BxT)

"""Pictures on the device, inside the step: they leave the host as uint8 and are cropped, turned and coloured where it costs nothing.

Training sees a random crop, turned a little, in random colours; validation and the policy see the centre of the same size. What an example
looks like follows from its key alone, as its noise does (GR00T N1.7: a crop of 230 of 256 pixels, colours by .3 .4 .5 .08).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from egoscale_jax.models import flow

_STREAM = 0x696D67  # apart from the keys of the noise
_GREY = (0.299, 0.587, 0.114)  # BT.601
# RGB <-> YIQ: a turn of hue is a rotation of I and Q.
_YIQ = np.array([_GREY, (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135)])
_RGB = np.linalg.inv(_YIQ)


def augmented(batch, config, seed):
  """-> the batch with other pictures; every camera of an example has a crop and colours of its own. config: config.augment."""
  key_B = jax.vmap(jax.random.fold_in, in_axes=(0, None))(flow.example_keys(seed, batch.position_B), _STREAM)
  cameras = batch.image_BxCxYxXx3.shape[1]

  def one(key, image_YxXx3):
    place, colours = jax.random.split(key)
    matrix, offset = placement(place, image_YxXx3.shape[:2], config)
    return to_uint8(coloured(colours, sampled(image_YxXx3, matrix, offset), config))

  key_BxC = jax.vmap(lambda key: jax.random.split(key, cameras))(key_B)
  return dataclasses.replace(batch, image_BxCxYxXx3=jax.vmap(jax.vmap(one))(key_BxC, batch.image_BxCxYxXx3))


def centred(batch, config):
  """What validation and the policy see: the centre, of the size of the training's crops."""
  if config.crop == 1.0:
    return batch
  size = np.array(batch.image_BxCxYxXx3.shape[2:4])
  matrix = jnp.eye(2) * config.crop
  offset = jnp.asarray((1 - config.crop) * (size - 1) / 2, jnp.float32)
  one = lambda image_YxXx3: to_uint8(sampled(image_YxXx3, matrix, offset))  # noqa: E731
  return dataclasses.replace(batch, image_BxCxYxXx3=jax.vmap(jax.vmap(one))(batch.image_BxCxYxXx3))


def placement(key, size, config):
  """-> (matrix [2, 2], offset [2]): where the pixel (y, x) of the new picture lies in the old one, matrix @ (y, x) + offset.

  A crop of `config.crop` of both sides, anywhere, turned by up to `config.rotation` degrees about its middle.
  """
  where, turn = jax.random.split(key)
  middle = (jnp.asarray(size, jnp.float32) - 1) / 2
  angle = jnp.deg2rad(config.rotation) * jax.random.uniform(turn, minval=-1, maxval=1)
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  matrix = config.crop * jnp.stack([jnp.stack([cos, sin]), jnp.stack([-sin, cos])])
  room = (1 - config.crop) * middle
  return matrix, middle + room * jax.random.uniform(where, (2,), minval=-1, maxval=1) - matrix @ middle


def intrinsics(k_3x3, matrix, offset):
  """K of the old picture -> K of the one that `sampled` makes; pixels are (x, y) in K and (y, x) in the placement."""
  to_old = jnp.eye(3).at[:2, :2].set(matrix[::-1, ::-1]).at[:2, 2].set(offset[::-1])
  return jnp.linalg.inv(to_old) @ k_3x3


def sampled(image_YxXx3, matrix, offset):
  """Bilinear, the border repeated -> float32, 0..255."""
  y, x = jnp.meshgrid(jnp.arange(image_YxXx3.shape[0]), jnp.arange(image_YxXx3.shape[1]), indexing="ij")
  place = jnp.tensordot(matrix, jnp.stack([y, x]).astype(jnp.float32), axes=1) + offset[:, None, None]
  channel = lambda values: jax.scipy.ndimage.map_coordinates(values, list(place), order=1, mode="nearest")  # noqa: E731
  return jax.vmap(channel, in_axes=-1, out_axes=-1)(image_YxXx3.astype(jnp.float32))


def coloured(key, image_YxXx3, config):
  """Brightness, contrast, saturation by factors within 1 +- the config's, hue by a turn within +- its share of a whole one."""
  brightness, contrast, saturation, hue = jax.random.uniform(key, (4,), minval=-1, maxval=1)
  image = image_YxXx3 * (1 + config.brightness * brightness)
  grey = jnp.asarray(_GREY)
  image = blend(image, jnp.mean(image @ grey), 1 + config.contrast * contrast)
  image = blend(image, (image @ grey)[..., None], 1 + config.saturation * saturation)
  angle = 2 * jnp.pi * config.hue * hue
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  turn = jnp.eye(3).at[1:, 1:].set(jnp.stack([jnp.stack([cos, -sin]), jnp.stack([sin, cos])]))
  return image @ (jnp.asarray(_RGB) @ turn @ jnp.asarray(_YIQ)).T


def blend(image, towards, factor):
  return factor * image + (1 - factor) * towards


def to_uint8(image):
  return jnp.clip(jnp.round(image), 0, 255).astype(jnp.uint8)


def is_on(config) -> bool:
  """Whether training changes the pictures at all."""
  return config.crop != 1.0 or any(config[name] for name in ("rotation", "brightness", "contrast", "saturation", "hue"))

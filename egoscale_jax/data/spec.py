"""The two typed structs of the road: a record of the shards and the Batch of the training step.

A record is a clip: up to `CLIP_FRAMES` consecutive frames as JPEG, and the labels of those frames and of `TAIL_FRAMES` more, so that
any chunk that starts in the clip is read with one record. Masked values are NaN; a mask beside them says so.
"""

import dataclasses

import jax
import numpy as np

CLIP_FRAMES = 16  # 16 of the measured choices: one window a read costs 140 kB at 224 pixels, and no index across files
TAIL_FRAMES = 64  # a chunk's horizon * stride may reach this far


def clip_features(num_joints: int):
  """TFDS features of one clip record; J joints a hand. Needs no TensorFlow."""
  import tensorflow_datasets as tfds  # here, so that training never imports the writer's library

  def tensor(*shape, dtype=np.float32):
    return tfds.features.Tensor(shape=shape, dtype=dtype)

  return tfds.features.FeaturesDict(
    {
      "episode": tfds.features.Text(),  # "<source>/<id>"
      "text": tfds.features.Text(),
      "embodiment": tfds.features.Text(),
      "start": tensor(dtype=np.int32),  # the clip's first frame, counted in its episode
      "rate_hz": tensor(),
      "intrinsics": tensor(3, 3),
      "jpeg": tensor(None, dtype=np.object_),  # [C] C <= CLIP_FRAMES frames
      "T_world_camera": tensor(None, 4, 4),  # [C]
      "keypoints": tensor(None, 2, 21, 3),  # [C], world, NaN where missing
      "T_world_wrist": tensor(None, 2, 4, 4),  # [C + tail], tail <= TAIL_FRAMES, shorter at the episode's end
      "joints": tensor(None, 2, num_joints),  # [C + tail]
      "valid": tensor(None, 2, dtype=np.bool_),  # [C + tail]
      "residual_m": tensor(None, 2),  # [C + tail]
    }
  )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
  """What train_step sees. B batch, C images, Y X pixels, L tokens, S state dim, T action steps, A action dim."""

  image_BxCxYxXx3: jax.Array  # uint8
  image_mask_BxC: jax.Array  # bool; an absent camera's tokens are masked everywhere
  token_BxL: jax.Array  # int32; left-padded, one run of image tokens an image
  token_mask_BxL: jax.Array  # bool; False is padding
  state_BxS: jax.Array  # float32, normalised
  state_mask_B: jax.Array  # bool; False: no proprioception (human video), a learned token stands in
  action_BxTxA: jax.Array  # float32, normalised
  action_mask_BxTxA: jax.Array  # bool; the loss and the attention both obey it
  action_weight_BxTxA: jax.Array  # float32, 0..1: what each label counts in the training loss (actions.label_weight)
  embodiment_B: jax.Array  # int32, the adapter's slot
  position_B: jax.Array  # int32, the example's position in the infinite stream: its noise and time come from it


def batch_shapes(config, tokens: int):
  """The Batch as jax.ShapeDtypeStructs for `config.batch_size` examples of `tokens` tokens: the spec itself."""
  m, b = config.model, config.batch_size
  height, width = config.data.image_size
  images = len(config.data.cameras)

  def shape(dtype, *dims):
    return jax.ShapeDtypeStruct((b, *dims), dtype)

  return Batch(
    image_BxCxYxXx3=shape(np.uint8, images, height, width, 3),
    image_mask_BxC=shape(np.bool_, images),
    token_BxL=shape(np.int32, tokens),
    token_mask_BxL=shape(np.bool_, tokens),
    state_BxS=shape(np.float32, m.state_dim),
    state_mask_B=shape(np.bool_),
    action_BxTxA=shape(np.float32, m.horizon, m.action_dim),
    action_mask_BxTxA=shape(np.bool_, m.horizon, m.action_dim),
    action_weight_BxTxA=shape(np.float32, m.horizon, m.action_dim),
    embodiment_B=shape(np.int32),
    position_B=shape(np.int32),
  )

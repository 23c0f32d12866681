"""The typed structs of the road: the records of the shards, and the Batch of the training step.

A clip record holds up to `CLIP_IMAGES` pictures of each camera, `stride` frames apart, and the labels of every frame of their time and of
`TAIL_FRAMES` more, so that any chunk that starts in the clip is read with one record. An episode record holds the labels of a whole
episode without pictures, so that statistics and chunks of hours of data take seconds. Masked values are NaN; a mask beside them says so.
"""

import dataclasses

import jax
import numpy as np

CLIP_IMAGES = 16  # of the measured choices: 140 kB a read at 224 pixels, and no index across files
TAIL_FRAMES = 64  # a chunk's horizon * stride may reach this far

# Name -> dtype and shape; None is the axis that the record itself tells, J the joints of a hand. Stored as raw little-endian bytes.
# N pictures a camera, F frames from the first picture to the end of the tail, C cameras.
_LABELS = {
  "T_world_wrist": (np.float32, (None, 2, 4, 4)),  # [F]; NaN where nobody knows the wrist, although the joints are valid
  "joints": (np.float32, (None, 2, "J")),  # [F]
  "valid": (np.bool_, (None, 2)),  # [F]
  "residual_m": (np.float32, (None, 2)),  # [F]
}
CLIP_NUMBERS = {
  "start": (np.int32, ()),  # the clip's first frame, counted in its episode
  "stride": (np.int32, ()),  # frames from one picture to the next
  "rate_hz": (np.float32, ()),  # of the frames, not of the pictures
  "intrinsics": (np.float32, (None, 3, 3)),  # [C]
  "T_world_camera": (np.float32, (None, 4, 4)),  # [C * N], the first camera's N first
  "keypoints": (np.float32, (None, 2, 21, 3)),  # [N], world, NaN where missing
  **_LABELS,
}
CLIP_TEXTS = ("episode", "text", "embodiment", "cameras", "codec")  # "<source>/<id>"; camera names with commas between; "jpeg" or "h264"
CLIP_PICTURES = "pictures"  # [C * N] JPEG, the first camera's N first; or [C] H.264 in MP4
EPISODE_NUMBERS = {
  "rate_hz": (np.float32, ()),
  "intrinsics": (np.float32, (None, 3, 3)),  # [C]
  "T_world_camera": (np.float32, (None, 4, 4)),  # [C * F]
  "keypoints": (np.float32, (None, 2, 21, 3)),  # [F]
  "confidence": (np.float32, (None, 2, 21)),  # [F]
  **_LABELS,
}
EPISODE_TEXTS = ("episode", "text", "embodiment", "cameras")


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
  action_mask_BxTxA: jax.Array  # bool: what has a label; for the loss alone, since a policy is not told where an episode ends
  action_dims_BxA: jax.Array  # bool: what the embodiment has and learns; the policy reads and says these
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
    action_dims_BxA=shape(np.bool_, m.action_dim),
    action_weight_BxTxA=shape(np.float32, m.horizon, m.action_dim),
    embodiment_B=shape(np.int32),
    position_B=shape(np.int32),
  )

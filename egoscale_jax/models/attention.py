"""The one place where attention is computed; other implementations (cudnn, splash) will stand behind this function."""

import jax
import jax.numpy as jnp


def attend(q_BxLxNxH, k_BxMxKxH, v_BxMxKxH, mask_BxLxM=None):
  """Softmax attention, scale 1/sqrt(H), N a multiple of K (grouped queries) -> [B, L, N, H].

  mask[b, l, m] is True where query l may read key m (its axes B and L may be 1); a query that may read nothing gives zeros, so that a
  masked key can never leak: softmax alone would average over what is masked.

  ```
  causal, first token padded      l\\m 0 1 2
                                  0   . . .     -> zeros
                                  1   . x .
                                  2   . x x
  ```
  """
  if mask_BxLxM is None:
    return jax.nn.dot_product_attention(q_BxLxNxH, k_BxMxKxH, v_BxMxKxH)
  batch, length = q_BxLxNxH.shape[:2]
  mask_BxLxM = jnp.broadcast_to(mask_BxLxM, (batch, length, k_BxMxKxH.shape[1]))
  out_BxLxNxH = jax.nn.dot_product_attention(q_BxLxNxH, k_BxMxKxH, v_BxMxKxH, mask=mask_BxLxM[:, None])
  return jnp.where(jnp.any(mask_BxLxM, axis=-1)[:, :, None, None], out_BxLxNxH, 0)

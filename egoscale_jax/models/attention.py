"""The one place where attention is computed, and the only one that knows a backend.

Every mask here is a key mask (padding, absent cameras, the tokens that a block of the expert may read), and causal or not:

```
no mask        l\\m 0 1 2     key mask . x x    l\\m 0 1 2     causal, key mask . x x   l\\m 0 1 2
               0   x x x                       0   . x x                              0   . . .   -> zeros
               1   x x x                       1   . x x                              1   . x .
               2   x x x                       2   . x x                              2   . x x
```

With more keys than queries the queries of a causal mask are the last ones: query l reads key m where m <= l + M - L. A query that may read
nothing gives zeros, so that a masked key can never leak: softmax alone would average over what is masked.

- xla: `jax.nn.dot_product_attention`, on any device and in any dtype; the scores [B, N, L, M] are in memory.
- cudnn: the same function's fused kernel on an NVIDIA GPU, bfloat16 or float16; the mask is a bias [B, 1, L, M].
- splash: the fused Pallas kernel on a TPU; causal is its static mask, the key mask its segments; lengths are padded to 128.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash_kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from jax.sharding import PartitionSpec as P

from egoscale_jax.errors import UserError
from egoscale_jax.models import pinning

NAMES = ("auto", "xla", "cudnn", "splash")
FUSED_FROM = 1024  # keys: from here on `auto` takes a fused kernel; below, scores are small, and no kernel was timed there
LANES = 128


class Choice(NamedTuple):
  name: str
  reason: str


def choose(asked, platform, dtype, queries, keys, head_dim):
  """`asked` (config.model.attention) on a platform ("cpu", "gpu", "tpu"), at these lengths -> Choice; UserError where it cannot be."""
  if asked not in NAMES:
    raise UserError(f"config.model.attention: found {asked!r}, expected one of {', '.join(NAMES)}")
  needed = {"cudnn": "gpu", "splash": "tpu"}
  if needed.get(asked, platform) != platform:
    raise UserError(f"config.model.attention: found {asked!r} on a {platform}, expected xla or auto; {asked} needs a {needed[asked]}")
  fused = {"gpu": "cudnn", "tpu": "splash"}.get(platform, "xla") if asked == "auto" else asked
  if fused == "xla":
    return Choice("xla", "asked for" if asked == "xla" else f"the only one on a {platform}")
  if fused == "cudnn" and jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
    return Choice("xla", f"cudnn takes bfloat16 and float16, not {jnp.dtype(dtype)}")
  if fused == "cudnn" and (head_dim % 8 or head_dim > 128):
    return Choice("xla", f"cudnn takes heads of a multiple of 8 up to 128, not {head_dim}")
  if asked == "auto" and keys < FUSED_FROM:
    return Choice("xla", f"{keys} keys; {fused} from {FUSED_FROM}, or where it is asked for")
  padded = "" if fused == "cudnn" else f", {queries} x {keys} padded to {_padded(queries)} x {_padded(keys)}"
  return Choice(fused, ("asked for" if asked == fused else f"{keys} keys on a {platform}") + padded)


def attend(q_BxLxNxH, k_BxMxKxH, v_BxMxKxH, key_mask_BxM=None, causal=False, how="auto"):
  """Softmax attention, scale 1/sqrt(H), N a multiple of K (grouped queries) -> [B, L, N, H].

  key_mask: True where a key may be read (see the tables above); `how`: config.model.attention.
  """
  shapes = q_BxLxNxH.shape[1], k_BxMxKxH.shape[1], q_BxLxNxH.shape[-1]
  name = choose(how, pinning.platform(), q_BxLxNxH.dtype, *shapes).name
  return {"xla": xla, "cudnn": cudnn, "splash": splash}[name](q_BxLxNxH, k_BxMxKxH, v_BxMxKxH, key_mask_BxM, causal)


def xla(q_BxLxNxH, k_BxMxKxH, v_BxMxKxH, key_mask_BxM, causal):
  return _dot_product(q_BxLxNxH, k_BxMxKxH, v_BxMxKxH, _whole_mask(q_BxLxNxH, k_BxMxKxH, key_mask_BxM, causal), "xla")


def cudnn(q_BxLxNxH, k_BxMxKxH, v_BxMxKxH, key_mask_BxM, causal):
  """With a mask the backward kernel takes even lengths only: an odd one gets a masked key, and a query that is cut off again."""
  mask_BxLxM = _whole_mask(q_BxLxNxH, k_BxMxKxH, key_mask_BxM, causal)
  if mask_BxLxM is None:
    return _dot_product(q_BxLxNxH, k_BxMxKxH, v_BxMxKxH, None, "cudnn")
  mask_BxLxM = jnp.moveaxis(_pad(jnp.moveaxis(_pad(mask_BxLxM, 2), 1, 2), 2), 1, 2)
  padded = (_pad(a, 2) for a in (q_BxLxNxH, k_BxMxKxH, v_BxMxKxH))
  return _dot_product(*padded, mask_BxLxM, "cudnn")[:, : q_BxLxNxH.shape[1]]


def _whole_mask(q_BxLxNxH, k_BxMxKxH, key_mask_BxM, causal):
  """-> [B or 1, L, M], or None where everything is read."""
  if key_mask_BxM is None and not causal:
    return None
  length, keys = q_BxLxNxH.shape[1], k_BxMxKxH.shape[1]
  mask_1xLxM = jnp.tril(jnp.ones((1, length, keys), bool), keys - length if causal else keys)
  return mask_1xLxM if key_mask_BxM is None else mask_1xLxM & key_mask_BxM[:, None, :]


def _dot_product(q_BxLxNxH, k_BxMxKxH, v_BxMxKxH, mask_BxLxM, implementation):
  if mask_BxLxM is None:
    return jax.nn.dot_product_attention(q_BxLxNxH, k_BxMxKxH, v_BxMxKxH, implementation=implementation)
  mask_Bx1xLxM = mask_BxLxM[:, None]
  out_BxLxNxH = jax.nn.dot_product_attention(q_BxLxNxH, k_BxMxKxH, v_BxMxKxH, mask=mask_Bx1xLxM, implementation=implementation)
  return jnp.where(jnp.any(mask_BxLxM, axis=-1)[:, :, None, None], out_BxLxNxH, 0)


def splash(q_BxLxNxH, k_BxMxKxH, v_BxMxKxH, key_mask_BxM, causal, interpret=False):
  """XLA cannot partition the kernel, so on a mesh every device calls it with its own rows and heads."""
  batch, length = q_BxLxNxH.shape[:2]
  keys = k_BxMxKxH.shape[1]
  there_BxM = jnp.ones((batch, keys), bool) if key_mask_BxM is None else key_mask_BxM
  run = functools.partial(_splash_rows, causal=causal, interpret=interpret)
  mesh = jax.sharding.get_abstract_mesh()
  if not mesh.empty and mesh.size > 1:
    spec = pinning.fit_spec(P(*pinning.BATCH, None, "tensor", None), k_BxMxKxH.shape, mesh)
    run = jax.shard_map(run, mesh=mesh, in_specs=(spec, spec, spec, P(spec[0])), out_specs=spec, check_vma=False)
  out_BxLxNxH = run(q_BxLxNxH, k_BxMxKxH, v_BxMxKxH, there_BxM)
  if key_mask_BxM is None:
    return out_BxLxNxH
  reads_BxL = jnp.any(key_mask_BxM, axis=1, keepdims=True)
  if causal:
    reads_BxL = reads_BxL & (jnp.argmax(key_mask_BxM, axis=1)[:, None] <= jnp.arange(length)[None] + keys - length)
  return jnp.where(reads_BxL[:, :, None, None], out_BxLxNxH, 0)


def _splash_rows(q_BxLxNxH, k_BxMxKxH, v_BxMxKxH, there_BxM, *, causal, interpret):
  length, heads, head_dim = q_BxLxNxH.shape[1:]
  keys = k_BxMxKxH.shape[1]
  shape = _padded(length), _padded(keys)
  mask = splash_mask.CausalMask(shape, offset=keys - length) if causal else splash_mask.FullMask(shape)
  block_q, block_kv = (max(block for block in (128, 256, 384, 512) if size % block == 0) for size in shape)
  blocks = splash_kernel.BlockSizes(
    **dict.fromkeys(("block_q", "block_q_dkv", "block_q_dq"), block_q),
    **dict.fromkeys(("block_kv", "block_kv_compute", "block_kv_dkv", "block_kv_dkv_compute", "block_kv_dq"), block_kv),
  )
  kernel = splash_kernel.make_splash_mha(
    splash_mask.MultiHeadMask([mask] * heads),
    **dict(block_sizes=blocks, head_shards=1, q_seq_shards=1, residual_checkpoint_name="attended", interpret=interpret),
  )

  def one(q_LxNxH, k_MxKxH, v_MxKxH, there_M):
    segments = splash_kernel.SegmentIds(q=jnp.ones(shape[0], jnp.int32), kv=there_M.astype(jnp.int32))
    return kernel(*(jnp.moveaxis(a, 1, 0) for a in (q_LxNxH, k_MxKxH, v_MxKxH)), segment_ids=segments)

  scaled = (q_BxLxNxH.astype(jnp.float32) / np.sqrt(head_dim)).astype(q_BxLxNxH.dtype)  # the kernel does not scale
  out_BxNxLxH = jax.vmap(one)(*(_pad(a, LANES) for a in (scaled, k_BxMxKxH, v_BxMxKxH, there_BxM)))
  return jnp.moveaxis(out_BxNxLxH, 1, 2)[:, :length]


def _padded(length, to=LANES):
  return -(-length // to) * to


def _pad(a_BxL, to):
  """Second axis up to a multiple, with zeros: False in a mask."""
  return jnp.pad(a_BxL, ((0, 0), (0, _padded(a_BxL.shape[1], to) - a_BxL.shape[1]), *((0, 0),) * (a_BxL.ndim - 2)))

"""Every implementation against plain attention written out: values, gradients, masks; the choice and its reason."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from conftest import ROOT
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from egoscale_jax import config as config_lib
from egoscale_jax.errors import UserError
from egoscale_jax.models import attention, pinning, vla


def plain(q, k, v, key_mask, causal):
  """Softmax attention in float64, head by head."""
  groups, (length, keys) = q.shape[2] // k.shape[2], (q.shape[1], k.shape[1])
  reads = np.tril(np.ones((length, keys), bool), keys - length) if causal else np.ones((length, keys), bool)
  out = np.zeros(q.shape)
  for b, n in np.ndindex(q.shape[0], q.shape[2]):
    logits = q[b, :, n].astype(np.float64) @ k[b, :, n // groups].T / np.sqrt(q.shape[-1])
    weights = np.where(reads & key_mask[b], np.exp(logits - logits.max()), 0.0)
    total = weights.sum(-1, keepdims=True)
    out[b, :, n] = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0) @ v[b, :, n // groups]
  return out


def draw(length, keys, batch=2, heads=4, kv_heads=2, head_dim=8):
  """q, k, v; key masks with left padding in row 0, which leaves causal queries nothing to read, and gaps in row 1."""
  rng = np.random.default_rng(0)
  shapes = ((batch, length, heads, head_dim), *((batch, keys, kv_heads, head_dim),) * 2)
  q, k, v = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
  mask = rng.random((batch, keys)) < 0.7
  mask[0] = np.arange(keys) >= keys - length + 2
  return q, k, v, mask


def interpreted(*args, **kwargs):
  return attention.splash(*args, **kwargs, interpret=True)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("run", [attention.xla, interpreted])
def test_equals_plain_attention_with_grouped_queries_and_masks(run, causal):
  q, k, v, mask = draw(5, 7)
  out = run(q, k, v, mask, causal)
  np.testing.assert_allclose(out, plain(q, k, v, mask, causal), atol=2e-6)
  assert np.all(np.asarray(out)[0, :2] == 0) == causal
  everything = np.ones_like(mask)
  np.testing.assert_allclose(run(q, k, v, None, causal), plain(q, k, v, everything, causal), atol=2e-6)


@pytest.mark.parametrize("run", [attention.xla, interpreted])
def test_a_query_that_may_read_nothing_gives_zeros_and_no_gradient(run):
  q, k, v, mask = draw(5, 7)
  mask[1] = False
  out, gradients = jax.value_and_grad(lambda *qkv: jnp.sum(jnp.sin(run(*qkv, mask, False))), argnums=(0, 1, 2))(q, k, v)
  assert np.isfinite(out)
  assert np.all(np.asarray(run(q, k, v, mask, False))[1] == 0)
  for gradient in gradients:
    assert np.all(np.asarray(gradient)[1] == 0)
    assert np.any(np.asarray(gradient)[0] != 0)


@pytest.mark.parametrize("run", [attention.xla, interpreted])
def test_a_masked_key_changes_nothing_and_has_no_gradient(run):
  q, k, v, mask = draw(5, 7)
  before = run(q, k, v, mask, True)
  of_k, of_v = jax.grad(lambda k, v: jnp.sum(jnp.sin(run(q, k, v, mask, True))), argnums=(0, 1))(k, v)
  for gradient in (of_k, of_v):
    np.testing.assert_array_equal(np.any(np.asarray(gradient) != 0, axis=(2, 3)), mask)
  k[~mask], v[~mask] = 1e4, -1e4
  np.testing.assert_array_equal(before, run(q, k, v, mask, True))


@pytest.mark.parametrize(("length", "keys", "head_dim", "causal"), [(200, 200, 16, True), (41, 150, 48, False)])
def test_splash_has_the_gradients_of_the_plain_one(length, keys, head_dim, causal):
  """Lengths of more than a block of 128, not multiples of it; the reference's expert has heads of 48."""
  q, k, v, mask = draw(length, keys, head_dim=head_dim)
  run = lambda f: jax.value_and_grad(lambda *qkv: jnp.sum(jnp.sin(f(*qkv, mask, causal))), argnums=(0, 1, 2))(q, k, v)  # noqa: E731
  (value, gradients), (want, wanted) = run(interpreted), run(attention.xla)
  np.testing.assert_allclose(value, want, rtol=1e-5)
  for ours, theirs in zip(gradients, wanted):
    np.testing.assert_allclose(ours, theirs, atol=5e-6)


def test_splash_on_a_mesh_runs_on_each_devices_rows_and_heads():
  mesh = jax.make_mesh((2, 2, 2), pinning.AXES, axis_types=(AxisType.Auto,) * 3)
  q, k, v, mask = draw(5, 7, batch=4)
  batch = NamedSharding(mesh, pinning.BATCH)

  @jax.jit
  def run(q, k, v, mask):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return attention.splash(q, k, v, mask, True, interpret=True)

  out = run(*(jax.device_put(a, batch) for a in (q, k, v, mask)))
  np.testing.assert_allclose(out, plain(q, k, v, mask, True), atol=2e-6)
  assert out.sharding.spec == P(("data", "fsdp"), None, "tensor")


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cudnn needs an NVIDIA GPU; JAX_PLATFORMS=cuda runs this test on one")
@pytest.mark.parametrize(("length", "keys", "causal"), [(64, 64, True), (41, 113, False)])
def test_cudnn_equals_the_plain_one(length, keys, causal):
  q, k, v, mask = draw(length, keys, head_dim=48)
  q, k, v = (a.astype(jnp.bfloat16) for a in (q, k, v))
  run = lambda f: jax.value_and_grad(lambda *qkv: jnp.sum(jnp.sin(f(*qkv, mask, causal))), argnums=(0, 1, 2))(q, k, v)  # noqa: E731
  (value, gradients), (want, wanted) = run(attention.cudnn), run(attention.xla)
  np.testing.assert_allclose(value, want, rtol=2e-2)
  for ours, theirs in zip(gradients, wanted):
    np.testing.assert_allclose(ours.astype(np.float32), theirs.astype(np.float32), atol=3e-2)


def test_cudnn_calls_its_kernels_forward_and_backward(monkeypatch):
  """What is lowered for a GPU, without one: the fused calls, at even lengths."""
  monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)
  shapes = [jax.ShapeDtypeStruct(a.shape, jnp.bfloat16) for a in draw(41, 113, head_dim=48)[:3]]
  mask = jax.ShapeDtypeStruct((2, 113), bool)
  loss = lambda q, k, v, mask: jnp.sum(attention.cudnn(q, k, v, mask, False).astype(jnp.float32))  # noqa: E731
  text = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(*shapes, mask).lower(lowering_platforms=("cuda",)).as_text()
  calls = re.findall(r"@__cudnn\$(\w+)\(.*", text)
  assert calls == ["fmhaScaleBiasSoftmax", "fmhaScaleBiasSoftmaxBackward"]
  assert "tensor<2x42x4x48xbf16>, tensor<2x114x2x48xbf16>" in text


def test_a_step_tells_its_choices_by_part():
  config = tiny.config()
  assert vla.attention_choices(config, 10, "cpu") == {
    ("xla", "the only one on a cpu"): ["vision", "language", "mixer", "expert on features", "expert on itself"]
  }
  config = config_lib.parse([f"--config={ROOT}/configs/pretrain.py", "--config.data.image_size=(512, 512)"])
  assert [c.name for c in vla.attention_choices(config, 306, "tpu")] == ["splash", *["xla"] * 2], "1024 patches"


@pytest.mark.parametrize(
  ("asked", "platform", "dtype", "sizes", "name", "reason"),
  [
    ("auto", "cpu", "float32", (256, 256, 64), "xla", "the only one on a cpu"),
    ("xla", "tpu", "bfloat16", (2048, 2048, 128), "xla", "asked for"),
    ("auto", "tpu", "bfloat16", (246, 246, 128), "xla", "246 keys; splash from 1024, or where it is asked for"),
    ("auto", "tpu", "bfloat16", (41, 1500, 48), "splash", "1500 keys on a tpu, 41 x 1500 padded to 128 x 1536"),
    ("splash", "tpu", "bfloat16", (246, 246, 128), "splash", "asked for, 246 x 246 padded to 256 x 256"),
    ("auto", "gpu", "bfloat16", (2048, 2048, 128), "cudnn", "2048 keys on a gpu"),
    ("cudnn", "gpu", "bfloat16", (246, 246, 64), "cudnn", "asked for"),
    ("cudnn", "gpu", "float32", (246, 246, 64), "xla", "cudnn takes bfloat16 and float16, not float32"),
    ("cudnn", "gpu", "bfloat16", (246, 246, 36), "xla", "cudnn takes heads of a multiple of 8 up to 128, not 36"),
  ],
)
def test_the_choice_and_its_reason(asked, platform, dtype, sizes, name, reason):
  assert attention.choose(asked, platform, dtype, *sizes) == (name, reason)


def test_a_choice_that_cannot_be_is_named():
  with pytest.raises(UserError, match=r"config.model.attention: found 'flash', expected one of auto, xla, cudnn, splash"):
    attention.choose("flash", "cpu", "float32", 1, 1, 8)
  with pytest.raises(UserError, match=r"config.model.attention: found 'splash' on a cpu, expected xla or auto; splash needs a tpu"):
    attention.choose("splash", "cpu", "float32", 1, 1, 8)


def test_the_platform_is_the_meshs_where_one_is_on():
  device = jax.sharding.AbstractDevice(device_kind="TPU v5", num_cores=1, platform="tpu")
  mesh = jax.sharding.AbstractMesh((2, 1, 1), pinning.AXES, axis_types=(AxisType.Auto,) * 3, abstract_device=device)
  assert pinning.platform() == jax.default_backend()
  with jax.sharding.use_abstract_mesh(mesh):
    assert pinning.platform() == "tpu"

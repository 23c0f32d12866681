import numpy as np
import pytest

from egoscale_jax.models import attention


def plain(q, k, v, mask):
  """Softmax attention in float64, head by head."""
  groups = q.shape[2] // k.shape[2]
  out = np.zeros(q.shape)
  for b, n in np.ndindex(q.shape[0], q.shape[2]):
    logits = q[b, :, n].astype(np.float64) @ k[b, :, n // groups].T / np.sqrt(q.shape[-1])
    weights = np.where(mask[b], np.exp(logits - logits.max()), 0.0)
    total = weights.sum(-1, keepdims=True)
    out[b, :, n] = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0) @ v[b, :, n // groups]
  return out


@pytest.fixture
def qkv():
  rng = np.random.default_rng(0)
  return [rng.standard_normal(shape).astype(np.float32) for shape in ((2, 5, 4, 8), (2, 7, 2, 8), (2, 7, 2, 8))]


def test_equals_plain_attention_with_grouped_queries_and_masks(qkv):
  mask = np.random.default_rng(1).random((2, 5, 7)) < 0.5
  mask[0, 2] = False  # a query that may read nothing
  out = attention.attend(*qkv, mask)
  np.testing.assert_allclose(out, plain(*qkv, mask), atol=2e-6)
  assert np.all(np.asarray(out)[0, 2] == 0)


def test_no_mask_reads_everything(qkv):
  np.testing.assert_allclose(attention.attend(*qkv), plain(*qkv, np.ones((2, 5, 7), bool)), atol=2e-6)


def test_a_masked_key_changes_nothing(qkv):
  q, k, v = qkv
  mask = np.ones((2, 1, 7), bool)
  mask[..., 3] = False
  before = attention.attend(q, k, v, mask)
  k[:, 3], v[:, 3] = 1e4, -1e4
  np.testing.assert_array_equal(before, attention.attend(q, k, v, mask))

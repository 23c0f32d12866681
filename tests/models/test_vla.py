"""The whole model: padding cannot be seen, the state and its placeholder, sizes of the reference, several draws."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from conftest import ROOT

from egoscale_jax import config as config_lib
from egoscale_jax.data import spec
from egoscale_jax.models import flow, layers, vla
from egoscale_jax.train import sharding


@pytest.fixture(scope="module")
def setup():
  config = tiny.config()
  config.model.dropout = 0.1
  model = vla.VLA(config.model)
  batch = tiny.batch(config)
  params = tiny.params(jax.eval_shape(model.init, jax.random.key(0), batch))
  value_and_grad = jax.jit(jax.value_and_grad(lambda params, batch: vla.loss(model, params, batch, seed=0, draws=2)))
  return config, model, params, batch, value_and_grad


@pytest.fixture(scope="module")
def features(setup):
  """Compiled once: (params, batch) -> Features."""
  return jax.jit(lambda params, batch: setup[1].apply(params, batch, method=vla.VLA.features))


@pytest.fixture(scope="module")
def velocity(setup):
  """Likewise: (params, Features, batch, x, t) -> velocity."""
  return jax.jit(lambda params, seen, batch, x, t: setup[1].apply(params, seen, batch, x, t, method=vla.VLA.velocity))


def masked_batch(batch):
  """Right hand missing, the last three steps past the end, dims 62.. padding; no state in the odd rows; no image in row 3."""
  action_mask = np.ones(batch.action_mask_BxTxA.shape, bool)
  action_mask[..., 62:] = False
  action_mask[0, :, 31:62] = False
  action_mask[1, -3:] = False
  state_mask = np.arange(len(batch.state_mask_B)) % 2 == 0
  image_mask = np.ones(batch.image_mask_BxC.shape, bool)
  image_mask[3] = False
  return dataclasses.replace(batch, action_mask_BxTxA=action_mask, state_mask_B=state_mask, image_mask_BxC=image_mask)


def poison(batch, image_token):
  """Everything that the masks say is not there, replaced: NaN, or other tokens and pixels."""
  rng = np.random.default_rng(1)
  token = np.where(batch.token_mask_BxL, batch.token_BxL, rng.integers(3, 250, batch.token_BxL.shape))
  image = np.where(batch.image_mask_BxC[..., None, None, None], batch.image_BxCxYxXx3, 255 - batch.image_BxCxYxXx3)
  return dataclasses.replace(
    batch,
    action_BxTxA=np.where(batch.action_mask_BxTxA, batch.action_BxTxA, np.nan).astype(np.float32),
    action_weight_BxTxA=np.where(batch.action_mask_BxTxA, batch.action_weight_BxTxA, np.nan).astype(np.float32),
    state_BxS=np.where(batch.state_mask_B[:, None], batch.state_BxS, np.nan).astype(np.float32),
    token_BxL=token.astype(np.int32),
    image_BxCxYxXx3=image,
  )


def test_poisoned_padding_changes_neither_loss_nor_gradient(setup):
  config, _, params, batch, value_and_grad = setup
  clean = masked_batch(batch)
  dirty = poison(clean, config.model.image_token)
  assert not np.array_equal(clean.token_BxL, dirty.token_BxL)
  loss, grads = value_and_grad(params, clean)
  other_loss, other_grads = value_and_grad(params, dirty)
  assert np.isfinite(loss)
  assert loss == other_loss
  # The embedding rows of the poison tokens get no gradient either: all leaves are equal to the bit.
  jax.tree.map(np.testing.assert_array_equal, grads, other_grads)


def test_a_policy_is_not_told_where_an_episode_ends(setup, features, velocity):
  """Of two examples that differ in what is labelled it sees the same, from noise on: asked on a robot, it is told nothing either."""
  _, _, params, batch, value_and_grad = setup
  cut = dataclasses.replace(
    batch, action_mask_BxTxA=np.broadcast_to(np.arange(batch.action_BxTxA.shape[1])[:, None] < 2, batch.action_BxTxA.shape)
  )
  noise = jax.random.normal(jax.random.key(3), batch.action_BxTxA.shape)
  seen = features(params, batch)
  whole, short = (velocity(params, seen, given, noise, jnp.zeros(len(noise))) for given in (batch, cut))
  np.testing.assert_array_equal(whole, short)
  held = np.where(cut.action_mask_BxTxA, batch.action_BxTxA, batch.action_BxTxA[:, 1:2])
  loss = value_and_grad(params, cut)[0]
  assert loss == value_and_grad(params, dataclasses.replace(cut, action_BxTxA=held))[0]
  assert loss != value_and_grad(params, dataclasses.replace(batch, action_BxTxA=held))[0]  # what is held is no label


def test_without_a_label_the_last_one_is_held():
  nan = np.nan
  action = np.array([[nan, 1.0, 2.0, nan], [nan, nan, nan, nan], [3.0, nan, 4.0, nan]], np.float32).T[None]
  expected = np.array([[1.0, 1.0, 2.0, 2.0], [0.0] * 4, [3.0, 3.0, 4.0, 4.0]], np.float32).T[None]
  np.testing.assert_array_equal(flow.held(action, np.isfinite(action)), expected)


def test_what_is_not_masked_is_seen(setup):
  _, _, params, batch, value_and_grad = setup
  loss, _ = value_and_grad(params, batch)
  changes = dict(
    image_BxCxYxXx3=255 - batch.image_BxCxYxXx3,
    action_BxTxA=batch.action_BxTxA + 1,
    state_BxS=batch.state_BxS + 1,
    embodiment_B=1 - batch.embodiment_B,
    position_B=batch.position_B + 100,
    token_BxL=np.where(batch.token_BxL == tiny.TEXT, tiny.TEXT + 1, batch.token_BxL),
  )
  for name, value in changes.items():
    assert value_and_grad(params, dataclasses.replace(batch, **{name: value}))[0] != loss, name


def test_more_left_padding_changes_nothing(setup, features):
  """Masks, not places: what is computed does not depend on how wide the padding is."""
  config, _, params, _, _ = setup
  narrow, wide = (features(params, tiny.batch(config, padding=padding)).memory[0] for padding in (2, 9))
  np.testing.assert_allclose(narrow[:, 2:], wide[:, 9:], atol=2e-5)


def test_the_placeholder_learns_from_human_video_and_the_encoder_does_not(setup):
  _, _, params, batch, value_and_grad = setup
  without = dataclasses.replace(batch, state_mask_B=np.zeros_like(batch.state_mask_B))
  _, grads = value_and_grad(params, without)
  expert = grads["params"]["expert"]
  assert np.any(expert["missing_state"] != 0)
  assert not any(np.any(leaf != 0) for leaf in jax.tree.leaves(expert["state_encoder"]))
  _, grads = value_and_grad(params, batch)
  assert not np.any(grads["params"]["expert"]["missing_state"] != 0)
  assert np.any(grads["params"]["expert"]["state_encoder"]["up"]["kernel"] != 0)


def test_adapters_of_other_embodiments_get_no_gradient(setup):
  _, _, params, batch, value_and_grad = setup
  _, grads = value_and_grad(params, dataclasses.replace(batch, embodiment_B=np.zeros_like(batch.embodiment_B)))
  for adapter in ("action_encoder", "action_decoder", "state_encoder"):
    for leaf in jax.tree.leaves(grads["params"]["expert"][adapter]):
      assert np.any(leaf[0] != 0), adapter
      assert not np.any(leaf[1] != 0), adapter


def test_sampling_is_euler_over_the_velocity(setup, features, velocity):
  _, model, params, batch, _ = setup
  seen = features(params, batch)
  noise = jax.random.normal(jax.random.key(3), batch.action_BxTxA.shape)
  x = noise
  for i in range(4):
    x = x + velocity(params, seen, batch, x, jnp.full(len(x), i / 4)) / 4
  np.testing.assert_allclose(vla.sample(model, params, seen, batch, noise, 4), x, atol=1e-4)


def test_reference_shape_has_three_billion_parameters():
  """The whole pre-training config, by shapes alone; the backbone's count is that of Qwen3-VL-2B's kept parts (../shared/model.md)."""
  config = config_lib.parse([f"--config={ROOT}/configs/pretrain.py"])
  shapes = jax.eval_shape(vla.VLA(config.model).init, jax.random.key(0), spec.batch_shapes(config, 64 + 2 + 48))["params"]
  count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))  # noqa: E731
  d, f, vocab = 2048, 6144, 151936
  layer = 2 * d * d + 2 * d * 1024 + 3 * d * f + 2 * d + 2 * 128
  assert count(shapes["language"]) == 16 * layer + vocab * d + d  # and the final norm
  w = 1024
  block = 4 * w * w + 4 * w + 2 * w * 4096 + w + 4096 + 4 * w
  merger = 4096 * 4096 + 4096 + 4096 * d + d
  patch = 3 * 2 * 16 * 16 * w + w
  assert count(shapes["vision"]) == 24 * block + patch + 48 * 48 * w + (merger + 2 * w) + 3 * (merger + 2 * 4096)
  assert count(shapes) == 3_144_017_536


def test_small_has_a_hundred_million_parameters():
  config = config_lib.parse([f"--config={ROOT}/configs/small.py"])
  shapes = vla.param_shapes(vla.VLA(config.model))
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 100_349_584
  sharding.param_specs(shapes)  # every parameter has its rule, every rule its parameter


def test_an_executed_prefix_is_read_clean_and_not_asked(setup, features, monkeypatch):
  """Training for real-time chunking: the prefix's noise is seen nowhere, its error counts nothing, and the other steps read its action."""
  config, _, params, batch, _ = setup
  c = config.model.copy_and_resolve_references()
  c.flow.prefix, c.dropout = 3, 0.0
  c.expert.state_dropout = 0.0
  model = vla.VLA(c)
  seen = features(params, batch)
  steps = jnp.arange(c.horizon) < 3
  executed = jnp.broadcast_to(steps, (len(batch.position_B), c.horizon))
  noise, action = jax.random.normal(jax.random.key(0), (2, *batch.action_BxTxA.shape))
  velocity = jax.jit(lambda x, t: model.apply(params, seen, batch, x, t, False, executed, method=vla.VLA.velocity))
  x = jnp.where(executed[..., None], action, noise)
  early, late = velocity(x, jnp.full(len(x), 0.1)), velocity(x, jnp.full(len(x), 0.9))
  assert np.any(early[:, 3:] != late[:, 3:])
  other = velocity(x.at[:, 0].add(1.0), jnp.full(len(x), 0.1))
  assert np.all(np.abs(other[:, 3:] - early[:, 3:]).max(axis=(1, 2)) > 0)

  keep = executed.astype(jnp.float32)
  out = vla.sample(model, params, seen, batch, noise, 4, action, keep)
  np.testing.assert_array_equal(out[:, :3], action[:, :3])
  x = noise
  for i in range(4):
    x = x + velocity(jnp.where(executed[..., None], action, x), jnp.full(len(x), i / 4)) / 4
  np.testing.assert_allclose(out[:, 3:], x[:, 3:], atol=1e-4)

  monkeypatch.setattr(vla.flow, "executed_steps", lambda key_B, longest, count: jnp.broadcast_to(steps, (len(key_B), count)))
  weight = np.where(steps[None, :, None], np.nan, np.ones(batch.action_BxTxA.shape, np.float32))
  assert np.isfinite(jax.jit(lambda p: vla.loss(model, p, dataclasses.replace(batch, action_weight_BxTxA=weight), 0, 1))(params))


def test_draws_share_the_features_and_are_what_each_is_alone(setup, features, velocity):
  _, _, params, batch, _ = setup
  seen = features(params, batch)
  twice = jax.tree.map(lambda a: np.repeat(a, 2, axis=0), dataclasses.replace(batch, image_BxCxYxXx3=None, token_BxL=None))
  x = jax.random.normal(jax.random.key(1), twice.action_BxTxA.shape)
  t = jax.random.uniform(jax.random.key(2), (len(x),))
  both = velocity(params, seen, twice, x, t)
  for draw in (0, 1):
    np.testing.assert_allclose(both[draw::2], velocity(params, seen, batch, x[draw::2], t[draw::2]), atol=2e-5)


@pytest.mark.parametrize("embodiments", [3, 5])
def test_an_adapter_is_its_slots_alone(embodiments):
  """Each row is what its own map makes of it, and others' maps get no gradient."""
  linear = layers.EmbodimentLinear(embodiments, 4, jnp.float32)
  rng, slot_B = np.random.default_rng(0), jnp.array([2, 0, 2, 0, 0, 2, 2])
  x = jnp.asarray(rng.normal(size=(7, 3, 5)), jnp.float32)
  params = linear.init(jax.random.key(0), x, slot_B)
  params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), params)
  kernel, bias = (np.asarray(params["params"][name]) for name in ("kernel", "bias"))
  wanted = np.stack([row @ kernel[slot] + bias[slot] for row, slot in zip(np.asarray(x), slot_B)])
  np.testing.assert_allclose(linear.apply(params, x, slot_B), wanted, atol=1e-5)
  np.testing.assert_allclose(linear.apply(params, x[:1], slot_B[:1]), wanted[:1], atol=1e-5)
  gradient = jax.grad(lambda params: jnp.sum(linear.apply(params, x, slot_B) ** 2))(params)["params"]["kernel"]
  assert sorted(np.flatnonzero(np.abs(gradient).sum(axis=(1, 2)))) == [0, 2]

"""What is computed, read off the traced program: in which dtype, how often, and that what is masked has no gradient."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from conftest import ROOT

from egoscale_jax import config as config_lib
from egoscale_jax import policy
from egoscale_jax.data import spec
from egoscale_jax.models import vla
from egoscale_jax.models.weights import path_name


def equations(jaxpr, times=1):
  """Yields (equation, how often it runs) of a program and all that it calls."""
  for eqn in jaxpr.eqns:
    yield eqn, times
    inner = times * eqn.params["length"] if eqn.primitive.name == "scan" else times
    for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")):
      if hasattr(value, "jaxpr") or hasattr(value, "eqns"):
        yield from equations(getattr(value, "jaxpr", value), inner)


def test_norms_softmax_rotary_and_loss_are_float32_and_products_bfloat16():
  config = tiny.config(**{"model.dtype": "bfloat16", "model.dropout": 0.0})
  model, batch = vla.VLA(config.model), tiny.batch(config)
  params = {"params": vla.param_shapes(model)}
  program = jax.make_jaxpr(lambda p, b: vla.loss(model, p, b, 0, 2))(params, batch)
  assert program.out_avals[0].dtype == jnp.float32
  found = {}
  for eqn, _ in equations(program.jaxpr):
    if eqn.params.get("y") != 3:  # x ** 3 of the tanh-GELU
      found.setdefault(eqn.primitive.name, []).append(eqn)
  for name in ("exp", "rsqrt", "sin", "cos", "reduce_sum", "square", "integer_pow", "div"):  # of softmax, norms, rotary, loss
    floats = [v.aval.dtype for eqn in found.get(name, []) for v in eqn.invars if jnp.issubdtype(v.aval.dtype, jnp.floating)]
    assert set(map(str, floats)) <= {"float32"}, name
  assert {"exp", "rsqrt", "sin", "integer_pow"} <= found.keys()
  products = [{str(v.aval.dtype) for v in eqn.invars} for eqn in found["dot_general"]]
  assert products.count({"bfloat16"}) >= len(products) - 1, "all but the vision encoder's position table"


def product_flops(eqn):
  (contract, _), _ = eqn.params["dimension_numbers"]
  left = eqn.invars[0].aval.shape
  return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(left[i] for i in contract)


def flops(function, *args):
  """Of all matrix products of the traced program."""
  program = jax.make_jaxpr(function)(*args)
  return sum(times * product_flops(eqn) for eqn, times in equations(program.jaxpr) if eqn.primitive.name == "dot_general")


def test_draws_run_the_backbone_once_and_the_expert_as_often():
  """Matrix products of the loss = those of the features + draws * those of one velocity, to the last one."""
  config = tiny.config()
  model, batch = vla.VLA(config.model), tiny.batch(config)
  params = {"params": vla.param_shapes(model)}
  seen = jax.eval_shape(lambda p: model.apply(p, batch, method=vla.VLA.features), params)
  backbone = flops(lambda p: model.apply(p, batch, method=vla.VLA.features), params)
  velocity = lambda p, seen: model.apply(p, seen, batch, batch.action_BxTxA, batch.position_B * 0.1, method=vla.VLA.velocity)  # noqa: E731
  expert = flops(velocity, params, seen)
  assert min(backbone, expert) > 1e6
  for draws in (1, 2, 5):
    assert flops(lambda p, k=draws: vla.loss(model, p, batch, 0, k), params) == backbone + draws * expert


def test_the_loss_draws_its_times_as_the_config_says(monkeypatch):
  config = tiny.config(**{"model.flow.alpha": 2.5, "model.flow.scale": 0.9}, **tiny.SHALLOW)
  model, asked = vla.VLA(config.model), []

  def sample_time(key_B, alpha, scale):
    asked.append((len(key_B), alpha, scale))
    return jnp.zeros(len(key_B))

  monkeypatch.setattr(vla.flow, "sample_time", sample_time)
  jax.eval_shape(lambda p: vla.loss(model, p, tiny.batch(config), 0, 3), {"params": vla.param_shapes(model)})
  assert asked == [(3 * config.batch_size, 2.5, 0.9)]


def test_a_chunk_of_the_full_model_costs_what_it_needs():
  """groot_n1_7, one camera, four steps: backbone once, the features' keys and values once, expert four times."""
  config = config_lib.parse([f"--config={ROOT}/configs/pretrain.py", "--config.batch_size=1"])
  c, length = config.model, 64 + 2 + config.data.text_tokens
  shapes = vla.param_shapes(vla.VLA(c))
  like = jax.ShapeDtypeStruct
  known, keep, seed = like((1, c.horizon, c.action_dim), np.float32), like((1, c.horizon), np.float32), like((1,), np.uint32)
  call = lambda *a: policy._sample(vla.VLA(c), config.augment, *a)  # noqa: E731
  counted = flops(call, shapes, spec.batch_shapes(config, length), seed, known, keep)

  needed = 0
  for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
    name, steps, tokens = path_name(path), c.flow.steps, 1 + c.horizon
    if not name.endswith("kernel"):
      continue
    if name.startswith("vision"):
      runs = 64 if "merger" in name or "deepstack" in name else 256
    elif not name.startswith("expert") or "memory" in name:
      runs = length
    elif "encoder" in name or "decoder" in name:
      runs = (1 if "state" in name else c.horizon * steps) / c.expert.embodiments
    else:
      runs = steps if "time" in name or "modulate" in name else steps * (c.horizon if name == "expert/out/kernel" else tokens)
    needed += 2 * leaf.size * runs
  needed += 4 * c.vision.depth * 256**2 * c.vision.width
  needed += 4 * length**2 * (c.language.layers * c.language.heads * c.language.head_dim + c.mixer.layers * c.mixer.heads * c.mixer.head_dim)
  width = c.expert.heads * c.expert.head_dim
  needed += 4 * c.flow.steps * c.expert.layers // 2 * tokens * (tokens + length) * width
  assert 0.99 * needed < counted < 1.1 * needed, (counted / 1e9, needed / 1e9)


@pytest.mark.parametrize("name", ["none", "branches"])
def test_remat_reaches_every_part_and_leaves_the_parameters_tree(name):
  """The vision encoder, the decoder with and without DeepStack, the mixer, and the expert's whole groups of blocks and its rest."""
  config = tiny.config(**{"model.remat": name, "model.expert.layers": 6, "model.language.layers": 3})
  model, shapes = (
    vla.VLA(config.model),
    vla.param_shapes(vla.VLA(tiny.config(**{"model.expert.layers": 6, "model.language.layers": 3}).model)),
  )
  program = jax.make_jaxpr(lambda p, b: vla.loss(model, {"params": p}, b, 0, 2))(shapes, tiny.batch(config))
  found = sum(eqn.primitive.name in ("remat2", "checkpoint") for eqn, _ in equations(program.jaxpr))  # its name differs between versions
  assert found == (0 if name == "none" else 6)


@pytest.fixture(scope="module")
def masked():
  """Two cameras, the first of row 0 absent; the right hand of row 1 and the last steps of row 2 masked; no state in row 3."""
  config = tiny.config(**{"batch_size": 4, "data.cameras": ("ego", "wrist")})
  model = vla.VLA(config.model)
  n = tiny.image_tokens(config)
  batch = tiny.batch(config, text=6 + n)
  token, action_mask = batch.token_BxL.copy(), np.ones(batch.action_mask_BxTxA.shape, bool)
  token[:, 4 + n : 4 + 2 * n] = config.model.image_token  # behind the first image and a word
  image_mask, state_mask = np.ones((4, 2), bool), np.ones(4, bool)
  image_mask[0, 0] = state_mask[3] = False
  action_mask[1, :, 31:62], action_mask[2, -3:] = False, False
  changes = dict(token_BxL=token, image_mask_BxC=image_mask, state_mask_B=state_mask, action_mask_BxTxA=action_mask)
  changes |= dict(action_dims_BxA=np.arange(action_mask.shape[-1]) < np.array([62, 31, 62, 64])[:, None])
  return model, {"params": tiny.params(vla.param_shapes(model))}, dataclasses.replace(batch, **changes), n


def test_dims_that_an_embodiment_lacks_and_masked_state_have_no_gradient_and_unlabelled_steps_have(masked):
  model, params, batch, _ = masked
  features = jax.jit(lambda p: model.apply(p, batch, method=vla.VLA.features))(params)
  x = jax.random.normal(jax.random.key(0), batch.action_BxTxA.shape)
  t = jnp.full(4, 0.3)

  def output(x, state):
    out = model.apply(params, features, dataclasses.replace(batch, state_BxS=state), x, t, method=vla.VLA.velocity)
    return jnp.sum(jnp.where(batch.action_mask_BxTxA & batch.action_dims_BxA[:, None], jnp.sin(out), 0.0))

  of_x, of_state = jax.jit(jax.grad(output, argnums=(0, 1)))(x, jnp.asarray(batch.state_BxS))
  np.testing.assert_array_equal(np.asarray(of_x) != 0, np.broadcast_to(batch.action_dims_BxA[:, None], of_x.shape))
  np.testing.assert_array_equal(np.any(np.asarray(of_state) != 0, axis=1), batch.state_mask_B)


def test_an_absent_camera_and_padding_have_no_gradient(masked):
  model, params, batch, n = masked
  b, width = len(batch.position_B), model.config.language.width
  image = jax.random.normal(jax.random.key(1), (b, 2 * n, width))
  present = np.repeat(batch.image_mask_BxC, n, axis=1)
  grid = np.broadcast_to([1, n], (b, 2, 2))
  cot = jax.random.normal(jax.random.key(2), (b, batch.token_BxL.shape[1], width))

  def output(image, taps):
    read = model.apply(params, batch.token_BxL, batch.token_mask_BxL, image, taps, present, grid, method=vla.VLA.read)
    features = model.apply(
      params, read[0], *read[1:], method=lambda m, x, there, is_image: m.remember(m.mixer(x, there, False), there, is_image)
    )
    batch_of = dataclasses.replace(batch, image_BxCxYxXx3=None)
    velocity = model.apply(params, features, batch_of, batch.action_BxTxA, jnp.full(b, 0.3), method=vla.VLA.velocity)
    return jnp.sum(jnp.sin(velocity)) + jnp.sum(jnp.where(read[1][..., None], cot * read[0], 0.0))

  taps = [image[::-1]] * len(model.config.vision.deepstack)
  of_image, of_taps = jax.jit(jax.grad(output, argnums=(0, 1)))(image, taps)
  for gradient in (of_image, *of_taps):
    np.testing.assert_array_equal(np.any(np.asarray(gradient) != 0, axis=-1), present)

"""One step of training against the same step in PyTorch: transformers' Qwen3-VL, and the head as torch_reference.py writes it.

Runs where torch and transformers are installed: `pip install torch transformers`.
"""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file

from egoscale_jax.models import flow, parity, reference, vision, vla, weights
from egoscale_jax.train import optim
from egoscale_jax.train import step as step_lib

torch = pytest.importorskip("torch", reason="the other side of the comparison: pip install torch transformers")
pytest.importorskip("transformers", reason="the other side of the comparison: pip install torch transformers")
import torch_reference  # noqa: E402

DRAWS, STEPS = 2, 3


@pytest.fixture(scope="module")
def folder(shared):
  return shared / "parity" / "gr00t_n1_7_tiny"


@pytest.fixture(scope="module")
def told(folder):
  return json.loads((folder / "config.json").read_text())


def torch_model(told, tensors):
  """{name: numpy} -> (leaf tensors by name, Qwen3-VL on them, Head on them)."""
  tensors = {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}
  backbone = torch_reference.backbone(told, tensors)
  tensors |= {torch_reference.BACKBONE + name: parameter for name, parameter in backbone.named_parameters()}
  for value in tensors.values():
    value.requires_grad_()
  return tensors, backbone, torch_reference.Head(told, tensors)


def as_torch(io):
  return {name: torch.from_numpy(np.array(value, np.int64 if value.dtype.kind in "iub" else np.float32)) for name, value in io.items()}


def test_the_other_side_is_the_reference_itself(folder, told):
  """On the fixture's inputs: its loss and velocity by our write-up in PyTorch, and its loss by our model."""
  model, params, io = parity.load(folder)
  _, backbone, head = torch_model(told, load_file(folder / "model.safetensors"))
  with torch.no_grad():
    loss, velocity = torch_reference.loss(backbone, head, told, as_torch(io))
  assert abs(float(loss) - float(io["out_loss"])) <= 1e-5
  np.testing.assert_allclose(velocity.numpy(), io["out_velocity_pred"], atol=1e-5, rtol=0)
  with jax.default_matmul_precision("highest"):
    assert abs(float(parity.outputs(model, params, io)["loss"]) - float(loss)) <= 1e-5


@pytest.fixture(scope="module")
def setup(folder, told):
  """-> (config, model, batch, the first state): the fixture's weights, a batch of pictures; no dropout, for its random numbers differ."""
  config = tiny.config(**{"batch_size": 4, "flow_draws": DRAWS, "steps": 100, "optim.learning_rate": 1e-3, "optim.weight_decay": 0.1})
  sizes = reference.empty_model()
  reference.read_qwen(told["qwen3_vl"], sizes, "config.json")
  reference.read_groot(told["gr00t"], sizes, "config.json")
  sizes.dropout = 0.0
  config.unlock()
  config.model, config.data.image_size = sizes, (64, 96)
  model, batch = vla.VLA(config.model), tiny.batch(config)
  token_mask, action_mask = batch.token_mask_BxL.copy(), np.ones(batch.action_mask_BxTxA.shape, bool)
  token_mask[0, :3] = False  # one more than in the other rows
  action_mask[1, -3:] = action_mask[2, :, 5:] = False
  batch = dataclasses.replace(batch, token_mask_BxL=token_mask, action_mask_BxTxA=action_mask)
  _, params, _ = parity.load(folder)
  return config, model, batch, jax.jit(lambda params: step_lib.init_state(model, config, batch, params))(params)


def torch_inputs(config, batch):
  """A Batch as `in_*` of a fixture, every draw a row of its own, with the noise and times that our loss draws."""
  key_B = flow.example_keys(config.seed, batch.position_B)
  key_R = jax.vmap(lambda key: jax.random.split(key, DRAWS))(key_B).reshape(-1)
  noise_key, time_key = np.moveaxis(jax.vmap(jax.random.split)(key_R), 1, 0)
  c, repeat = config.model, lambda a: np.repeat(a, DRAWS, axis=0)
  patch = np.asarray(vision.patches(batch.image_BxCxYxXx3[:, 0], c.vision.patch, c.vision.merge, c.vision.temporal_patch))
  cells = [1, *(side // c.vision.patch for side in config.data.image_size)]
  return as_torch(
    dict(
      in_input_ids=repeat(batch.token_BxL),
      in_attention_mask=repeat(batch.token_mask_BxL),
      in_pixel_values=repeat(patch).reshape(-1, patch.shape[-1]),
      in_image_grid_thw=np.array([cells] * (DRAWS * len(patch))),
      in_state=repeat(batch.state_BxS),
      in_action=repeat(np.asarray(flow.held(batch.action_BxTxA, batch.action_mask_BxTxA))),
      in_action_mask=repeat(batch.action_mask_BxTxA).astype(np.float32),
      in_embodiment_id=repeat(batch.embodiment_B),
      in_noise=np.asarray(flow.sample_noise(noise_key, batch.action_BxTxA.shape[1:])),
      in_time=np.asarray(flow.sample_time(time_key, c.flow.alpha, c.flow.scale)),
    )
  )


def theirs(config, params, folder):
  """A tree like our parameters under the released names."""
  folder.mkdir()
  weights.export(params, weights.plan(config.model, params), {}, folder)
  return load_file(folder / "model.safetensors")


def torch_steps(config, told, tensors, io, rates):
  """AdamW with those learning rates -> ([loss before each step and after the last], gradient of the first, tensors after the last)."""
  leaves, backbone, head = torch_model(told, tensors)
  is_matrix = {name: name.endswith((".weight", ".W")) and value.ndim > 1 for name, value in leaves.items()}
  o = config.optim
  groups = [
    dict(params=[value for name, value in leaves.items() if is_matrix[name] == decayed], weight_decay=decayed * o.weight_decay)
    for decayed in (True, False)
  ]
  adamw, losses, gradient = torch.optim.AdamW(groups, betas=(o.b1, o.b2), eps=o.eps), [], None
  for rate in [*rates, None]:
    adamw.zero_grad()
    loss, _ = torch_reference.loss(backbone, head, told, io)
    losses.append(loss.item())
    if rate is None:
      return losses, gradient, {name: value.detach().numpy() for name, value in leaves.items()}
    loss.backward()
    gradient = gradient or {name: value.grad.numpy().copy() for name, value in leaves.items() if value.grad is not None}
    torch.nn.utils.clip_grad_norm_(list(leaves.values()), o.clip_norm)
    for group in adamw.param_groups:
      group["lr"] = rate
    adamw.step()


def test_loss_gradient_and_adamw_are_those_of_pytorch(setup, told, tmp_path):
  """The gradient of every tensor, and the loss before and after each of three steps, the first of which has a rate of zero."""
  config, model, batch, state = setup
  with jax.default_matmul_precision("highest"):
    step = jax.jit(step_lib.make_train_step(model, config))
    grads = jax.jit(jax.grad(lambda p: vla.loss(model, {"params": p}, batch, config.seed, DRAWS)))(state.params)
    losses, first = [], state.params
    for _ in range(STEPS + 1):
      before = state.params
      state, metrics = step(state, batch)
      losses.append(float(metrics["loss"]))
  rates = [float(optim.schedule(config)(i)) for i in range(STEPS)]
  tensors = theirs(config, first, tmp_path / "first")
  want, gradient, after = torch_steps(config, told, tensors, torch_inputs(config, batch), rates)
  assert rates[0] == 0 < rates[1]
  assert abs(want[0] - want[-1]) > 1e-2, "the steps move the loss by a thousand times the bar"
  np.testing.assert_allclose(losses, want, atol=1e-5, rtol=0)

  ours = theirs(config, grads, tmp_path / "gradient")
  assert set(ours) - set(gradient) == {torch_reference.BACKBONE + "language_model.norm.weight"}  # nobody reads it
  for name, value in gradient.items():
    np.testing.assert_allclose(ours[name], value, atol=1e-5, rtol=0, err_msg=name)
  ours = theirs(config, before, tmp_path / "after")
  for name, value in after.items():
    sure = np.abs(gradient.get(name, np.zeros(()))) > 1e-5  # below it Adam divides rounding errors by rounding errors
    np.testing.assert_allclose(np.where(sure, ours[name], 0), np.where(sure, value, 0), atol=1e-5, rtol=0, err_msg=name)

"""Counted FLOPs against the traced program, product by product, and against XLA's own count."""

import jax
import numpy as np
import pytest
import tiny
from conftest import ROOT
from test_program import equations, product_flops

from egoscale_jax import config as config_lib
from egoscale_jax import policy
from egoscale_jax.data import spec
from egoscale_jax.models import flops, vla

CAMERAS = '--config.data.cameras=("ego", "left", "right")'


def load(name, *arguments):
  return config_lib.parse([f"--config={ROOT}/configs/{name}", "--config.batch_size=2", *arguments])


def traced(config, function, *more):
  """Sum over all matrix products of function(params, batch, *more), a scan's body as often as it runs; nothing is allocated."""
  shapes = vla.param_shapes(vla.VLA(config.model))
  program = jax.make_jaxpr(function)(shapes, spec.batch_shapes(config, flops.prompt_length(config)), *more)
  return sum(times * product_flops(eqn) for eqn, times in equations(program.jaxpr) if eqn.primitive.name == "dot_general")


def position_table(config):
  """Read once a step."""
  v = config.model.vision
  height, width = (side // v.patch for side in config.data.image_size)
  return 2 * height * width * v.position_side**2 * v.width


def loss(config):
  return lambda params, batch: vla.loss(vla.VLA(config.model), {"params": params}, batch, 0, config.flow_draws)


CONFIGS = [
  ("pretrain.py", CAMERAS),
  ("pretrain.py", "--config.flow_draws=3"),
  ("small.py",),
  ("small.py", "--config.model.flow.prefix=5"),
  ("small.py", "--config.model.expert.layers=7"),
  ("pretrain.py:debug",),
]


@pytest.mark.parametrize("told", CONFIGS)
def test_the_forward_pass_has_the_counted_products(told):
  config = load(*told)
  parts = sum(sum(count) for count in flops.backbone(config).values())
  draws = sum(flops.velocity(config, bool(config.model.flow.prefix))) * config.flow_draws
  assert traced(config, loss(config)) - position_table(config) == 2 * (parts + draws)


@pytest.mark.parametrize("trained", [flops.PARTS, ("vision", "mixer", "expert"), ("mixer", "expert")])
def test_a_training_example_costs_what_is_counted(trained):
  """Forward and backward of the reference shape; the first maps of all need no gradient of their input, less than 1 %."""
  config = load("pretrain.py", CAMERAS, "--config.model.remat=none")

  def step(params, batch):
    learned = {name: params[name] for name in trained}
    return jax.value_and_grad(lambda learned: loss(config)({**params, **learned}, batch))(learned)

  found = traced(config, step) - position_table(config) * (2 if "vision" in trained else 1)
  counted = 2 * flops.training(config, trained)
  assert 0.99 * counted < found <= counted


def test_the_reference_costs_three_and_a_half_teraflop_an_example():
  """Three cameras and 48 tokens of text, everything trained; mid-training and post-training, which freeze parts, cost less."""
  config = load("pretrain.py", CAMERAS)
  costs = [flops.training(config, parts) for parts in (flops.PARTS, ("vision", "mixer", "expert"), ("mixer", "expert"))]
  assert [round(cost / 1e12, 2) for cost in costs] == [3.45, 3.05, 1.59]
  assert round(flops.chunk(load("pretrain.py")) / 1e12, 2) == 0.71, "one camera, four steps"


def test_a_chunk_costs_what_is_counted():
  """groot_n1_7's shape, one camera, four steps: the policy's one call has these products and those that crop the picture."""
  config = load("pretrain.py", "--config.augment.crop=1.0")
  c, like = config.model, jax.ShapeDtypeStruct
  known, keep, seed = like((2, c.horizon, c.action_dim), np.float32), like((2, c.horizon), np.float32), like((2,), np.uint32)
  call = lambda params, batch, *more: policy._sample(vla.VLA(c), config.augment, params, batch, *more)  # noqa: E731
  assert traced(config, call, seed, known, keep) - position_table(config) == 2 * flops.chunk(config)


def test_xla_counts_as_much():
  """Of the debug preset with one block in each scan, which XLA counts once; it counts sums, exponentials and the like as well."""
  shallow = {"vision.depth": 1, "language.layers": 1, "expert.layers": 4, "vision.width": 128, "language.width": 128, "dtype": "bfloat16"}
  config = tiny.config(**{f"model.{key}": value for key, value in shallow.items()})
  length = flops.prompt_length(config)
  shapes = {"params": vla.param_shapes(vla.VLA(config.model))}, spec.batch_shapes(config, length)
  lowered = jax.jit(lambda params, batch: loss(config)(params["params"], batch)).lower(*shapes)
  parts = sum(sum(count) for count in flops.backbone(config).values())
  counted = position_table(config) + config.batch_size * (parts + sum(flops.velocity(config, False)) * config.flow_draws)
  assert 1.0 < lowered.cost_analysis()["flops"] / counted < 1.1

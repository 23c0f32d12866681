"""Frozen parts cost no more than they must: no optimizer state, no gradient of their own, none at all before the first that trains."""

import jax
import pytest
import tiny
from conftest import ROOT

from egoscale_jax import config as config_lib
from egoscale_jax.data import spec
from egoscale_jax.models import flops, vla
from egoscale_jax.train import step as step_lib

STAGES = {"pretrain": flops.PARTS, "midtrain": ("vision", "mixer", "expert"), "posttrain": ("mixer", "expert")}


def state_shapes(config, tokens=114):
  batch = spec.batch_shapes(config, tokens)
  return jax.eval_shape(lambda batch: step_lib.init_state(vla.VLA(config.model), config, batch), batch), batch


@pytest.mark.parametrize("stage", STAGES)
def test_the_optimizer_holds_two_float32_of_what_trains_and_two_counts(stage):
  """At the reference's full size (3.1 B parameters), without a byte allocated."""
  state, _ = state_shapes(config_lib.parse([f"--config={ROOT}/configs/{stage}.py"]))
  sizes = {part: sum(leaf.size for leaf in jax.tree.leaves(tree)) for part, tree in state.params.items()}
  assert 3.0e9 < sum(sizes.values()) < 3.3e9
  trained = sum(sizes[part] for part in STAGES[stage])
  leaves = jax.tree.leaves(state.opt_state)
  nbytes = [leaf.size * leaf.dtype.itemsize for leaf in leaves if leaf.ndim]
  assert sum(nbytes) == 2 * 4 * trained
  assert [leaf.dtype.itemsize for leaf in leaves if not leaf.ndim] == [4, 4], "Adam's count and the schedule's"
  assert state.average is None
  assert state.lora is None


def compiled_flops(config):
  """Of the train step as XLA compiled it, one block in each scan, whose body it counts once."""
  state, batch = state_shapes(config, flops.prompt_length(config))
  step = jax.jit(step_lib.make_train_step(vla.VLA(config.model), config), donate_argnums=0)
  return step.lower(state, batch).compile().cost_analysis()["flops"]


def test_the_compiled_step_is_cheaper_by_what_is_counted():
  """The language part wide, so that its share is the reference's: freezing it alone, and vision with it, each cost their own."""
  shallow = {"vision.depth": 1, "language.layers": 1, "expert.layers": 2, "mixer.layers": 1, "language.width": 256, "language.mlp": 768}
  base = {f"model.{key}": value for key, value in shallow.items()} | {"batch_size": 8, "flow_draws": 1}
  of = {stage: tiny.config(**base, train_parts=tuple(f"{part}/.*" for part in parts)) for stage, parts in STAGES.items()}
  found = {stage: compiled_flops(config) for stage, config in of.items()}
  counted = {stage: config.batch_size * flops.training(config, STAGES[stage]) for stage, config in of.items()}
  for frozen in ("midtrain", "posttrain"):
    saved = (counted["pretrain"] - counted[frozen]) / counted["pretrain"]
    assert saved > 0.1
    assert (found["pretrain"] - found[frozen]) / found["pretrain"] == pytest.approx(saved, rel=0.1)

"""The one table: exactly one rule a parameter, every rule used, a golden text, nothing lost at full size."""

import dataclasses
import functools
import math

import jax
import numpy as np
import optax
import pytest
import tiny
from conftest import ROOT
from jax.sharding import PartitionSpec as P

from egoscale_jax import config as config_lib
from egoscale_jax.data import spec
from egoscale_jax.errors import UserError
from egoscale_jax.models import vla
from egoscale_jax.train import sharding
from egoscale_jax.train import step as step_lib

GOLDEN = ROOT / "tests" / "train" / "sharding_golden.txt"


def full_size():
  config = config_lib.parse([f"--config={ROOT}/configs/pretrain.py"])
  model = vla.VLA(config.model)
  return config, jax.eval_shape(lambda batch: step_lib.init_state(model, config, batch), spec.batch_shapes(config, 114))


@pytest.fixture(scope="module")
def full():
  return full_size()


def describe(shapes):
  specs = sharding.param_specs(shapes)
  leaves = zip(jax.tree_util.tree_leaves_with_path(shapes), jax.tree.leaves(specs, is_leaf=lambda s: isinstance(s, P)))
  return "".join(f"{sharding.path_name(path)} {leaf.shape} {tuple(rule)}\n" for (path, leaf), rule in leaves)


def test_specs_equal_the_golden_text(full):
  """Differs? Read the diff: it is what moved on every pod. If it is meant, write it with `python tests/train/test_sharding.py`."""
  assert describe(full[1].params) == GOLDEN.read_text()


def test_a_parameter_without_a_rule_and_a_rule_without_a_parameter_are_errors(full):
  params = full[1].params
  with pytest.raises(ValueError, match=r"vision/new: matches 0 sharding rules"):
    sharding.param_specs({**params, "vision": {**params["vision"], "new": params["vision"]["position"]}})
  with pytest.raises(ValueError, match=r"match no parameter.*expert"):
    sharding.param_specs({name: part for name, part in params.items() if name != "expert"})


def test_full_size_keeps_every_axis_of_its_rules_on_a_pod(full):
  _, state = full
  mesh = jax.sharding.AbstractMesh((4, 64, 2), sharding.AXES)
  specs = jax.tree.leaves(sharding.param_specs(state.params), is_leaf=lambda s: isinstance(s, P))
  for (path, leaf), rule in zip(jax.tree_util.tree_leaves_with_path(state.params), specs):
    fitted = sharding.fit_spec(rule, leaf.shape, mesh)
    assert tuple(rule) == tuple(fitted), sharding.path_name(path)


def test_large_parameters_are_sharded(full):
  specs = jax.tree.leaves(sharding.param_specs(full[1].params), is_leaf=lambda s: isinstance(s, P))
  for (path, leaf), rule in zip(jax.tree_util.tree_leaves_with_path(full[1].params), specs):
    if leaf.size > 1_000_000:
      assert any(axes is not None for axes in rule), sharding.path_name(path)


def test_moments_follow_their_parameter(full):
  _, state = full
  mesh = sharding.make_mesh(tiny.config(**{"mesh.data": 1, "mesh.fsdp": -1}))
  shardings = sharding.state_shardings(state, mesh)
  params = {sharding.path_name(path): s.spec for path, s in jax.tree_util.tree_leaves_with_path(shardings.params)}
  moments = 0
  for path, leaf in jax.tree_util.tree_leaves_with_path(shardings.opt_state):
    name = sharding.path_name(path)
    tail = next((p for p in params if name.endswith("/" + p)), None)
    if tail:
      assert leaf.spec == params[tail], name
      moments += 1
  assert moments == 2 * len(params)


def test_wrong_meshes_are_named():
  with pytest.raises(UserError, match=r"config.mesh: found .*expected a product of 8 devices"):
    sharding.make_mesh(tiny.config(**{"mesh.data": 3, "mesh.fsdp": 1}))
  with pytest.raises(UserError, match=r"config.batch_size: found 12, expected a multiple of data x fsdp = 8"):
    sharding.make_mesh(tiny.config(batch_size=12))


@pytest.fixture(scope="module")
def step_on():
  """mesh sizes -> (state, metrics, shardings asked for) after a step from random parameters, none near zero, and Adam's moments at zero."""
  config = tiny.config(flow_draws=1, **tiny.SHALLOW)  # with two draws XLA takes another way, which happens to be right without the pins
  batch = tiny.batch(config)
  shapes = jax.eval_shape(lambda b: step_lib.init_state(vla.VLA(config.model), config, b), batch)
  zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
  initial = dataclasses.replace(zeros, params=tiny.params(shapes.params))

  @functools.cache
  def run(*sizes):
    with config.unlocked():
      config.mesh = dict(zip(sharding.AXES, sizes))
    mesh = sharding.make_mesh(config, jax.devices()[: math.prod(sizes)])
    shardings = sharding.state_shardings(shapes, mesh)
    model = vla.VLA(config.model, mesh.abstract_mesh)
    step = jax.jit(step_lib.make_train_step(model, config), out_shardings=(shardings, None))
    return *step(jax.device_put(initial, shardings), sharding.to_global(batch, mesh)), shardings

  return run


def test_eight_devices_take_the_step_of_one(step_on):
  """FSDP and tensor parallelism change nothing but the order of sums; the state comes back with the shardings asked for."""
  one, metrics_of_one, _ = step_on(1, 1, 1)
  eight, metrics, shardings = step_on(2, 2, 2)
  for (path, leaf), want in zip(jax.tree_util.tree_leaves_with_path(eight), jax.tree.leaves(shardings)):
    assert leaf.sharding.is_equivalent_to(want, leaf.ndim), sharding.path_name(path)
  kernel = eight.params["expert"]["groups"]["block_1"]["mlp"]["up"]["kernel"]
  assert kernel.sharding.spec == P(None, "fsdp", "tensor")
  np.testing.assert_allclose(metrics_of_one["loss"], metrics["loss"], rtol=1e-5)
  # The first moments are the gradients; the parameters after Adam would not do: it blows up the rounding of gradients near zero.
  moments = [jax.tree_util.tree_leaves_with_path(optax.tree.get(state.opt_state, "mu")) for state in (one, eight)]
  for (path, a), (_, b) in zip(*moments):
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(a).max() + 1e-9, err_msg=sharding.path_name(path))


if __name__ == "__main__":
  GOLDEN.write_text(describe(full_size()[1].params))

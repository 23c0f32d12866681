"""Pointing: cells and places are each other's inverse, a right answer costs nothing, and a backbone that is asked learns to answer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from egoscale_jax.models import grounding, vla

GRID, MERGE = (4, 6), 2
SQUARE = (4, 4)


def answer(place_xx2, sure=30.0):
  """One that is `sure` of the right cell and exact within it."""
  cell, offset = grounding.cells(GRID, MERGE, place_xx2)
  logit = sure * jax.nn.one_hot(cell, GRID[0] * GRID[1])
  return logit, jnp.broadcast_to(offset[..., None, :], (*logit.shape, 2))


def test_a_place_comes_back_from_its_cell():
  place = jnp.asarray(np.random.default_rng(0).uniform(size=(50, 3, 2)), jnp.float32)
  np.testing.assert_allclose(grounding.places(GRID, MERGE, answer(place)), place, atol=1e-6)


def test_cells_are_in_the_order_of_the_tokens():
  """Of a block of four patches the cells are 0 to 3, by rows; the next block lies to the right."""
  middles = np.array([(0.5, 0.5), (1.5, 0.5), (0.5, 1.5), (1.5, 1.5), (2.5, 0.5)]) / (GRID[1], GRID[0])
  cell, offset = grounding.cells(GRID, MERGE, jnp.asarray(middles))
  assert cell.tolist() == [0, 1, 2, 3, 4]
  np.testing.assert_allclose(offset, 0, atol=1e-6)


def asked(place_BxQx2, said=((0, 1),), named=None):
  b, q = place_BxQx2.shape[:2]
  there = np.ones((b, q, 1), bool) if named is None else np.asarray(named)[:, :, None]
  position = jnp.concatenate([jnp.asarray(place_BxQx2), jnp.ones((b, q, 1))], axis=-1)
  return grounding.Asked(None, None, None, None, there, jnp.asarray(place_BxQx2), position, np.array(said), np.ones((b, 2), bool))


def test_right_answers_cost_nothing_and_wrong_ones_do():
  place = jnp.asarray(np.random.default_rng(1).uniform(size=(1, 3, 2)), jnp.float32)
  naming, pointing = answer(place), answer(place[:, [2, 0]])
  about = asked(place, ((2, 0),))
  reading = about.position_BxQx3[:, [2, 0]]
  assert grounding.loss(GRID, MERGE, about, naming, pointing, reading) < 1e-5
  assert grounding.loss(GRID, MERGE, about, naming, answer(place[:, [0, 2]]), reading) > 1  # the order in which they were named
  assert grounding.loss(GRID, MERGE, about, naming, pointing, reading[:, ::-1]) > 1
  far = (naming[0], naming[1] + 0.2)
  assert grounding.loss(GRID, MERGE, about, far, pointing, reading) > 0.1  # the cell alone is not enough
  assert grounding.loss(GRID, MERGE, about, naming, pointing, reading + 0.02) > 0.1  # metres


def test_what_is_not_there_costs_nothing():
  place = jnp.asarray(np.random.default_rng(2).uniform(size=(1, 3, 2)), jnp.float32)
  wrong = answer(place.at[:, 2].set(1 - place[:, 2]))
  abouts = [asked(place, named=named) for named in ([[1, 1, 0]], [[1, 1, 1]])]
  costs = [grounding.loss(GRID, MERGE, about, wrong, answer(place[:, :2]), about.position_BxQx3[:, :2]) for about in abouts]
  assert costs[0] < 1e-5 < 1 < costs[1]


@pytest.fixture(scope="module")
def toy():
  """A square of one of two colours on grey, asked for by its colour among both."""
  config = tiny.config(**tiny.SHALLOW).model
  size, rng = SQUARE[0] * config.vision.patch, np.random.default_rng(0)
  picture, place = np.full((256, size, size, 3), 90, np.uint8), np.zeros((256, 2, 2), np.float32)
  for i in range(256):
    corners = rng.choice([(0, 0), (0, 1), (1, 0), (1, 1)], 2, replace=False) * (size // 2) + rng.integers(0, size // 2 - 8, (2, 2))
    for colour, (x, y) in zip(((230, 20, 20), (20, 20, 230)), corners):
      picture[i, y : y + 8, x : x + 8] = colour
    place[i] = (corners + 4) / size
  images = (SQUARE[0] // config.vision.merge) ** 2
  said = rng.permuted(np.tile([0, 1], (256, 1)), axis=1)
  token = np.concatenate([np.full((256, images), config.image_token), 10 + said], axis=1).astype(np.int32)
  name = np.tile(np.array([[[10], [11]]], np.int32), (256, 1, 1))
  position, every = np.concatenate([place - 0.5, np.ones((256, 2, 1), np.float32)], axis=-1), lambda a: np.ones(a.shape, bool)
  data = grounding.Asked(picture, token, every(token), name, every(name), place, position, said, every(said))
  return config, grounding.Grounder(config, SQUARE), data


def test_a_backbone_learns_to_point(toy):
  config, module, data = toy
  rows = lambda picked: dataclasses.replace(data, **{f.name: getattr(data, f.name)[picked] for f in dataclasses.fields(data)})  # noqa: E731
  params = jax.jit(module.init)(jax.random.key(0), rows(slice(2)))["params"]
  optimizer = optax.adam(4e-3)
  state = optimizer.init(params)

  @jax.jit
  def step(params, state, about):
    error = lambda params: grounding.loss(SQUARE, config.vision.merge, about, *module.apply({"params": params}, about))  # noqa: E731
    value, gradient = jax.value_and_grad(error)(params)
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(params, updates), state, value

  rng, losses = np.random.default_rng(1), []
  for _ in range(300):
    params, state, value = step(params, state, rows(rng.integers(32, 256, 16)))
    losses.append(float(value))
  held_out = rows(slice(32))
  naming, *_ = module.apply({"params": params}, held_out)
  found = np.asarray(grounding.places(SQUARE, config.vision.merge, naming))
  assert np.median(np.linalg.norm(found - held_out.place_BxQx2, axis=-1)) < 1 / 8, losses[-1]  # within half a cell, of pictures not shown
  assert np.mean(losses[-10:]) < 0.5 * losses[0]


def test_what_has_learned_is_a_policys_backbone(toy):
  config, module, data = toy
  shapes = jax.eval_shape(module.init, jax.random.key(0), data)["params"]["backbone"]
  policys = vla.param_shapes(vla.VLA(config))
  assert shapes == {part: policys[part] for part in ("vision", "language", "mixer")}

"""How many pictures until a model from scratch sees where the thing lies that an instruction names?

  python benchmarks/localise.py [--pictures=5000] [--workers=2] [--config.KEY=VALUE ...]

The first pictures of `pick_place` in the lab, and the backbone of the study's `:micro` policy (vision, language, mixer) with a reader of
its features in place of the action expert, asked for the thing's place on the table by a squared error, with the study's optimizer. What it
needs is the least that any policy of this backbone needs: a grasp forgives about 15 mm (docs/evidence.md).
"""

import argparse
import functools
import pathlib
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from egoscale_jax import config as config_lib
from egoscale_jax.data import tokenizer, workers
from egoscale_jax.evaluate import study_plan
from egoscale_jax.models import vision, vla
from egoscale_jax.sim.bench import bodies, episode, looks, tasks
from egoscale_jax.train import optim, run

ROOT = pathlib.Path(__file__).resolve().parents[1]
HELD_OUT, FIRST_SEED = 300, 10_000_000


class Reader(nn.Module):
  """Features [B, L, D] -> a place [B, 2], by four queries."""

  @nn.compact
  def __call__(self, feature_BxLxD, mask_BxL):
    width = feature_BxLxD.shape[-1]
    query = self.param("query", nn.initializers.normal(1.0), (4, width))
    normal = nn.LayerNorm(name="norm")(feature_BxLxD)
    score = jnp.einsum("qd,bld->bql", query, nn.Dense(width, name="key")(normal)) / np.sqrt(width)
    weight = jax.nn.softmax(jnp.where(mask_BxL[:, None], score, -1e9))
    read = jnp.einsum("bql,bld->bqd", weight, nn.Dense(width, name="value")(normal)).reshape(len(normal), -1)
    return nn.Dense(2, name="down")(nn.gelu(nn.Dense(128, name="up")(read)))


def scene(image_size, number):
  """-> picture, instruction, the thing's place [2] in metres."""
  trial = episode.start(tasks.TASKS["pick_place"], bodies.BODIES["sharpa_wave"], looks.LAB, FIRST_SEED + number)
  camera = episode.Camera(trial, image_size)
  return camera.picture(camera.pose()), trial.goal["text"], trial.world.pose(trial.goal["target"]["name"])[:2, 3]


def predictor(config):
  """-> init(key, picture, token, mask), predict(params, picture, token, mask) -> [B, 2]."""
  model, reader, v = vla.VLA(config.model), Reader(), config.model.vision
  height, width = config.data.image_size
  grid, cell = (height // v.patch, width // v.patch), v.patch * v.merge

  def features(module, picture, token, mask):
    tokens, taps = module.vision(vision.patches(picture, v.patch, v.merge, v.temporal_patch), grid)
    merged = jnp.broadcast_to(jnp.asarray([height // cell, width // cell]), (len(picture), 1, 2))
    hidden, mask, _ = module.read(token, mask, tokens, taps, jnp.ones(tokens.shape[:2], bool), merged)
    return module.mixer(hidden, mask, False), mask

  def init(key, *inputs):
    backbone = model.init(key, *inputs, method=features)["params"]
    return backbone | {"reader": reader.init(key, *model.apply({"params": backbone}, *inputs, method=features))["params"]}

  def predict(params, *inputs):
    backbone = {name: value for name, value in params.items() if name != "reader"}
    return reader.apply({"params": params["reader"]}, *model.apply({"params": backbone}, *inputs, method=features))

  return init, predict


def main():
  parser = argparse.ArgumentParser(allow_abbrev=False)
  parser.add_argument("--pictures", type=int, default=5000)
  parser.add_argument("--workers", type=int, default=2)
  arguments, overrides = parser.parse_known_args()
  config = study_plan.copied(config_lib.parse([f"--config={ROOT}/configs/study.py:micro", "--config.steps=1500", *overrides]))
  study_plan.update(config, config.study.sizes[config.study.main], "config.study.sizes")
  config.optim.learning_rate = config.study.rates.human
  make = functools.partial(scene, config.data.image_size[0])
  made = [row for _, row in workers.run(make, range(arguments.pictures), arguments.workers, str)]
  picture, text, place = (np.stack(column) if i != 1 else column for i, column in enumerate(zip(*made)))
  prompt = run.make_prompt(config, tokenizer.build(sorted(set(text)), config.model.language.vocab))
  token, mask = (np.stack(column) for column in zip(*map(prompt, text)))
  inputs, mean, spread = (picture, token, mask), place[HELD_OUT:].mean(axis=0), place[HELD_OUT:].std(axis=0)
  init, predict = predictor(config)
  learned, optimizer = (init(jax.random.key(0), *(array[:1] for array in inputs)), {}), optim.make_optimizer(config)
  state, ask = optimizer.init(learned), jax.jit(predict)

  @jax.jit
  def step(learned, state, inputs, place):
    gradient = jax.grad(lambda learned: jnp.mean((predict(learned[0], *inputs) - place) ** 2))(learned)
    updates, state = optimizer.update(gradient, state, learned)
    return optax.apply_updates(learned, updates), state

  def off_mm(rows):
    guess = np.asarray(ask(learned[0], *(array[rows] for array in inputs))) * spread + mean
    return 1e3 * np.median(np.linalg.norm(guess - place[rows], axis=1))

  mean_place = 1e3 * np.median(np.linalg.norm(place[:HELD_OUT] - mean, axis=1))
  print(f"{len(place)} pictures, {HELD_OUT} of them held out, of which the mean place is {mean_place:.0f} mm off (median, as below)")
  print(f"{'pictures seen':>13}{'its own, mm':>13}{'held out, mm':>14}{'seconds':>9}")
  rng, began = np.random.default_rng(0), time.perf_counter()
  for number in range(1, config.steps + 1):
    rows = rng.integers(HELD_OUT, len(place), config.batch_size)
    learned, state = step(learned, state, tuple(array[rows] for array in inputs), (place[rows] - mean) / spread)
    if number % max(1, config.steps // 6) == 0:
      own, held_out = off_mm(slice(HELD_OUT, 2 * HELD_OUT)), off_mm(slice(HELD_OUT))
      print(f"{number * config.batch_size:>13}{own:>13.1f}{held_out:>14.1f}{time.perf_counter() - began:>9.0f}", flush=True)


if __name__ == "__main__":
  main()

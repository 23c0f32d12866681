"""The backbone of a small policy from scratch learns to see: by pointing at what is named in still pictures (models/grounding.py).

The paper's arms all begin from a vision-language model that knows what a red cube is and where. No public one is of the sizes that two
cores train; so on the bench all arms of a study, the one without pre-training too, begin from what this leaves: a work directory with the
parameters of a policy whose vision, language and mixer have learned to point, and whose action expert has learned nothing.
"""

import functools
import json
import shutil
import time

import jax
import numpy as np
import optax

from egoscale_jax.data import tokenizer, workers
from egoscale_jax.errors import UserError
from egoscale_jax.evaluate import steps
from egoscale_jax.models import grounding, vla
from egoscale_jax.sim.bench import stills
from egoscale_jax.train import checkpoint, optim
from egoscale_jax.train import run as run_lib

PICTURES, THINGS = "picture.npy", "things.json"
ONE = ("{}", "Where is the {}?", "Find the {}.", "Touch the {}.", "Take the {}.", "Pick up the {}.")
TWO = ("The {} and the {}.", "The {} is beside the {}.", "Take the {}, then the {}.", "Put the {} into the {}.", "Move the {} to the {}.")
TWO += ("Pick up the {} and place it in the {}.", "Lift the {} with the {}.")
NEAR = {"naming": 1 / 32, "pointing": 1 / 32, "reading": 0.02}  # of a picture's width, about 18 mm on the table; metres
_EVERY = 500  # steps between two looks at the held-out pictures


def make_stills(output, plan, processes):
  """A stills.Plan -> a folder with all its pictures [N, Y, X, 3] uint8, and what is seen in each."""
  output.mkdir(parents=True, exist_ok=True)
  shape, found = (plan.scenes * plan.arrangements, plan.image_size, plan.image_size, 3), []
  pictures = np.lib.format.open_memmap(output / PICTURES, "w+", np.uint8, shape)
  for _, scene in workers.run(functools.partial(stills.scene, plan), range(plan.scenes), processes, str):
    if isinstance(scene, UserError):
      raise scene
    for still in scene:
      pictures[len(found)] = still.picture_YxXx3
      found.append({"names": still.names, "places": still.place_Nx2.tolist(), "positions": still.position_Nx3.tolist()})
  pictures.flush()
  checkpoint.write_json(output / THINGS, found)  # fewer than there is room for, where a picture would have shown none
  print(f"{len(found)} pictures of {plan.scenes} scenes", flush=True)


class Stills:
  """What make_stills has left, and questions about it."""

  def __init__(self, folder, prompt):
    found = json.loads((folder / THINGS).read_text(encoding="utf-8"))
    self.count, self.prompt = len(found), functools.cache(prompt)
    self.picture_NxYxXx3 = np.load(folder / PICTURES, mmap_mode="r")
    self.names = [row["names"] for row in found]
    self.place_NxQx2, self.position_NxQx3 = (np.zeros((self.count, stills.MOST, axes), np.float32) for axes in (2, 3))
    ids = {name: prompt.tokenizer.encode(" " + name).ids for name in sorted({name for names in self.names for name in names})}
    spelled = max(ids, key=lambda name: len(ids[name]))
    for sentence in (*ONE, *TWO):
      prompt(sentence.format(spelled, spelled))  # one that does not fit ends the training here, not in the middle of it
    longest = len(ids[spelled])
    self.name_NxQxW = np.zeros((self.count, stills.MOST, longest), np.int32)
    self.name_mask_NxQxW = np.zeros(self.name_NxQxW.shape, bool)
    for i, row in enumerate(found):
      self.place_NxQx2[i, : len(row["places"])], self.position_NxQx3[i, : len(row["places"])] = row["places"], row["positions"]
      for j, name in enumerate(row["names"]):
        self.name_NxQxW[i, j, : len(ids[name])], self.name_mask_NxQxW[i, j, : len(ids[name])] = ids[name], True

  def ask(self, rng, rows) -> grounding.Asked:
    """Half of the sentences name two things, where there are two."""
    said, said_mask, tokens = np.zeros((len(rows), grounding.NAMED), np.int32), np.ones((len(rows), grounding.NAMED), bool), []
    for k, row in enumerate(rows):
      names = self.names[row]
      chosen = rng.permutation(len(names))[: 1 + (rng.uniform() < 0.5)]
      said[k, : len(chosen)], said_mask[k, len(chosen) :] = chosen, False
      sentences = (ONE, TWO)[len(chosen) - 1]
      tokens.append(self.prompt(sentences[rng.integers(len(sentences))].format(*(names[i] for i in chosen))))
    token, mask = (np.stack(column) for column in zip(*tokens))
    things = self.name_NxQxW[rows], self.name_mask_NxQxW[rows], self.place_NxQx2[rows], self.position_NxQx3[rows]
    return grounding.Asked(self.picture_NxYxXx3[rows], token, mask, *things, said, said_mask)


def main(workdir, config, train, held_out):
  """Trains config.steps batches on the stills of a folder, looking at those of the other, and writes a work directory -> its last figures.

  config: a run's, with config.data.tokenizer. Minutes long: where it was killed it begins anew.
  """
  size, v, began = config.data.image_size, config.model.vision, time.perf_counter()
  grid = (size[0] // v.patch, size[1] // v.patch)
  text = tokenizer.load(config.data.tokenizer)
  prompt = run_lib.make_prompt(config, text)
  prompt.check(config.model)
  train, held_out = Stills(train, prompt), Stills(held_out, prompt)
  module, optimizer, rng = grounding.Grounder(config.model, grid), optim.make_optimizer(config), np.random.default_rng(config.seed)
  learned = jax.jit(module.init)(jax.random.key(config.seed), train.ask(rng, [0]))["params"], {}
  state = optimizer.init(learned)

  def error(learned, asked):
    return grounding.loss(grid, v.merge, asked, *module.apply({"params": learned[0]}, asked))

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(learned, state, asked):
    value, gradient = jax.value_and_grad(error)(learned, asked)
    updates, state = optimizer.update(gradient, state, learned)
    return optax.apply_updates(learned, updates), state, value

  look = jax.jit(lambda params, asked: module.apply({"params": params}, asked))
  for number in range(1, config.steps + 1):
    learned, state, value = step(learned, state, train.ask(rng, rng.integers(train.count, size=config.batch_size)))
    if number % _EVERY == 0 or number == config.steps:
      off = _off(functools.partial(look, learned[0]), grid, v.merge, held_out, config.batch_size)
      figures = {"step": number, "loss": float(value), **off}
      told = ", ".join(f"{key} {value:.3g}" for key, value in figures.items())
      print(f"{told} ({time.perf_counter() - began:.0f} s)", flush=True)
  if workdir.exists():  # what one that was killed while it saved has left
    shutil.rmtree(workdir)
  workdir.mkdir(parents=True)
  checkpoint.write_json(workdir / steps.POINTING, figures)
  params = vla.VLA(config.model).init(jax.random.key(config.seed), vla.blank_batch(config.model, 1))["params"]
  run_lib.write_parameters(workdir, config, {**params, **learned[0]["backbone"]}, text)
  return figures


def _off(look, grid, merge, held_out, batch_size):
  """-> how far off the answers about held-out pictures are, median and share of those that are NEAR; naming and pointing as shares of a
  picture's width, reading in metres."""
  rng, off = np.random.default_rng(0), {"naming": [], "pointing": [], "reading": []}
  for first in range(0, held_out.count - batch_size + 1, batch_size):
    asked = held_out.ask(rng, np.arange(first, first + batch_size))
    said = np.take_along_axis(asked.place_BxQx2, asked.said_BxN[..., None], axis=1)
    right = (asked.place_BxQx2, asked.name_mask_BxQxW.any(axis=-1)), (said, asked.said_mask_BxN)
    *answers, reading = look(asked)
    for answer, (place, mask), into in zip(answers, right, (off["naming"], off["pointing"])):
      found = np.asarray(grounding.places(grid, merge, answer))
      into.append(np.linalg.norm(found - place, axis=-1)[mask])
    position = np.take_along_axis(asked.position_BxQx3, asked.said_BxN[..., None], axis=1)
    off["reading"].append(np.linalg.norm(np.asarray(reading) - position, axis=-1)[asked.said_mask_BxN])
  figures = {}
  for name, parts in off.items():
    far = np.concatenate(parts)
    figures |= {f"{name}_off": float(np.median(far)), f"{name}_near": float(np.mean(far < NEAR[name]))}
  return figures

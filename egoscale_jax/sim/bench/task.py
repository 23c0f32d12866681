"""What a task is, and how its scene is laid out."""

import dataclasses
from collections.abc import Callable

import numpy as np

from egoscale_jax.sim.bench import looks, props

AREA_LOW, AREA_HIGH = (-0.20, 0.13), (0.20, 0.31)  # metres, where things lie


@dataclasses.dataclass(frozen=True)
class Task:
  """The score is the sum of the weights of the stages that were reached, success is all of them; a stage once reached stays.

  build(lay) -> goal, a dict whose "text" is the instruction; expert(actor, goal) -> commands; watch(world, goal) -> stages that hold now.
  """

  name: str
  seconds: float  # that a policy has
  rubric: tuple[tuple[str, float], ...]  # (stage, weight)
  build: Callable
  expert: Callable
  watch: Callable
  tick: Callable = lambda world, goal: None  # after every frame: a rule of the world that MuJoCo does not know
  held_out: bool = False  # not among the tasks that a policy is trained on

  def score(self, reached) -> float:
    return round(sum(weight for stage, weight in self.rubric if stage in reached), 6)

  def success(self, reached) -> bool:
    return all(stage in reached for stage, _ in self.rubric)


class Lay:
  """A table in the making: free spots, colours not used yet, variants of the things of a home."""

  def __init__(self, rng, home):
    self.rng, self.home, self.table = rng, home, props.Table()
    self.colours = looks.colours(home, rng)
    self.things = []  # numbers of the variants in use
    self._busy = []

  def variant(self) -> looks.Thing:
    self.things.append(looks.draw("thing", self.home, self.rng))
    return looks.thing(self.things[-1])

  def paint(self):
    """-> (a colour's name, a variant, linear RGB)."""
    name, variant = self.colours.pop(), self.variant()
    return name, variant, tuple(looks.colour(name, variant))

  def spot(self, low=AREA_LOW, high=AREA_HIGH, clear=0.05):
    """(x, y) at least `clear` metres and their own clearance from all that was given before."""
    for _ in range(200):
      spot = self.rng.uniform(low, high)
      if all(np.linalg.norm(spot - other) > clear + theirs for other, theirs in self._busy):
        break
    self._busy.append((spot, clear))
    return spot

  def solid(self, half=0.02, low=AREA_LOW, high=AREA_HIGH, kinds=("ball", "cube", "can")):
    """A loose thing somewhere -> {name, kind, width, half height}."""
    kind = kinds[self.rng.integers(len(kinds))]
    colour, variant, rgb = self.paint()
    shapes, height, width = props.solid(kind, half, rgb, variant)
    name = f"{colour} {kind}"
    self.table.loose(name, props.pose(*self.spot(low, high, 0.035), height, self.rng.uniform(-0.7, 0.7)), shapes)
    return {"name": name, "kind": kind, "width": 2 * width, "height": height, "faces": (0.0, np.pi / 2) if kind == "cube" else None}

  def distract(self, most):
    for _ in range(self.rng.integers(most + 1)):
      self.solid(half=0.017)

  def say(self, *phrases):
    return phrases[self.rng.integers(len(phrases))]

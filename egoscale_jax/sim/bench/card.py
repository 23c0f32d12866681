"""Take the card out of its stand and put it into the holder of the colour that the instruction names; a second holder has another colour.

Rubric: +.3 held, +.3 held clear of the stand, +.1 in a holder, +.3 in the right one, let go of.
"""

import numpy as np

from egoscale_jax.sim.bench import props
from egoscale_jax.sim.bench.props import Shape
from egoscale_jax.sim.bench.task import Task

RUBRIC = (("held", 0.3), ("lifted", 0.3), ("in_a_holder", 0.1), ("right", 0.3))
HALF = (0.020, 0.0022, 0.033)  # of the card, metres
_SLOT, _HEIGHT = 0.008, 0.017  # half width of a holder's slot at its foot, half height of its walls


def slot(colour, length=0.030, half=_SLOT):
  """A holder: two walls along x with a slot between them, closed at the ends; the walls lean open, so that a card finds in."""
  dark = tuple(0.6 * np.asarray(colour))
  sides = [Shape("box", (0, s * (half + 0.006), _HEIGHT), (length, 0.006, _HEIGHT), colour) for s in (-1, 1)]
  ends = [Shape("box", (s * (length + 0.002), 0, 0.6 * _HEIGHT), (0.004, half + 0.012, 0.6 * _HEIGHT), dark) for s in (-1, 1)]
  return [*sides, *ends, Shape("box", (0, 0, 0.002), (length, half, 0.002), props.DARK)]


def build(lay):
  holders = [lay.paint() for _ in range(2)]
  _, _, card = lay.paint()
  x = lay.rng.uniform(0.04, 0.10)
  places = [np.array([lay.rng.uniform(-0.15, -0.09), y + lay.rng.uniform(-0.01, 0.01)]) for y in (0.17, 0.27)]
  from_spot = lay.spot((x, 0.16), (x + 0.06, 0.25), 0.06)
  for (name, _, rgb), place in zip(holders, places):
    lay.table.body(f"{name} holder", props.pose(*place, 0), slot(rgb))
    lay.spot(place, place + 1e-6, 0.06)
  lay.table.body("stand", props.pose(*from_spot, 0), slot(props.STEEL, half=0.0040))
  stripe = Shape("box", (0, 0, 0.4 * HALF[2]), (0.8 * HALF[0], HALF[1] + 0.0004, 0.12 * HALF[2]), props.DARK, solid=False)
  lay.table.loose("card", props.pose(*from_spot, 0.004 + HALF[2]), [Shape("box", (0, 0, 0), HALF, card), stripe], density=300)
  right = int(lay.rng.integers(2))
  text = lay.say("Put the card into the {} holder.", "Sort the card into the {} holder.", "Pick up the card and place it in the {} holder.")
  return {"text": text.format(holders[right][0]), "right": places[right], "wrong": places[1 - right]}


def expert(actor, goal):
  yield from actor.pick("card", 2 * HALF[1], dz=0.4 * HALF[2], faces=(np.pi / 2,))
  yield from actor.shift((0, 0, 0.06))
  thing = actor.world.pose("card")
  yaw = -np.arctan2(thing[1, 0], thing[0, 0])  # the slots run along x
  down = 0.004 + HALF[2] + 0.004
  yield from actor.reach(actor.carried("card", (*goal["right"], down), yaw), above=0.105 - down, speed=0.6)
  yield from actor.release(2 * HALF[1])


def inside(world, place):
  at = world.pose("card")
  offset = np.abs(at[:2, 3] - place)
  return offset[0] < 0.012 and offset[1] < 0.008 and at[2, 3] < HALF[2] + 0.014 and abs(at[2, 2]) > 0.9


def watch(world, goal):
  held = world.held[1] == "card"
  if held:
    yield "held"
    if world.pose("card")[2, 3] > 2 * HALF[2] + 0.03:
      yield "lifted"
  elif world.speed("card") < 0.03:
    if inside(world, goal["right"]):
      yield from ("in_a_holder", "right")
    elif inside(world, goal["wrong"]):
      yield "in_a_holder"


TASK = Task("card", 10.0, RUBRIC, build, expert, watch)

"""Pick a thing up and place it into the basket.

Rubric: +.3 held, +.3 held 5 cm above where it lay, +.4 at rest within the basket's walls, let go of.
"""

import numpy as np

from egoscale_jax.sim.bench import props
from egoscale_jax.sim.bench.task import Task

RUBRIC = (("held", 0.3), ("lifted", 0.3), ("placed", 0.4))


def build(lay):
  colour, variant, rgb = lay.paint()
  side = lay.rng.choice([-1, 1])
  x, y = lay.spot((-0.17, 0.18) if side < 0 else (0.08, 0.18), (-0.08, 0.27) if side < 0 else (0.17, 0.27), 0.095)
  shapes, inside, floor, rim = props.container("basket", rgb, variant)
  lay.table.body(f"{colour} basket", props.pose(x, y, 0, lay.rng.uniform(-0.3, 0.3)), shapes)
  target = lay.solid()
  lay.distract(2)
  text = lay.say("Pick up the {} and place it in the {} basket.", "Put the {} into the {} basket.", "Place the {} in the {} basket.")
  return {
    "text": text.format(target["name"], colour),
    "target": target,
    "to": np.array([x, y]),
    "inside": inside,
    "floor": floor,
    "rim": rim,
  }


def expert(actor, goal):
  target = goal["target"]
  yield from actor.pick(target["name"], target["width"], dz=0.3 * (target["height"] - target["width"] / 2), faces=target["faces"])
  over = (*goal["to"] + actor.jitter(2.0)[:2], goal["rim"] + target["height"] + 0.012)
  yield from actor.carry(target["name"], over, lift=0.05)
  yield from actor.release(target["width"])


def watch(world, goal):
  target = goal["target"]
  at = world.pose(target["name"])[:3, 3]
  held = world.held[1] == target["name"]
  if held:
    yield "held"
    if at[2] > target["height"] + 0.05:
      yield "lifted"
  inside = np.linalg.norm(at[:2] - goal["to"]) < goal["inside"] and at[2] < goal["floor"] + target["height"] + 0.012
  if inside and not held and world.speed(target["name"]) < 0.03:
    yield "placed"


TASK = Task("pick_place", 10.0, RUBRIC, build, expert, watch)

"""Press the plunger of a syringe that stands in a rack, take it out and drop it into the bin.

Rubric: +.35 plunger pressed (80 % of its way), +.25 held and lifted out of the rack, +.4 in the bin, let go of (its plunger pressed).
"""

import mujoco
import numpy as np

from egoscale_jax.sim.bench import props
from egoscale_jax.sim.bench.props import Shape
from egoscale_jax.sim.bench.task import Task

RUBRIC = (("pressed", 0.35), ("lifted", 0.25), ("binned", 0.4))
RADIUS, HALF, TRAVEL = 0.010, 0.040, 0.022  # of the barrel, and the plunger's way; metres
_BIN, _BIN_HALF = 0.055, 0.022


def build(lay):
  (_, _, rgb), (bin_colour, _, bin_rgb) = lay.paint(), lay.paint()
  x, y = lay.spot((0.02, 0.15), (0.13, 0.24), 0.06)
  lay.table.body("rack", props.pose(x, y, 0), props.stand(RADIUS + 0.0025, 0.014, props.STEEL))
  barrel = [
    Shape("cylinder", (0, 0, 0), (RADIUS, HALF), props.LIGHT),
    Shape("cylinder", (0, 0, -0.3 * HALF), (1.02 * RADIUS, 0.5 * HALF), rgb),
  ]
  body = lay.table.loose("syringe", props.pose(x, y, HALF + 0.001), barrel)
  plunger = [Shape("cylinder", (0, 0, -0.012), (0.004, 0.012), props.STEEL), Shape("cylinder", (0, 0, 0), (0.011, 0.003), rgb)]
  top = lay.table.body("plunger", props.pose(0, 0, HALF + 0.003 + TRAVEL), plunger, parent=body)
  top.gravcomp = 1  # MuJoCo's dry friction is soft: under its own weight the plunger sank in 14 s
  slide = top.add_joint(name="plunger", type=mujoco.mjtJoint.mjJNT_SLIDE, axis=(0, 0, -1), frictionloss=1.5)
  slide.limited, slide.range = True, (0.0, TRAVEL)
  lay.table.spec.add_exclude(bodyname1="syringe", bodyname2="plunger")
  bx, by = lay.spot((-0.16, 0.16), (-0.09, 0.27), 0.07)
  floor = Shape("box", (0, 0, 0.003), (_BIN, _BIN, 0.003), props.DARK)
  lay.table.body(f"{bin_colour} bin", props.pose(bx, by, 0), [floor, *props.walls(_BIN, _BIN, _BIN_HALF, bin_rgb)])
  lay.distract(1)
  text = lay.say(
    "Press the plunger of the syringe and drop it into the {} bin.",
    "Empty the syringe, then throw it into the {} bin.",
    "Push the plunger down and put the syringe into the {} bin.",
  )
  return {"text": text.format(bin_colour), "bin": np.array([bx, by])}


def expert(actor, goal):
  shut = actor.fingers.grip(0.002)
  for _ in range(3):
    plunger = actor.world.pose("plunger")[:3, 3]
    top = plunger + (0, 0, 0.003 + shut.reach) + actor.jitter()
    heading = actor.heading(shut)
    down = actor.pinch(shut, top - (0, 0, TRAVEL + 0.002), heading)
    yield from actor.reach(down, shut.hold_J, above=TRAVEL + 0.045, speed=0.5)
    yield from actor.wait(2)
    yield from actor.shift((0, 0, 0.05))
    if actor.world.joint("plunger") > 0.85 * TRAVEL:
      break
  yield from actor.pick("syringe", 2 * RADIUS, dz=HALF - 0.022, above=0.06)
  yield from actor.shift((0, 0, 0.085))
  yield from actor.carry("syringe", (*goal["bin"] + actor.jitter(2.0)[:2], 0.11), lift=0.01)
  yield from actor.release(2 * RADIUS)


def watch(world, goal):
  if world.joint("plunger") > 0.8 * TRAVEL:
    yield "pressed"
  at = world.pose("syringe")[:3, 3]
  held = world.held[1] == "syringe"
  if held and at[2] > HALF + 0.04:
    yield "lifted"
  inside = (np.abs(at[:2] - goal["bin"]) < _BIN).all() and at[2] < 2 * _BIN_HALF + 0.03
  if inside and not held and world.joint("plunger") > 0.8 * TRAVEL and world.speed("syringe") < 0.1:
    yield "binned"


TASK = Task("syringe", 14.0, RUBRIC, build, expert, watch)

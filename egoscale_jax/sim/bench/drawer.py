"""Held out: pull the drawer of a small cabinet open by its handle. No trained task pulls anything.

Rubric: +.3 handle held, +.3 open by a third of the way, +.4 open by OPEN of it.
"""

import mujoco
import numpy as np

from egoscale_jax.sim.bench import props
from egoscale_jax.sim.bench.props import Shape
from egoscale_jax.sim.bench.task import Task

RUBRIC = (("held", 0.3), ("a_third", 0.3), ("open", 0.4))
WAY, OPEN = 0.075, 0.8  # metres; a share
_HALF = (0.050, 0.045, 0.026)  # of the cabinet
_FIN = (0.016, 0.005, 0.024)  # of the handle: an upright fin


def build(lay):
  (_, _, wood), (colour, _, rgb) = lay.paint(), lay.paint()
  x, y = lay.spot((-0.02, 0.25), (0.12, 0.29), 0.09)
  a, b, c = _HALF
  case = [Shape("box", (0, 0, 2 * c), (a, b, 0.003), wood), *(Shape("box", (s * a, 0, c), (0.003, b, c), wood) for s in (-1, 1))]
  case.append(Shape("box", (0, b, c), (a, 0.003, c), wood))
  lay.table.body("cabinet", props.pose(x, y, 0), case)
  front = [
    Shape("box", (0, -b, c), (a - 0.006, 0.004, c - 0.006), rgb),
    Shape("box", (0, 0, 0.008), (a - 0.008, b - 0.004, 0.003), tuple(0.6 * np.asarray(rgb))),
  ]
  handle = Shape("box", (0, -b - 0.028, c + 0.004), _FIN, props.STEEL)
  bar = Shape("box", (0, -b - 0.014, c), (0.005, 0.012, 0.005), props.STEEL)
  drawer = lay.table.body("drawer", props.pose(x, y, 0), [*front, handle, bar])
  slide = drawer.add_joint(name="drawer", type=mujoco.mjtJoint.mjJNT_SLIDE, axis=(0, -1, 0), frictionloss=0.6, armature=0.01)
  slide.limited, slide.range = True, (0.0, WAY)
  lay.table.graspable.append("drawer")
  lay.table.spec.add_exclude(bodyname1="cabinet", bodyname2="drawer")
  lay.distract(1)
  text = lay.say("Open the {} drawer.", "Pull the {} drawer open.", "Pull out the {} drawer by its handle.")
  return {"text": text.format(colour)}


def expert(actor, goal):
  for _ in range(3):
    yield from actor.pick("drawer", 2 * _FIN[1], dz=_HALF[2] + 0.016, faces=(np.pi / 2,), offset=(0, -_HALF[1] - 0.028), tilt=0.0)
    yield from actor.shift((0, -(WAY - actor.world.joint("drawer")), 0), speed=0.7)
    if actor.world.joint("drawer") > 0.9 * WAY:
      break
  yield from actor.release(2 * _FIN[1])


def watch(world, goal):
  if world.held[1] == "drawer":
    yield "held"
  if world.joint("drawer") > WAY / 3:
    yield "a_third"
  if world.joint("drawer") > OPEN * WAY:
    yield "open"


TASK = Task("drawer", 10.0, RUBRIC, build, expert, watch, held_out=True)

"""Take the fork out of its stand and lift the fruit with it.

The fork's prongs stick in the fruit once they are pressed onto it from above by a hand that holds the fork: a weld, as in a grasp. It takes
PIERCE newtons at a prong, so that brushing past does not do.

Rubric: +.3 fork held, out of the stand, +.3 fruit pierced, +.4 fruit 5 cm above the table on the fork, no hand on it, for half a second.
"""

import mujoco
import numpy as np

from egoscale_jax.sim.bench import RATE_HZ, props
from egoscale_jax.sim.bench.props import Shape
from egoscale_jax.sim.bench.task import Task

RUBRIC = (("fork_out", 0.3), ("pierced", 0.3), ("fruit_up", 0.4))
RADIUS, HANDLE, PRONG = 0.008, 0.030, 0.014  # metres; the last two are half lengths
PIERCE = 0.2  # newtons
_TIP = -HANDLE - 2 * PRONG  # of the prongs, below the fork's origin, which is the middle of its handle
_FRUITS = {"lemon": "yellow", "plum": "purple", "apple": "green", "cherry tomato": "red"}


def build(lay):
  _, variant, handle = lay.paint()
  x, y = lay.spot((0.06, 0.16), (0.14, 0.25), 0.055)
  lay.table.body("stand", props.pose(x, y, 0), props.stand(0.012, 0.016, props.STEEL))
  prongs = [Shape("capsule", (s * 0.004, 0, -HANDLE - PRONG), (0.0022, PRONG - 0.0022), props.STEEL) for s in (-1, 1)]
  neck = Shape("box", (0, 0, -HANDLE), (0.0065, 0.0025, 0.003), props.STEEL)
  lay.table.loose("fork", props.pose(x, y, 0.001 - _TIP), [Shape("cylinder", (0, 0, 0), (RADIUS, HANDLE), handle), neck, *prongs])
  fruit = str(lay.rng.choice(sorted(_FRUITS)))
  rgb = np.clip(props.scene.COLOURS[_FRUITS[fruit]] * lay.variant().tint, 0, 1)
  r = 0.021 * variant.scale
  fx, fy = lay.spot((-0.13, 0.16), (-0.02, 0.25), 0.055)
  ball = lay.table.loose(fruit, props.pose(fx, fy, r), [Shape("ball", (0, 0, 0), (r,), tuple(rgb))], density=900).geoms[0]
  ball.condim, ball.friction = 6, (0.9, 0.01, 0.002)  # a fruit is no marble: it does not roll off
  weld = lay.table.spec.add_equality(type=mujoco.mjtEq.mjEQ_WELD, name="pierced", name1="fork", name2=fruit)
  weld.objtype, weld.active, weld.solref = mujoco.mjtObj.mjOBJ_BODY, False, (0.012, 1.0)
  lay.distract(1)
  text = lay.say("Use the fork to lift the {}.", "Pick up the {} with the fork.", "Take the fork and lift the {} with it.")
  return {"text": text.format(fruit), "fruit": fruit, "radius": r, "up": 0}


def expert(actor, goal):
  yield from actor.pick("fork", 2 * RADIUS, dz=0.012, above=0.06)
  yield from actor.shift((0, 0, 0.06))
  for _ in range(3):
    fruit = actor.world.pose(goal["fruit"])[:3, 3] + actor.jitter(0.5)
    on_top = fruit + (0, 0, goal["radius"]) - _TIP * actor.world.pose("fork")[:3, 2]  # it may hang askew in the hand
    yield from actor.reach(actor.carried("fork", on_top - (0, 0, 0.012)), above=0.045, speed=0.5)
    yield from actor.wait(2)
    if actor.world.active("pierced"):
      break
    yield from actor.shift((0, 0, 0.03))
  yield from actor.shift((0, 0, 0.09))
  yield from actor.wait(RATE_HZ)
  yield from actor.shift((0, 0, -0.075), speed=0.6)


def tick(world, goal):
  fork = world.pose("fork")
  from_above = fork[2, 3] > world.pose(goal["fruit"])[2, 3] and fork[2, 2] > 0.8
  used = world.held[1] == "fork" and not world.active("pierced")
  if used and from_above and world.pressing("fork", goal["fruit"]) > PIERCE:
    world.weld("pierced", "fork", goal["fruit"])
  up = world.pose(goal["fruit"])[2, 3] > goal["radius"] + 0.05 and world.active("pierced") and not world.touched(goal["fruit"])
  goal["up"] = goal["up"] + 1 if up else 0


def watch(world, goal):
  if world.held[1] == "fork" and world.pose("fork")[2, 3] + _TIP > 0.03:
    yield "fork_out"
  if world.active("pierced"):
    yield "pierced"
  if goal["up"] >= RATE_HZ // 2:
    yield "fruit_up"


TASK = Task("fork", 14.0, RUBRIC, build, expert, watch, tick)

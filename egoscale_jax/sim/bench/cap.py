"""Unscrew the cap of a bottle by at least three turns and take it off; and a relative of it that is held out: screw it on.

The bottle stands fixed, a one-handed task: the left hand has no part in it. The cap moves on the thread, PITCH metres a turn, until it is
off; off, it stays upright. A wrist turns it by STROKE and comes back, as people do.

Rubric of `unscrew`: +.1 held, +.2 for each of the first three turns, +.3 off and lifted by 2 cm.
Rubric of `screw_on`: +.1 held, +.25, +.3, +.35 for the first, second and third turn down.
"""

import mujoco
import numpy as np

from egoscale_jax.sim.bench import props
from egoscale_jax.sim.bench.props import Shape
from egoscale_jax.sim.bench.task import Task

PITCH = 0.0035  # metres a turn
TURNS, THREAD = 3, 3.05  # turns that are asked for, and those until the cap is off (or at its seat)
STROKE = 2.8  # radians of the wrist between two grasps
UNSCREW = (("held", 0.1), ("one_turn", 0.2), ("two_turns", 0.2), ("three_turns", 0.2), ("off", 0.3))
SCREW_ON = (("held", 0.1), ("one_turn", 0.25), ("two_turns", 0.3), ("three_turns", 0.35))
_TURN_STAGES = ("one_turn", "two_turns", "three_turns")
_WIDTH, _CAP_HALF = 0.040, 0.009


def _bottle(lay, lifted, low, high):
  """A bottle whose cap is `lifted` metres above its seat and turns from `low` to `high` radians; counter-clockwise from above opens it."""
  _, variant, glass = lay.paint()
  colour, _, rgb = lay.paint()
  x, y = lay.spot((-0.02, 0.15), (0.11, 0.25), 0.06)
  tall, r = 0.022 + 0.01 * variant.detail, 0.5 * _WIDTH
  body = [
    Shape("cylinder", (0, 0, tall), (1.25 * r, tall), glass),
    Shape("cylinder", (0, 0, 2 * tall + 0.008), (0.6 * r, 0.008), props.LIGHT),
  ]
  lay.table.body("bottle", props.pose(x, y, 0), body)
  mark = Shape("box", (0.55 * r, 0, _CAP_HALF), (0.42 * r, 0.14 * r, 0.001), props.DARK if sum(rgb) > 0.6 else props.LIGHT, solid=False)
  at = props.pose(x, y, 2 * tall + 0.010 + _CAP_HALF + lifted)
  cap = lay.table.body("cap", at, [Shape("cylinder", (0, 0, 0), (r, _CAP_HALF), rgb), mark])
  for i, axis in enumerate("xyz"):
    cap.add_joint(name=f"cap_{axis}", type=mujoco.mjtJoint.mjJNT_SLIDE, axis=np.eye(3)[i], armature=1e-5)
  turn = cap.add_joint(name="cap_turn", type=mujoco.mjtJoint.mjJNT_HINGE, axis=(0, 0, 1), armature=2e-3, frictionloss=0.02)
  turn.limited, turn.range = True, np.degrees((low, high))
  lay.table.graspable.append("cap")
  for axis in "xyz":
    thread = lay.table.spec.add_equality(type=mujoco.mjtEq.mjEQ_JOINT, name=f"thread_{axis}", name1=f"cap_{axis}")
    thread.objtype, thread.active, thread.solref = mujoco.mjtObj.mjOBJ_JOINT, True, (0.01, 1.0)
    # MuJoCo softens a coupling by the joints' inverse weights without the ratio: that of a light cap's turn lets it fall (4 cm, seen).
    thread.data[:5], thread.solimp = 0, (0.99, 0.999, 0.001, 0.5, 2)
    if axis == "z":
      thread.name2, thread.data[1] = "cap_turn", PITCH / (2 * np.pi)
  lay.table.spec.add_exclude(bodyname1="bottle", bodyname2="cap")
  lay.distract(2)
  return colour


def unscrewed(lay):
  colour = _bottle(lay, 0.0, -0.02, 100.0)
  text = lay.say("Unscrew the {} cap from the bottle.", "Take the {} cap off the bottle.", "Open the bottle with the {} cap.")
  return {"text": text.format(colour)}


def screwed(lay):
  colour = _bottle(lay, PITCH * THREAD, -2 * np.pi * THREAD, 2.0)
  text = lay.say("Screw the {} cap onto the bottle.", "Close the bottle with the {} cap.", "Tighten the {} cap.")
  return {"text": text.format(colour)}


def turns(world):
  """Turns from where it began; positive opens."""
  return world.joint("cap_turn") / (2 * np.pi)


def _stroke(actor, way, first):
  """One grasp at the cap and a turn of the wrist by STROKE. way: +1 opens."""
  grip = actor.fingers.grip(_WIDTH)
  centre = actor.world.pose("cap")[:3, 3] + (0, 0, 0.002)
  begin = actor.heading(grip) - way * STROKE / 2 - 0.35
  down = actor.pinch(grip, centre, begin, tilt=0.0)
  if first:
    yield from actor.reach(down, grip.open_J, above=0.06)
  else:
    yield from actor.go(actor.pinch(grip, centre + (0, 0, 0.012), begin, tilt=0.0), grip.open_J, lift=0.01, fingers=(0.0, 0.4), speed=1.8)
    yield from actor.go(down, frames=2)
  yield from actor.close("cap", grip)
  yield from actor.twist(centre, way * STROKE, way * PITCH * STROKE / (2 * np.pi), frames=8)


def unscrew(actor, goal):
  for stroke in range(14):
    yield from _stroke(actor, 1, stroke == 0)
    if turns(actor.world) > THREAD and actor.world.held[1] == "cap":
      yield from actor.shift((0, 0, 0.06))
      if _off(actor.world):
        break
    yield from actor.fist(actor.fingers.grip(_WIDTH).open_J, 2)
  yield from actor.shift((0.0, -0.07, 0.0))
  yield from actor.release(_WIDTH)


def screw_on(actor, goal):
  for stroke in range(14):
    yield from _stroke(actor, -1, stroke == 0)
    yield from actor.fist(actor.fingers.grip(_WIDTH).open_J, 2)
    if turns(actor.world) < -TURNS - 0.05:
      break
  yield from actor.shift((0, 0, 0.06))


def tick(world, goal):
  """Off the thread the cap is free to go where the hand takes it."""
  if turns(world) > THREAD:
    for axis in "xyz":
      world.set_active(f"thread_{axis}", 0)


def _off(world):
  return turns(world) >= TURNS and world.joint("cap_z") > PITCH * THREAD + 0.02


def watch_unscrew(world, goal):
  if world.held[1] == "cap":
    yield "held"
  yield from _TURN_STAGES[: max(0, int(turns(world)))]
  if _off(world):
    yield "off"


def watch_screw_on(world, goal):
  if world.held[1] == "cap":
    yield "held"
  yield from _TURN_STAGES[: max(0, int(-turns(world)))]


TASK = Task("unscrew", 25.0, UNSCREW, unscrewed, unscrew, watch_unscrew, tick)
SCREW_ON_TASK = Task("screw_on", 25.0, SCREW_ON, screwed, screw_on, watch_screw_on, held_out=True)

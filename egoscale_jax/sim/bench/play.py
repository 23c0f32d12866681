"""Play for mid-training: a goal of one of five verbs with whatever lies there. Hundreds of instructions; none of a held-out task.

Rubric: +1 done, as the verb's own check in _CHECKS says.
"""

import numpy as np

from egoscale_jax.sim.bench import props
from egoscale_jax.sim.bench.task import Task

_WAYS = {"to the left": (-1.0, 0.0), "to the right": (1.0, 0.0), "away": (0.0, 1.0)}
_CONTAINERS = ("basket", "tray", "plate", "mat")


def build(lay):
  verb = str(lay.rng.choice(sorted(_EXPERTS)))
  goal = {"verb": verb}
  if verb == "place":
    kind = _CONTAINERS[lay.rng.integers(len(_CONTAINERS))]
    colour, variant, rgb = lay.paint()
    x, y = lay.spot((-0.16, 0.17), (-0.06, 0.27), 0.095)
    shapes, goal["inside"], floor, goal["rim"] = props.container(kind, rgb, variant)
    lay.table.body(f"{colour} {kind}", props.pose(x, y, 0), shapes)
    goal |= {"to": np.array([x, y]), "floor": floor}
    goal["target"] = target = lay.solid()
    words = f"{'in' if kind in ('basket', 'tray') else 'on'} the {colour} {kind}"
    text = lay.say("Put the {} {}.", "Place the {} {}.", "Move the {} so that it is {}.").format(target["name"], words)
  elif verb == "stack":
    below = lay.solid(low=(-0.14, 0.16), high=(-0.03, 0.25), kinds=("cube",))
    goal["target"] = target = lay.solid(kinds=("cube", "can"))
    goal["below"] = below
    text = lay.say("Stack the {} on the {}.", "Put the {} on top of the {}.").format(target["name"], below["name"])
  elif verb == "push":
    goal["target"] = target = lay.solid(low=(-0.06, 0.15), high=(0.08, 0.22), kinds=("cube", "can"))
    way = str(lay.rng.choice(sorted(_WAYS)))
    goal["way"] = np.array(_WAYS[way])
    text = lay.say("Push the {} {}.", "Slide the {} {}.").format(target["name"], way)
  else:
    goal["target"] = target = lay.solid()
    text = lay.say(*{"touch": ("Touch the {}.", "Tap the {} from above."), "lift": ("Lift the {}.", "Pick up the {}.")}[verb])
    text = text.format(target["name"])
  if verb != "push":  # what is pushed needs its way
    lay.distract(2)
  goal["from"] = None
  return goal | {"text": text}


def _pick(actor, target):
  dz = 0.3 * (target["height"] - target["width"] / 2)
  yield from actor.pick(target["name"], target["width"], dz=dz, faces=target["faces"])


def _place(actor, goal):
  target = goal["target"]
  yield from _pick(actor, target)
  yield from actor.carry(target["name"], (*goal["to"], goal["rim"] + target["height"] + 0.008), lift=0.05)
  yield from actor.release(target["width"])


def _stack(actor, goal):
  target, below = goal["target"], goal["below"]
  yield from _pick(actor, target)
  at = actor.world.pose(below["name"])[:3, 3]
  top = at + (0, 0, below["height"] + target["height"])
  yield from actor.reach(actor.carried(target["name"], top + (0, 0, 0.002)), above=0.04, lift=0.04, speed=0.5)
  yield from actor.release(target["width"])


def _lift(actor, goal):
  target = goal["target"]
  yield from _pick(actor, target)
  yield from actor.shift((0, 0, 0.09))
  yield from actor.wait(4)
  yield from actor.shift((0, 0, -0.085))
  yield from actor.release(target["width"])


def _touch(actor, goal):
  target, shut = goal["target"], actor.fingers.grip(0.002)
  top = actor.world.pose(target["name"])[:3, 3] + (0, 0, target["height"] + shut.reach)
  yield from actor.reach(actor.pinch(shut, top - (0, 0, 0.003), actor.heading(shut)), shut.hold_J, above=0.05, speed=0.6)
  yield from actor.wait(2)
  yield from actor.shift((0, 0, 0.05))


def _push(actor, goal):
  target, shut = goal["target"], actor.fingers.grip(0.002)
  at, way = actor.world.pose(target["name"])[:3, 3], np.append(goal["way"], 0.0)
  behind = at - way * (0.5 * target["width"] + 0.035) + (0, 0, 0.003)
  yield from actor.go(actor.pinch(shut, behind + (0, 0, 0.06), actor.heading(shut)), shut.hold_J, lift=0.02, fingers=(0.0, 0.7))
  yield from actor.shift((0, 0, -0.06))
  yield from actor.shift(way * 0.13, speed=0.7)
  yield from actor.shift((0, 0, 0.07))


def tick(world, goal):
  if goal["from"] is None:
    goal["from"] = world.pose(goal["target"]["name"])[:3, 3]


def _placed(world, goal):
  at, target = world.pose(goal["target"]["name"])[:3, 3], goal["target"]
  low = at[2] < goal["floor"] + target["height"] + 0.012
  return low and np.linalg.norm(at[:2] - goal["to"]) < goal["inside"] and _alone(world, target)


def _stacked(world, goal):
  at, under = (world.pose(goal[key]["name"])[:3, 3] for key in ("target", "below"))
  high = at[2] - under[2] > goal["below"]["height"] + goal["target"]["height"] - 0.006
  return high and np.linalg.norm(at[:2] - under[:2]) < goal["below"]["width"] / 2 and _alone(world, goal["target"])


def _alone(world, target):
  return world.held[1] != target["name"] and not world.touched(target["name"]) and world.speed(target["name"]) < 0.03


def _lifted(world, goal):
  return world.held[1] == goal["target"]["name"] and world.pose(goal["target"]["name"])[2, 3] > goal["target"]["height"] + 0.05


def _touched(world, goal):
  return world.touched(goal["target"]["name"])


def _pushed(world, goal):
  moved = (world.pose(goal["target"]["name"])[:3, 3] - goal["from"])[:2] @ goal["way"]
  return moved > 0.05 and world.held[1] is None


_EXPERTS = {"place": _place, "stack": _stack, "lift": _lift, "touch": _touch, "push": _push}
_CHECKS = {"place": _placed, "stack": _stacked, "lift": _lifted, "touch": _touched, "push": _pushed}


def expert(actor, goal):
  yield from _EXPERTS[goal["verb"]](actor, goal)


def watch(world, goal):
  if _CHECKS[goal["verb"]](world, goal):
    yield "done"


TASK = Task("play", 10.0, (("done", 1.0),), build, expert, watch, tick)

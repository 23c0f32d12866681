"""What stands on the table: a MuJoCo spec that grows. Boxes, cylinders, balls and capsules; what is seen is what collides."""

import dataclasses

import mujoco
import numpy as np

from egoscale_jax import geometry
from egoscale_jax.sim import scene
from egoscale_jax.sim.bench import bodies, looks

STEP = 1.0 / 300  # seconds of physics
DARK, LIGHT, STEEL = (0.05, 0.05, 0.06), (0.8, 0.8, 0.78), (0.45, 0.47, 0.50)
_GEOMS = {
  "box": mujoco.mjtGeom.mjGEOM_BOX,
  "cylinder": mujoco.mjtGeom.mjGEOM_CYLINDER,
  "ball": mujoco.mjtGeom.mjGEOM_SPHERE,
  "capsule": mujoco.mjtGeom.mjGEOM_CAPSULE,
}


@dataclasses.dataclass(frozen=True)
class Shape:
  kind: str  # a key of _GEOMS
  at: tuple  # in its thing's frame, metres
  size: tuple  # half sizes; radius and half length
  colour: tuple  # linear RGB
  solid: bool = True  # False: seen only


def pose(x, y, z, yaw=0.0):
  """Metres, radians -> 4x4."""
  return geometry.se3(geometry.so3_exp(np.array([0, 0, float(yaw)])), np.array([x, y, z], float))


class Table:
  """Things are named; `graspable` are those that a hand can hold, `free` those that lie loose."""

  def __init__(self):
    self.spec, self.graspable, self.free = mujoco.MjSpec(), [], []
    option = self.spec.option
    option.timestep, option.integrator = STEP, mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    option.cone, option.iterations, option.tolerance = mujoco.mjtCone.mjCONE_ELLIPTIC, 30, 1e-7
    top = self.spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_PLANE, size=(1, 1, 0.1), group=0)
    top.contype, top.conaffinity, top.friction = 0, bodies.HAND_BIT | bodies.PROP_BIT, (1.0, 0.01, 0.001)

  def body(self, name, T_world_thing, shapes, density=400.0, parent=None):
    """A body that stands still; the caller may give it joints. Pose in the parent's frame. -> MjsBody."""
    quat = geometry.so3_to_quat(T_world_thing[:3, :3])
    body = (parent or self.spec.worldbody).add_body(name=name, pos=T_world_thing[:3, 3], quat=quat)
    for shape in shapes:
      geom = body.add_geom(type=_GEOMS[shape.kind], pos=shape.at, size=(*shape.size, 0, 0, 0)[:3], rgba=(*shape.colour, 1))
      geom.group, geom.density = scene.THING_GROUP, density
      geom.contype, geom.conaffinity = bodies.PROP_BIT * shape.solid, (bodies.HAND_BIT | bodies.PROP_BIT) * shape.solid
      geom.friction = (0.9, 0.01, 0.001)
    return body

  def loose(self, name, T_world_thing, shapes, density=400.0):
    """A body that lies free, and can be held."""
    body = self.body(name, T_world_thing, shapes, density)
    body.add_freejoint(name=name)
    self.graspable.append(name)
    self.free.append(name)
    return body


def solid(kind, half, colour, variant: looks.Thing):
  """A small thing to hold: (shapes, half height, half width); half: metres."""
  r = half * variant.scale
  mark = tuple(0.45 * np.asarray(colour) + 0.2)
  match kind:
    case "ball":
      return [Shape("ball", (0, 0, 0), (r,), colour)], r, r
    case "cube":
      return [Shape("box", (0, 0, 0), (r, r, r), colour)], r, r
    case "can":
      h = r * (1.1 + 0.4 * variant.detail)
      return [Shape("cylinder", (0, 0, 0), (r, h), colour), Shape("cylinder", (0, 0, h), (0.8 * r, 0.001), mark, solid=False)], h, r
    case "block":
      return [Shape("box", (0, 0, 0), (r, 1.3 * r, 0.8 * r), colour)], 0.8 * r, r
  raise ValueError(kind)


def container(kind, colour, variant: looks.Thing):
  """Something to put things into or onto: (shapes with the origin on the table, half width inside, height of the floor, of the rim)."""
  r = 0.058 * variant.scale
  dark = tuple(0.55 * np.asarray(colour))
  match kind:
    case "basket":
      return [Shape("box", (0, 0, 0.003), (r, r, 0.003), dark), *walls(r, r, 0.022 + 0.01 * variant.detail, colour)], r, 0.006, 0.045
    case "tray":
      return [Shape("box", (0, 0, 0.003), (r, r, 0.003), dark), *walls(r, r, 0.007, colour)], r, 0.006, 0.014
    case "plate":
      return (
        [
          Shape("cylinder", (0, 0, 0.003), (r, 0.003), colour),
          Shape("cylinder", (0, 0, 0.0063), (0.7 * r, 0.0005), dark, False),
        ],
        r,
        0.006,
        0.006,
      )
    case "mat":
      return (
        [Shape("box", (0, 0, 0.001), (r, r, 0.001), colour), Shape("box", (0, 0, 0.0022), (0.7 * r, 0.7 * r, 0.0003), dark, False)],
        r,
        0.002,
        0.002,
      )
  raise ValueError(kind)


def walls(x, y, half_height, colour, thick=0.004, bottom=0.0):
  """Four walls around a box of half sizes x, y."""
  z, pale = bottom + half_height, tuple(0.85 * np.asarray(colour))
  across = [Shape("box", (s * (x - thick), 0, z), (thick, y, half_height), colour) for s in (-1, 1)]
  return across + [Shape("box", (0, s * (y - thick), z), (x - 2 * thick, thick, half_height), pale) for s in (-1, 1)]


def stand(inner, half_height, colour, thick=0.006):
  """A square tube, origin on the table, whose hole has half width `inner`: things stand upright in it."""
  outer = inner + 2 * thick
  return walls(outer, outer, half_height, colour, thick)

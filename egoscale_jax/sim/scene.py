"""The table-top world of one episode: what is in it, its MuJoCo model, and how a frame is put into that model.

Nothing is simulated forward: experts (tasks.py) say where each hand and object is, MuJoCo keeps the kinematic trees and casts the rays.
World: metres, x right, y away from the person, z up, origin on the table's top below the middle of the person's front.
"""

import dataclasses

import mujoco
import numpy as np

from egoscale_jax import geometry
from egoscale_jax.hands.keypoints import SIDES
from egoscale_jax.sim import human

THING_GROUP = 2  # MuJoCo's geom group of everything on the table
_SRGB = {
  "red": (205, 30, 38),
  "green": (38, 150, 62),
  "blue": (32, 84, 205),
  "yellow": (244, 205, 36),
  "purple": (124, 48, 165),
  "white": (242, 242, 242),
  "black": (34, 34, 38),
  "turquoise": (38, 190, 190),
}
TABLES = ((196, 196, 198), (120, 130, 142), (226, 222, 212), (92, 70, 56), (186, 172, 150))
_SKINS = ((246, 208, 180), (228, 178, 142), (198, 140, 100), (150, 98, 66), (98, 62, 44))
_SLEEVES = ((60, 90, 160), (170, 60, 70), (70, 130, 90), (230, 230, 230), (50, 50, 58), (150, 120, 180))
_LIGHT, _DARK = (0.82, 0.82, 0.80), (0.06, 0.06, 0.07)  # of a jar's glass, and of the mark on its cap


def linear(srgb):
  """sRGB 0..255 [..., 3] -> linear 0..1 (gamma 2.2)."""
  return (np.asarray(srgb, dtype=float) / 255.0) ** 2.2


COLOURS = {name: linear(value) for name, value in _SRGB.items()}


@dataclasses.dataclass(frozen=True)
class Thing:
  """A rigid object. Its frame: origin at the middle of the shape; z up."""

  kind: str  # a key of _SHAPES
  colour: str
  size: tuple[float, float]  # half width or radius, half height; metres

  @property
  def name(self):
    return f"{self.colour} {self.kind}"


@dataclasses.dataclass(frozen=True)
class Scene:
  person: human.Person
  things: tuple[Thing, ...]
  table: np.ndarray  # linear RGB
  wall: np.ndarray
  lamp: np.ndarray  # its position, metres
  texture_seed: int


def sample_person(rng):
  low = rng.integers(len(_SKINS) - 1)
  skin = linear(_SKINS[low] + rng.uniform() * np.subtract(_SKINS[low + 1], _SKINS[low]))
  sleeve = linear(_SLEEVES[rng.integers(len(_SLEEVES))])
  return human.Person(rng.uniform(0.92, 1.08), tuple(skin), tuple(sleeve))


def sample_scene(rng, person, things):
  """Light, wall and table around the given person and things; the table is one of the two tones least like the skin and the things."""
  stand_out = np.stack([np.asarray(person.skin) ** (1 / 2.2), *(np.divide(_SRGB[thing.colour], 255.0) for thing in things)])
  contrast = np.linalg.norm(np.divide(TABLES, 255.0)[:, None] - stand_out, axis=-1).min(axis=1)
  table = linear(TABLES[np.argsort(contrast)[rng.integers(-2, 0)]]) * rng.uniform(0.9, 1.05)
  wall = linear(rng.uniform((120, 130, 140), (210, 210, 215)))
  lamp = np.array([rng.uniform(-0.5, 0.5), rng.uniform(0.1, 0.6), rng.uniform(1.1, 1.5)])
  return Scene(person, tuple(things), table, wall, lamp, int(rng.integers(2**31)))


def _geoms(thing):
  """The thing's parts: (geom type, position, half sizes, linear RGB)."""
  box, cylinder = mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_CYLINDER
  colour = COLOURS[thing.colour]
  r, h = thing.size
  match thing.kind:
    case "ball":
      return [(mujoco.mjtGeom.mjGEOM_SPHERE, (0, 0, 0), (r, 0, 0), colour)]
    case "cube":
      return [(box, (0, 0, 0), (r, r, h), colour)]
    case "can":
      return [(cylinder, (0, 0, 0), (r, h, 0), colour), (cylinder, (0, 0, h), (0.85 * r, 0.001, 0), 0.4 * colour + 0.25)]
    case "mat":
      return [(box, (0, 0, 0), (r, r, h), colour), (box, (0, 0, 0.0005), (0.75 * r, 0.75 * r, h), 0.6 * colour)]
    case "plate":
      return [(cylinder, (0, 0, 0), (r, h, 0), colour), (cylinder, (0, 0, 0.0005), (0.68 * r, h, 0), 0.7 * colour)]
    case "basket":
      wall = 0.004
      walls = [(box, (s * (r - wall), 0, 0), (wall, r, h), colour) for s in (-1, 1)]
      walls += [(box, (0, s * (r - wall), 0), (r - 2 * wall, wall, h), 0.9 * colour) for s in (-1, 1)]
      return [(box, (0, 0, wall - h), (r - wall, r - wall, wall), 0.5 * colour), *walls]
    case "jar":
      return [(cylinder, (0, 0, 0), (r, h, 0), _LIGHT), (cylinder, (0, 0, -0.1 * h), (1.01 * r, 0.45 * h, 0), 0.6 * COLOURS[thing.colour])]
    case "cap":
      mark = (box, (0.45 * r, 0, h), (0.5 * r, 0.14 * r, 0.0025), _DARK if sum(colour) > 0.6 else _LIGHT)
      return [(cylinder, (0, 0, 0), (r, h, 0), colour), mark]
  raise ValueError(thing.kind)


class Stage:
  """A Scene's MuJoCo model with the poses of one frame in it."""

  def __init__(self, scene):
    self.scene = scene
    spec = mujoco.MjSpec()
    for side in SIDES:
      human.add_hand(spec, side, scene.person)
    for thing in scene.things:
      body = spec.worldbody.add_body(name=thing.name)
      body.add_freejoint(name=thing.name)
      for kind, position, size, colour in _geoms(thing):
        body.add_geom(type=kind, pos=position, size=size, rgba=np.append(colour, 1), group=THING_GROUP, contype=0, conaffinity=0)
    self.model = spec.compile()
    self.data = mujoco.MjData(self.model)
    self._bodies = np.array([[self.model.body(side + name).id for name in human.BODIES] for side in SIDES])
    self._hinges = np.array([[self.model.joint(side + name).qposadr[0] for name in human.JOINTS] for side in SIDES])

  def _free(self, name, pose):
    address = self.model.joint(name).qposadr[0]
    self.data.qpos[address : address + 3] = pose[:3, 3]
    mujoco.mju_mat2Quat(self.data.qpos[address + 3 : address + 7], pose[:3, :3].ravel())

  def pose(self, T_world_wrist_2x4x4, joints_2x20, T_world_thing):
    """Put one frame into the model; T_world_thing: a 4x4 for each of scene.things."""
    for i, side in enumerate(SIDES):
      self._free(f"{side}Hand", T_world_wrist_2x4x4[i])
      self._free(f"{side}Forearm", forearm(T_world_wrist_2x4x4[i], side))
    self.data.qpos[self._hinges] = joints_2x20
    for thing, pose in zip(self.scene.things, T_world_thing):
      self._free(thing.name, pose)
    mujoco.mj_kinematics(self.model, self.data)

  def hand_poses(self):
    """T_world_body [2, 25, 4, 4] of human.BODIES, left then right, in the simulator's hand frame."""
    rotation = self.data.xmat[self._bodies].reshape(2, -1, 3, 3)
    return geometry.se3(rotation, self.data.xpos[self._bodies])


def forearm(T_world_wrist, side, right_elbow=(0.30, -0.38, 0.12)):
  """The forearm's pose: from the wrist towards an elbow beside the body, its x along the bone."""
  elbow = np.array(right_elbow) * ({"left": -1.0, "right": 1.0}[side], 1, 1)
  x = elbow - T_world_wrist[:3, 3]
  return geometry.se3(human.along(x, (0, 0, -1)), T_world_wrist[:3, 3])


def look_at(position, target):
  """Camera at `position` [3] looking to `target` [3], upright -> T_world_camera (x right, y down, z forward)."""
  z = (target - position) / np.linalg.norm(target - position)
  x = np.cross(z, (0.0, 0.0, 1.0))
  x /= np.linalg.norm(x)
  return geometry.se3(np.stack([x, np.cross(z, x), z], axis=1), position)

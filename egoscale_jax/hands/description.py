"""Reads a URDF or MJCF file: MuJoCo's own compiler on the kinematics alone, so that meshes and inertias may be missing."""

import dataclasses
import xml.etree.ElementTree as ElementTree

import mujoco
import numpy as np

from egoscale_jax.errors import UserError

_MESHED = (mujoco.mjtGeom.mjGEOM_MESH, mujoco.mjtGeom.mjGEOM_HFIELD, mujoco.mjtGeom.mjGEOM_SDF)


@dataclasses.dataclass(frozen=True)
class Frame:
  """A frame in the base frame with every joint at 0, and the joint that it moves with (-1: the base)."""

  position_3: np.ndarray
  rotation_3x3: np.ndarray
  joint: int


@dataclasses.dataclass(frozen=True)
class Tree:
  """A compiled model of hinges with its data at the zero of all joints, which need not be its qpos0."""

  path: str
  model: mujoco.MjModel
  data: mujoco.MjData
  last_joint: tuple[int, ...]  # for each body the joint that it moves with, -1 for the base
  parents: tuple[int, ...]  # parent joint of each joint, -1 for the base
  weighed: frozenset[int]  # the bodies whose centre of mass the file states
  velocity_N: np.ndarray  # rad/s; inf where none is stated

  def frame(self, name):
    """The site of that name, else the link (a URDF has no sites); None where there is neither."""
    site = mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_SITE, name)
    if site >= 0:
      joint = self.last_joint[self.model.site_bodyid[site]]
      return Frame(self.data.site_xpos[site], self.data.site_xmat[site].reshape(3, 3), joint)
    body = mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_BODY, name)
    return self.of_body(body) if body >= 0 else None

  def of_body(self, body):
    return Frame(self.data.xpos[body], self.data.xmat[body].reshape(3, 3), self.last_joint[body])

  def of_joint(self, joint):
    """The place of a joint, turned as its link is."""
    return Frame(self.data.xanchor[joint], self.data.xmat[self.model.jnt_bodyid[joint]].reshape(3, 3), joint)


def read(path) -> Tree:
  """Refuses what is no tree of hinges with ranges, rather than leave a part of it out."""
  model, weighed = _compile(path)
  _check_joints(model, path)
  data = mujoco.MjData(model)
  data.qpos[:] = 0.0
  mujoco.mj_kinematics(model, data)
  last_joint = _last_joint_of_bodies(model)
  return Tree(str(path), model, data, last_joint, _parents(model, last_joint), weighed, _velocities(model, path))


def _compile(path):
  """(model, ids of the bodies with a stated centre of mass)."""
  try:
    spec = mujoco.MjSpec.from_file(str(path))
    spec.compiler.fusestatic = False  # a link that carries a keypoint may be fixed to its parent
    spec.compiler.boundmass, spec.compiler.boundinertia, spec.compiler.balanceinertia = 1e-6, 1e-9, True
    _strip(spec)
    model = spec.compile()
  except (ValueError, mujoco.FatalError) as error:
    raise UserError(f"{path}: MuJoCo cannot compile it: {' '.join(str(error).split())}") from error
  return model, frozenset(body.id for body in spec.bodies if body.explicitinertial)


def _strip(spec):
  """Takes out everything that needs another file, and what may refer to it; primitive geoms stay."""
  for geom in list(spec.geoms):
    geom.material = ""
    if geom.type in _MESHED or geom.meshname or geom.hfieldname:
      spec.delete(geom)
  for site in spec.sites:
    site.material = ""
  for kind in ("meshes", "hfields", "skins", "flexes", "pairs", "sensors", "keys", "materials", "textures"):
    for element in list(getattr(spec, kind)):
      spec.delete(element)


def _check_joints(model, path):
  for j in range(model.njnt):
    if model.jnt_type[j] != mujoco.mjtJoint.mjJNT_HINGE:
      kind = mujoco.mjtJoint(model.jnt_type[j]).name.removeprefix("mjJNT_").lower()
      raise UserError(f"{path}: joint {model.joint(j).name!r} is no hinge but of type {kind}; a hand has hinges only")
    if not model.jnt_limited[j]:
      raise UserError(f"{path}: joint {model.joint(j).name!r} has no range")
  if model.njnt == 0:
    raise UserError(f"{path}: no joints")


def _last_joint_of_bodies(model):
  last = [-1] * model.nbody
  for body in range(1, model.nbody):
    count = model.body_jntnum[body]
    last[body] = int(model.body_jntadr[body] + count - 1) if count else last[model.body_parentid[body]]
  return tuple(last)


def _parents(model, last_joint):
  """The joint before it on the same body, else the joint that the parent body moves with."""
  parents = []
  for j in range(model.njnt):
    body = model.jnt_bodyid[j]
    parents.append(j - 1 if j > model.body_jntadr[body] else last_joint[model.body_parentid[body]])
  return tuple(parents)


def _velocities(model, path):
  """[N] rad/s: MJCF has no field for them, so a joint's first user value; URDF's own attribute; inf where none is stated."""
  if path.suffix != ".urdf":
    stated = model.jnt_user[:, 0] if model.nuser_jnt else np.zeros(model.njnt)
    return np.where(stated > 0, stated, np.inf)
  try:
    joints = list(ElementTree.parse(path).getroot().iter("joint"))
    stated = {j.get("name"): float(limit.get("velocity", "inf")) for j in joints if (limit := j.find("limit")) is not None}
  except (ElementTree.ParseError, ValueError) as error:  # MuJoCo's parser forgives more
    raise UserError(f"{path}: {error}") from error
  mimics = sum(j.find("mimic") is not None for j in joints)
  if mimics != model.neq:
    raise UserError(f"{path}: {mimics} mimic joints, of which this MuJoCo ({mujoco.__version__}) reads {model.neq}; update it")
  return np.array([stated.get(model.joint(j).name, np.inf) or np.inf for j in range(model.njnt)])

"""A robot hand as frozen arrays: a tree of hinges and the 21 keypoints on it.

All arrays are taken at the zero pose (every joint 0) in the hand's base frame, so no frame in the tree is turned at that pose and forward
kinematics needs an axis and a point for each joint, nothing else. Axis letters: J joints, P = 21 keypoints.
"""

import dataclasses
import functools
import pathlib
import xml.etree.ElementTree as ElementTree

import jax
import mujoco
import numpy as np

from egoscale_jax.errors import UserError
from egoscale_jax.hands import keypoints

_MODELS = pathlib.Path(__file__).parent / "models"
BUILT_IN = ("sharpa_wave",)


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=[
    "axis_Jx3",
    "anchor_Jx3",
    "lower_J",
    "upper_J",
    "velocity_J",
    "keypoint_Px3",
    "T_base_wrist_4x4",
  ],
  meta_fields=["parents", "keypoint_parents"],
  drop_fields=["name", "side", "joint_names"],  # dropped inside jit: a left and a right hand with one tree share one compiled function
)
@dataclasses.dataclass(frozen=True)
class Hand:
  """Joints are sorted from the root out: a parent comes before its children. Figures are float32, metres and radians."""

  axis_Jx3: np.ndarray  # unit hinge axis at the zero pose, base frame
  anchor_Jx3: np.ndarray  # a point on that axis: where the joint's frame sits
  lower_J: np.ndarray
  upper_J: np.ndarray
  velocity_J: np.ndarray  # rad/s; inf where the description states none
  keypoint_Px3: np.ndarray  # keypoints at the zero pose, base frame
  T_base_wrist_4x4: np.ndarray  # keypoints.wrist_frame at the zero pose: a constant of the hand
  parents: tuple[int, ...]  # parent joint of each joint, -1 for the base
  keypoint_parents: tuple[int, ...]  # the joint that each keypoint moves with, -1 for the base
  name: str = ""
  side: str = ""
  joint_names: tuple[str, ...] = ()

  @property
  def num_joints(self) -> int:
    return len(self.parents)


def load(name_or_path, side) -> Hand:
  """A built-in hand by name, or a URDF or MJCF file whose sites or links carry the 21 names of `keypoints.NAMES`; side as in SIDES."""
  if side not in keypoints.SIDES:
    raise UserError(f"side {side!r}: expected one of {', '.join(keypoints.SIDES)}")
  path = pathlib.Path(name_or_path)
  if str(name_or_path) in BUILT_IN:
    path = _MODELS / f"{name_or_path}_{side}.xml"
  elif not (path.suffix in (".urdf", ".xml") and path.is_file()):
    raise UserError(f"hand {str(name_or_path)!r}: neither a .urdf or .xml file nor one of the built-in hands: {', '.join(BUILT_IN)}")
  model = _compile(path)
  _check_joints(model, path)
  data = mujoco.MjData(model)
  data.qpos[:] = 0.0  # not qpos0: the zero of the joint angles
  mujoco.mj_kinematics(model, data)
  points_Px3, bodies = _keypoints(model, data, path)
  last_joint = _last_joint_of_bodies(model)
  wrist = keypoints.wrist_frame(points_Px3, side)
  if not np.isfinite(wrist).all():
    raise UserError(f"{path}: the wrist and the knuckles span no palm at the zero pose")
  single = np.float32
  return Hand(
    axis_Jx3=data.xaxis.astype(single),
    anchor_Jx3=data.xanchor.astype(single),
    lower_J=model.jnt_range[:, 0].astype(single),
    upper_J=model.jnt_range[:, 1].astype(single),
    velocity_J=_velocities(model, path).astype(single),
    keypoint_Px3=points_Px3.astype(single),
    T_base_wrist_4x4=wrist.astype(single),
    parents=_parents(model, last_joint),
    keypoint_parents=tuple(last_joint[body] for body in bodies),
    name=str(name_or_path) if str(name_or_path) in BUILT_IN else path.stem,
    side=side,
    joint_names=tuple(model.joint(j).name for j in range(model.njnt)),
  )


def _compile(path):
  """MuJoCo's own compiler, on the kinematics alone: a description without its mesh files or inertias is enough."""
  try:
    spec = mujoco.MjSpec.from_file(str(path))
    spec.compiler.fusestatic = False  # a link that carries a keypoint may be fixed to its parent
    spec.compiler.boundmass, spec.compiler.boundinertia = 1e-6, 1e-9
    for geom in [g for g in spec.geoms if g.type == mujoco.mjtGeom.mjGEOM_MESH]:
      spec.delete(geom)
    for mesh in list(spec.meshes):
      spec.delete(mesh)
    return spec.compile()
  except ValueError as error:
    raise UserError(f"{path}: MuJoCo cannot compile it: {' '.join(str(error).split())}") from error


def _check_joints(model, path):
  """Hinges with a range and no coupling are what the solver knows; anything else is refused rather than left out."""
  for j in range(model.njnt):
    if model.jnt_type[j] != mujoco.mjtJoint.mjJNT_HINGE:
      raise UserError(f"{path}: joint {model.joint(j).name!r} is no hinge; a hand has hinges only")
    if not model.jnt_limited[j]:
      raise UserError(f"{path}: joint {model.joint(j).name!r} has no range")
  if model.njnt == 0:
    raise UserError(f"{path}: no joints")
  if model.neq:
    raise UserError(f"{path}: {model.neq} coupled (mimic or equality) joints; only independent joints are supported")


def _keypoints(model, data, path):
  """Positions [21, 3] and body ids of the keypoints: the site of that name, else the body (a URDF has no sites)."""
  points, bodies, missing = [], [], []
  for name in keypoints.NAMES:
    site = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_SITE, name)
    body = model.site_bodyid[site] if site >= 0 else mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, name)
    if body < 0:
      missing.append(name)
      continue
    points.append(data.site_xpos[site] if site >= 0 else data.xpos[body])
    bodies.append(int(body))
  if missing:
    raise UserError(f"{path}: no site or link named {', '.join(missing)}; a hand names all 21 keypoints")
  return np.stack(points), bodies


def _last_joint_of_bodies(model):
  """For each body the joint that it moves with, -1 for the base."""
  last = [-1] * model.nbody
  for body in range(1, model.nbody):
    count = model.body_jntnum[body]
    last[body] = int(model.body_jntadr[body] + count - 1) if count else last[model.body_parentid[body]]
  return last


def _parents(model, last_joint):
  """The joint before it on the same body, else the joint that the parent body moves with."""
  parents = []
  for j in range(model.njnt):
    body = model.jnt_bodyid[j]
    parents.append(j - 1 if j > model.body_jntadr[body] else last_joint[model.body_parentid[body]])
  return tuple(parents)


def _velocities(model, path):
  """Velocity limits [J]: MJCF has no field for them, so a joint's user value; URDF's own attribute; inf where none is stated."""
  if path.suffix == ".urdf":
    limits = {j.get("name"): j.find("limit") for j in ElementTree.parse(path).getroot().iter("joint")}
    stated = [limits[model.joint(j).name] for j in range(model.njnt)]
    return np.array([np.inf if limit is None else float(limit.get("velocity", "inf")) for limit in stated])
  return model.jnt_user[:, 0] if model.nuser_jnt else np.full(model.njnt, np.inf)

"""Where a finger ends, in a file that does not say: a frame fixed to its last link, that link's geometry, its mass, or a guess."""

import dataclasses

import mujoco
import numpy as np

from egoscale_jax.hands.description import Frame

NEAR_M = 0.005  # closer to the last joint than this is no fingertip
_AHEAD = 0.5  # cosine: a frame to the side of the last bone (a sensor, a nail) is none either
_MASS = (
  1.9  # tip over centre of mass, from the last joint: published tips lie at 1.7 (Dex3), 1.9 to 2.0 (Shadow), 2.0 (Sharpa), 2.3 (Inspire)
)
_SHORT = 0.6  # of the bone before: no estimate is shorter; the Sharpa thumb's mass sits at its base and would give 16 mm for 28
_GUESS = 0.8  # of the bone before: a human's distal phalanx over the middle one


def find(tree, joint, before_3) -> tuple[Frame, str]:
  """The tip of the finger whose last joint it is and whose bone before it starts at before_3, and in words how it was found."""
  place_3 = tree.data.xanchor[joint]
  bone_3 = in_plane(tree, joint, place_3 - before_3)
  rigid = [b for b in range(tree.model.nbody) if tree.last_joint[b] == joint]
  body = int(tree.model.jnt_bodyid[joint])
  if (found := _fixed_frame(tree, rigid, place_3, bone_3)) is not None:
    return found
  frame = dataclasses.replace(tree.of_body(body), joint=joint)
  if (end_3 := _end_of_geometry(tree, rigid, place_3, bone_3)) is not None:
    return dataclasses.replace(frame, position_3=end_3), "the far end of the last link's geometry"
  mass_3 = in_plane(tree, joint, tree.data.xpos[body] + frame.rotation_3x3 @ tree.model.body_ipos[body] - place_3)
  if body in tree.weighed and mass_3 @ bone_3 > 0.2 * bone_3 @ bone_3:
    stretch = max(_MASS, _SHORT * np.linalg.norm(bone_3) / np.linalg.norm(mass_3))
    return dataclasses.replace(frame, position_3=place_3 + stretch * mass_3), f"estimated: {stretch:.2g} x the last link's centre of mass"
  return dataclasses.replace(frame, position_3=place_3 + _GUESS * bone_3), f"guessed: {_GUESS} of the bone before it"


def in_plane(tree, joint, arm_3):
  """Without its part along the joint's axis: hinges may lie anywhere on their axes, and screws beside the plane in which a finger bends."""
  axis_3 = tree.data.xaxis[joint]
  flat_3 = arm_3 - axis_3 * (axis_3 @ arm_3)
  return flat_3 if np.linalg.norm(flat_3) > NEAR_M else arm_3


def _fixed_frame(tree, rigid, place_3, bone_3):
  """Sites of the last link and links without children fixed to it, away from the joint and ahead: a tip by its name, else the farthest."""
  model = tree.model
  names = [("site", model.site(s).name) for s in range(model.nsite) if model.site_bodyid[s] in rigid]
  names += [("link", model.body(b).name) for b in rigid if b not in model.body_parentid]
  frames = [(kind, name, tree.frame(name)) for kind, name in names if name]
  arms = [frame.position_3 - place_3 for _, _, frame in frames]
  ahead_3 = bone_3 / np.linalg.norm(bone_3)
  good = [i for i, arm in enumerate(arms) if np.linalg.norm(arm) > NEAR_M and arm @ ahead_3 > _AHEAD * np.linalg.norm(arm)]
  if not good:
    return None
  kind, name, frame = frames[max(good, key=lambda i: ("tip" in frames[i][1].lower(), np.linalg.norm(arms[i])))]
  return frame, f"{kind} {name}"


def _end_of_geometry(tree, rigid, place_3, bone_3):
  """The farthest point of the primitive geoms along the line from the joint through the farthest of them; None without any."""
  centres = {g: tree.data.geom_xpos[g] - place_3 for g in range(tree.model.ngeom) if tree.model.geom_bodyid[g] in rigid}
  centres = {g: centre for g, centre in centres.items() if tree.model.geom_type[g] in _REACH}
  if not centres:
    return None
  far = centres[max(centres, key=lambda g: np.linalg.norm(centres[g]))]
  direction = far if np.linalg.norm(far) > NEAR_M else bone_3
  direction = direction / np.linalg.norm(direction)
  reach = max(centre @ direction + _reach(tree, g, direction) for g, centre in centres.items())
  return place_3 + reach * direction if reach > NEAR_M else None


def _reach(tree, geom, direction_3):
  """How far the geom extends from its centre along a unit direction (metres)."""
  local = tree.data.geom_xmat[geom].reshape(3, 3).T @ direction_3
  return _REACH[int(tree.model.geom_type[geom])](tree.model.geom_size[geom], np.abs(local))


_REACH = {  # (size, |direction| in the geom's frame) -> metres: the support functions of the primitives
  int(mujoco.mjtGeom.mjGEOM_SPHERE): lambda size, d: size[0],
  int(mujoco.mjtGeom.mjGEOM_CAPSULE): lambda size, d: size[0] + size[1] * d[2],
  int(mujoco.mjtGeom.mjGEOM_CYLINDER): lambda size, d: size[0] * np.hypot(d[0], d[1]) + size[1] * d[2],
  int(mujoco.mjtGeom.mjGEOM_BOX): lambda size, d: size @ d,
  int(mujoco.mjtGeom.mjGEOM_ELLIPSOID): lambda size, d: np.linalg.norm(size * d),
}

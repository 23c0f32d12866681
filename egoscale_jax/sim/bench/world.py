"""The world of one trial: a body at a table with things, physics between them, and the grasps.

A thing is held while real contacts press on it from two sides: the thumb and a finger, whose normals oppose. Then a weld to the hand's base
takes its weight, since friction of two or three capsules holds nothing for long in any solver; it goes as soon as thumb or fingers leave
the thing, or when it is torn further from the hand than SLIP. The rule is one for the human and for the robots.
"""

import mujoco
import numpy as np

from egoscale_jax import geometry
from egoscale_jax.hands.keypoints import SIDES
from egoscale_jax.sim import scene
from egoscale_jax.sim.bench import RATE_HZ, bodies, props

SUBSTEPS = round(1 / (RATE_HZ * props.STEP))
GRASP_EVERY = 4  # substeps from one look at the contacts to the next
PRESS = 0.02  # newtons, of thumb and of fingers each, that begin a grasp
OPPOSED = -0.3  # cosine of the angle between their normals, at most
SLIP = 0.025  # metres
MAX_STEP, MAX_TURN = 0.12, 0.6  # metres and radians a frame: as fast as a wrist is carried, whatever is commanded
LOWEST = 0.02  # metres above the table that a wrist is held
ELBOW = (0.46, -0.22, 0.10)  # metres, of the right arm: outside of what the camera looks at
THUMB, FINGER = 1, 2


class World:
  """Left hand, then right. `scene` is what render.Renderer reads; `held[i]` is the thing in a hand or None."""

  def __init__(self, body, table, room, T_world_wrist_2x4x4, joints_2xJ):
    self.body, self.scene, self.graspable, self.free = body, room, tuple(table.graspable), tuple(table.free)
    body.add(table.spec)
    for side in SIDES:
      for name in self.graspable:
        weld = table.spec.add_equality(type=mujoco.mjtEq.mjEQ_WELD, name=f"{side} {name}", name1=f"{side}Hand", name2=name)
        weld.objtype, weld.active = mujoco.mjtObj.mjOBJ_BODY, False
        weld.solref, weld.solimp = (0.012, 1.0), (0.95, 0.99, 0.001, 0.5, 2)
    self.model = table.spec.compile()
    self.data = mujoco.MjData(self.model)
    m = self.model
    self._joints = np.array([[m.joint(body.prefix + name).qposadr[0] for name in names] for names in body.joint_names])
    self._servos = np.array([[m.actuator(name).id for name in names] for names in body.joint_names])
    self._carried = np.stack([m.joint(f"{side}Hand").qposadr[0] + np.arange(7) for side in SIDES])
    self._moved = np.stack([m.joint(f"{side}Hand").dofadr[0] + np.arange(6) for side in SIDES])
    self._forearms = [m.body(f"{side}Forearm").mocapid[0] for side in SIDES]
    self._things = [m.body(name).id for name in self.graspable]
    self._limits = body.limits_2xJx2
    self._T_wrist_base = geometry.se3_inverse(body.T_base_wrist_2x4x4())
    self._tag_geoms()
    self.held, self._relative = [None, None], [None, None]
    self.place(T_world_wrist_2x4x4, joints_2xJ)
    mujoco.mj_forward(m, self.data)

  def _tag_geoms(self):
    """Of every geom: whose hand (-1: none), thumb or finger, and which graspable thing (-1: none)."""
    m = self.model
    self._hand, self._part, self._thing = (np.full(m.ngeom, fill) for fill in (-1, 0, -1))
    for g in range(m.ngeom):
      b = m.geom_bodyid[g]
      if b in self._things:
        self._thing[g] = self._things.index(b)
      root = m.body(m.body_rootid[b]).name
      if root in ("leftHand", "rightHand"):
        self._hand[g] = ("leftHand", "rightHand").index(root)
        self._part[g] = {"palm": 0, "thumb": THUMB}.get(bodies.part(m.body(b).name), FINGER)

  # Poses and states

  @property
  def joints_2xJ(self):
    """As they are, not as commanded; radians."""
    return self.data.qpos[self._joints].copy()

  def pose(self, name):
    """T_world_thing [4, 4] of any body."""
    body = self.model.body(name).id
    return geometry.se3(self.data.xmat[body].reshape(3, 3), self.data.xpos[body].copy())

  def ids(self, names):
    """Nested lists of bodies' names -> their ids as an array, for `poses`."""
    return np.vectorize(lambda name: self.model.body(name).id)(np.array(names))

  def poses(self, ids):
    """T_world_body [..., 4, 4] of an array of bodies' ids."""
    return geometry.se3(self.data.xmat[ids].reshape(*ids.shape, 3, 3), self.data.xpos[ids])

  def joint(self, name) -> float:
    """A thing's own hinge or slide: radians or metres."""
    return float(self.data.qpos[self.model.joint(name).qposadr[0]])

  def speed(self, name) -> float:
    """m/s of a loose thing."""
    address = self.model.joint(name).dofadr[0]
    return float(np.linalg.norm(self.data.qvel[address : address + 3]))

  def pressing(self, a, b) -> float:
    """Newtons by which two bodies press on each other now."""
    contact, ids = self.data.contact, [self.model.body(name).id for name in (a, b)]
    pairs = np.sort(self.model.geom_bodyid[contact.geom], axis=1)
    found = contact.efc_address[(pairs == np.sort(ids)).all(axis=1)]
    return float(self.data.efc_force[found[found >= 0]].sum())

  def touched(self, name) -> bool:
    """Whether a hand pushes a thing now."""
    geoms = self.data.contact.geom[self.data.contact.efc_address >= 0]
    of_thing, of_hand = self.model.geom_bodyid[geoms] == self.model.body(name).id, self._hand[geoms] >= 0
    return bool((of_thing & of_hand[:, ::-1]).any())

  def active(self, equality) -> bool:
    return bool(self.data.eq_active[self.model.equality(equality).id])

  def set_active(self, equality, active):
    self.data.eq_active[self.model.equality(equality).id] = active

  def weld(self, equality, first, second):
    """Two bodies to each other as they are -> T_first_second."""
    relative = geometry.se3_inverse(self.pose(first)) @ self.pose(second)
    data = self.model.eq_data[self.model.equality(equality).id]
    data[:3], data[3:6], data[6:10], data[10] = 0, relative[:3, 3], geometry.so3_to_quat(relative[:3, :3]), 1.0
    self.set_active(equality, 1)
    return relative

  # Time

  def place(self, T_world_wrist_2x4x4, joints_2xJ):
    """Both hands where they are said to be, at once; the caller asks MuJoCo for what follows from it."""
    self.T_world_wrist_2x4x4, self.joint_targets_2xJ = np.array(T_world_wrist_2x4x4, float), np.array(joints_2xJ, float)
    self.data.qpos[self._joints] = self.joint_targets_2xJ
    self.data.ctrl[self._servos] = self.joint_targets_2xJ
    self.data.qpos[self._carried] = self._places(self.T_world_wrist_2x4x4 @ self._T_wrist_base)
    self._pose_forearms(self.T_world_wrist_2x4x4)

  def limited(self, T_world_wrist_2x4x4, joints_2xJ):
    """The command that is carried out: no faster than a wrist is, above the table, joints within their range; a NaN stays where it is."""
    wrist, joints = self.T_world_wrist_2x4x4.copy(), self.joint_targets_2xJ.copy()
    for i in range(2):
      if np.isfinite(T_world_wrist_2x4x4[i]).all():
        shift = T_world_wrist_2x4x4[i, :3, 3] - wrist[i, :3, 3]
        turn = geometry.so3_log(wrist[i, :3, :3].T @ T_world_wrist_2x4x4[i, :3, :3])
        wrist[i, :3, 3] += shift * min(1.0, MAX_STEP / max(np.linalg.norm(shift), 1e-9))
        wrist[i, :3, :3] = wrist[i, :3, :3] @ geometry.so3_exp(turn * min(1.0, MAX_TURN / max(np.linalg.norm(turn), 1e-9)))
        wrist[i, :3, :3] = geometry.quat_to_so3(geometry.so3_to_quat(wrist[i, :3, :3]))
        wrist[i, 2, 3] = max(wrist[i, 2, 3], LOWEST)
    joints = np.where(np.isfinite(joints_2xJ), joints_2xJ, joints)
    return wrist, np.clip(joints, self._limits[..., 0], self._limits[..., 1])

  def step(self, T_world_wrist_2x4x4, joints_2xJ):
    """One frame: the wrists are carried to the command in a straight line, the joints' targets likewise."""
    goal, joints = self.limited(T_world_wrist_2x4x4, joints_2xJ)
    start, before = self.T_world_wrist_2x4x4, self.joint_targets_2xJ
    share = np.arange(SUBSTEPS + 1)[:, None] / SUBSTEPS
    turn_2x3 = geometry.so3_log(start[:, :3, :3].swapaxes(1, 2) @ goal[:, :3, :3])
    rotation = start[:, :3, :3] @ geometry.so3_exp(share[:, :, None] * turn_2x3)
    way = geometry.se3(rotation, start[:, :3, 3] + share[:, :, None] * (goal[:, :3, 3] - start[:, :3, 3]))
    way[-1] = goal
    base = way @ self._T_wrist_base
    speed = np.diff(base[..., :3, 3], axis=0) / props.STEP
    spin = geometry.so3_log(base[:-1, :, :3, :3].swapaxes(-1, -2) @ base[1:, :, :3, :3]) / props.STEP  # of a free joint: in its own frame
    motion = np.concatenate([speed, spin], axis=-1)
    self._pose_forearms(goal)
    places, targets = self._places(base), before + share[1:, :, None] * (joints - before)
    for s in range(SUBSTEPS):
      self.data.qpos[self._carried] = places[s]
      self.data.qvel[self._moved] = motion[s]
      self.data.ctrl[self._servos] = targets[s]
      mujoco.mj_step(self.model, self.data)
      if s % GRASP_EVERY == GRASP_EVERY - 1:
        self._update_grasps()
    self.T_world_wrist_2x4x4, self.joint_targets_2xJ = goal, joints
    self.data.qpos[self._carried] = places[-1]
    mujoco.mj_kinematics(self.model, self.data)

  def _places(self, T_world_base):
    """[..., 4, 4] -> [..., 7] of a free joint."""
    return np.concatenate([T_world_base[..., :3, 3], geometry.so3_to_quat(T_world_base[..., :3, :3])], axis=-1)

  def _pose_forearms(self, T_world_wrist_2x4x4):
    for i, side in enumerate(SIDES):
      arm = scene.forearm(T_world_wrist_2x4x4[i], side, ELBOW)
      self.data.mocap_pos[self._forearms[i]] = arm[:3, 3]
      self.data.mocap_quat[self._forearms[i]] = geometry.so3_to_quat(arm[:3, :3])

  # Grasps

  def _contacts(self):
    """Of hands with graspable things: hand, part, thing, normal from the hand to the thing [n, 3], newtons (0 where only near)."""
    contact = self.data.contact
    geom = contact.geom
    hand, thing = self._hand[geom], self._thing[geom]
    first = (hand[:, 0] >= 0) & (thing[:, 1] >= 0)
    pairs = np.flatnonzero(first | ((hand[:, 1] >= 0) & (thing[:, 0] >= 0)))
    first = first[pairs]
    of_hand = np.where(first, geom[pairs, 0], geom[pairs, 1])
    of_thing = np.where(first, geom[pairs, 1], geom[pairs, 0])
    normal = contact.frame[pairs].reshape(-1, 9)[:, :3] * np.where(first, 1.0, -1.0)[:, None]
    address = contact.efc_address[pairs]
    force = np.zeros(len(pairs))
    force[address >= 0] = self.data.efc_force[address[address >= 0]]
    return self._hand[of_hand], self._part[of_hand], self._thing[of_thing], normal, force

  def _update_grasps(self):
    if self.held == [None, None] and not (self._hand[self.data.contact.geom] >= 0).any():
      return  # no hand is near anything: most of the time
    hand, part, thing, normal, force = self._contacts()
    for i in range(2):
      if self.held[i] is not None:
        mine = (hand == i) & (thing == self.graspable.index(self.held[i]))
        if not ((mine & (part == THUMB)).any() and (mine & (part == FINGER)).any()) or self._torn_off(i):
          self._let_go(i)
        continue
      for t in np.unique(thing[hand == i]):
        mine = (hand == i) & (thing == t) & (force > 0)
        sides = [mine & (part == p) for p in (THUMB, FINGER)]
        if all(force[s].sum() > PRESS for s in sides):
          means = [geometry.normalize((normal[s] * force[s, None]).sum(axis=0)) for s in sides]
          if means[0] @ means[1] < OPPOSED and self.graspable[t] not in self.held:
            self._hold(i, self.graspable[t])
            break

  def _hold(self, i, name):
    mujoco.mj_kinematics(self.model, self.data)
    self.held[i], self._relative[i] = name, self.weld(f"{SIDES[i]} {name}", f"{SIDES[i]}Hand", name)

  def _torn_off(self, i):
    expected = self.pose(f"{SIDES[i]}Hand") @ self._relative[i]
    return np.linalg.norm(expected[:3, 3] - self.pose(self.held[i])[:3, 3]) > SLIP

  def _let_go(self, i):
    self.set_active(f"{SIDES[i]} {self.held[i]}", 0)
    self.held[i] = None

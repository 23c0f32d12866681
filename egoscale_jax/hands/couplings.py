"""Joints that move together: every tree joint as ratio * actuated value + offset.

Read from MuJoCo's compiled model, into which a URDF's mimic tags come as equalities. Axis letters: N tree joints, J actuated values.
"""

import dataclasses

import mujoco
import numpy as np

from egoscale_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Couplings:
  """joint n = ratio_N[n] * value_J[source[n]] + offset_N[n] (radians); a driven tendon's value is its length, the sum of coef * joint."""

  names: tuple[str, ...]  # J, of the joint or the tendon, in the order in which the tree first meets them
  source: tuple[int, ...]  # N
  ratio_N: np.ndarray
  offset_N: np.ndarray
  lower_J: np.ndarray  # within these every tree joint stays in its own range
  upper_J: np.ndarray
  velocity_J: np.ndarray  # and none is faster than its own limit


def read(model, velocity_N, path) -> Couplings:
  """Model of hinges only; velocity_N in rad/s. Refuses what is no chain of linear couplings."""
  rules = _equalities(model, path)
  tendons = _driven_tendons(model, path)
  for tendon, (joints, coefs) in tendons.items():
    for joint, coef in zip(joints, coefs):
      if joint in rules:
        raise UserError(f"{path}: joint {model.joint(joint).name!r} is coupled twice, by {_name(model, model.njnt + tendon)!r} too")
      rules[joint] = (1.0 / (len(joints) * coef), 0.0, model.njnt + tendon)  # each joint takes an equal part of the tendon's length
  roots = [_root(model, rules, joint, path) for joint in range(model.njnt)]
  sources = list(dict.fromkeys(source for _, _, source in roots))
  ratio_N, offset_N = (np.array([root[i] for root in roots]) for i in range(2))
  source_N = np.array([sources.index(source) for _, _, source in roots])
  names = tuple(_name(model, source) for source in sources)
  lower_J, upper_J = _ranges(model, ratio_N, offset_N, source_N, [s - model.njnt if s >= model.njnt else None for s in sources])
  for j in np.flatnonzero(lower_J > upper_J):
    raise UserError(f"{path}: {names[j]!r}: the ranges of the joints it moves leave it none ({lower_J[j]:.4g} to {upper_J[j]:.4g})")
  velocity_J = np.full(len(sources), np.inf)
  np.minimum.at(velocity_J, source_N, velocity_N / np.abs(ratio_N))
  return Couplings(names, tuple(source_N.tolist()), ratio_N, offset_N, lower_J, upper_J, velocity_J)


def _equalities(model, path):
  """{joint: (ratio, offset, the joint it follows)}."""
  rules = {}
  for e in np.flatnonzero(model.eq_active0):
    if model.eq_type[e] != mujoco.mjtEq.mjEQ_JOINT:
      kind = mujoco.mjtEq(model.eq_type[e]).name.removeprefix("mjEQ_").lower()
      raise UserError(f"{path}: an equality of type {kind}; a hand's couplings are between two joints, or a driven fixed tendon")
    joint, followed, polycoef = int(model.eq_obj1id[e]), int(model.eq_obj2id[e]), model.eq_data[e]
    name = model.joint(joint).name
    if followed < 0 or polycoef[1] == 0:
      raise UserError(f"{path}: joint {name!r} is held at a constant by its coupling; make it fixed")
    if polycoef[2:5].any():
      raise UserError(f"{path}: the coupling of joint {name!r} is not linear: polycoef {' '.join(f'{c:g}' for c in polycoef[:5])}")
    if joint in rules:
      raise UserError(f"{path}: joint {name!r} is coupled twice")
    zero, followed_zero = model.qpos0[joint], model.qpos0[followed]  # polycoef counts from the joints' own reference
    rules[joint] = (polycoef[1], zero + polycoef[0] - polycoef[1] * followed_zero, followed)
  return rules


def _driven_tendons(model, path):
  """{tendon: (joints, coefs)} of the fixed tendons that an actuator pulls."""
  tendons, own = {}, set()
  for a in range(model.nu):
    target = int(model.actuator_trnid[a, 0])
    if model.actuator_trntype[a] == mujoco.mjtTrn.mjTRN_JOINT:
      own.add(target)
    if model.actuator_trntype[a] == mujoco.mjtTrn.mjTRN_TENDON:
      wraps = slice(model.tendon_adr[target], model.tendon_adr[target] + model.tendon_num[target])
      if (model.wrap_type[wraps] != mujoco.mjtWrap.mjWRAP_JOINT).any():
        raise UserError(f"{path}: tendon {model.tendon(target).name!r} is driven and spatial; only fixed tendons couple joints")
      if (model.wrap_prm[wraps] == 0).any():
        raise UserError(f"{path}: tendon {model.tendon(target).name!r} has a joint with coef 0")
      tendons[target] = (model.wrap_objid[wraps].tolist(), model.wrap_prm[wraps].tolist())
  for joint in own.intersection(joint for joints, _ in tendons.values() for joint in joints):
    raise UserError(f"{path}: joint {model.joint(joint).name!r} has an actuator of its own and one through a tendon")
  return tendons


def _root(model, rules, joint, path):
  """(ratio, offset, source) with every step of a chain multiplied out: a mimic of a mimic follows the first one."""
  ratio, offset, source, seen = 1.0, 0.0, joint, {joint}
  while source in rules:
    step, shift, source = rules[source]
    ratio, offset = ratio * step, ratio * shift + offset
    if source in seen:
      raise UserError(f"{path}: the coupling of joint {model.joint(joint).name!r} goes round in a circle")
    seen.add(source)
  return ratio, offset, source


def _ranges(model, ratio_N, offset_N, source_N, tendons):
  """tendons: for each actuated value its tendon or None -> (lower, upper) [J]."""
  lower_J, upper_J = np.full(len(tendons), -np.inf), np.full(len(tendons), np.inf)
  ends_Nx2 = np.sort((model.jnt_range - offset_N[:, None]) / ratio_N[:, None], axis=1)
  np.maximum.at(lower_J, source_N, ends_Nx2[:, 0])
  np.minimum.at(upper_J, source_N, ends_Nx2[:, 1])
  for j, tendon in enumerate(tendons):
    for low, high in _tendon_ranges(model, tendon):
      lower_J[j], upper_J[j] = max(lower_J[j], low), min(upper_J[j], high)
  return lower_J, upper_J


def _tendon_ranges(model, tendon):
  """The tendon's own range, and that of the position actuators which pull it, as lengths of the tendon."""
  if tendon is None:
    return
  if model.tendon_limited[tendon]:
    yield model.tendon_range[tendon]
  for a in range(model.nu):
    pulls = model.actuator_trntype[a] == mujoco.mjtTrn.mjTRN_TENDON and model.actuator_trnid[a, 0] == tendon
    servo = model.actuator_biastype[a] == mujoco.mjtBias.mjBIAS_AFFINE and model.actuator_biasprm[a, 1] == -model.actuator_gainprm[a, 0]
    if pulls and servo and model.actuator_ctrllimited[a]:  # of any other actuator the control is no length
      yield np.sort(model.actuator_ctrlrange[a] / model.actuator_gear[a, 0])


def _name(model, source):
  return model.joint(source).name if source < model.njnt else model.tendon(source - model.njnt).name

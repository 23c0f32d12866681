"""What the retargeting asks for, as weighted residuals in metres; the list of them is fixed when the program is traced.

Every position cost compares a keypoint, or the vector between two, with a wanted vector, so one `Row` describes it and one loop turns all
of them into normal equations. What is wanted (`Aims`) depends on the human alone and is computed once, before the solver starts.
"""

import dataclasses
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from egoscale_jax.hands import keypoints, kinematics, vectors

_MIDDLES = (2, 6, 10, 14, 18)  # thumb MCP, the others' PIP


@dataclasses.dataclass(frozen=True)
class Weights:
  """Each weight multiplies a residual before it is squared; a cost of weight 0 is not computed. Ablation: docs/retargeting.md."""

  tip: float = 1.0  # fingertips from the wrist: what touches objects; the others are read against this one
  tip_soft_m: float = 0.01  # beyond this error a tip pulls with constant force: out of reach, it must not drag the others along
  knuckle: float = 0.0  # middle knuckles from the wrist: off, as a robot's bones are not the human's (docs/retargeting.md)
  pinch: float = 3.0  # thumb tip to another tip as they close: a grasp that closes on the human's hand closes on the robot's
  pinch_near_m: float = 0.025  # between the human's tips: at this distance the pinch weight is half of its full value
  pinch_width_m: float = 0.003  # how softly it fades around that distance: a hard edge would make the joints jump
  touch_m: float = 0.02  # the human's tips are taken to touch below this (keypoints lie inside the finger), and so must the robot's
  open_m: float = 0.026  # from here on the robot's tips keep the human's distance
  pinch_scale: float = 1.5  # a robot more than this many times the human's size does not pinch: its tips would leave their places too far
  pinch_joints: int = 3  # nor does a hand of fewer actuated joints a finger than this: it has none to spare for the distance of two tips
  bone: float = 0.0  # direction of each finger bone, as a vector of the robot's length: off, as tips and `direction` leave nothing open
  direction: float = 0.02  # of the last bone alone: where the pad of the finger looks
  rest: float = 0.001  # metres a radian, to the rest pose: decides only what nothing else does
  velocity: float = 0.0  # metres a rad/s; the three in time apply to trajectories
  acceleration: float = 0.0  # metres a rad/s^2
  jerk: float = 2.4e-5  # metres a rad/s^3: keeps the joints smooth; this holds a glove's recording below a mean of 100 rad/s^3
  jerk_soft: float = 10.0  # rad/s^3: beyond it the cost is linear, so a few quick moves are paid for and noise is not


TIPS_ONLY = Weights(tip_soft_m=float("inf"), pinch=0.0, bone=0.0, direction=0.0, rest=1e-4)


class Row(NamedTuple):
  """Keypoint `end`, from keypoint `start` or (None) from the wrist."""

  cost: str  # the field of Weights
  end: int
  start: int | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Aims:
  """For each of R rows and any batch: the wanted vector, and the weight of its squared error."""

  vector_Rx3: jax.Array
  weight_R: jax.Array


def rows(hand, weights) -> tuple[Row, ...]:
  """The costs that this hand can serve and the weights ask for."""
  has = hand.present
  tips = [p for p in keypoints.TIPS if has[p]]
  found = [Row("tip", p, None) for p in tips]
  found += [Row("knuckle", p, None) for p in _MIDDLES if has[p]]
  if _can_pinch(hand, weights):
    found += [Row("pinch", tips[0], p) for p in tips[1:]]
  for tip in tips:
    chain = [p for p in range(tip - 3, tip + 1) if has[p]]
    found += [Row("direction" if end == tip else "bone", end, start) for start, end in itertools.pairwise(chain)]
  return tuple(row for row in found if getattr(weights, row.cost))


def pinches(hand, weights, scale) -> bool:
  """Can a hand of this scale (NaN: no frame told it) follow the human's pinches?"""
  return _can_pinch(hand, weights) and not scale > weights.pinch_scale


def _can_pinch(hand, weights):
  return hand.num_joints >= weights.pinch_joints * sum(hand.present[p] for p in keypoints.TIPS)


def aims(hand, weights, target_Px3, seen_P, scale) -> Aims:
  """target [21, 3, ...]: the human's keypoints, on the robot's scale and in its base frame; seen [21, ...]: 0 masks, between weighs."""
  wanted_Rx3, weight_R = [], []
  for row in rows(hand, weights):
    wanted = tuple(target_Px3[row.end]) if row.start is None else vectors.sub(target_Px3[row.end], target_Px3[row.start])
    weight = getattr(weights, row.cost) ** 2 * seen_P[row.end]
    if row.start is not None:
      weight = weight * seen_P[row.start]
    if row.cost == "pinch":
      gap_m = vectors.length(wanted) / scale
      weight = weight * jax.nn.sigmoid((weights.pinch_near_m - gap_m) / weights.pinch_width_m) ** 2 * (scale <= weights.pinch_scale)
      wanted = vectors.scale(_smooth_step((gap_m - weights.touch_m) / (weights.open_m - weights.touch_m)), wanted)
    elif row.cost in ("bone", "direction"):
      robot_m = vectors.length(vectors.sub(hand.keypoint_Px3[row.end], hand.keypoint_Px3[row.start]))
      wanted = vectors.scale(robot_m / jnp.maximum(vectors.length(wanted), 1e-6), wanted)
    wanted_Rx3.append(jnp.stack(wanted))
    weight_R.append(weight)
  return Aims(jnp.stack(wanted_Rx3), jnp.stack(weight_R))


def groups(hand) -> tuple[tuple[int, ...], ...]:
  """Joint values that belong together: those of each finger, and first those that move several fingers or no keypoint, if there are any."""
  fingers = [set() for _ in range(hand.num_joints)]
  for p in (int(p) for p in np.flatnonzero(hand.present) if p):
    for n in kinematics.moving(hand, p):
      fingers[hand.source[n]].add((p - 1) // 4)
  own = {}
  for j, found in enumerate(fingers):
    own.setdefault(min(found) if len(found) == 1 else -1, []).append(j)
  return tuple(tuple(own[finger]) for finger in sorted(own))


def normal_equations(hand, weights, aims, rest_J, joints, groups=None):
  """joints: J arrays of the batch's shape -> (cost, J arrays, {(i, j): array} with i >= j): half the gradient, the Gauss-Newton matrix.

  With groups, a matrix that is block-diagonal and nowhere less: a row that m groups move enters each group's block m times, because
  |a + b|^2 <= 2 |a|^2 + 2 |b|^2. Steps are shorter where fingers meet, never wrong: cost and gradient are the same.
  """
  point, moved = _keypoints_and_columns(hand, joints)
  w = weights.rest**2
  offset = [q - rest_J[j] for j, q in enumerate(joints)]
  cost = sum(w * d * d for d in offset)
  gradient = [w * d for d in offset]
  matrix = {(j, j): jnp.full_like(d, w) for j, d in enumerate(offset)}
  for r, row in enumerate(rows(hand, weights)):
    error = vectors.sub(_difference(point, row), aims.vector_Rx3[r])
    columns = _columns(moved, row)
    loss, softened = soft(vectors.dot(error, error), weights.tip_soft_m if row.cost == "tip" else np.inf)
    weight = aims.weight_R[r] * softened
    cost = cost + aims.weight_R[r] * loss
    pull = vectors.scale(weight, error)
    for i, column in columns.items():
      gradient[i] = gradient[i] + vectors.dot(column, pull)
    parts = _parts(columns, groups)
    for part in parts:
      for i in part:
        column = vectors.scale(weight * len(parts), columns[i])
        for j in part:
          if j <= i:
            product = vectors.dot(column, columns[j])
            matrix[i, j] = matrix[i, j] + product if (i, j) in matrix else product
  return cost, gradient, matrix


def cost(hand, weights, aims, rest_J, joints):
  """The cost alone, of the same arguments."""
  point = kinematics.walk(hand, joints).point
  total = sum(weights.rest**2 * (q - rest_J[j]) ** 2 for j, q in enumerate(joints))
  for r, row in enumerate(rows(hand, weights)):
    error = vectors.sub(_difference(point, row), aims.vector_Rx3[r])
    total = total + aims.weight_R[r] * soft(vectors.dot(error, error), weights.tip_soft_m if row.cost == "tip" else np.inf)[0]
  return total


def tip_error(hand, joints_JxF, target_Px3xF, seen_PxF):
  """Mean over the seen fingertips of the distance to the target, for any batch: [J, ...] -> [...] metres; NaN where none is seen."""
  point = kinematics.walk(hand, list(joints_JxF)).point
  tips = [p for p in keypoints.TIPS if hand.present[p]]
  total = sum(seen_PxF[p] * vectors.length(vectors.sub(point[p], target_Px3xF[p])) for p in tips)
  return total / sum(seen_PxF[p] for p in tips)


def soft(square, limit):
  """Pseudo-Huber: (cost, weight of the square's derivative) for a squared error: the square when small, linear beyond the limit."""
  if np.isinf(limit):
    return square, jnp.ones_like(square)
  root = jnp.sqrt(1.0 + square / limit**2)
  return 2.0 * square / (1.0 + root), 1.0 / root


def pattern(hand, weights, groups=None):
  """The entries (i, j), i >= j, of the normal matrix that can differ from zero, sorted."""
  moved = {p: dict.fromkeys(hand.source[n] for n in kinematics.moving(hand, p)) for p in np.flatnonzero(hand.present)}
  entries = {(j, j) for j in range(hand.num_joints)}
  for row in rows(hand, weights):
    support = moved[row.end] | (moved[row.start] if row.start is not None else {})
    entries |= {(i, j) for part in _parts(support, groups) for i in part for j in part if j <= i}
  return sorted(entries)


def _parts(columns, groups):
  """The joints of a row, as lists of those that belong together."""
  found = [[j for j in columns if j in group] for group in groups] if groups else [list(columns)]
  return [part for part in found if part]


def _keypoints_and_columns(hand, joints):
  def walk(joints):
    tree = kinematics.walk(hand, joints)
    return tree.axis, tree.anchor, tree.point

  def columns(axis, anchor, point):
    tree = kinematics.Walk(axis, anchor, {}, point)
    return {p: kinematics.columns(hand, tree, p) for p in point}

  axis, anchor, point = vectors.stored(walk, list(joints))
  return point, vectors.stored(columns, axis, anchor, point)


def _difference(point, row):
  return point[row.end] if row.start is None else vectors.sub(point[row.end], point[row.start])


def _columns(moved, row):
  if row.start is None:
    return moved[row.end]
  end, start = moved[row.end], moved[row.start]
  both = {j: vectors.sub(end[j], start[j]) for j in end if j in start}
  return both | {j: c for j, c in end.items() if j not in start} | {j: vectors.scale(-1.0, c) for j, c in start.items() if j not in end}


def _smooth_step(x):
  x = jnp.clip(x, 0.0, 1.0)
  return x * x * (3.0 - 2.0 * x)

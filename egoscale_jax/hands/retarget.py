"""Human keypoints -> robot joint angles, numpy in and numpy out, with the fingertip error kept as the label's quality.

Each frame is put into the human's wrist frame, scaled to the robot's size, and solved on its own from one fixed start: no frame depends on
its neighbours, so the order of the frames and the size of a batch change nothing.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from egoscale_jax import geometry
from egoscale_jax.errors import UserError
from egoscale_jax.hands import costs, keypoints, kinematics, solver
from egoscale_jax.hands.costs import Weights

ITERATIONS = 20
_REST_BEND = 0.2  # the rest pose and start: this part of the way from straight to mid-range, since straight lies on many a bound
_CHAIN = (0, 9, 10, 11, 12)  # wrist to middle tip
_PALM_M = (0.03, 0.3)  # wrist to middle knuckle: outside, the unit is not the metre


@dataclasses.dataclass(frozen=True)
class Retargeted:
  """NaN where a frame is not valid. The wrist frame is that of `keypoints.wrist_frame`."""

  joints_FxJ: np.ndarray  # radians, within the hand's limits; float32
  residual_m_F: np.ndarray  # mean over the fingertips of the distance robot to scaled human; float32
  valid_F: np.ndarray  # bool: every keypoint was there, and the palm has an area
  scale: float  # robot's size over the human's; NaN without a valid frame


def retarget(keypoints_Fx21x3, hand, side, weights=None, chunk=128) -> Retargeted:
  """Keypoints of one human hand [F, 21, 3] in metres, in any frame of reference (may move), NaN where missing."""
  keypoints_Fx21x3 = np.asarray(keypoints_Fx21x3, np.float64)  # world coordinates are far from zero: float32 from the wrist frame on
  if keypoints_Fx21x3.ndim != 3 or keypoints_Fx21x3.shape[1:] != (21, 3):
    raise UserError(f"keypoints: expected [frames, 21, 3], found {list(keypoints_Fx21x3.shape)}")
  if hand.side != side:
    raise UserError(f"keypoints of a {side} hand cannot go to the {hand.side} hand {hand.name!r}")
  _check_unit(keypoints_Fx21x3)
  T_frame_wrist_Fx4x4 = keypoints.wrist_frame(keypoints_Fx21x3, side)
  valid_F = np.isfinite(keypoints_Fx21x3).all((1, 2)) & np.isfinite(T_frame_wrist_Fx4x4).all((1, 2))
  human_Vx21x3 = geometry.transform(geometry.se3_inverse(T_frame_wrist_Fx4x4[valid_F]), keypoints_Fx21x3[valid_F])
  scale = _scale(human_Vx21x3, hand)
  joints_FxJ = np.full((len(valid_F), hand.num_joints), np.nan, np.float32)
  residual_m_F = np.full(len(valid_F), np.nan, np.float32)
  if valid_F.any():
    target_Vx21x3 = geometry.transform(hand.T_base_wrist_4x4[None], scale * human_Vx21x3).astype(np.float32)
    joints_FxJ[valid_F], residual_m_F[valid_F] = _solve_in_chunks(hand, target_Vx21x3, weights or Weights(), chunk)
  return Retargeted(joints_FxJ, residual_m_F, valid_F, scale)


def chain_length(points_Px3):
  """Keypoints [..., 21, 3] -> the summed bones from the wrist to the middle fingertip [...]: the same in every pose."""
  return np.linalg.norm(np.diff(points_Px3[..., _CHAIN, :], axis=-2), axis=-1).sum(-1)


def rest_pose(hand):
  """Joint angles [J] the solver starts from and is faintly drawn to: nearly straight, and within the limits."""
  straight_J = jnp.clip(jnp.zeros_like(hand.lower_J), hand.lower_J, hand.upper_J)
  return straight_J + _REST_BEND * (0.5 * (hand.lower_J + hand.upper_J) - straight_J)


def _check_unit(keypoints_Fx21x3):
  """Refuses lengths that no hand in metres has."""
  palm_F = np.linalg.norm(keypoints_Fx21x3[:, _CHAIN[1]] - keypoints_Fx21x3[:, _CHAIN[0]], axis=-1)
  palm_F = palm_F[palm_F > 0]  # neither NaN nor the zeros that some files hold for a missing hand
  if palm_F.size and not _PALM_M[0] <= np.median(palm_F) <= _PALM_M[1]:
    low, high = _PALM_M
    raise UserError(f"keypoints: wrist to middle knuckle is {np.median(palm_F):.3g}, expected {low} to {high} metres: another unit?")


def _scale(human_Vx21x3, hand):
  """Robot's chain over the human's, one figure for all frames; NaN without a frame."""
  if not len(human_Vx21x3):
    return float("nan")
  return float(chain_length(hand.keypoint_Px3.astype(np.float64)) / np.median(chain_length(human_Vx21x3)))


def _solve_in_chunks(hand, target_Vx21x3, weights, chunk):
  """Every call has the same shape, so it compiles once; the last chunk is filled up with its last frame."""
  count = len(target_Vx21x3)
  padded = np.pad(target_Vx21x3, ((0, -count % chunk), (0, 0), (0, 0)), mode="edge")
  parts = [solve_frames(hand, weights, padded[i : i + chunk]) for i in range(0, len(padded), chunk)]  # dispatched; fetched below
  joints_VxJ, residual_m_V = (np.concatenate([np.asarray(part) for part in column])[:count] for column in zip(*parts))
  return joints_VxJ, residual_m_V


@functools.partial(jax.jit, static_argnames="iterations")
def solve_frames(hand, weights, target_Bx21x3, iterations=ITERATIONS):
  """Targets in the hand's base frame, on the robot's scale [B, 21, 3] -> (joints [B, J], mean fingertip distance [B] in metres)."""
  rest_J = rest_pose(hand)

  def solve_one(target_Px3):
    pinch_weight_4 = costs.pinch_weights(target_Px3, weights)
    bones_Px3 = costs.phalanx_target(target_Px3, hand.keypoint_Px3)

    def linearize(joints_J):
      points_Px3, jacobian_Px3xJ = kinematics.keypoints_and_jacobian(hand, joints_J)
      error_Px3 = points_Px3 - target_Px3
      residual = (
        costs.fingertips(error_Px3, weights),
        costs.pinches(error_Px3, pinch_weight_4),
        costs.phalanges(points_Px3 - bones_Px3, weights),
      )
      jacobian = (
        costs.fingertips(jacobian_Px3xJ, weights),
        costs.pinches(jacobian_Px3xJ, pinch_weight_4),
        costs.phalanges(jacobian_Px3xJ, weights),
      )
      rest_JxJ = weights.rest * jnp.eye(hand.num_joints, dtype=joints_J.dtype)
      residual_R = jnp.concatenate([jnp.concatenate(residual).ravel(), costs.rest(joints_J, rest_J, weights)])
      return residual_R, jnp.concatenate([jnp.concatenate(jacobian).reshape(-1, hand.num_joints), rest_JxJ])

    joints_J, _ = solver.solve(linearize, rest_J, hand.lower_J, hand.upper_J, iterations)
    tips = np.asarray(keypoints.TIPS)
    error_5x3 = kinematics.keypoints(hand, joints_J)[tips] - target_Px3[tips]
    return joints_J, jnp.mean(jnp.linalg.norm(error_5x3, axis=-1))

  return jax.vmap(solve_one)(target_Bx21x3)

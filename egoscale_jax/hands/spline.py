"""Joint trajectories as uniform cubic B-splines in time.

A spline is smooth by construction, stays between the least and the greatest of its coefficients (so bounds on the coefficients hold joint
limits everywhere, exactly), has a third derivative that is constant on each segment, and halves the unknowns at a knot every second frame.

Axes: F frames, K = F / knot + 3 coefficients, S = K - 3 segments, B trajectories, last; `knot` is the number of frames between knots.
"""

import jax.numpy as jnp
import numpy as np

ORDER = 4  # coefficients that reach a frame


def basis(knot):
  """[knot, 4]: what the four coefficients of a segment weigh at each of its frames.

  With a knot at every frame a coefficient is its frame: the spline would blur what every frame is free to say.
  """
  if knot == 1:
    return np.asarray([[0.0, 1.0, 0.0, 0.0]])
  u = np.arange(knot) / knot
  return np.stack([(1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3], axis=-1) / 6


def evaluate(coefficients_KxB, knot):
  """[..., K, B] -> [..., F, B]."""
  reach = [coefficients_KxB[..., i : coefficients_KxB.shape[-2] - 3 + i, :] for i in range(ORDER)]
  frames = jnp.stack([sum(float(w) * c for w, c in zip(row, reach) if w) for row in basis(knot)], axis=-2)
  return frames.reshape(*frames.shape[:-3], -1, frames.shape[-1])


def gather(frames_FxB, knot):
  """The transpose of evaluate: [..., F, B] -> [..., K, B]."""
  return _gathered(frames_FxB, basis(knot))


def gather_pairs(frames_FxB, knot):
  """What a frame's matrix entry weighs for pairs of coefficients: [..., F, B] -> [4, ..., K, B]; at [d, ..., k, :]: the pair (k, k + d)."""
  b = basis(knot)
  return jnp.stack([_gathered(frames_FxB, b[:, : ORDER - d] * b[:, d:]) for d in range(ORDER)])


def fit(frames_FxB, knot):
  """[..., F, B] -> coefficients [..., K, B] that pass near them: the frame at each knot. A start, not an approximation."""
  frames = frames_FxB.shape[-2]
  at = np.clip((np.arange(frames // knot + 3) - 1) * knot, 0, frames - 1)
  return frames_FxB[..., at, :]


def placed(part_SxB, before, order=3):
  """[..., K - order, B] -> [..., K, B]: span s at coefficient s + before."""
  return jnp.pad(part_SxB, [(0, 0)] * (part_SxB.ndim - 2) + [(before, order - before), (0, 0)])


def _gathered(frames_FxB, weight_hxi):
  """weight [knot, up to 4]: column i of it goes to coefficient i of each segment."""
  knot = len(weight_hxi)
  phases = [frames_FxB[..., h::knot, :] for h in range(knot)]
  parts = [sum((float(w) * f for w, f in zip(column, phases) if w), start=jnp.zeros_like(phases[0])) for column in weight_hxi.T]
  return sum(placed(part, i) for i, part in enumerate(parts))

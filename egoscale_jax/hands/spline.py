"""Joint trajectories as uniform cubic B-splines in time.

A spline is smooth by construction, stays between the least and the greatest of its coefficients (so bounds on the coefficients hold joint
limits everywhere, exactly), has a third derivative that is constant on each segment, and halves the unknowns at a knot every second frame.

Axes: F frames, K = F / knot + 3 coefficients, S = K - 3 segments, J joints; `knot` is the number of frames between knots.
"""

import jax.numpy as jnp
import numpy as np

ORDER = 4  # coefficients that reach a frame


def basis(knot):
  """[knot, 4]: what the four coefficients of a segment weigh at each of its frames."""
  u = np.arange(knot) / knot
  return np.stack([(1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3], axis=-1) / 6


def evaluate(coefficients_JxK, knot):
  """[..., K] -> [..., F]."""
  segments = coefficients_JxK.shape[-1] - 3
  weight = jnp.asarray(basis(knot), coefficients_JxK.dtype)
  reach = jnp.stack([coefficients_JxK[..., i : i + segments] for i in range(ORDER)], axis=-1)
  return jnp.einsum("...si,hi->...sh", reach, weight).reshape(*coefficients_JxK.shape[:-1], segments * knot)


def gather(frames_F, knot):
  """The transpose of evaluate: [..., F] -> [..., K]."""
  parts = jnp.einsum("...sh,hi->i...s", _segments(frames_F, knot), jnp.asarray(basis(knot), frames_F.dtype))
  return sum(placed(part, i) for i, part in enumerate(parts))


def gather_pairs(frames_F, knot):
  """What a frame's matrix entry weighs for each pair of coefficients: [..., F] -> [4, ..., K]; at [d, ..., k]: the pair (k, k + d)."""
  b = basis(knot)
  lags = []
  for d in range(ORDER):
    pairs = jnp.asarray(np.stack([b[:, i] * b[:, i + d] for i in range(ORDER - d)], axis=-1), frames_F.dtype)
    parts = jnp.einsum("...sh,hi->i...s", _segments(frames_F, knot), pairs)
    lags.append(sum(placed(part, i) for i, part in enumerate(parts)))
  return jnp.stack(lags)


def fit(frames_JxF, knot):
  """[..., F] -> coefficients [..., K] that pass near them: the frame at each knot. A start, not an approximation."""
  frames = frames_JxF.shape[-1]
  at = np.clip((np.arange(frames // knot + 3) - 1) * knot, 0, frames - 1)
  return frames_JxF[..., at]


def _segments(frames_F, knot):
  return frames_F.reshape(*frames_F.shape[:-1], -1, knot)


def placed(part_S, before, order=3):
  """[..., K - order] -> [..., K]: span s at coefficient s + before."""
  return jnp.pad(part_S, [(0, 0)] * (part_S.ndim - 1) + [(before, order - before)])

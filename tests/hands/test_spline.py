"""Splines: what is evaluated, its transpose, and the pairs of the normal matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egoscale_jax.hands import spline

SEGMENTS = 6
KNOTS = pytest.mark.parametrize("knot", [1, 2, 3])


def evaluate(coefficients_K, knot):
  """Of one trajectory: no last axis."""
  return np.asarray(spline.evaluate(jnp.asarray(coefficients_K)[..., None], knot))[..., 0]


def matrix(knot):
  """[F, K]: spline.evaluate as a matrix, column by column."""
  return evaluate(np.eye(SEGMENTS + 3), knot).T


@pytest.fixture(autouse=True)
def double():
  with jax.enable_x64(True):
    yield


@KNOTS
def test_weights_sum_to_one_and_four_coefficients_reach_a_frame(knot):
  weights = matrix(knot)
  assert weights.shape == (SEGMENTS * knot, SEGMENTS + 3)
  np.testing.assert_allclose(weights.sum(1), 1.0, atol=1e-14)
  assert (weights >= 0).all()
  for frame, row in enumerate(weights):
    first = frame // knot
    assert set(np.flatnonzero(row)) <= set(range(first, first + 4))


@KNOTS
def test_stays_between_the_least_and_the_greatest_coefficient(knot):
  coefficients = np.random.default_rng(0).uniform(-1.0, 1.0, (500, SEGMENTS + 3)).round()  # many at the bounds
  frames = evaluate(coefficients, knot)
  assert (frames >= coefficients.min(1, keepdims=True) - 1e-15).all()
  assert (frames <= coefficients.max(1, keepdims=True) + 1e-15).all()


@KNOTS
def test_a_cubic_is_reproduced(knot):
  """Twice continuous pieces of cubics hold every cubic; its coefficients are its blossom at three knots in a row, or the frames."""
  t = np.arange(SEGMENTS + 3) - 1.0
  blossom = {0: t**0, 1: t, 2: t**2 - (knot > 1) / 3, 3: t**3 - (knot > 1) * t}
  u = np.arange(SEGMENTS * knot) / knot
  for power, coefficients in blossom.items():
    np.testing.assert_allclose(evaluate(coefficients, knot), u**power, atol=1e-11)


@KNOTS
def test_gather_is_the_transpose_of_evaluate(knot):
  rng = np.random.default_rng(1)
  coefficients, frames = (jnp.asarray(rng.normal(size=(3, count, 2))) for count in (SEGMENTS + 3, SEGMENTS * knot))
  forward, back = spline.evaluate(coefficients, knot), spline.gather(frames, knot)
  np.testing.assert_allclose(jnp.sum(forward * frames, 1), jnp.sum(coefficients * back, 1), rtol=1e-12)


@KNOTS
def test_gather_pairs_is_the_normal_matrix(knot):
  entries = np.random.default_rng(2).normal(size=(5, SEGMENTS * knot))
  lags = np.asarray(spline.gather_pairs(jnp.asarray(entries)[..., None], knot))[..., 0]
  full = np.einsum("fa,ef,fb->eab", matrix(knot), entries, matrix(knot))
  K = SEGMENTS + 3
  for d in range(4):
    np.testing.assert_allclose(lags[d, :, : K - d], np.stack([np.diag(m, -d) for m in full]), atol=1e-14)
    assert (lags[d, :, K - d :] == 0).all()
  assert np.abs(np.stack([np.tril(m, -4) for m in full])).max() == 0


@KNOTS
def test_fit_holds_a_constant_and_starts_near(knot):
  frames = np.sin(np.linspace(0.0, 1.0, SEGMENTS * knot))
  np.testing.assert_array_equal(spline.fit(jnp.full((2, SEGMENTS * knot, 1), 0.3), knot), 0.3)
  near = spline.evaluate(spline.fit(jnp.asarray(frames)[:, None], knot), knot)[:, 0]
  np.testing.assert_allclose(near, frames, atol=0.1)
  np.testing.assert_allclose(near[knot:-knot], frames[knot:-knot], atol=0.02)

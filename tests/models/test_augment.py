"""Pictures on the device: geometry against plain arithmetic, colours against references, and keys that follow from the example."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict

from egoscale_jax.models import augment

OFF = dict(crop=1.0, rotation=0.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)
ON = dict(crop=0.9, rotation=5.0, brightness=0.3, contrast=0.4, saturation=0.5, hue=0.08)


def settings(**changes):
  return ConfigDict(OFF | changes)


@pytest.fixture
def batch():
  return tiny.batch(tiny.config())


@pytest.fixture
def image():
  """A smooth picture, so that bilinear sampling is nearly exact."""
  y, x = np.mgrid[:40, :60]
  return np.stack([100 + 2 * y, 40 + 3 * x, 200 - 2 * y - x], axis=-1).astype(np.uint8)


def test_nothing_asked_nothing_changed(batch):
  assert not augment.is_on(settings())
  same = augment.augmented(batch, settings(), 0)
  np.testing.assert_array_equal(same.image_BxCxYxXx3, batch.image_BxCxYxXx3)
  assert augment.centred(batch, settings()) is batch


def test_the_centre_is_the_centre(image):
  rows = dataclasses.make_dataclass("Rows", ["image_BxCxYxXx3"])(jnp.asarray(image)[None, None])
  out = np.asarray(augment.centred(rows, settings(crop=0.5)).image_BxCxYxXx3[0, 0]).astype(int)
  assert out.shape == image.shape
  y, x = np.meshgrid(0.5 * np.arange(40) + 0.25 * 39, 0.5 * np.arange(60) + 0.25 * 59, indexing="ij")
  expected = np.stack([100 + 2 * y, 40 + 3 * x, 200 - 2 * y - x], axis=-1)
  assert np.abs(out - expected).max() <= 1


@pytest.mark.parametrize("seed", range(5))
def test_a_crop_stays_inside_and_keeps_its_size_and_the_intrinsics_follow(seed, image):
  config = settings(crop=0.8, rotation=0.0)
  matrix, offset = augment.placement(jax.random.key(seed), image.shape[:2], config)
  np.testing.assert_allclose(matrix, 0.8 * np.eye(2), atol=1e-6)
  corners = np.array([[0, 0], [39, 59]]) @ np.asarray(matrix).T + np.asarray(offset)
  assert (corners[0] >= -1e-3).all()
  assert (corners[1] <= np.array([39, 59]) + 1e-3).all()
  # A point of the world falls on the same colour in the old and in the new picture.
  config = settings(crop=0.8, rotation=8.0)
  matrix, offset = augment.placement(jax.random.key(seed), image.shape[:2], config)
  k = np.array([[50.0, 0, 29.0], [0, 55.0, 19.0], [0, 0, 1]], np.float32)
  new_k = np.asarray(augment.intrinsics(k, matrix, offset))
  out = np.asarray(augment.sampled(image, matrix, offset))
  for point in ((0.0, 0.0, 1.0), (0.1, -0.1, 1.2), (-0.15, 0.05, 1.1)):
    u, v = (k @ point)[:2] / point[2]
    new_u, new_v = (new_k @ point)[:2] / point[2]
    expected = np.array([100 + 2 * v, 40 + 3 * u, 200 - 2 * v - u])
    found = out[round(float(new_v)), round(float(new_u))]
    assert np.abs(found - expected).max() < 3  # half a pixel


def test_colours_against_references(image):
  grey = np.array([0.299, 0.587, 0.114])
  key = next(k for k in map(jax.random.key, range(50)) if jnp.abs(jax.random.uniform(k, (4,), minval=-1, maxval=1)).min() > 0.2)
  amount = np.asarray(jax.random.uniform(key, (4,), minval=-1, maxval=1))
  plain = image.astype(np.float64)
  for name, expected in (
    ("brightness", plain * (1 + 0.3 * amount[0])),
    ("contrast", (plain @ grey).mean() + (1 + 0.3 * amount[1]) * (plain - (plain @ grey).mean())),
    ("saturation", (plain @ grey)[..., None] + (1 + 0.3 * amount[2]) * (plain - (plain @ grey)[..., None])),
  ):
    np.testing.assert_allclose(augment.coloured(key, image.astype(np.float32), settings(**{name: 0.3})), expected, atol=0.01)
  turned = augment.coloured(key, image.astype(np.float32), settings(hue=0.25))
  np.testing.assert_allclose(turned @ grey, plain @ grey, atol=0.05)  # as bright as before
  assert np.abs(turned - plain).max() > 20
  third = augment.coloured(key, np.full((2, 2, 3), 90, np.float32), settings(hue=0.25))
  np.testing.assert_allclose(third, 90, atol=0.01)  # grey has no hue


def test_what_an_example_looks_like_follows_from_its_position_alone(batch):
  run = jax.jit(lambda b: augment.augmented(b, settings(**ON), 7).image_BxCxYxXx3)
  whole = np.asarray(run(batch))
  order = np.arange(8)[::-1]
  turned = jax.tree.map(lambda a: a[order], batch)
  np.testing.assert_array_equal(np.asarray(run(turned))[::-1], whole)
  moved = dataclasses.replace(batch, position_B=batch.position_B + 100)
  assert (np.asarray(run(moved)) != whole).mean() > 0.5
  assert (np.asarray(augment.augmented(batch, settings(**ON), 8).image_BxCxYxXx3) != whole).mean() > 0.5
  assert whole.dtype == np.uint8

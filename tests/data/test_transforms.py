import numpy as np

from egoscale_jax.data import transforms


def test_crop_is_in_the_middle_and_as_large_as_it_can_be():
  assert transforms.centre_crop(100, 200, (50, 50)) == (0, 50, 100, 100)
  assert transforms.centre_crop(200, 100, (50, 100)) == (75, 0, 50, 100)


def test_intrinsics_follow_the_pixels():
  """A white dot is found after `fit` where the new intrinsics put the point that it was the image of."""
  size, target = (90, 160), (32, 32)
  intrinsics = np.array([[120.0, 0, 79.5], [0, 121.0, 44.5], [0, 0, 1]])
  fitted = transforms.fit_intrinsics(intrinsics, size, target)
  for x, y in ((60, 20), (100, 70), (85, 45)):
    image = np.zeros((*size, 3), np.uint8)
    image[y - 1 : y + 2, x - 1 : x + 2] = 255
    out = transforms.fit(image, target)[..., 0].astype(float)
    rows, cols = np.mgrid[: target[0], : target[1]]
    centre = np.array([(out * cols).sum(), (out * rows).sum()]) / out.sum()
    point = np.linalg.solve(intrinsics, [x, y, 1.0])
    projected = fitted @ point
    np.testing.assert_allclose(centre, projected[:2] / projected[2], atol=0.1)


def test_an_image_of_the_right_size_is_left_alone():
  image = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
  assert transforms.fit(image, (32, 32)) is image

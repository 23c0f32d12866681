import numpy as np

from egoscale_jax.data import transforms


def test_crop_is_in_the_middle_and_as_large_as_it_can_be():
  assert transforms.centre_crop(100, 200, (50, 50)) == (0, 50, 100, 100)
  assert transforms.centre_crop(200, 100, (50, 100)) == (75, 0, 50, 100)


def test_an_image_of_the_right_size_is_left_alone():
  image = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
  assert transforms.fit(image, (32, 32)) is image

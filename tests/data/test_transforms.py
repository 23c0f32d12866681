import numpy as np

from egoscale_jax.data import transforms


def test_crop_is_in_the_middle_and_as_large_as_it_can_be():
  assert transforms.centre_crop(100, 200, (50, 50)) == (0, 50, 100, 100)
  assert transforms.centre_crop(200, 100, (50, 100)) == (75, 0, 50, 100)


def test_an_image_of_the_right_size_is_left_alone():
  image = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
  assert transforms.fit(image, (32, 32)) is image


def test_the_references_way_squeezes_the_whole_frame_and_keeps_its_middle():
  columns = np.broadcast_to(np.arange(128, dtype=np.uint8)[None, :, None], (64, 128, 3))  # each column tells where it is
  out = transforms.fit(columns, (64, 64), 0.75)
  assert out.shape == (64, 64, 3)
  # 64 wide after the squeeze, the middle 48 of it: columns 8 to 55 of 64, so 16 to 111 of 128.
  np.testing.assert_allclose(out[0, [0, 32, 63], 0], [16.5, 64.0, 111.0], atol=1.5)
  assert np.all(np.diff(out[0, :, 0].astype(int)) >= 0)
  image = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
  np.testing.assert_array_equal(transforms.fit(image, (64, 64), 1.0), image)

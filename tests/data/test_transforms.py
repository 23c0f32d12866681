import numpy as np
import pytest

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


@pytest.mark.parametrize("shape", [(5, 7), (96, 32), (40, 50)])
def test_area_is_the_mean_over_what_a_pixel_covers(shape):
  """Against the image blown up until new pixels are whole numbers of its own."""
  image = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
  for size in ((20, 30), (15, 12), shape):
    fine = np.repeat(np.repeat(image.astype(np.float64), size[0], axis=0), size[1], axis=1)
    want = fine.reshape(size[0], shape[0], size[1], shape[1], 3).mean(axis=(1, 3))
    assert np.abs(transforms.area(image, size) - want).max() <= 0.51


@pytest.mark.parametrize("shape", [(480, 640), (360, 640), (256, 341), (256, 256), (100, 80)])
def test_the_references_way_is_opencvs(shape):
  """Resize, middle, resize by cv2.INTER_AREA: at most 2 grey levels apart, each of the two resizes rounding once, and 0.3 in the mean.

  Not where one side shrinks and the other grows: there OpenCV takes two pixels of each, whatever is covered.
  """
  cv2 = pytest.importorskip("cv2", reason="the other side of the comparison: pip install opencv-python-headless")
  rng = np.random.default_rng(0)
  y, x = np.mgrid[: shape[0], : shape[1]]
  smooth = np.stack([127 + 60 * np.sin(x / 9 + c) + 50 * np.cos(y / 7 + x * c / 31) for c in range(3)], axis=-1).astype(np.uint8)
  for image in (smooth, rng.integers(0, 256, (*shape, 3)).astype(np.uint8)):
    whole = cv2.resize(image, (256, 256), interpolation=cv2.INTER_AREA)
    want = cv2.resize(np.ascontiguousarray(whole[13:243, 13:243]), (256, 256), interpolation=cv2.INTER_AREA)
    apart = np.abs(transforms.fit(image, (256, 256), 230 / 256).astype(int) - want)
    assert apart.max() <= 2
    assert apart.mean() <= 0.3

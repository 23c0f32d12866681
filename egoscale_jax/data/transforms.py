"""Images: JPEG bytes -> the array that the model sees, the same code for training, validation and the policy."""

import functools

import numpy as np
import simplejpeg
from PIL import Image


def centre_crop(height, width, size):
  """The largest box of `size`'s aspect ratio in the middle of a height x width image -> (top, left, height, width)."""
  scale = min(height / size[0], width / size[1])
  box = (round(size[0] * scale), round(size[1] * scale))
  return (height - box[0]) // 2, (width - box[1]) // 2, *box


def fit(image_YxXx3, size, crop=0.0):
  """uint8 image of any size -> uint8 [size[0], size[1], 3]: centre crop to the aspect ratio, then an antialiased resize.

  With `crop` the way of GR00T N1.7: the whole image to that size whatever its aspect ratio, the middle `crop` of it, and to the size again,
  both by area().
  """
  if crop:
    return _middle(image_YxXx3, size, crop)
  if image_YxXx3.shape[:2] == tuple(size):
    return image_YxXx3
  top, left, height, width = centre_crop(*image_YxXx3.shape[:2], size)
  crop = Image.fromarray(image_YxXx3[top : top + height, left : left + width])
  return np.asarray(crop.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def _middle(image_YxXx3, size, crop):
  height, width = (int(n * crop) for n in size)
  top, left = (size[0] - height) // 2, (size[1] - width) // 2
  return area(area(image_YxXx3, size)[top : top + height, left : left + width], size)


def area(image_YxXx3, size):
  """Each new pixel is the mean of the area that it covers, parts of old pixels counted: what OpenCV calls INTER_AREA, to less or to more.

  Pillow's BOX counts whole pixels alone, which is up to 8 grey levels off on smooth pictures and 100 on noise, and as fast.
  """
  out = image_YxXx3
  for axis in (0, 1):
    if out.shape[axis] != size[axis]:
      total = 0.0
      for index, weight in zip(*_covered(out.shape[axis], size[axis])):
        total += np.take(out, index, axis=axis).astype(np.float32) * weight.reshape((-1, 1) if axis else (-1, 1, 1))
      out = total
  return out if out.dtype == np.uint8 else np.rint(out).astype(np.uint8)


@functools.cache
def _covered(old, new):
  """-> index [K, new] and share [K, new] of the old pixels that each new one covers."""
  edge = np.arange(new + 1) * (old / new)
  index = edge[:-1].astype(int) + np.arange(-(-old // new) + 1)[:, None]
  share = np.clip(np.minimum(edge[1:], index + 1) - np.maximum(edge[:-1], index), 0.0, None) * (new / old)
  return np.minimum(index, old - 1), share.astype(np.float32)


def decode(jpeg, size):
  """JPEG bytes -> uint8 [size[0], size[1], 3]."""
  return fit(simplejpeg.decode_jpeg(jpeg, colorspace="RGB"), size)


def decode_into(clip, image: int, camera: int, out_YxXx3, crop=0.0):
  """A picture of a clip -> `out` uint8 [Y, X, 3], as fit() makes it, without a copy where the stored size is that of `out`."""
  rgb = clip.rgb(image, camera, out_YxXx3)
  if crop or rgb is not out_YxXx3:
    out_YxXx3[:] = fit(rgb, out_YxXx3.shape[:2], crop)

"""Images: JPEG bytes -> the array that the model sees, the same code for training, validation and the policy."""

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

  With `crop` the way of GR00T N1.7: the whole image to that size whatever its aspect ratio, the middle `crop` of it, and to the size again.
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
  whole = Image.fromarray(image_YxXx3).resize((size[1], size[0]), Image.Resampling.BOX)  # each pixel is the mean of its area
  middle = whole.crop((left, top, left + width, top + height))
  return np.asarray(middle.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def decode(jpeg, size):
  """JPEG bytes -> uint8 [size[0], size[1], 3]."""
  return fit(simplejpeg.decode_jpeg(jpeg, colorspace="RGB"), size)


def decode_into(clip, image: int, camera: int, out_YxXx3, crop=0.0):
  """A picture of a clip -> `out` uint8 [Y, X, 3], as fit() makes it, without a copy where the stored size is that of `out`."""
  rgb = clip.rgb(image, camera, out_YxXx3)
  if crop or rgb is not out_YxXx3:
    out_YxXx3[:] = fit(rgb, out_YxXx3.shape[:2], crop)

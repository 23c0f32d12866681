"""Hands on frames. Pixels have their centres at whole numbers; NaN is not drawn."""

import dataclasses
import itertools

import numpy as np
from PIL import Image, ImageDraw

from egoscale_jax import geometry
from egoscale_jax.hands import keypoints

SIDE_COLOURS = ((56, 189, 248), (251, 146, 60))  # left blue, right orange
PREDICTED = ((217, 70, 239), (190, 242, 100))  # left magenta, right lime
LABELLED = ((219, 234, 254), (254, 226, 196))  # the robot's hands of the labels: the same, pale
MASKED = (120, 120, 128)  # a hand that is not learned
AXIS_COLOURS = ((239, 68, 68), (34, 197, 94), (59, 130, 246))
MIN_HEIGHT = 288  # a smaller frame is enlarged, so that lines and letters can be read


@dataclasses.dataclass
class Canvas:
  """A frame, enlarged by a whole number, that takes points in the frame's own pixels."""

  image: Image.Image
  scale: int

  @classmethod
  def of(cls, frame_YxXx3):
    scale = max(1, -(-MIN_HEIGHT // frame_YxXx3.shape[0]))
    height, width = frame_YxXx3.shape[:2]
    return cls(Image.fromarray(frame_YxXx3).resize((width * scale, height * scale), Image.Resampling.BICUBIC), scale)

  def _place(self, pixel):
    return tuple((np.asarray(pixel, np.float64) + 0.5) * self.scale)

  def line(self, start, end, colour, width=2):
    if np.all(np.isfinite([*start, *end])):
      ImageDraw.Draw(self.image).line([self._place(start), self._place(end)], fill=colour, width=width)

  def dot(self, pixel, colour, radius=3):
    if np.all(np.isfinite(pixel)):
      x, y = self._place(pixel)
      ImageDraw.Draw(self.image).ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour, outline=(20, 20, 20))

  def skeleton(self, pixel_Px2, colour, width=2):
    """21 keypoints and their bones."""
    for parent, child in keypoints.BONES:
      self.line(pixel_Px2[parent], pixel_Px2[child], colour, width)
    for pixel in pixel_Px2:
      self.dot(pixel, colour, radius=width)

  def axes(self, pixel_4x2):
    """A frame's origin and the ends of its x, y, z: red, green, blue."""
    for end, colour in zip(pixel_4x2[1:], AXIS_COLOURS):
      self.line(pixel_4x2[0], end, colour, 3)

  def path(self, pixel_Tx2, colour, width=3):
    for start, end in itertools.pairwise(pixel_Tx2):
      self.line(start, end, colour, width)
    self.dot(pixel_Tx2[-1], colour, radius=width + 2)

  def caption(self, text):
    """White letters on a dark strip below the frame, wrapped."""
    width, height = self.image.size
    room = max(8, (width - 12) // 7)  # the default font is about 7 pixels a letter at size 13
    lines = wrap(text, room)
    strip = Image.new("RGB", (width, height + 18 * len(lines) + 6), (24, 24, 27))
    strip.paste(self.image)
    for i, line in enumerate(lines):
      ImageDraw.Draw(strip).text((6, height + 3 + 18 * i), line, fill=(244, 244, 245), font_size=13)
    self.image = strip


def wrap(text, room):
  """Words into lines of at most `room` letters; a longer word stands alone."""
  lines = [""]
  for word in text.split():
    if lines[-1] and len(lines[-1]) + 1 + len(word) > room:
      lines.append("")
    lines[-1] += (" " if lines[-1] else "") + word
  return lines


def to_pixels(points_Px3, T_world_camera, intrinsics):
  """World points [..., P, 3] -> pixels [..., P, 2], NaN behind the camera."""
  return geometry.project(intrinsics, geometry.transform(geometry.se3_inverse(T_world_camera), points_Px3))


def sheet(images, columns):
  """Equal-width pictures in rows of at most so many, on a light ground."""
  columns = min(columns, len(images))
  width, height = max(i.width for i in images), max(i.height for i in images)
  rows = -(-len(images) // columns)
  page = Image.new("RGB", (columns * (width + 8) + 8, rows * (height + 8) + 8), (250, 250, 250))
  for i, image in enumerate(images):
    page.paste(image, (8 + (i % columns) * (width + 8), 8 + (i // columns) * (height + 8)))
  return page

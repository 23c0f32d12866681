"""Project Aria's lens (FisheyeRadTanThinPrism, with one focal length) -> pinhole pictures, which are all that an Episode holds.

A point at the angle t from the axis goes to the radius t (1 + k0 t^2 + .. + k5 t^12); the tangential (p) and thin-prism (s) terms follow.
Parameters: f, cx, cy, k0..k5, p0, p1, s0..s3, of pictures of the calibration's size, the first pixel's centre at (0, 0).
"""

import numpy as np

NAME, PARAMS = "FisheyeRadTanThinPrism", 15
FOV_DEGREES = 90.0  # of the pinhole pictures: inside of what the lens sees, 110 degrees
_OFF_CENTRE = 0.1  # of the picture's size, from its middle to the lens: real ones are off by 0.03
_FINER = 1.5  # the picture that is sampled is reduced to so many times the resolution of the result, so that nothing is skipped


def project(params, points_Nx3):
  """Points in the camera's frame (z forward) -> pixels [N, 2]."""
  f, cx, cy = params[:3]
  k, p, s = params[3:9], params[9:11], params[11:15]
  radius = np.linalg.norm(points_Nx3[:, :2], axis=1)
  angle = np.arctan2(radius, points_Nx3[:, 2])
  distorted = angle * (1 + sum(k[i] * angle ** (2 * i + 2) for i in range(6)))
  xy = points_Nx3[:, :2] * (distorted / np.maximum(radius, 1e-12))[:, None]
  square = (xy * xy).sum(axis=1)
  bent = xy + 2 * (xy @ p)[:, None] * xy + square[:, None] * p
  bent += np.stack([s[0] * square + s[1] * square**2, s[2] * square + s[3] * square**2], axis=1)
  return f * bent + (cx, cy)


def pinhole(side):
  """K of a square picture of FOV_DEGREES."""
  focal = side / 2 / np.tan(np.radians(FOV_DEGREES) / 2)
  return np.array([[focal, 0, (side - 1) / 2], [0, focal, (side - 1) / 2], [0, 0, 1]])


class Lens:
  """For mp4.decode: undoes the lens by sampling; turn [3, 3] takes the axes of the (turned) picture to the sensor's.

  size: width, height of the calibration's pictures; None: the video's own, ValueError where the lens is not of such pictures.
  """

  def __init__(self, params, size, turn, image_size):
    self._params, self._size, self._turn, self._image_size = params, size, turn, image_size

  def __call__(self, width, height):
    if self._size is None:
      self._size = np.array([width, height] if abs(self._turn[0, 0]) > 0.5 else [height, width], np.float64)
      off = np.abs(self._params[1:3] / self._size - 0.5)
      if off.max() > _OFF_CENTRE:
        x, y = self._params[1:3]
        raise ValueError(f"the calibration tells no size, and its lens at ({x:.0f}, {y:.0f}) is not in the middle of {width} x {height}")
    side = min(self._image_size, width, height)
    scale = min(1.0, _FINER * side / min(width, height))
    reduced = (round(height * scale), round(width * scale))
    place = self._places(side, reduced)
    low = np.clip(np.floor(place).astype(int), 0, np.array(reduced[::-1]) - 2)
    part = np.clip(place - low, 0, 1)[..., None].astype(np.float32)

    def remap(rgb):
      x, y = low[..., 0], low[..., 1]
      px, py = part[..., 0, :], part[..., 1, :]
      top = rgb[y, x] * (1 - px) + rgb[y, x + 1] * px
      bottom = rgb[y + 1, x] * (1 - px) + rgb[y + 1, x + 1] * px
      return np.round(top * (1 - py) + bottom * py).astype(np.uint8)

    return reduced, remap, (side, side)

  def _places(self, side, reduced):
    """Where each pixel of the result is in the reduced picture [side, side, 2], x and y."""
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2)
    k_3x3 = pinhole(side)
    rays = np.concatenate([(grid - k_3x3[:2, 2]) / k_3x3[0, 0], np.ones((len(grid), 1))], axis=1)
    pixel = project(self._params, rays @ self._turn.T)
    # From the sensor's pixels to the turned picture's, about the centre, in parts of the size.
    centred = (pixel + 0.5) / self._size - 0.5
    centred = centred @ np.round(self._turn[:2, :2])
    return ((centred + 0.5) * reduced[::-1] - 0.5).reshape(side, side, 2)

"""Frames for the readers: a video or single pictures -> JPEG of the size that an Episode holds, and the intrinsics that go with it.

Pixels of an Episode are OpenCV's, as those of data/transforms.py: the centre of the first pixel is (0, 0). A resize by s is then
c' = s * (c + 0.5) - 0.5 for the principal point, f' = s * f.
"""

import dataclasses
import io
import os

import av
import numpy as np
import simplejpeg
from PIL import Image

from egoscale_jax.data.sources import checks
from egoscale_jax.errors import UserError

JPEG_QUALITY = 92
MAX_PIXELS = 64_000_000  # 8k; a header that claims more is damaged or hostile, and a decoder would allocate it


@dataclasses.dataclass(frozen=True)
class Frames:
  """A decoded video."""

  jpeg_F: tuple[bytes, ...]
  rate_hz: float  # 0 where the pictures tell none
  size: tuple[int, int]  # width, height before the resize
  image_size: tuple[int, int]  # height, width of the JPEGs


def fit(width: int, height: int, image_size: int) -> tuple[int, int]:
  """Size of a video -> (height, width) of its JPEG frames: the shorter side at most image_size, never enlarged."""
  scale = min(1.0, image_size / min(width, height))
  return round(height * scale), round(width * scale)


def decode(path, image_size: int, rate: bool = True) -> Frames:
  """All frames of a video file, in order; UserError where it is absent, damaged or empty. rate: it must tell one."""
  found = list(segments(path, image_size, [(0, None)], rate))
  return found[0]


def segments(path, image_size: int, spans, rate: bool = True):
  """Yields Frames of each span (first frame, last + 1; None: to the end) of a video, in one pass; spans in order, not overlapping."""
  if not os.path.isfile(path):
    raise UserError(f"{path}: no such video")
  try:
    with av.open(os.fspath(path)) as container:
      if not container.streams.video:
        raise UserError(f"{path}: has no video stream")
      stream = container.streams.video[0]
      stream.thread_type = "NONE"  # prepare() runs one process a core; a decoder's own threads would only fight over them
      if rate and not stream.average_rate:
        raise UserError(f"{path}: tells no frame rate")
      _check_size(stream.width, stream.height, path)
      size = fit(stream.width, stream.height, image_size)
      numbered = enumerate(container.decode(stream))
      for start, end in spans:
        jpeg_F = tuple(_wanted(numbered, start, end, size, path))
        if not jpeg_F or (end is not None and len(jpeg_F) < end - start):
          raise UserError(f"{path}: holds {start + len(jpeg_F) if jpeg_F else 'no'} frame{'s' if jpeg_F else ''}, expected {end or 'some'}")
        yield Frames(jpeg_F, float(stream.average_rate or 0), (stream.width, stream.height), size)
  except (av.FFmpegError, OSError, ValueError) as error:
    raise UserError(f"{path}: not a decodable video: {checks.one_line(error)}") from error


def _wanted(numbered, start, end, size, path):
  """The JPEGs of the frames start .. end - 1; the decoder is left right behind them."""
  if end is not None and end <= start:
    return
  for number, frame in numbered:
    if frame.is_corrupt:
      raise UserError(f"{path}: frame {number} is corrupt")
    if number >= start:
      rgb = frame.reformat(width=size[1], height=size[0], format="rgb24", interpolation="AREA").to_ndarray()
      yield encode(rgb)
    if number + 1 == end:
      return


def encode(rgb_YxXx3) -> bytes:
  return simplejpeg.encode_jpeg(np.ascontiguousarray(rgb_YxXx3), quality=JPEG_QUALITY, colorspace="RGB", colorsubsampling="420")


def pictures(encoded, image_size: int, path, what: str) -> Frames:
  """JPEG or PNG bytes of every frame -> Frames; a JPEG of the right size stays as it is. what: the field, for errors."""
  jpeg_F, size = [], None
  for number, data in enumerate(encoded):
    try:
      with Image.open(io.BytesIO(bytes(data)), formats=("JPEG", "PNG")) as image:
        _check_size(*image.size, path)
        size = size or image.size
        if image.size != size:
          raise UserError(f"{path}: {what} at frame {number} is {image.size[0]} x {image.size[1]}, the first is {size[0]} x {size[1]}")
        fitted = fit(*size, image_size)
        if image.format == "JPEG" and image.mode == "RGB" and fitted == size[::-1]:
          image.load()  # whole, not only its header
          jpeg_F.append(bytes(data))
          continue
        small = image.convert("RGB").resize(fitted[::-1], Image.Resampling.BOX)
        jpeg_F.append(encode(np.asarray(small)))
    except UserError:
      raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, TypeError) as error:  # each seen from Pillow on damaged bytes
      raise UserError(f"{path}: {what} at frame {number} is no readable picture: {checks.one_line(error)}") from error
  if not jpeg_F:
    raise UserError(f"{path}: {what} holds no frame")
  return Frames(tuple(jpeg_F), 0.0, size, fit(*size, image_size))


def _check_size(width, height, path):
  if not 0 < width * height <= MAX_PIXELS:
    raise UserError(f"{path}: frames of {width} x {height} pixels, expected 1 to {MAX_PIXELS // 1_000_000} million")


def scale_intrinsics(intrinsics_3x3, frames: Frames, path, name: str, corner: float = 0.0) -> np.ndarray:
  """K of the pictures as they were recorded -> K of the JPEGs, float32. corner: where the file sees the first pixel's centre, 0 or 0.5."""
  width, height = frames.size
  k_3x3 = checks.intrinsics(intrinsics_3x3, path, name)
  cx, cy = k_3x3[:2, 2]
  if not (0 < cx < width and 0 < cy < height):
    found = f"its principal point at ({cx:.1f}, {cy:.1f})"
    raise UserError(f"{path}: {name} has {found}, expected it inside the {width} x {height} video")
  scale = np.array([frames.image_size[1] / width, frames.image_size[0] / height, 1.0])
  half = np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
  return (scale[:, None] * (k_3x3 + half - 2 * corner * half) - half).astype(np.float32)

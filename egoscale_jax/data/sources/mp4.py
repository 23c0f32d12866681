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
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)  # the second only where warnings are errors
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


def decode(path, image_size: int, start: int = 0, count: int | None = None, lens=None) -> Frames:
  """The frames start .. start + count - 1 of a video file (None: all), in order; UserError where it is absent, damaged or too short.

  lens(width, height): makes pictures of another projection: -> (height, width to reduce to, function of such a picture, its result's size).
  """
  if not os.path.exists(path):
    raise UserError(f"{path}: no such video")
  try:
    with av.open(os.fspath(path)) as container:
      if not container.streams.video:
        raise UserError(f"{path}: has no video stream")
      stream = container.streams.video[0]
      if stream.codec_context is None:
        raise UserError(f"{path}: its codec is unknown here")
      stream.thread_type = "NONE"  # prepare() runs one process a core; a decoder's own threads would only fight over them
      if not stream.average_rate:
        raise UserError(f"{path}: tells no frame rate")
      _check_size(stream.width, stream.height, path)
      size = fit(stream.width, stream.height, image_size)
      reduced, remap, size = lens(stream.width, stream.height) if lens else (size, None, size)
      numbered = enumerate(container.decode(stream)) if count is None else _from(container, stream, start, count, path)
      jpeg_F = tuple(_jpeg(frame, number, reduced, remap, path) for number, frame in numbered)
      if not jpeg_F or (count is not None and len(jpeg_F) < count):
        wanted = "" if count is None else f", expected {count} from frame {start} on"
        raise UserError(f"{path}: holds {len(jpeg_F) or 'no'} frame{wanted}")
      return Frames(jpeg_F, float(stream.average_rate), (stream.width, stream.height), size)
  except (av.FFmpegError, OSError, ValueError, OverflowError) as error:
    raise UserError(f"{path}: not a decodable video: {checks.one_line(error)}") from error


def _from(container, stream, start, count, path):
  """Seeks, and yields (number, frame) of `count` frames; a frame's number is its time times the rate, which must be steady."""
  begin, rate = stream.start_time or 0, stream.average_rate
  container.seek(begin + int(start / rate / stream.time_base), stream=stream)
  due = start
  for frame in container.decode(stream):
    number = None if frame.pts is None else round((frame.pts - begin) * stream.time_base * rate)
    if number is not None and number < due == start:
      continue
    if number != due:
      raise UserError(f"{path}: frame {due} is missing or not at its time, expected frames at a steady {float(rate):g} Hz")
    yield number, frame
    due += 1
    if due == start + count:
      return


def _jpeg(frame, number, size, remap, path) -> bytes:
  if frame.is_corrupt:
    raise UserError(f"{path}: frame {number} is corrupt")
  if frame.rotation:  # a note that players obey, and estimators that read through OpenCV: their keypoints would be of other pictures
    found = f"its pictures are stored turned by {frame.rotation} degrees"
    raise UserError(f"{path}: {found}, expected upright ones, as `ffmpeg -i IN.mp4 OUT.mp4` writes them")
  # One thread here too: the resize's own cost a fifth of all CPU time and made nothing faster.
  rgb = frame.reformat(width=size[1], height=size[0], format="rgb24", interpolation="AREA", threads=1).to_ndarray()
  return encode(remap(rgb) if remap else rgb)


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
    except (OSError, ValueError, SyntaxError, *_BOMBS, TypeError) as error:  # each seen from Pillow on damaged bytes
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

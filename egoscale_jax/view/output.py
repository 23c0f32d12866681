"""A picture or a video of frames that are drawn one by one."""

import pathlib

import av
import numpy as np

from egoscale_jax import progress
from egoscale_jax.errors import UserError
from egoscale_jax.view import draw


def checked(path):
  """The path, before any work, if its ending is one that `write` knows."""
  path = pathlib.Path(path)
  if path.suffix not in (".mp4", ".png"):
    raise UserError(f"--output={path}: found the ending {path.suffix!r}, expected .mp4 or .png")
  return path


def write(path, image, count, rate_hz, sheet_frames, columns):
  """image(frame) -> PIL; .mp4: all `count` frames; .png: a sheet of so many of them, spread evenly."""
  partial = path.with_name(f"{path.stem}.partial{path.suffix}")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
      chosen = np.unique(np.linspace(0, count - 1, sheet_frames).round().astype(int))
      draw.sheet([image(int(i)) for i in chosen], columns).save(partial)
    else:
      with progress.bar(count, "view", "frame") as bar:
        _write_mp4(partial, map(image, range(count)), rate_hz, bar)
    partial.replace(path)
  except OSError as error:
    raise UserError(f"--output={path}: cannot be written: {error.strerror or error}") from error


def _write_mp4(path, images, rate_hz, bar):
  """PIL images of one size -> H.264; `bar` counts them."""
  with av.open(str(path), "w") as container:
    stream = None
    for image in images:
      if stream is None:
        stream = container.add_stream("libx264", rate=round(rate_hz), options={"crf": "20"})
        stream.width, stream.height, stream.pix_fmt = image.width // 2 * 2, image.height // 2 * 2, "yuv420p"
      frame = av.VideoFrame.from_image(image.crop((0, 0, stream.width, stream.height)))
      container.mux(stream.encode(frame))
      bar.update()
    container.mux(stream.encode(None))


def write_page(path: pathlib.Path, page: str, option: str):
  """A page of HTML, whole or not at all; option: of the command line, for the error."""
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)
  except OSError as error:
    raise UserError(f"--{option}={path}: cannot be written: {error.strerror or error}") from error

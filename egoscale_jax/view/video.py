"""`egoscale view`: an episode as a video or a sheet of frames, keypoints drawn, chunks too when a work directory is given."""

import pathlib

import av
import numpy as np

from egoscale_jax import progress
from egoscale_jax.errors import UserError
from egoscale_jax.hands import keypoints
from egoscale_jax.policy import Policy
from egoscale_jax.view import draw, episodes

SHEET_FRAMES = 12


def annotate(footage, index, predictor=None):
  """Frame `index` with the keypoints; with a predictor, the wrists' true and predicted paths over the chunk's time and its last hands."""
  canvas = draw.Canvas.of(footage.frame(index))
  pixels = lambda points: draw.to_pixels(points, footage.T_world_camera_Fx4x4[index], footage.intrinsics_3x3)  # noqa: E731
  for side in range(2):
    canvas.skeleton(pixels(footage.keypoints_Fx2xPx3[index, side]), draw.SIDE_COLOURS[side])
  if predictor is not None:
    predicted = predictor(footage, index)
    future = index + predictor.stride * np.arange(predictor.horizon + 1)
    future = future[future < len(footage.jpeg_F)]
    for side in range(2):
      canvas.path(pixels(footage.T_world_wrist_Fx2x4x4[future, side, :3, 3]), draw.SIDE_COLOURS[side])
      canvas.path(pixels(predicted[:, side, keypoints.WRIST]), draw.PREDICTED[side])
      canvas.skeleton(pixels(predicted[-1, side]), draw.PREDICTED[side], width=1)
  legend = "left blue, right orange" if predictor is None else "true path blue/orange, predicted magenta/lime"
  canvas.caption(f"{footage.text}  [frame {index:04d}; {legend}]")  # of one length, so that all frames of a video are of one size
  return canvas.image


def write_mp4(path, images, rate_hz, bar):
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


def view(source, output, episode=0, workdir=None):
  """Draws one episode of `source` to `output` (.mp4 or .png)."""
  output = pathlib.Path(output)
  if output.suffix not in (".mp4", ".png"):
    raise UserError(f"--output={output}: found the ending {output.suffix!r}, expected .mp4 or .png")
  footage = episodes.open_footage(source, episode)
  predictor = episodes.Predictor(Policy(workdir)) if workdir else None
  count = len(footage.jpeg_F)
  partial = output.with_name(f"{output.stem}.partial{output.suffix}")
  try:
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.suffix == ".png":
      chosen = np.unique(np.linspace(0, count - 1, SHEET_FRAMES).round().astype(int))
      draw.sheet([annotate(footage, int(i), predictor) for i in chosen], columns=4).save(partial)
    else:
      with progress.bar(count, "view", "frame") as bar:
        write_mp4(partial, (annotate(footage, i, predictor) for i in range(count)), footage.rate_hz, bar)
    partial.replace(output)
  except OSError as error:
    raise UserError(f"--output={output}: cannot be written: {error.strerror or error}") from error

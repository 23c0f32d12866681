"""MediaPipe's hand landmarker over a video, for the reader `video`: the only file that knows MediaPipe.

`pip install mediapipe` (1.0 or newer; the extra [video]) brings the library and not its model, hand_landmarker.task: see DOCUMENTED.
"""

import av
import numpy as np

from egoscale_jax.data.sources import checks, mp4
from egoscale_jax.data.sources.monocular import Marks
from egoscale_jax.errors import UserError
from egoscale_jax.hands import keypoints

DOCUMENTED = "https://ai.google.dev/edge/mediapipe/solutions/vision/hand_landmarker"
MAX_RATE_HZ = 1000.0  # MediaPipe counts time in whole milliseconds, each frame a later one


def estimate(mp4_path, model_path, frames: mp4.Frames) -> Marks:
  """Marks of every frame. frames: what mp4.decode made of the video; the hands are looked for in the pictures of full size."""
  if frames.rate_hz > MAX_RATE_HZ:
    raise UserError(f"{mp4_path}: {frames.rate_hz:g} frames a second, expected at most {MAX_RATE_HZ:g}")
  vision, image = _mediapipe()
  pixel = np.full((len(frames.jpeg_F), 2, 21, 2), np.nan)
  depth, score = np.full(pixel.shape[:3], np.nan), np.zeros(pixel.shape[:2])
  with _open(vision, model_path) as landmarker:
    for i, rgb_YxXx3 in zip(range(len(pixel)), _pictures(mp4_path)):
      height, width = rgb_YxXx3.shape[:2]
      found = landmarker.detect_for_video(image(rgb_YxXx3), int(1000 * i / frames.rate_hz))
      for handedness, landmarks in zip(found.handedness, found.hand_landmarks):
        side = keypoints.SIDES.index(handedness[0].category_name.lower())  # right for a picture that is not mirrored, as a video's
        if handedness[0].score <= score[i, side]:
          continue  # two hands of one side: the surer
        xyz = np.array([(mark.x, mark.y, mark.z) for mark in landmarks])
        score[i, side] = handedness[0].score
        pixel[i, side] = xyz[:, :2] * (width, height) - 0.5  # MediaPipe's count from the first pixel's corner
        depth[i, side] = (xyz[:, 2] - xyz[keypoints.WRIST, 2]) * width
  return Marks(pixel, depth, score)


def _mediapipe():
  """-> its vision tasks, and what makes its image of an array."""
  try:
    import mediapipe
    from mediapipe.tasks.python import vision
  except ImportError as error:
    told = checks.one_line(error)
    raise UserError(f"mediapipe: cannot be imported ({told}), expected pip install -e '.[video]' in the checkout") from error
  return vision, lambda rgb: mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(rgb))


def _open(vision, model_path):
  from mediapipe.tasks.python import BaseOptions

  options = vision.HandLandmarkerOptions(
    base_options=BaseOptions(model_asset_path=model_path), running_mode=vision.RunningMode.VIDEO, num_hands=2
  )
  try:
    return vision.HandLandmarker.create_from_options(options)
  except (RuntimeError, ValueError, OSError) as error:
    raise UserError(f"{model_path}: no hand_landmarker.task of MediaPipe ({DOCUMENTED}): {checks.one_line(error)}") from error


def _pictures(mp4_path):
  """Once more, which mp4.decode went through without an error; never is all of it in memory."""
  with av.open(mp4_path) as container:
    stream = container.streams.video[0]
    stream.thread_type = "NONE"
    for frame in container.decode(stream):
      yield frame.to_ndarray(format="rgb24")

"""How well `--source=video` labels: hands that it finds in EgoDex's videos, against EgoDex's own:

  python benchmarks/video.py --model=hand_landmarker.task [--input=../shared/recordings/egodex]

Of every recording below --input that has a video; each person's palm_m is EgoDex's. A line a recording and one of all; medians over hands
and frames that both know: the wrist's place in the camera and the part of it along the view, the five fingertips seen from the wrist, the
turn that takes one palm to the other, the wrist's way of half a second (its error, and how long it is).
"""

import argparse
import os
import pathlib
import time

import numpy as np

from egoscale_jax import geometry
from egoscale_jax.data.sources import egodex, landmarker, monocular, mp4, video
from egoscale_jax.hands import keypoints

PALM = (keypoints.WRIST, *keypoints.KNUCKLES)


def measure(recording, model):
  """-> a row a hand and frame: wrist, along the view, fingertips (m), turn (rad), way's error, way (m); seen hands, CPU seconds a frame."""
  episode = egodex.read(recording, 10_000)  # not reduced: the intrinsics are the video's
  T_camera_world = geometry.se3_inverse(episode.T_world_camera_Fx4x4.astype(np.float64))[:, None]
  truth = geometry.transform(T_camera_world, episode.keypoints_Fx2xPx3.astype(np.float64))
  palm_m = float(np.nanmedian(np.linalg.norm(truth[:, :, keypoints.KNUCKLES[1]] - truth[:, :, keypoints.WRIST], axis=-1)))
  began = time.process_time()
  marks = landmarker.estimate(recording.files[1], model, mp4.decode(recording.files[1], 256))
  marks.pixel_Fx2x21x2[marks.score_Fx2 < video.MIN_SCORE] = np.nan
  points = monocular.place(marks, episode.intrinsics_3x3.astype(np.float64), palm_m, episode.rate_hz)
  seconds = (time.process_time() - began) / len(points)
  wrist = points[:, :, keypoints.WRIST] - truth[:, :, keypoints.WRIST]
  tips = (points - points[:, :, :1] - truth + truth[:, :, :1])[:, :, list(keypoints.TIPS)]
  half = round(episode.rate_hz / 2)
  way, error = (np.full(wrist.shape[:2], np.nan) for _ in range(2))
  error[half:] = np.linalg.norm(wrist[half:] - wrist[:-half], axis=-1)
  way[half:] = np.linalg.norm(truth[half:, :, keypoints.WRIST] - truth[:-half, :, keypoints.WRIST], axis=-1)
  rows = np.stack(
    [np.linalg.norm(wrist, axis=-1), wrist[..., 2], np.linalg.norm(tips, axis=-1).mean(axis=-1), turn(points, truth), error, way], -1
  )
  both = np.isfinite(rows[..., :4]).all(axis=-1)
  return rows[both], both.mean(), seconds


def turn(a, b):
  """Angle of the rotation that takes the palms of a to those of b, by least squares."""
  a, b = (x[:, :, list(PALM)] - x[:, :, list(PALM)].mean(axis=2, keepdims=True) for x in (a, b))
  both = np.isfinite(a).all(axis=(2, 3)) & np.isfinite(b).all(axis=(2, 3))
  result = np.full(both.shape, np.nan)
  u, _, vt = np.linalg.svd(a[both].swapaxes(1, 2) @ b[both])
  vt[:, 2] *= np.linalg.det(u @ vt)[:, None]
  result[both] = geometry.so3_angle(u @ vt)
  return result


def tell(name, rows, seen, seconds):
  wrist, along, tips, turned, error, way = np.nanmedian(rows, axis=0)
  worst = np.nanpercentile(rows[:, 0], 90)
  told = f"wrist {1e3 * wrist:3.0f} mm (along the view {1e3 * along:+4.0f}, 90 % below {1e3 * worst:3.0f}), fingertips {1e3 * tips:3.0f} mm"
  told += f", palm {np.degrees(turned):3.0f} degrees, half a second {1e3 * error:3.0f} of {1e3 * way:3.0f} mm"
  print(f"{name:24s} hands seen {seen:4.0%}: {told}; {1e3 * seconds:.0f} ms a frame", flush=True)


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--model", required=True, type=pathlib.Path)
  parser.add_argument("--input", default=pathlib.Path(__file__).resolve().parents[1] / "../shared/recordings/egodex")
  arguments = parser.parse_args()
  measured = []
  for recording in egodex.find(arguments.input):
    if os.path.exists(recording.files[1]):
      measured.append(measure(recording, os.fspath(arguments.model)))
      tell(recording.id, *measured[-1])
  rows, seen, seconds = zip(*measured)
  tell("all", np.concatenate(rows), np.mean(seen), np.mean(seconds))


if __name__ == "__main__":
  main()

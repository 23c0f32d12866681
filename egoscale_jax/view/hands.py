"""`egoscale view` of a result of `egoscale retarget`: the human hand and the robot's beside it, from one fixed viewpoint."""

import itertools
import pathlib
import zipfile

import numpy as np
from PIL import Image, ImageDraw

from egoscale_jax import geometry
from egoscale_jax.errors import UserError
from egoscale_jax.hands import hand as hand_lib
from egoscale_jax.hands import keypoints, kinematics
from egoscale_jax.view import output as output_lib

PANEL = (270, 320)  # pixels a hand
SHEET_FRAMES, COLUMNS = 6, 3
COLOURS = ((220, 38, 38), (37, 99, 235), (22, 163, 74), (217, 119, 6), (147, 51, 234))  # of keypoints.FINGERS
INK, MUTED, FAINT, PALM, GROUND = (24, 24, 27), (113, 113, 122), (212, 212, 216), (240, 240, 242), (255, 255, 255)
VIEW_RIGHT = (-0.15, 0.75, -0.65)  # where the camera stands, in the wrist frame of a right hand: thumb side, palm half turned to it
SMOOTH = 3  # drawn so many times as large: Pillow's lines have hard edges
NEEDED = ("joints", "residual_m", "human", "valid", "rate_hz", "scale", "hand", "side", "fingers")


class Hands:
  """Frames of a result, ready to draw: both hands in screen coordinates [F, 21, 3] (right, down, nearer), in pixels."""

  def __init__(self, path):
    arrays = _read(path)
    self.hand = hand_lib.load(str(arrays["hand"]), str(arrays["side"]), str(arrays["fingers"]) or None)
    if arrays["joints"].shape[1:] != (self.hand.num_joints,):
      raise UserError(f"{path}: holds {arrays['joints'].shape[-1]} joints a frame, {self.hand.name} has {self.hand.num_joints}")
    self.residual_m_F, self.valid_F = arrays["residual_m"], arrays["valid"]
    self.rate_hz, self.scale = float(arrays["rate_hz"]), float(arrays["scale"])
    wrist = geometry.se3_inverse(self.hand.T_base_wrist_4x4.astype(np.float64))
    human = geometry.transform(wrist, arrays["human"]) @ _screen(self.hand.side).T
    self.human_Fx21x3, self.robot_Fx21x3 = _fitted(human, _robot(self.hand, arrays["joints"]))

  def __len__(self):
    return len(self.valid_F)

  def image(self, frame):
    """Both hands; the rings are where the human's fingertips are."""
    width, height = PANEL
    page = Image.new("RGB", (2 * width * SMOOTH, height * SMOOTH), GROUND)
    _draw(page, self.human_Fx21x3[frame], 0)
    _draw(page, self.robot_Fx21x3[frame], width)
    _rings(page, self.human_Fx21x3[frame], width, self.hand.present)
    page = page.resize((2 * width, height), Image.Resampling.LANCZOS)
    picture = Image.new("RGB", (2 * width, height + 52), GROUND)
    picture.paste(page, (0, 26))
    pen = ImageDraw.Draw(picture)
    pen.text((10, 6), f"human, scaled by {self.scale:.3f}", fill=INK, font_size=14)
    name, side = self.hand.name, self.hand.side
    pen.text((width + 10, 6), name if side in name else f"{name}, {side}", fill=INK, font_size=14)
    error = f"tips {1e3 * self.residual_m_F[frame]:.1f} mm" if self.valid_F[frame] else "not all keypoints are here"
    pen.text((10, height + 29), f"frame {frame}, {frame / self.rate_hz:.2f} s", fill=MUTED, font_size=14)
    pen.text((width + 10, height + 29), error, fill=INK, font_size=14)
    pen.rectangle([0, 0, picture.width - 1, picture.height - 1], outline=FAINT)
    return picture


def poses(hand, joints_FxJ, captions):
  """One hand at a few joint values [F, J] (radians) from the viewpoint of `Hands`, side by side, each with its caption. -> PIL"""
  (points_Fx21x3,) = _fitted(_robot(hand, joints_FxJ))
  width, height = PANEL
  page = Image.new("RGB", (len(captions) * width * SMOOTH, height * SMOOTH), GROUND)
  for frame, points_21x3 in enumerate(points_Fx21x3):
    _draw(page, points_21x3, frame * width)
  picture = Image.new("RGB", (len(captions) * width, height + 26), GROUND)
  picture.paste(page.resize((len(captions) * width, height), Image.Resampling.LANCZOS), (0, 26))
  pen = ImageDraw.Draw(picture)
  for frame, caption in enumerate(captions):
    pen.text((frame * width + 10, 6), caption, fill=INK, font_size=14)
  pen.rectangle([0, 0, picture.width - 1, picture.height - 1], outline=FAINT)
  return picture


def view(source, output):
  """Draws a result to `output` (.mp4 or .png)."""
  output = output_lib.checked(output)
  hands = Hands(source)
  output_lib.write(output, hands.image, len(hands), hands.rate_hz, SHEET_FRAMES, COLUMNS)


def _read(path):
  path = pathlib.Path(path)
  try:
    with np.load(path) as arrays:
      missing = [name for name in NEEDED if name not in arrays]
      if missing:
        raise UserError(f"{path}: no result of `egoscale retarget`: {', '.join(missing)} is missing")
      return {name: arrays[name] for name in NEEDED}
  except FileNotFoundError as error:
    raise UserError(f"{path}: no such file") from error
  except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
    raise UserError(f"{path}: cannot be read as .npz: {str(error).splitlines()[0]}") from error


def _robot(hand, joints_FxJ):
  """-> [F, 21, 3] right, down, to the camera, in metres; NaN where the hand has no keypoint or the joints are missing."""
  points = np.array(kinematics.keypoints_in_wrist(hand, np.asarray(joints_FxJ, np.float32)))
  points[:, ~np.asarray(hand.present)] = np.nan
  points[np.isnan(joints_FxJ).any(-1)] = np.nan
  return points @ _screen(hand.side).T


def _fitted(*places):
  """Arrays [F, 21, 3] in metres -> the same in a panel's pixels, on one scale that lets all of them fit."""
  both = np.concatenate([p[..., :2].reshape(-1, 2) for p in places])
  low, high = np.nanmin(both, axis=0), np.nanmax(both, axis=0)
  zoom = np.min((np.asarray(PANEL) - 44) / np.maximum(high - low, 1e-3))
  centre = np.append((low + high) / 2, 0.0)
  return [(p - centre) * zoom + [PANEL[0] / 2, PANEL[1] / 2, 0] for p in places]


def _screen(side):
  """Rows right, down, to the camera: [3, 3] from the wrist frame; the fingers of a straight hand point up."""
  towards = geometry.normalize(np.asarray(VIEW_RIGHT) * (1, 1 if side == "right" else -1, 1))
  up = geometry.normalize(np.asarray([1.0, 0, 0]) - towards[0] * towards)
  return np.stack([np.cross(up, towards), -up, towards])


def _draw(page, point_Px3, left):
  """The palm, then the fingers' bones from the farthest to the nearest, with a light edge, so that what is in front is seen to be."""
  pen = ImageDraw.Draw(page)
  there = np.isfinite(point_Px3).all(-1)
  place = [((x + left) * SMOOTH, y * SMOOTH) for x, y, _ in point_Px3]
  palm = [place[p] for p in (0, 1, *keypoints.KNUCKLES) if there[p]]
  if len(palm) > 2:
    pen.polygon(palm, fill=PALM)
  bones = []
  for first in range(1, 21, 4):
    chain = [p for p in range(first, first + 4) if there[p]]
    if chain and there[0]:
      _line(pen, place[0], place[chain[0]], 4, FAINT)
    bones += [(point_Px3[[a, b], 2].sum(), a, b, COLOURS[first // 4]) for a, b in itertools.pairwise(chain)]
  if there[0]:
    _disc(pen, place[0], 6, MUTED)
  for _, parent, child, colour in sorted(bones):
    _line(pen, place[parent], place[child], 11, GROUND)
    _line(pen, place[parent], place[child], 7, colour)


def _rings(page, point_Px3, left, present):
  pen = ImageDraw.Draw(page)
  for finger, tip in enumerate(keypoints.TIPS):
    if present[tip] and np.isfinite(point_Px3[tip]).all():
      x, y, r = (point_Px3[tip, 0] + left) * SMOOTH, point_Px3[tip, 1] * SMOOTH, 7 * SMOOTH
      pen.ellipse([x - r, y - r, x + r, y + r], outline=COLOURS[finger], width=2 * SMOOTH - 1)


def _line(pen, start, end, width, colour):
  pen.line([start, end], fill=colour, width=width * SMOOTH)
  for place in (start, end):
    _disc(pen, place, width / 2, colour)


def _disc(pen, place, radius, colour):
  x, y, r = *place, radius * SMOOTH
  pen.ellipse([x - r, y - r, x + r, y + r], fill=colour)

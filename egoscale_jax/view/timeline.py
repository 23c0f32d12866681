"""A Scene (scene.py) as what is drawn from when on: lines in the world, curves, lanes of states. Nothing here knows the page's library.

Paths are those of the page: `world/human/left`, `quality/confidence/left`, `findings/jump_left`. A row holds until the next of its path, so
what is absent at a frame has an empty row there.
"""

import dataclasses

import numpy as np

from egoscale_jax import geometry
from egoscale_jax.data import findings as findings_lib
from egoscale_jax.hands import keypoints
from egoscale_jax.view import draw

AHEAD_S = 1.0  # of the true path where no policy says how far a chunk reaches
ROBOT = ((176, 190, 255), (255, 205, 186))  # left, right: the human's blue and orange, bleached
SEVERITY = {"rejected": (220, 38, 38), "masked": (234, 88, 12), "warning": (202, 138, 4)}  # as in doctor_page.py
VALID, INVALID = "label", "no label"
LABEL = {VALID: (22, 163, 74), INVALID: (113, 113, 122)}
CAMERA = (161, 161, 170)


@dataclasses.dataclass
class Strips:
  """Polylines of one colour. rows: (frame, [[n, 3], ...]), metres in the world."""

  colour: tuple[int, int, int]
  radius_m: float
  dot_m: float = 0.0  # radius of a dot at every point, 0: none
  rows: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Curve:
  """rows: (frame, value)."""

  colour: tuple[int, int, int]
  rows: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Lane:
  """Spans of a state, each with its colour. rows: (frame, state), None where a span ends."""

  colours: dict
  rows: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Timeline:
  strips: dict[str, Strips] = dataclasses.field(default_factory=dict)
  curves: dict[str, Curve] = dataclasses.field(default_factory=dict)
  lanes: dict[str, Lane] = dataclasses.field(default_factory=dict)


def make(scene) -> Timeline:
  """All but chunks."""
  line = Timeline()
  for side, name in enumerate(keypoints.SIDES):
    hand = Strips(draw.SIDE_COLOURS[side], 0.0018, 0.0035)
    robot = Strips(ROBOT[side], 0.0045)  # capsules, a finger's thickness short of hiding the human's
    wrist = Strips(draw.SIDE_COLOURS[side], 0.0025)
    for frame in range(scene.num_frames):
      hand.rows.append((frame, bones(scene.keypoints_Fx2xPx3[frame, side])))
      robot.rows.append((frame, bones(scene.robot_Fx2xPx3[frame, side])))
      wrist.rows.append((frame, _axes(scene.T_world_wrist_Fx2x4x4[frame, side])))
    line.strips |= {f"world/human/{name}": hand, f"world/robot/{name}": robot, f"world/wrist/{name}": wrist}
    numbers = {"confidence": scene.confidence_Fx2[:, side], "residual_mm": 1e3 * scene.residual_m_Fx2[:, side]}
    for quality, value_F in numbers.items():
      rows = [(frame, float(value)) for frame, value in enumerate(value_F) if np.isfinite(value)]
      line.curves[f"quality/{quality}/{name}"] = Curve(draw.SIDE_COLOURS[side], rows)
    if scene.labelled:
      line.lanes[f"labels/{name}"] = Lane(LABEL, _changes([VALID if valid else INVALID for valid in scene.valid_Fx2[:, side]]))
  for number, camera in enumerate(scene.cameras):
    path = camera.T_world_camera_Fx4x4[:, :3, 3]
    line.strips[f"world/path/{number}"] = Strips(CAMERA, 0.0012, rows=[(0, _runs(path))])
  for (name, side), group in _by_name(scene.findings).items():
    state_F = [None] * scene.num_frames
    for finding in group:
      for first, last in finding.spans:
        state_F[first : last + 1] = [finding.severity] * (min(last + 1, scene.num_frames) - first)
    line.lanes["_".join(filter(None, (f"findings/{name}", side)))] = Lane(SEVERITY, _changes(state_F))
  return line


def chunk_strips(scene, chunk) -> dict[str, Strips]:
  """One row a path: what was predicted at a frame (paths of wrist and fingertips, and the hand at the end), and what happened till then."""
  result, frame = {}, chunk.frame
  for side, name in enumerate(keypoints.SIDES):
    said, colour = chunk.keypoints_Tx2xPx3[:, side], draw.PREDICTED[side]
    start = scene.T_world_wrist_Fx2x4x4[frame, side, :3, 3]
    wrist = _runs(np.concatenate([start[None], said[:, keypoints.WRIST]]))
    result[f"world/predicted/{name}/wrist"] = Strips(colour, 0.0018, rows=[(frame, wrist)])
    result[f"world/predicted/{name}/tips"] = Strips(colour, 0.0007, rows=[(frame, _tips(said))])
    result[f"world/predicted/{name}/hand"] = Strips(colour, 0.0014, rows=[(frame, bones(said[-1]))])
  return result | true_strips(scene, frame, int(chunk.frame_T[-1]))


def true_strips(scene, frame, last) -> dict[str, Strips]:
  """What happened from a frame to another, which may lie beyond the last there is."""
  points = scene.robot_Fx2xPx3 if scene.hand else scene.keypoints_Fx2xPx3
  result, at = {}, slice(frame, last + 1)
  for side, name in enumerate(keypoints.SIDES):
    colour = draw.SIDE_COLOURS[side]
    wrist = _runs(scene.T_world_wrist_Fx2x4x4[at, side, :3, 3])
    result[f"world/true/{name}/wrist"] = Strips(colour, 0.0018, rows=[(frame, wrist)])
    result[f"world/true/{name}/tips"] = Strips(colour, 0.0007, rows=[(frame, _tips(points[at, side]))])
  return result


def ahead(scene) -> int:
  """Frames of AHEAD_S: how far true_strips reaches where there is no policy."""
  return max(1, round(AHEAD_S * scene.rate_hz))


def bones(points_Px3) -> list[np.ndarray]:
  """The bones [2, 3] of which both ends are there; a hand without a finger's base has the next bone begin at the wrist."""
  there, chains = np.isfinite(points_Px3).all(axis=-1), []
  for first in range(1, len(keypoints.NAMES), 4):
    chain = [p for p in (keypoints.WRIST, *range(first, first + 4)) if there[p]]
    if len(chain) > 1 and chain[0] == keypoints.WRIST:
      chains.append(points_Px3[chain])
  return chains


def up(scene) -> np.ndarray:
  """The axis of the world [3], with its sign, that is nearest to up if the first camera looks level to 80 degrees down."""
  poses = scene.cameras[0].T_world_camera_Fx4x4
  # Of a camera that looks down by 40 degrees, the middle of that, up is so much its own and so much back.
  towards = -(poses[np.isfinite(poses).all(axis=(1, 2))][:, :3, 1:3] @ (0.77, 0.64)).sum(axis=0)
  if not towards.any():
    return np.array([0.0, 0.0, 1.0])
  nearest = np.abs(towards).argmax()
  return np.sign(towards[nearest]) * (np.arange(3) == nearest)


def viewpoint(scene) -> tuple[np.ndarray, np.ndarray] | None:
  """Where to look from and to, at the beginning: past the camera's left shoulder at the hands. None where nothing is known of either."""
  points = np.concatenate([scene.T_world_wrist_Fx2x4x4[..., :3, 3].reshape(-1, 3), scene.keypoints_Fx2xPx3.reshape(-1, 3)])
  points = points[np.isfinite(points).all(axis=-1)]
  poses = scene.cameras[0].T_world_camera_Fx4x4
  poses = poses[np.isfinite(poses).all(axis=(1, 2))]
  if not len(points):
    return None
  target = np.median(points, axis=0)
  if not len(poses):
    return target + [0.5, -0.5, 0.5], target
  eye, left = np.median(poses[:, :3, 3], axis=0), -poses[len(poses) // 2, :3, 0]
  distance = np.linalg.norm(target - eye)
  away = geometry.normalize(eye - target + 1.1 * distance * left + 0.25 * distance * up(scene))
  return target + max(0.6, 1.55 * distance) * away, target


def _tips(points_TxPx3):
  return [run for tip in keypoints.TIPS for run in _runs(points_TxPx3[:, tip])]


def _runs(path_Tx3):
  """A path without its missing points, cut there; a point alone is no line."""
  there = np.isfinite(path_Tx3).all(axis=-1)
  return [path_Tx3[first:end] for first, end in findings_lib.runs(there) if end - first > 1]


def _axes(T_world_wrist, length=0.03):
  """The wrist's x and z: to the knuckles, and out of the back of the hand."""
  if not np.isfinite(T_world_wrist).all():
    return []
  origin = T_world_wrist[:3, 3]
  return [np.stack([origin, origin + length * T_world_wrist[:3, axis]]) for axis in (0, 2)]


def _changes(state_F):
  """[(frame, state)] where it becomes another one; None at first is no row."""
  rows, before = [], None
  for frame, state in enumerate(state_F):
    if state != before:
      rows.append((frame, state))
    before = state
  return rows if before is None else [*rows, (len(state_F), None)]


def _by_name(found):
  groups = {}
  for finding in found:
    groups.setdefault((finding.name, finding.side), []).append(finding)
  return groups

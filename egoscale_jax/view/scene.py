"""All that the page of `egoscale view --web` shows of one episode, whatever it is read from: a recording, shards, or a rollout's film.

Axis letters: F frames of the recording, N pictures (`stride` frames apart), 2 hands (left, right), P = 21 keypoints, T steps of a chunk.
Everything is seen from the recording's world, in metres, and NaN where it is missing.
"""

import dataclasses
import functools
import pathlib

import numpy as np
import simplejpeg

from egoscale_jax import geometry
from egoscale_jax.data import clips, doctor, findings, labeller, labels, manifest, prepare, schema, shards
from egoscale_jax.data.sources import egodex, mp4
from egoscale_jax.errors import UserError
from egoscale_jax.evaluate import film as film_lib
from egoscale_jax.hands import hand as hand_lib
from egoscale_jax.hands import keypoints, kinematics, retarget
from egoscale_jax.view import episodes

IMAGE_SIZE = 512  # pixels, the longest shorter side of a recording's pictures


@dataclasses.dataclass(frozen=True)
class Camera:
  name: str
  jpeg_N: tuple[bytes, ...]
  image_size: tuple[int, int]  # height, width
  intrinsics_3x3: np.ndarray
  T_world_camera_Fx4x4: np.ndarray  # of shards with a stride, at every frame too


@dataclasses.dataclass(frozen=True)
class Chunk:
  """What a policy said at a frame: keypoints of the robot's hands, or of wrists alone, at T frames that may lie beyond the last."""

  frame: int
  frame_T: np.ndarray
  keypoints_Tx2xPx3: np.ndarray


@dataclasses.dataclass(frozen=True)
class Scene:
  name: str
  text: str
  embodiment: str
  rate_hz: float  # of the frames
  stride: int
  cameras: tuple[Camera, ...]
  keypoints_Fx2xPx3: np.ndarray  # of a human
  T_world_wrist_Fx2x4x4: np.ndarray
  joints_Fx2xJ: np.ndarray
  hand: str  # whose joints they are, and whose keypoints the next ones; "" where no description of it is here
  robot_Fx2xPx3: np.ndarray
  confidence_Fx2: np.ndarray  # 0..1, mean over the keypoints; NaN of a robot
  residual_m_Fx2: np.ndarray
  valid_Fx2: np.ndarray
  findings: tuple[findings.Finding, ...]
  labelled: bool = True  # a rollout is not
  chunks: tuple[Chunk, ...] = ()  # of a rollout; those of a checkpoint are predicted when the page is up

  @property
  def num_frames(self) -> int:
    return len(self.valid_Fx2)

  def footage(self) -> episodes.Footage:
    """At the pictures, of the first camera: what a policy is asked with."""
    camera, at = self.cameras[0], slice(None, None, self.stride)
    joints = self.joints_Fx2xJ[at] if self.joints_Fx2xJ.shape[-1] else None
    poses = camera.T_world_camera_Fx4x4[at], self.keypoints_Fx2xPx3[at], self.T_world_wrist_Fx2x4x4[at]
    rate_hz = self.rate_hz / self.stride
    jpeg_N = list(camera.jpeg_N)
    return episodes.Footage(self.name, self.text, rate_hz, jpeg_N, camera.intrinsics_3x3, *poses, joints, self.embodiment, self.stride)


def robot_points(hand, joints_Fx2xJ, T_world_wrist_Fx2x4x4):
  """hand: a name as hands.hand.load takes it -> (the name, keypoints [F, 2, P, 3]); ("", NaN) where it cannot be drawn here."""
  missing = "", schema.missing(len(joints_Fx2xJ), 2, len(keypoints.NAMES), 3)
  if not hand or not all(hand_lib.files(hand, side) for side in keypoints.SIDES):
    return missing
  loaded = labeller.load_hands(hand)
  if any(h.num_joints != joints_Fx2xJ.shape[-1] for h in loaded):
    return missing
  points = []
  for side, h in enumerate(loaded):
    here = np.array(kinematics.keypoints_in_wrist(h, np.asarray(joints_Fx2xJ[:, side], np.float32)))
    here[:, ~np.asarray(h.present)] = np.nan
    points.append(geometry.transform(T_world_wrist_Fx2x4x4[:, side], here))
  return hand, np.stack(points, axis=1)


def of_episode(episode: schema.Episode, hand: str = labeller.DEFAULT_HAND) -> Scene:
  """An Episode as a reader makes it: checked by the doctor, and a human retargeted to `hand`, as `prepare` would."""
  valid_Fx2, found = doctor.check(episode)
  human, rejected = episode.embodiment == schema.HUMAN, any(f.severity == findings.REJECTED for f in found)
  if human:
    own, wrists = hand, keypoints.wrist_frames(episode.keypoints_Fx2xPx3)
    confidence_Fx2 = episode.confidence_Fx2xP.mean(axis=-1)
  else:
    own, wrists, confidence_Fx2 = episode.embodiment, episode.T_world_wrist_Fx2x4x4, schema.missing(*valid_Fx2.shape)
  if human and rejected:  # nothing of it becomes a label
    made = schema.Labels(wrists, schema.missing(*valid_Fx2.shape, 0), schema.missing(*valid_Fx2.shape), valid_Fx2)
  else:
    fit = functools.partial(retarget.retarget, rate_hz=episode.rate_hz)
    made, more = labels.label(episode, labeller.load_hands(hand) if human else None, valid_Fx2, fit)
    found = found + more
  drawn, robot_Fx2xPx3 = robot_points(own, made.joints_Fx2xJ, wrists)
  cameras = zip(episode.camera_names, episode.jpeg_CxF, episode.image_size_C, episode.intrinsics_Cx3x3, episode.T_world_camera_CxFx4x4)
  return Scene(
    f"{episode.source}/{episode.id}",
    episode.text,
    episode.embodiment,
    episode.rate_hz,
    1,
    tuple(Camera(*camera) for camera in cameras),
    episode.keypoints_Fx2xPx3,
    wrists,
    made.joints_Fx2xJ,
    drawn,
    robot_Fx2xPx3,
    confidence_Fx2,
    made.residual_m_Fx2,
    made.valid_Fx2,
    tuple(found),
  )


def of_recording(path, episode=0, source=None, columns="", hand=labeller.DEFAULT_HAND) -> Scene:
  """An EgoDex .hdf5, or the `episode`-th of a folder that a module of data/sources reads."""
  path = pathlib.Path(path)
  if source is not None:
    found = prepare.find(source, path, columns)
    return of_episode(source.read(_nth(found, episode, path), IMAGE_SIZE), hand)
  if not path.is_file():
    raise UserError(f"{path}: no such file")
  recording = schema.Recording(id=path.stem, files=(str(path), str(path.with_suffix(".mp4"))))
  return of_episode(egodex.read(_nth([recording], episode, path), IMAGE_SIZE), hand)


def of_shards(directory, episode=0, split=None) -> Scene:
  """The `episode`-th by name of a folder of `egoscale prepare`; split: of that one alone."""
  told = manifest.load(directory)
  kept = [e for e in told["episodes"] if e["status"] == manifest.KEPT]  # as the rows of the index
  wanted = shards.SPLITS if split is None else (split,)
  rows = sorted((row for row, e in enumerate(kept) if e["split"] in wanted), key=lambda row: kept[row]["id"])
  row = _nth(rows, episode, directory if split is None else f"{directory}, split {split},")
  index = shards.load_index(directory)
  ids = shards.clip_ids(index, np.arange(len(index)) == row)
  read = shards.Split(shards.Records(directory, shards.CLIPS, shards.lengths(index, "clips")), ids)
  parts = sorted((read[i] for i in range(len(read))), key=lambda clip: clip.start)
  values, made = clips.read_labels(shards.open_episodes(directory)[row])
  first, frames = parts[0], len(made.valid_Fx2)
  if values["episode"] != first.episode:
    raise UserError(f"{directory}: record {row} is of {values['episode']}, expected {first.episode}; `egoscale doctor --shards` tells more")
  human = first.embodiment == schema.HUMAN
  hand, robot_Fx2xPx3 = robot_points(told["hand"], made.joints_Fx2xJ, made.T_world_wrist_Fx2x4x4)
  return Scene(
    first.episode,
    values["text"],
    first.embodiment,
    first.rate_hz,
    first.stride,
    _cameras(parts, values["T_world_camera"].reshape(-1, frames, 4, 4)),
    values["keypoints"],
    made.T_world_wrist_Fx2x4x4,
    made.joints_Fx2xJ,
    hand,
    robot_Fx2xPx3,
    values["confidence"].mean(axis=-1) if human else schema.missing(frames, 2),
    made.residual_m_Fx2,
    made.valid_Fx2,
    tuple(_finding(f) for f in kept[row]["findings"]),
  )


def of_rollout(folder, episode=0) -> Scene:
  """The `episode`-th film of a folder of `egoscale rollout`, by name; its chunks are those that were carried out."""
  folder = pathlib.Path(folder)
  path = _nth(sorted(folder.glob("*.npz")), episode, folder)
  told = film_lib.load(path)
  read = mp4.decode(str(path.with_suffix(".mp4")), IMAGE_SIZE)
  frames = len(told["T_world_camera"])
  if len(read.jpeg_F) != frames:
    raise UserError(f"{path.with_suffix('.mp4')}: found {len(read.jpeg_F)} pictures, expected {frames}, as in {path.name}")
  hand = str(told["hand"])
  drawn, robot_Fx2xPx3 = robot_points(hand, told["joints"], told["T_world_wrist"])
  return Scene(
    path.stem,
    str(told["text"]),
    str(told["body"]),
    float(told["rate_hz"]),
    1,
    (Camera("head", tuple(read.jpeg_F), read.image_size, told["intrinsics"], told["T_world_camera"]),),
    told["keypoints"],
    told["T_world_wrist"],
    told["joints"],
    drawn,
    robot_Fx2xPx3,
    schema.missing(frames, 2),
    schema.missing(frames, 2),
    np.ones((frames, 2), bool),
    (),
    False,
    tuple(_planned(told, hand)),
  )


def _planned(told, hand):
  steps = told["plan_joints"].shape[1]
  for frame, wrists, joints in zip(told["plan_frame"], told["plan_wrist"], told["plan_joints"]):
    world_Tx2x4x4 = told["T_world_wrist"][frame] @ wrists
    drawn, points = robot_points(hand, joints, world_Tx2x4x4)
    if not drawn:  # the wrists alone
      points[:, :, keypoints.WRIST] = world_Tx2x4x4[..., :3, 3]
    yield Chunk(int(frame), int(frame) + int(told["plan_stride"]) * np.arange(1, steps + 1), points)


def predict(predictor: episodes.Predictor, scene: Scene):
  """-> one Chunk a picture, as they are made."""
  footage = scene.footage()
  for number in range(len(footage.jpeg_F)):
    frame = number * scene.stride
    yield Chunk(frame, frame + predictor.stride * np.arange(1, predictor.horizon + 1), predictor(footage, number))


def _nth(found, number, where):
  if not 0 <= number < len(found):
    raise UserError(f"--episode={number}: {where} holds {len(found)} episodes, counted from 0")
  return found[number]


def _cameras(parts, T_world_camera_CxFx4x4):
  """Clips of one episode, in order."""
  for_each = zip(parts[0].cameras, parts[0].intrinsics_Cx3x3, T_world_camera_CxFx4x4)
  result = []
  for c, (name, intrinsics_3x3, poses) in enumerate(for_each):
    jpeg_N = tuple(clip.jpeg(image, c) for clip in parts for image in range(clip.num_images))
    height, width = simplejpeg.decode_jpeg_header(jpeg_N[0])[:2]
    result.append(Camera(name, jpeg_N, (height, width), intrinsics_3x3, poses))
  return tuple(result)


def _finding(told: dict) -> findings.Finding:
  return findings.Finding(**told | {"spans": tuple((first, last) for first, last in told["spans"])})

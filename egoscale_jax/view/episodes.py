"""One episode for the eye, from shards or from a recording, with the chunk that a policy predicts for it."""

import dataclasses
import functools
import pathlib

import numpy as np
import simplejpeg

from egoscale_jax import geometry
from egoscale_jax.data import actions, manifest, prepare, schema, shards
from egoscale_jax.data.sources import egodex
from egoscale_jax.errors import UserError
from egoscale_jax.hands import hand as hand_lib
from egoscale_jax.hands import keypoints, kinematics

NO_PICTURE = 60  # grey, under hands whose picture is not there


@dataclasses.dataclass(frozen=True)
class Footage:
  """F frames; NaN where something is missing."""

  name: str
  text: str
  rate_hz: float
  jpeg_F: list[bytes]
  intrinsics_3x3: np.ndarray
  T_world_camera_Fx4x4: np.ndarray
  keypoints_Fx2xPx3: np.ndarray
  T_world_wrist_Fx2x4x4: np.ndarray
  joints_Fx2xJ: np.ndarray | None = None  # a recording has none before it is prepared
  embodiment: str = schema.HUMAN
  stride: int = 1  # frames of the recording from one to the next; rate_hz is of these here
  image_size: tuple[int, int] | None = None  # of a recording, where pictures may be missing

  def frame(self, index):
    if not self.jpeg_F[index] and self.image_size:
      return np.full((*self.image_size, 3), NO_PICTURE, np.uint8)
    return simplejpeg.decode_jpeg(self.jpeg_F[index], colorspace="RGB")

  def seconds(self, frames: int) -> float:
    """Of so many frames of the recording."""
    return frames / (self.rate_hz * self.stride)

  def after(self, index: int, frames: int) -> int:
    """The picture nearest to so many frames of the recording after one; it may lie beyond the last."""
    return index + round(frames / self.stride)


def from_shards(directory, split=None):
  """Shards folder -> {name of an episode: its clips as (start, source, index)}, sorted by name; of one split, or of all that there are."""
  episodes = {}
  for name in [name for name in manifest.load(directory)["totals"]["clips"] if split in (None, name)]:
    source = shards.open_split(directory, name)
    for index in range(len(source)):
      clip = source[index]
      episodes.setdefault(clip.episode, []).append((clip.start, source, index))
  return dict(sorted(episodes.items()))


def footage_of_records(entries):
  """Clips of one episode -> Footage."""
  clips = [source[index] for _, source, index in sorted(entries, key=lambda entry: entry[0])]
  first = clips[0]
  own = lambda array, clip: array[: clip.num_frames : clip.stride]  # noqa: E731, at the clip's pictures, without its tail
  return Footage(
    first.episode,
    first.text,
    first.rate_hz / first.stride,
    [clip.jpeg(image) for clip in clips for image in range(clip.num_images)],
    first.intrinsics_Cx3x3[0],
    np.concatenate([clip.T_world_camera_CxNx4x4[0] for clip in clips]),
    np.concatenate([clip.keypoints_Nx2xPx3 for clip in clips]),
    np.concatenate([own(clip.T_world_wrist_Fx2x4x4, clip) for clip in clips]),
    np.concatenate([own(clip.joints_Fx2xJ, clip) for clip in clips]),
    first.embodiment,
    first.stride,
  )


def footage_of_episode(episode):
  """An Episode as a reader makes it -> Footage; a human's wrists from the keypoints, a robot's own."""
  human = episode.embodiment == schema.HUMAN
  return Footage(
    f"{episode.source}/{episode.id}",
    episode.text,
    episode.rate_hz,
    list(episode.jpeg_F),
    episode.intrinsics_3x3,
    episode.T_world_camera_Fx4x4,
    episode.keypoints_Fx2xPx3,
    keypoints.wrist_frames(episode.keypoints_Fx2xPx3) if human else episode.T_world_wrist_Fx2x4x4,
    embodiment=episode.embodiment,
    image_size=episode.image_size,
  )


def open_footage(path, episode, source=None, columns="", image_size=512):
  """A shards folder (its `episode`-th), a folder of recordings of a source of data/sources, or an EgoDex .hdf5 -> Footage."""
  path = pathlib.Path(path)
  if source is None and path.suffix == ".hdf5":
    if not path.is_file():
      raise UserError(f"{path}: no such file")
    if episode:
      raise UserError(f"--episode={episode}: {path} is one recording; the option is for a folder")
    recording = schema.Recording(id=path.stem, files=(str(path), str(path.with_suffix(".mp4"))))
    return footage_of_episode(egodex.read(recording, image_size))
  if source is None and not path.is_dir():
    raise UserError(f"--input={path}: no such directory, expected one of `egoscale prepare`")
  if source is None and (path / "config.json").is_file():
    raise UserError(f"--input={path}: found a work directory, which is shown with --web in place of --output; expected shards")
  found = from_shards(path) if source is None else prepare.find(source, path, columns)
  if not 0 <= episode < len(found):
    raise UserError(f"--episode={episode}: {path} holds {len(found)} episodes, counted from 0")
  if source is not None:
    return footage_of_episode(source.read(found[episode], image_size))
  return footage_of_records(list(found.values())[episode])


_load_hand = functools.cache(hand_lib.load)


class Predictor:
  """A policy and the robot hands that draw what it predicts."""

  def __init__(self, policy):
    self.policy = policy
    self.stride = policy.config.data.stride
    self.horizon = policy.config.model.horizon

  def _hands(self, embodiment):
    name = self.policy.slot(embodiment).statistics.hand
    return [_load_hand(name, side) for side in keypoints.SIDES]

  def __call__(self, footage, start, seed=0):
    """-> robot keypoints [T, 2, 21, 3] in the world, predicted from the frame `start` alone. NaN for a hand without a pose there."""
    state, from_camera = None, self.policy.state_from_camera(footage.embodiment)
    if from_camera is not None:
      if footage.joints_Fx2xJ is None:
        raise UserError(f"{footage.name}: a recording has no joints, which this policy reads; prepare it and give the shards")
      camera = footage.T_world_camera_Fx4x4[start] if from_camera else np.eye(4)
      state = actions.make_state(camera, footage.T_world_wrist_Fx2x4x4[start], footage.joints_Fx2xJ[start])
      if not np.isfinite(state[self.policy.slot(footage.embodiment).normalizer.observed_A]).all():  # of one arm the other is never there
        return np.full((self.horizon, 2, len(keypoints.NAMES), 3), np.nan)
    chunk = self.policy([footage.frame(start)], footage.text, state, footage.embodiment, seed)
    T_world_wrist = footage.T_world_wrist_Fx2x4x4[start] @ chunk.T_start_wrist_Tx2x4x4
    points = [
      np.asarray(kinematics.keypoints_in_wrist(hand, chunk.joints_Tx2xJ[:, side].astype(np.float32)))
      for side, hand in enumerate(self._hands(footage.embodiment))
    ]
    return np.stack([geometry.transform(T_world_wrist[:, side], points[side]) for side in range(2)], axis=1)

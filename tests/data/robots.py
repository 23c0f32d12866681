"""Small writers of robot data sets for the tests: LeRobot 2.1 and 3.0, written from the formats' own descriptions, by pyarrow alone."""

import contextlib
import json
import types

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import recordings

from egoscale_jax import geometry
from egoscale_jax.data import prepare
from egoscale_jax.hands import retarget

RATE = 30
KEY = "observation.images.ego"
TASKS = ("Pick the cup.", "Place the cup.")
LENGTHS = (20, 17)  # frames of the episodes
CONFIG = {
  "embodiment": "testbot",
  "licence": "CC0",
  "frame": "base",
  "cameras": {KEY: {"name": "head", "intrinsics": [150, 151, 159.5, 89.5], "T_world_camera": recordings.T_WORLD_CAMERA.tolist()}},
  "left": {
    "wrist": {"column": "observation.state", "start": 0, "end": 7, "pose": "xyz_quat_wxyz"},
    "wrist_target": {"column": "action", "start": 0, "end": 7, "pose": "xyz_quat_wxyz"},
    "T_tool_wrist": "identity",
    "joints": {"column": "observation.state", "start": 7, "end": 9},
    "joint_targets": {"column": "action", "start": 7, "end": 9},
  },
}
NAMES = ("x", "y", "z", "qw", "qx", "qy", "qz", "grip_0", "grip_1")


@contextlib.contextmanager
def quick_labels(*joint_names):
  """Humans' labels without the solver, which has its own tests: two joints a hand that move a little."""

  def still(points, hand, side, rate_hz):
    joints = 0.1 * np.sin(np.arange(len(points))[:, None] + np.arange(2))
    return types.SimpleNamespace(joints_FxJ=joints, residual_m_F=np.zeros(len(points)), valid_F=np.ones(len(points), bool))

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(retarget, "retarget", still)
    patch.setattr("egoscale_jax.hands.hand.load", lambda *_: types.SimpleNamespace(joint_names=joint_names, num_joints=2))
    prepare.labeller.load_hands.cache_clear()
    yield
  prepare.labeller.load_hands.cache_clear()  # no other test may find the hand of this one


def state(frames, seed=0):
  """[F, 9] float32: the left wrist's pose of recordings.wrist_path and two joints."""
  pose = recordings.wrist_path(frames, seed)[:, 0]
  joints = np.random.default_rng(seed).uniform(0, 1, (frames, 2))
  return np.concatenate([pose[:, :3, 3], geometry.so3_to_quat(pose[:, :3, :3]), joints], axis=1).astype(np.float32)


def frames_of(episode, seed=0):
  """Columns of an episode; the task changes halfway."""
  count = LENGTHS[episode]
  values = state(count, seed + episode)
  return {
    "observation.state": values.tolist(),
    "action": np.concatenate([values[1:], values[-1:]]).tolist(),
    "timestamp": (np.arange(count) / RATE).astype(np.float32).tolist(),
    "frame_index": list(range(count)),
    "episode_index": [episode] * count,
    "index": list(range(sum(LENGTHS[:episode]), sum(LENGTHS[:episode]) + count)),
    "task_index": [0] * (count // 2) + [1] * (count - count // 2),
  }


def info(version, **change):
  vector = {"dtype": "float32", "shape": [9], "names": list(NAMES)}
  return {
    "codebase_version": version,
    "robot_type": "testbot",
    "fps": RATE,
    "chunks_size": 1000,
    "features": {
      KEY: {"dtype": "video", "shape": [recordings.HEIGHT, recordings.WIDTH, 3], "names": ["height", "width", "channels"]},
      "observation.images.absent": {"dtype": "video", "shape": [1, 1, 3]},
      "observation.state": vector,
      "action": vector | {"names": {"motors": list(NAMES)}},
      "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    },
  } | change


def write_v2(folder, name="set", config=CONFIG, change=None, **information):
  """-> root of a data set of version 2.1 of two episodes; change(episode, columns) may spoil its columns."""
  root = folder / name
  data, videos = root / "data" / "chunk-000", root / "videos" / "chunk-000" / KEY
  for directory in (root / "meta", data, videos):
    directory.mkdir(parents=True, exist_ok=True)
  templates = {
    "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
  }
  (root / "meta" / "info.json").write_text(json.dumps(info("v2.1", **templates | information)))
  (root / "meta" / "tasks.jsonl").write_text("".join(json.dumps({"task_index": i, "task": t}) + "\n" for i, t in enumerate(TASKS)))
  if config is not None:
    (root / "meta" / "egoscale.json").write_text(json.dumps(config))
  for i, count in enumerate(LENGTHS):
    columns = frames_of(i)
    if change:
      change(i, columns)
    pq.write_table(pa.table(columns), data / f"episode_{i:06d}.parquet")
    recordings.write_video(videos / f"episode_{i:06d}.mp4", count, grey_of(i))
  return root


def write_v3(folder, name="set", config=CONFIG, change=None, **information):
  """-> root of the same as version 3.0: one table and one video with both episodes."""
  root = folder / name
  data, videos, episodes = root / "data/chunk-000", root / "videos" / KEY / "chunk-000", root / "meta/episodes/chunk-000"
  for directory in (data, videos, episodes):
    directory.mkdir(parents=True, exist_ok=True)
  templates = {
    "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
    "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
  }
  (root / "meta/info.json").write_text(json.dumps(info("v3.0", **templates | information)))
  pq.write_table(pa.table({"task_index": [0, 1], "__index_level_0__": list(TASKS)}), root / "meta/tasks.parquet")
  if config is not None:
    (root / "meta/egoscale.json").write_text(json.dumps(config))
  begin = np.cumsum([0, *LENGTHS])
  place = {
    "episode_index": [0, 1],
    "tasks": [list(TASKS)] * 2,
    "length": list(LENGTHS),
    "data/chunk_index": [0, 0],
    "data/file_index": [0, 0],
    "dataset_from_index": begin[:2].tolist(),
    "dataset_to_index": begin[1:].tolist(),
    f"videos/{KEY}/chunk_index": [0, 0],
    f"videos/{KEY}/file_index": [0, 0],
    f"videos/{KEY}/from_timestamp": (begin[:2] / RATE).tolist(),
    f"videos/{KEY}/to_timestamp": (begin[1:] / RATE).tolist(),
    "stats/action/min": [[0.0], [0.0]],
  }
  if change:
    change(place)
  pq.write_table(pa.table(place), episodes / "file-000.parquet")
  rows = [frames_of(i) for i in range(2)]
  pq.write_table(pa.table({key: rows[0][key] + rows[1][key] for key in rows[0]}), data / "file-000.parquet", row_group_size=LENGTHS[0])
  pictures = [grey_of(i)(f) for i, count in enumerate(LENGTHS) for f in range(count)]
  recordings.write_video(videos / "file-000.mp4", len(pictures), lambda f: pictures[f])
  return root


def level(episode, frame):
  """Grey of a frame."""
  return 30 + 100 * episode + 5 * frame


def grey_of(episode):
  return lambda f: recordings.textured(level(episode, f))

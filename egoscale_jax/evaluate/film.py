"""A filmed trial of rollout.py: its pictures, and in an .npz beside the video what a person wants to see with them.

The file: text, body, hand ("" of a human), rate_hz; of every frame T_world_camera [F, 4, 4], T_world_wrist [F, 2, 4, 4], joints [F, 2, J]
(radians, as they were), keypoints [F, 2, 21, 3] (of a human; NaN of a robot); of every chunk that was asked for its frame, plan_frame [Q],
its steps plan_wrist [Q, T, 2, 4, 4], seen from the wrist then, and plan_joints [Q, T, 2, J]; plan_stride frames from step to step.
"""

import pathlib
import zipfile

import numpy as np

from egoscale_jax.data import schema
from egoscale_jax.errors import UserError
from egoscale_jax.hands.keypoints import NAMES, SIDES
from egoscale_jax.sim import human, record
from egoscale_jax.sim.bench import RATE_HZ, episode

KEYS = (
  *("text", "body", "hand", "rate_hz", "intrinsics", "T_world_camera", "T_world_wrist", "joints", "keypoints"),
  *("plan_frame", "plan_stride", "plan_wrist", "plan_joints"),
)


class Film:
  """Of a trial; see() at every frame, after its command is known and before it is carried out."""

  def __init__(self, trial, size):
    self._trial, self._camera = trial, episode.Camera(trial, size)
    of_human = trial.person is not None
    self._parts = trial.world.ids([[side + name for name in human.KEYPOINTS] for side in SIDES]) if of_human else None
    self._pictures, self._rows, self._plans = [], [], []

  def see(self):
    world, pose = self._trial.world, self._camera.pose()
    if self._parts is None:
      points = schema.missing(2, len(NAMES), 3)
    else:
      points = world.poses(self._parts)[..., :3, 3].astype(np.float32)
    for chunk, stride in self._trial.plans[len(self._plans) :]:
      self._plans.append((len(self._rows), stride, chunk))
    self._pictures.append(self._camera.picture(pose))
    self._rows.append((pose.astype(np.float32), world.T_world_wrist_2x4x4.astype(np.float32), world.joints_2xJ.astype(np.float32), points))

  def content(self) -> dict:
    """Arrays by name: `pictures`, and those of the file."""
    camera, wrist, joints, points = (np.stack(column) for column in zip(*self._rows))
    body, count, steps = self._trial.body, len(self._plans), len(self._plans[0][2].joints_Tx2xJ) if self._plans else 0
    plan = {
      "plan_frame": np.array([frame for frame, _, _ in self._plans], np.int64),
      "plan_stride": self._plans[0][1] if self._plans else 1,
      "plan_wrist": np.array([c.T_start_wrist_Tx2x4x4 for *_, c in self._plans], np.float32).reshape(count, steps, 2, 4, 4),
      "plan_joints": np.array([c.joints_Tx2xJ for *_, c in self._plans], np.float32).reshape(count, steps, *joints.shape[1:]),
    }
    told = {"text": self._trial.goal["text"], "body": body.name, "hand": "" if self._trial.person is not None else body.name}
    told |= {"rate_hz": float(RATE_HZ), "intrinsics": self._camera.K_3x3.astype(np.float32)}
    poses = {"T_world_camera": camera, "T_world_wrist": wrist, "joints": joints, "keypoints": points}
    return told | poses | plan | {"pictures": np.stack(self._pictures)}


def save(content: dict, path: pathlib.Path):
  """path: of the video, .mp4."""
  record.write_mp4(path, content["pictures"], RATE_HZ)
  np.savez_compressed(path.with_suffix(".npz"), **{name: content[name] for name in KEYS})


def load(path) -> dict:
  """The arrays of an .npz by name; UserError where it is none."""
  try:
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:  # by a name, numpy leaves a damaged one open
      missing = [name for name in KEYS if name not in arrays]
      if missing:
        raise UserError(f"{path}: no film of `egoscale rollout`: {', '.join(missing)} is missing")
      return {name: arrays[name][()] for name in KEYS}
  except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
    raise UserError(f"{path}: cannot be read as a film of `egoscale rollout`: {str(error).splitlines()[0]}") from error

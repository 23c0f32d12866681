"""Fingertips in the place of joints: the other action that a policy can be taught to say of a hand (paper section 3.6).

A hand's numbers are then where its tips are, seen from its wrist, in metres. They are those of the retargeted joints, so that the labels
are as smooth, and on the robot's scale; a person's and a robot's are the same numbers. Where a policy is tried its tips become joints by
the solver of hands/, and not by a learned MLP (the paper's, after EgoVLA): its error would be counted as the representation's.
"""

import dataclasses
import functools

import numpy as np

from egoscale_jax import geometry
from egoscale_jax.data import clips, labeller, manifest, schema, shards
from egoscale_jax.errors import UserError
from egoscale_jax.evaluate import steps
from egoscale_jax.hands import costs, keypoints, kinematics, retarget

EMBODIMENT = "{}_tips"  # of whatever has the hand {}: people's and the robot's are of one embodiment, and so share adapter and normaliser


def names(hand) -> tuple[str, ...]:
  """Of a hand's numbers: x, y, z of each tip that it has."""
  return tuple(f"{keypoints.NAMES[p]}_{axis}" for p in _tips(hand) for axis in "xyz")


def _tips(hand):
  return [p for p in keypoints.TIPS if hand.present[p]]


def of_joints(hand, joints_FxJ) -> np.ndarray:
  """-> [F, 3 * tips] float32, metres, seen from the wrist; NaN where the joints are."""
  points_Fx21x3 = np.asarray(kinematics.keypoints(hand, np.asarray(joints_FxJ, np.float32)))[:, _tips(hand)]
  return geometry.transform(_T_wrist_base(hand), points_Fx21x3).reshape(len(points_Fx21x3), -1).astype(np.float32)


def to_joints(hand, tips_FxN) -> np.ndarray:
  """-> [F, J] float32 within the hand's limits, each frame on its own; what the tips leave open is as the rest pose has it."""
  target_Fx21x3 = np.zeros((len(tips_FxN), 21, 3), np.float32)
  target_Fx21x3[:, _tips(hand)] = geometry.transform(hand.T_base_wrist_4x4, np.asarray(tips_FxN).reshape(len(tips_FxN), -1, 3))
  seen_PxF = np.zeros((21, len(tips_FxN)), np.float32)
  seen_PxF[_tips(hand)] = 1.0
  joints_JxF, _ = retarget.solve_frames(hand, costs.TIPS_ONLY, target_Fx21x3.transpose(1, 2, 0), seen_PxF, np.float32(1.0))
  return np.clip(np.asarray(joints_JxF).T, hand.lower_J, hand.upper_J)


def _T_wrist_base(hand):
  return geometry.se3_inverse(hand.T_base_wrist_4x4.astype(np.float64))


@dataclasses.dataclass(frozen=True)
class Source:
  """A source as the modules of data/sources: `reader`'s recordings with the labels that `prepare` made of them, as tips."""

  reader: steps.Reader
  shards: str

  @property
  def SOURCE(self):  # as the modules call it
    return self.reader.SOURCE

  def find(self, directory):
    """Those that `prepare` kept."""
    kept, _, _ = _prepared(self.shards)
    return [recording for recording in self.reader.find(directory) if recording.id in kept]

  def read(self, recording, image_size):
    kept, records, hand_name = _prepared(self.shards)
    try:
      labels = clips.read_labels(records[kept[recording.id]])[1]
    except ValueError as error:
      raise UserError(str(error)) from error
    return under(self.reader.read(recording, image_size), labels, hand_name)


@functools.cache
def _prepared(path):
  """Once a process: a manifest is megabytes -> {id: row among the records}, the records of episodes, the name of the labels' hand."""
  content = manifest.load(path)
  kept = (e["id"] for e in content["episodes"] if e["status"] == manifest.KEPT)
  return {name: row for row, name in enumerate(kept)}, shards.open_episodes(path), content["hand"]


def under(episode: schema.Episode, labels: schema.Labels, hand_name) -> schema.Episode:
  """The pictures of an episode, its labels as those of a robot whose hands tell where their tips are."""
  hands, frames = labeller.load_hands(hand_name), episode.num_frames
  own = tuple(names(hand) for hand in hands)
  told = schema.robot(frames) | {"embodiment": EMBODIMENT.format(hand_name), "person": episode.person}
  told |= {"T_world_wrist_Fx2x4x4": labels.T_world_wrist_Fx2x4x4, "joint_names": own}
  told["joints_Fx2xJ"] = np.stack([of_joints(hand, labels.joints_Fx2xJ[:, i]) for i, hand in enumerate(hands)], axis=1)
  told["joint_targets_Fx2xJ"] = schema.missing(*told["joints_Fx2xJ"].shape)
  return dataclasses.replace(episode, **told)


def agent(make_agent, hand_name):
  """An agent (evaluate/rollout.py) of a policy that says tips, on a body of joints."""
  made, hands = make_agent(), labeller.load_hands(hand_name)
  predict, own = made.predict, tuple(hand.joint_names for hand in hands)

  def solved(seen, pending):
    if seen.joint_names != own[0]:
      raise UserError(f"hand {hand_name}: found the body's joints from {seen.joint_names[0]}, expected from {own[0][0]}")
    tips_2xN = np.stack([of_joints(hand, joints_J[None])[0] for hand, joints_J in zip(hands, seen.joint_targets_2xJ)])
    chunk = predict(dataclasses.replace(seen, joint_targets_2xJ=tips_2xN, joint_names=names(hands[0])), pending)
    joints = [to_joints(hand, chunk.joints_Tx2xJ[:, i]) for i, hand in enumerate(hands)]
    return dataclasses.replace(chunk, joints_Tx2xJ=np.stack(joints, axis=1), joint_names=own[0])

  made.predict = solved
  return made

"""Recording -> its manifest entry and its Labels: checks, retargeting, and that all episodes of one output have the same joints."""

import dataclasses
import functools

from egoscale_jax.data import doctor, labels, manifest, schema
from egoscale_jax.errors import UserError
from egoscale_jax.hands import hand, keypoints, retarget

DEFAULT_HAND = "sharpa_wave"


@functools.cache
def load_hands(hand_name: str):
  """(left, right) of a hand as hands.hand.load takes it."""
  hands = tuple(hand.load(hand_name, side) for side in keypoints.SIDES)
  left, right = (len(h.joint_names) for h in hands)
  if left != right:
    raise UserError(f"hand {hand_name}: {left} joints on the left and {right} on the right, expected the same number")
  return hands


@dataclasses.dataclass(frozen=True)
class Joints:
  """What all episodes of an output have: the hand's name, and the joints' of the left and of the right one."""

  hand: str
  names: tuple[tuple[str, ...], tuple[str, ...]]
  first: str = ""  # the episode that told them, for errors


def joints_of(episode: schema.Episode, asked: str | None) -> Joints:
  """The joints of an episode's labels; UserError where a robot tells none, or not those of the hand that was asked for."""
  wanted = tuple(h.joint_names for h in load_hands(asked or DEFAULT_HAND))
  if episode.embodiment == schema.HUMAN:
    return Joints(str(asked or DEFAULT_HAND), wanted, episode.id)
  names = labels.own_joints(episode)
  if asked and len(names[0]) != len(wanted[0]):
    raise UserError(f"joints: found {len(names[0])} a hand, expected the {len(wanted[0])} of {asked}")
  return Joints(asked or episode.embodiment, names, episode.id)


def label(recording, episode: schema.Episode | UserError, asked: str | None, joints: Joints):
  """-> the manifest's entry, and the Labels or None where the episode is rejected."""
  if isinstance(episode, UserError):
    return manifest.entry(recording, error=str(episode)), None
  valid_Fx2, findings = doctor.check(episode)
  if any(finding.severity == "rejected" for finding in findings):
    return manifest.entry(recording, episode, findings=findings), None
  try:
    told = joints_of(episode, asked)
    if (told.hand, told.names) != (joints.hand, joints.names):
      raise UserError(f"joints: found those of {told.hand}, expected those of {joints.hand} as {joints.first} has; prepare them apart")
    result, more = labels.label(
      episode, load_hands(asked or DEFAULT_HAND), valid_Fx2, functools.partial(retarget.retarget, rate_hz=episode.rate_hz)
    )
  except UserError as error:
    return manifest.entry(recording, episode, findings=findings, error=f"{recording.files[0]}: {error}"), None
  findings += more + doctor.check_valid(result.valid_Fx2, episode.rate_hz)
  entry = manifest.entry(recording, episode, result, findings)
  return (entry, result) if entry["status"] == manifest.KEPT else (entry, None)

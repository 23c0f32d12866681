"""The same recording under two names, and scenes and persons on both sides of a split."""

import dataclasses
import functools
import types

import faults
import numpy as np
import recordings
import simplejpeg

from egoscale_jax.data import exclusion, leaks
from egoscale_jax.data.schema import Recording
from egoscale_jax.errors import UserError
from egoscale_jax.hands import retarget


@functools.cache
def another(seed):
  """An episode of another place and another movement."""
  return dataclasses.replace(
    faults.human(),
    jpeg_CxF=(faults.film(faults.FRAMES, seed),),
    keypoints_Fx2xPx3=recordings.hand_points(faults.FRAMES, seed).astype(np.float32),
  )


def encoded_again(episode):
  jpeg_F = tuple(simplejpeg.encode_jpeg(simplejpeg.decode_jpeg(j), quality=60) for j in episode.jpeg_F)
  noise = np.random.default_rng(0).normal(0, 1e-3, episode.keypoints_Fx2xPx3.shape).astype(np.float32)
  return dataclasses.replace(episode, jpeg_CxF=(jpeg_F,), keypoints_Fx2xPx3=episode.keypoints_Fx2xPx3 + noise)


def entry(name, episode, **fields):
  return {"id": name, "frames": episode.num_frames, "fingerprint": leaks.fingerprint(episode)} | fields


def test_a_recording_encoded_again_is_the_same_and_others_are_not():
  entries = [entry(str(seed), another(seed)) for seed in range(6)]
  assert leaks.copies(entries) == []
  ((name, finding),) = leaks.copies([*entries, entry("copy", encoded_again(another(3)))])
  assert (name, finding.name, finding.severity) == ("copy", "copy", "warning")
  assert "the same as 3:" in finding.detail


def test_the_same_pictures_with_another_movement_are_no_copy():
  """A robot that repeats a task before the same camera."""
  other = dataclasses.replace(another(1), keypoints_Fx2xPx3=another(2).keypoints_Fx2xPx3)
  assert leaks.copies([entry("a", another(1)), entry("b", other)]) == []


def test_a_robot_s_copy_is_found_with_and_without_wrists():
  bare = dataclasses.replace(faults.robot(), T_world_wrist_Fx2x4x4=faults.robot().T_world_wrist_Fx2x4x4 * np.float32(np.nan))
  for robot in (faults.robot(), bare):
    assert [name for name, _ in leaks.copies([entry("a", robot), entry("b", encoded_again(robot))])] == ["b"]


def test_scenes_persons_and_copies_on_both_sides_are_leaks():
  train = {"split": "train", "scene": "kitchen", "person": "p1"}
  entries = [entry("a", another(0), **train), entry("b", another(1), split="validation", scene="kitchen", person="p2")]
  entries += [entry("c", another(2), split="validation", scene="bath", person="p1"), entry("d", another(3), **train)]
  entries += [entry("e", encoded_again(another(3)), split="validation", scene="hall", person="")]
  found = leaks.leaks(entries)
  assert [(name, f.name) for name, f in found] == [("e", "leak_copy"), ("b", "leak_scene"), ("c", "leak_person")]
  assert found[1][1].detail == "its scene kitchen is trained on too, in a: expected none of it in the train split"


def test_unknown_persons_and_rejected_episodes_are_no_leaks():
  entries = [{"id": i, "frames": 9, "split": split, "scene": i, "person": ""} for i, split in (("a", "train"), ("b", "validation"))]
  entries += [{"id": "c", "frames": 9, "split": None, "scene": "a", "person": "x"}]
  assert leaks.leaks(entries) == []


def test_many_episodes_of_one_picture_are_compared_in_no_time():
  """What nearly all share tells nothing: the number of comparisons stays bounded."""
  one = leaks.fingerprint(another(0))
  entries = [{"id": str(i), "frames": 9, "fingerprint": one | {"path": [float(i)] * 48}} for i in range(3000)]
  assert leaks.copies(entries) == []


def test_examine_tells_findings_with_times_copies_and_exclusions():
  spoiled = faults.array("keypoints_Fx2xPx3", "left", lambda p: p * np.nan)(another(1), slice(30, 45))
  short = recordings.episode(frames=5)
  items = {"a": another(0), "b": encoded_again(another(0)), "c": spoiled, "d": short, "e": UserError("e.mp4: missing")}
  source = recordings.Cached({Recording(name, (f"{name}.hdf5",)): item for name, item in items.items()})
  found = exclusion.examine(source, "in")
  told = {e["id"]: {f["name"]: f for f in e["findings"]} for e in found["episodes"]}
  assert {name: set(f) for name, f in told.items()} == {
    "a": set(),
    "b": {"copy"},
    "c": {"missing"},
    "d": {"too_short"},
    "e": set(),
  }
  assert [told["c"]["missing"][key] for key in ("first_s", "last_s", "spans", "severity")] == [1.0, 1.467, ((30, 44),), "masked"]
  assert found["exclude"] == ["d", "e"]  # a copy is a person's to leave out
  assert exclusion.lines(found)[-1] == "5 episodes: 1 clean, 2 to exclude"


def test_examine_with_a_hand_tells_what_retargeting_finds(monkeypatch):
  def off(points_FxPx3, robot, side, rate_hz):
    residual_m_F = np.full(len(points_FxPx3), 0.01)
    residual_m_F[7] = 0.08 if side == "left" else 0.01
    return types.SimpleNamespace(joints_FxJ=np.zeros((len(points_FxPx3), 22)), residual_m_F=residual_m_F, valid_F=residual_m_F > 0)

  monkeypatch.setattr(retarget, "retarget", off)
  source = recordings.Cached({Recording("a", ("a.hdf5",)): faults.human(), Recording("r", ("r.npz",)): faults.robot()})
  assert [e["findings"] for e in exclusion.examine(source, "in")["episodes"]] == [[], []]
  found = exclusion.examine(source, "in", hand_name="sharpa_wave")["episodes"]
  assert [(f["name"], f["side"], f["spans"]) for f in found[0]["findings"]] == [("residual", "left", ((7, 7),))]
  assert found[1]["findings"] == []  # a robot's joints are its own

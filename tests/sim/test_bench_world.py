"""The bench's world: what is commanded happens, what is pinched is held, and the same seed gives the same world to the bit."""

import dataclasses
import re

import numpy as np
import pytest

from egoscale_jax.hands.keypoints import NAMES, SIDES, wrist_frame
from egoscale_jax.sim import human
from egoscale_jax.sim.bench import bodies, episode, looks, tasks, world

ROBOTS = ("sharpa_wave", "dex3")


def start(task="pick_place", body="sharpa_wave", split="train", seed=0, take=0):
  return episode.start(tasks.TASKS[task], bodies.BODIES[body], split, seed, take)


def keypoints(trial, side):
  """[21, 3] in the world, NaN where the hand has none."""
  model, data, points = trial.world.model, trial.world.data, np.full((21, 3), np.nan)
  if trial.person is not None:
    return data.xpos[[model.body(side + name).id for name in human.KEYPOINTS]]
  for i, name in enumerate(NAMES):
    site = [s for s in range(model.nsite) if model.site(s).name == f"robot_{side}_{name}"]
    if site:
      points[i] = data.site_xpos[site[0]]
  return points


@pytest.mark.parametrize("body", bodies.BODIES)
def test_wrists_are_carried_to_the_command_and_are_those_of_the_keypoints(body):
  trial = start(body=body)
  wrist, joints = trial.world.T_world_wrist_2x4x4.copy(), trial.world.joint_targets_2xJ.copy()
  wrist[:, :3, 3] += (0.01, 0.03, 0.02)
  trial.step(wrist, joints)
  np.testing.assert_allclose(trial.world.T_world_wrist_2x4x4, wrist, atol=1e-12)
  np.testing.assert_allclose(trial.world.joints_2xJ, joints, atol=0.05)
  for i, side in enumerate(SIDES):
    fingers = (1, 2, 3, 4) if body == "human" else trial.body.hands[i].knuckles
    found = wrist_frame(keypoints(trial, side), side, fingers)
    np.testing.assert_allclose(found[:3, 3], wrist[i, :3, 3], atol=1e-6)
    np.testing.assert_allclose(found[:3, :3], wrist[i, :3, :3], atol=2e-3)


def test_a_left_hand_is_the_right_one_mirrored():
  for body in bodies.BODIES.values():
    trial = start(body=body.name)
    local = []
    for i, side in enumerate(SIDES):
      inverse = np.linalg.inv(trial.world.T_world_wrist_2x4x4[i])
      points = keypoints(trial, side)
      local.append(points @ inverse[:3, :3].T + inverse[:3, 3])
    np.testing.assert_allclose(local[0] * (1, -1, 1), local[1], atol=2e-3)


def test_commands_are_limited():
  trial = start()
  before, joints = trial.world.T_world_wrist_2x4x4.copy(), trial.world.joint_targets_2xJ
  far = before.copy()
  far[0, :3, 3] += (0, 0, 5.0)
  far[1] = np.nan
  wrist, limited = trial.world.limited(far, np.full_like(joints, 100.0))
  assert np.linalg.norm(wrist[0, :3, 3] - before[0, :3, 3]) == pytest.approx(world.MAX_STEP)
  np.testing.assert_array_equal(wrist[1], before[1])
  np.testing.assert_array_equal(limited, trial.body.limits_2xJx2[..., 1])
  far[0, :3, 3] = before[0, :3, 3] - (0, 0, 0.11)
  assert trial.world.limited(far, np.full_like(joints, np.nan))[0][0, 2, 3] >= world.LOWEST
  np.testing.assert_array_equal(trial.world.limited(far, np.full_like(joints, np.nan))[1], joints)


@pytest.mark.parametrize("body", bodies.BODIES)
def test_a_grasp_needs_thumb_and_finger_and_ends_with_them(body):
  trial = start(body=body)
  name = trial.goal["target"]["name"]
  for command in episode.commands(trial):
    trial.step(*command)
    if trial.world.held[1] == name and trial.world.pose(name)[2, 3] > 0.06:
      break
  hand, part, thing, _, _ = trial.world._contacts()
  mine = (hand == 1) & (thing == trial.world.graspable.index(name))
  assert {world.THUMB, world.FINGER} <= set(part[mine])
  wrist, joints = trial.world.T_world_wrist_2x4x4, trial.world.joint_targets_2xJ.copy()
  joints[1] = bodies.fingers(trial.body).shape(0.0)
  for _ in range(8):
    trial.step(wrist, joints)
  assert trial.world.held == [None, None]
  assert trial.world.pose(name)[2, 3] < 0.04, "it fell"


def test_pressing_from_one_side_holds_nothing():
  trial = next(t for t in (start("play", seed=s) for s in range(40)) if t.goal["verb"] == "touch")
  for command in episode.commands(trial):
    trial.step(*command)
    assert trial.world.held == [None, None]
  assert trial.success


@pytest.mark.parametrize(
  ("parts", "turned", "newtons", "holds"),
  [
    ((world.THUMB, world.FINGER), 180, 0.1, True),
    ((world.THUMB, world.FINGER), 120, 0.1, True),
    ((world.THUMB, world.FINGER), 80, 0.1, False),  # both from one side
    ((world.THUMB, world.FINGER), 180, 0.0, False),  # near, without pressing
    ((world.THUMB, world.FINGER), 180, 0.01, False),  # too lightly
    ((world.THUMB, world.THUMB), 180, 0.1, False),
    ((world.FINGER, world.FINGER), 180, 0.1, False),
    ((world.THUMB, 0), 180, 0.1, False),  # against the palm
  ],
)
def test_the_rule_of_grasps(monkeypatch, parts, turned, newtons, holds):
  trial = start()
  trial.world.step(trial.world.T_world_wrist_2x4x4, trial.world.joint_targets_2xJ)
  angle = np.radians([0, turned])
  normal = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1)
  planted = np.array([1, 1]), np.array(parts), np.array([0, 0]), normal, np.array([0.1, newtons])
  monkeypatch.setattr(trial.world, "_contacts", lambda: planted)
  assert trial.world.data.ncon, "things lie on the table"
  trial.world._hand[:] = 1  # as if they were hands: with none near, contacts are not looked at
  trial.world._update_grasps()
  assert trial.world.held[1] == (trial.world.graspable[0] if holds else None)


@pytest.mark.parametrize("body", bodies.BODIES)
def test_grips_open_by_the_width(body):
  fingers = bodies.fingers(bodies.BODIES[body])
  for width in (0.005, 0.02, 0.05):
    grip = fingers.grip(width)
    assert grip.axis @ grip.approach == pytest.approx(0, abs=1e-9)
    gaps = []
    for joints in (grip.open_J, grip.hold_J):
      tips = fingers.tips(joints)
      gaps.append(np.linalg.norm(tips["index"][0] - tips["thumb"][0]) - tips["index"][2] - tips["thumb"][2])
    assert gaps[1] < width < gaps[0]
  with pytest.raises(ValueError, match=r"0\.055"):
    fingers.grip(0.06)


def states(trial, frames=30):
  seen = []
  for _, command in zip(range(frames), episode.commands(trial)):
    trial.step(*command)
    seen.append(trial.world.data.qpos.copy())
  return np.stack(seen)


def test_same_seed_same_world_to_the_bit():
  first = states(start("syringe"))
  np.testing.assert_array_equal(first, states(start("syringe")))
  assert not np.array_equal(first[0], states(start("syringe", seed=1), 1)[0])


def test_takes_and_bodies_share_scene_and_goal():
  trials = [start("play", body, seed=3, take=take) for body, take in (("human", 0), ("human", 1), ("sharpa_wave", 0), ("dex3", 5))]
  first = trials[0]
  for other in trials[1:]:
    assert other.goal["text"] == first.goal["text"]
    assert (other.room.number, other.things, other.home) == (first.room.number, first.things, first.home)
    for name in first.world.graspable:
      np.testing.assert_allclose(other.world.pose(name), first.world.pose(name), atol=1e-12)
  assert not np.array_equal(trials[1].rest_2x4x4, first.rest_2x4x4)


def test_splits_share_no_person_room_or_thing():
  numbers = {}
  for split in looks.SPLITS:
    trials = [start(body="human", split=split, seed=seed) for seed in range(12)]
    numbers[split] = [{t.person.number for t in trials}, {t.room.number for t in trials}, {n for t in trials for n in t.things}]
    assert {t.home for t in trials} <= set(looks.HOMES[split])
  for train, validation, lab in zip(*numbers.values()):
    assert len(train) > 5
    assert not train & validation
    assert not lab & (train | validation)
  homes = [set(homes) for homes in looks.HOMES.values()]
  assert len(set().union(*homes)) == sum(map(len, homes))


@pytest.mark.parametrize("task", [*tasks.TASKS])
def test_the_lab_is_one_room_with_things_in_new_places(task):
  trials = [start(task, split=looks.LAB, seed=seed) for seed in range(30)]
  assert len({t.room.number for t in trials}) == 1
  assert 1 < len({n for t in trials for n in t.things}) <= looks.PER_LAB["thing"]
  said = {word for t in trials for word in re.findall(r"\w+", t.goal["text"]) if word in looks.COLOURS}
  assert said <= set(looks.LAB_COLOURS)
  places = [t.world.pose(t.world.graspable[0])[:2, 3] for t in trials]
  assert np.ptp(places, axis=0).max() > 0.05


def test_a_number_keeps_its_look():
  for made in (looks.room, looks.thing, looks.person):
    same, other = (dataclasses.astuple(made(n)) for n in (7, 8))
    assert str(same) == str(dataclasses.astuple(made(7)))
    assert str(same) != str(other)

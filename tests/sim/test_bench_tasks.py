"""Rubrics by planted states, and experts of every body that reach all of them."""

import numpy as np
import pytest

from egoscale_jax.sim.bench import actor, bodies, cap, card, drawer, episode, syringe, tasks


def start(task, body="sharpa_wave", seed=0):
  return episode.start(tasks.TASKS[task], bodies.BODIES[body], "train", seed)


def put(trial, name, place):
  """A loose thing, upright, somewhere, at rest."""
  address = trial.world.model.joint(name).qposadr[0]
  trial.world.data.qpos[address : address + 7] = (*place, 1, 0, 0, 0)
  move(trial)


def move(trial, **joints):
  import mujoco

  for name, value in joints.items():
    trial.world.data.qpos[trial.world.model.joint(name).qposadr[0]] = value
  trial.world.data.qvel[:] = 0
  mujoco.mj_kinematics(trial.world.model, trial.world.data)


def reached(trial):
  return set(trial.task.watch(trial.world, trial.goal))


@pytest.mark.parametrize("task", tasks.TASKS)
def test_weights_sum_to_one_and_nothing_is_reached_at_first(task):
  trial = start(task)
  assert sum(weight for _, weight in trial.task.rubric) == pytest.approx(1.0)
  trial.step(trial.world.T_world_wrist_2x4x4, trial.world.joint_targets_2xJ)
  assert not trial.reached
  assert (trial.score, trial.success) == (0.0, False)
  trial.reached.update(stage for stage, _ in trial.task.rubric)
  assert (trial.score, trial.success) == (1.0, True)


def test_the_tasks_that_were_promised():
  assert len(tasks.TRAINED) == 5
  assert len(tasks.HELD_OUT) == 2
  assert not set(tasks.TRAINED) & set(tasks.HELD_OUT)


def test_play_has_many_instructions_and_none_of_a_held_out_task():
  texts = {start("play", seed=seed).goal["text"] for seed in range(60)}
  assert len(texts) > 55
  assert not any(word in text for text in texts for word in ("drawer", "crew", "cap"))


def test_pick_place_counts_what_lies_in_the_basket():
  trial = start("pick_place")
  target, inside = trial.goal["target"], trial.goal["inside"]
  floor = trial.goal["floor"] + target["height"]
  put(trial, target["name"], (*trial.goal["to"], floor))
  assert reached(trial) == {"placed"}
  put(trial, target["name"], (*trial.goal["to"] + (inside + 0.01, 0), floor))
  assert reached(trial) == set()
  put(trial, target["name"], (*trial.goal["to"], 0.15))
  assert reached(trial) == set()
  put(trial, target["name"], (*trial.goal["to"], floor))
  trial.world.held[1] = target["name"]
  assert reached(trial) == {"held"}


def test_card_tells_the_holders_apart():
  trial = start("card")
  z = 0.004 + card.HALF[2]
  put(trial, "card", (*trial.goal["right"], z))
  assert reached(trial) == {"in_a_holder", "right"}
  put(trial, "card", (*trial.goal["wrong"], z))
  assert reached(trial) == {"in_a_holder"}
  put(trial, "card", (*trial.goal["right"] + (0, 0.02), z))
  assert reached(trial) == set()


@pytest.mark.parametrize(("task", "sign"), [("unscrew", 1), ("screw_on", -1)])
def test_caps_count_whole_turns_the_right_way(task, sign):
  trial = start(task)
  for turns, count in ((0.9, 0), (1.1, 1), (2.1, 2), (3.1, 3), (-1.5, 0)):
    move(trial, cap_turn=sign * turns * 2 * np.pi)
    assert len(reached(trial)) == count, turns
  if task == "unscrew":
    move(trial, cap_turn=3.1 * 2 * np.pi, cap_z=cap.PITCH * cap.THREAD + 0.021)
    assert "off" in reached(trial)
    move(trial, cap_turn=2.9 * 2 * np.pi, cap_z=0.05)
    assert "off" not in reached(trial)


def test_syringe_in_the_bin_counts_when_pressed():
  trial = start("syringe")
  put(trial, "syringe", (*trial.goal["bin"], 0.03))
  assert reached(trial) == set()
  move(trial, plunger=0.81 * syringe.TRAVEL)
  assert reached(trial) == {"pressed", "binned"}
  put(trial, "syringe", (*trial.goal["bin"] + (0.08, 0), 0.03))
  assert reached(trial) == {"pressed"}


def test_drawer_is_open_at_its_share():
  trial = start("drawer")
  for share, stages in ((0.3, set()), (0.4, {"a_third"}), (0.81, {"a_third", "open"})):
    move(trial, drawer=share * drawer.WAY)
    assert reached(trial) == stages


def test_a_fork_pierces_only_in_a_hand():
  trial = start("fork")
  radius = trial.goal["radius"]
  fruit = trial.world.pose(trial.goal["fruit"])[:3, 3]
  put(trial, "fork", (*fruit[:2], 2 * radius + 0.05))  # it falls onto the fruit
  for _ in range(10):
    trial.step(trial.world.T_world_wrist_2x4x4, trial.world.joint_targets_2xJ)
  assert "pierced" not in trial.reached


def test_hold_still_reaches_nothing():
  """Nothing creeps under its own weight: a plunger did, by MuJoCo's soft friction."""
  for task in ("syringe", "screw_on", "drawer"):
    trial = start(task)
    for _ in range(120):
      trial.step(trial.world.T_world_wrist_2x4x4, trial.world.joint_targets_2xJ)
    assert not trial.reached, task


@pytest.mark.parametrize("body", bodies.BODIES)
@pytest.mark.parametrize("task", tasks.TASKS)
def test_experts_succeed(task, body):
  for seed in range(1 if task in ("unscrew", "screw_on") else 2):
    trial = start(task, body, seed=100 + seed)
    frames = 0
    for command in episode.commands(trial):
      trial.step(*command)
      frames += 1
    assert trial.success, (seed, trial.reached)
    assert frames < trial.task.seconds * 15


def test_a_reach_hovers_off_its_aim_corrects_and_comes_straight_down():
  trial, above, hovers = start("pick_place"), 0.08, []
  down = trial.rest_2x4x4[1].copy()
  down[:3, 3] = 0.0, 0.2, 0.05
  for seed in range(20):
    hand = actor.Actor(trial.world, bodies.fingers(trial.body), np.random.default_rng(seed), trial.rest_2x4x4[:1])
    way = np.stack([wrist[1, :3, 3] for wrist, _ in hand.reach(down, above=above)]) - down[:3, 3]
    np.testing.assert_allclose(way[-1], 0, atol=1e-12)
    corrected = np.flatnonzero(np.abs(way - [0, 0, actor.CORRECT * above]).max(axis=1) < 1e-9)
    assert len(corrected) == 1
    assert np.abs(way[corrected[0] :, :2]).max() < 1e-9, "straight down"
    before = way[: corrected[0]]
    hovers.append(before[np.argmin(np.linalg.norm(np.diff(before, axis=0), axis=1)[1:]) + 2])  # where it is slowest
  hovers = np.array(hovers)
  assert np.abs(hovers[:, :2]).max() <= 1.2 * actor.AIM
  assert np.linalg.norm(hovers[:, :2], axis=1).mean() > 0.4 * actor.AIM

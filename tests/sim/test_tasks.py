"""Every expert does what its instruction says, smoothly and with a possible hand."""

import numpy as np
import pytest

from egoscale_jax import geometry
from egoscale_jax.hands.keypoints import BONES, SIDES
from egoscale_jax.sim import human, motion, record, scene, tasks

SEED, EPISODES = 5, 24
KEYPOINTS = [human.BODIES.index(name) for name in human.KEYPOINTS]


def bodies(shot):
  stage = scene.Stage(shot.scene)
  result = []
  for frame in zip(shot.T_world_wrist_Fx2x4x4, shot.joints_Fx2x20, shot.T_world_thing_FxNx4x4):
    stage.pose(*frame)
    result.append(stage.hand_poses())
  return np.stack(result)


@pytest.fixture(scope="module")
def shots():
  """[(Take, T_world_body [F, 2, 25, 4, 4])], every task in turn."""
  return [(shot, bodies(shot)) for shot in (record.take(SEED, i) for i in range(EPISODES))]


def of(shots, task):
  found = [pair for pair in shots if pair[0].task == task]
  assert len(found) == EPISODES // len(tasks.TASKS)
  return found


def distance_to(thing, T_world_thing, point):
  """Metres from a point to the surface of a ball, cube or can; negative inside."""
  x, y, z = geometry.transform(geometry.se3_inverse(T_world_thing), point[None])[0]
  r, h = thing.size
  if thing.kind == "ball":
    return np.linalg.norm((x, y, z)) - r
  outside = [abs(x) - r, abs(y) - r, abs(z) - h] if thing.kind == "cube" else [np.hypot(x, y) - r, abs(z) - h]
  return np.linalg.norm(np.maximum(outside, 0)) + min(max(outside), 0)


def test_instructions_name_task_colour_and_hand(shots):
  for shot, _ in shots:
    assert shot.side in shot.text
    assert all(name in shot.text for name in shot.objects), shot.text
    names = [thing.name for thing in shot.scene.things]
    assert len({thing.colour for thing in shot.scene.things}) == len(names), "an instruction could mean two things"
  assert {shot.side for shot, _ in shots} == set(SIDES)
  assert len({shot.text.split()[0] for shot, _ in shots}) > 4


def test_touch_brings_the_fingertip_to_the_object_and_nothing_moves(shots):
  for shot, poses in of(shots, "touch_object"):
    tip = poses[shot.goal["phases"]["act"], SIDES.index(shot.side), human.BODIES.index("IndexFingerTip"), :3, 3]
    gap = distance_to(shot.scene.things[0], shot.T_world_thing_FxNx4x4[0, 0], tip)
    assert abs(gap) < 0.015, (shot.text, gap)
    assert (np.ptp(shot.T_world_thing_FxNx4x4, axis=0) == 0).all()


def test_pick_and_place_ends_in_the_container(shots):
  for shot, _ in of(shots, "pick_and_place"):
    target, container = shot.scene.things[:2]
    start, end = shot.T_world_thing_FxNx4x4[[0, -1], 0]
    box = shot.T_world_thing_FxNx4x4[-1, 1]
    assert np.abs(end[:2, 3] - box[:2, 3]).max() < container.size[0] - 0.6 * target.size[0], shot.text
    assert 0 < end[2, 3] - target.size[1] < 0.01, "stands on the container's floor"
    assert np.linalg.norm(end[:3, 3] - start[:3, 3]) > 0.1
    steps = np.linalg.norm(np.diff(shot.T_world_thing_FxNx4x4[:, 0, :3, 3], axis=0), axis=-1)
    assert steps.max() < 0.045, "neither the grasp nor the release makes the object jump"


def test_carried_object_keeps_between_thumb_and_index(shots):
  for shot, poses in of(shots, "pick_and_place"):
    phases, hand = shot.goal["phases"], poses[:, SIDES.index(shot.side)]
    thing = shot.scene.things[0]
    for frame in range(phases["grasp"], phases["carry"]):
      for name in ("ThumbTip", "IndexFingerTip"):
        gap = distance_to(thing, shot.T_world_thing_FxNx4x4[frame, 0], hand[frame, human.BODIES.index(name), :3, 3])
        assert -0.012 < gap < 0.03, (shot.text, frame, name, gap)


def test_push_moves_the_object_the_stated_way(shots):
  ways = {"left": (-1, 0, 0), "right": (1, 0, 0), "away": (0, 1, 0)}
  for shot, poses in of(shots, "push_object"):
    path = shot.T_world_thing_FxNx4x4[:, 0, :3, 3]
    np.testing.assert_allclose(path[-1] - path[0], np.multiply(ways[shot.goal["way"]], shot.goal["length"]), atol=2e-3)
    assert shot.goal["way"] in shot.text.replace(f"{shot.side} hand", "")
    assert shot.goal["length"] > 0.12
    moving = np.flatnonzero(np.linalg.norm(np.diff(path, axis=0), axis=-1) > 2e-3)
    points = poses[moving, SIDES.index(shot.side), :, :3, 3]
    gaps = [min(distance_to(shot.scene.things[0], shot.T_world_thing_FxNx4x4[f, 0], p) for p in hand) for f, hand in zip(moving, points)]
    assert max(gaps) < 0.03, "the hand is at the object while it slides"


def test_cap_turns_by_the_stated_angle_and_direction(shots):
  for shot, _ in of(shots, "turn_cap"):
    start, end = shot.T_world_thing_FxNx4x4[[0, -1], 0]
    turn = geometry.so3_log(end[:3, :3] @ start[:3, :3].T)
    np.testing.assert_allclose(turn, (0, 0, shot.goal["angle"]), atol=1e-6)
    assert (turn[2] > 0) == ("counter-clockwise" in shot.text)
    assert abs(turn[2]) > np.radians(60)
    np.testing.assert_array_equal(start[:3, 3], end[:3, 3])
    hands = shot.T_world_wrist_Fx2x4x4[:, SIDES.index(shot.side)]
    grasp, act = shot.goal["phases"]["grasp"], shot.goal["phases"]["act"]
    np.testing.assert_allclose(geometry.so3_log(hands[act, :3, :3] @ hands[grasp, :3, :3].T), turn, atol=1e-6)


def test_motion_is_smooth_and_lively(shots):
  for shot, poses in shots:
    acting = poses[:, SIDES.index(shot.side), 0, :3, 3]
    velocity = np.diff(acting, axis=0) * motion.RATE_HZ
    speed = np.linalg.norm(velocity, axis=-1)
    assert speed.max() < 1.0
    assert speed.mean() > 0.15, "hold still must be a poor guess"
    assert np.linalg.norm(np.diff(velocity, axis=0), axis=-1).max() < 0.35, "m/s between frames"
    assert np.linalg.norm(acting[4] - acting[0]) > 0.004, "moves from the first frames on"
    tips = poses[:, :, KEYPOINTS][..., :3, 3]
    assert np.linalg.norm(np.diff(tips, axis=0), axis=-1).max() * motion.RATE_HZ < 2.0
    assert np.abs(np.diff(shot.joints_Fx2x20, axis=0)).max() < np.radians(40)


def test_hands_are_anatomical(shots):
  low, high = human.LIMITS.T
  for shot, poses in shots:
    assert (shot.joints_Fx2x20 >= low - 1e-9).all()
    assert (shot.joints_Fx2x20 <= high + 1e-9).all()
    points = poses[:, :, KEYPOINTS][..., :3, 3]
    parents, children = np.transpose(BONES)
    bones = np.linalg.norm(points[:, :, children] - points[:, :, parents], axis=-1)
    np.testing.assert_allclose(bones, np.broadcast_to(bones[:1, :1], bones.shape), atol=1e-9)  # over time and left to right
    assert points[..., 2].min() > 0.0, "no keypoint goes through the table"


def test_left_hand_is_the_right_hand_mirrored():
  person = human.Person(1.03, (0.5, 0.4, 0.3), (0, 0, 1))
  stage = scene.Stage(scene.sample_scene(np.random.default_rng(0), person, []))
  right = geometry.se3(motion.orientation(20, 30, 40), np.array([0.2, 0.1, 0.3]))
  joints = np.random.default_rng(1).uniform(*human.LIMITS.T)
  stage.pose(np.stack([motion.mirror_hand(right), right]), np.stack([joints, joints]), [])
  left_points, right_points = stage.hand_poses()[..., :3, 3]
  np.testing.assert_allclose(left_points, right_points * (-1, 1, 1), atol=1e-12)

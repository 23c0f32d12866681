"""Still pictures of scenes: what they say is where it is, nothing hides behind a hand, and one seed gives one picture."""

import dataclasses

import mujoco
import numpy as np
import pytest

from egoscale_jax.sim import render
from egoscale_jax.sim.bench import bodies, episode, stills, tasks

PLAN = stills.Plan("train", seed=3, scenes=18, arrangements=3, image_size=64)


@pytest.fixture(scope="module")
def made():
  return [still for index in range(PLAN.scenes) for still in stills.scene(PLAN, index)]


def test_every_task_and_body_is_shown(made):
  assert len(made) > 0.9 * PLAN.scenes * PLAN.arrangements
  names = {name for still in made for name in still.names}
  assert {"card", "stand", "cap", "bottle", "syringe", "rack", "fork"} <= names
  assert any(name.endswith(" basket") for name in names)
  assert any(name.endswith(" bin") for name in names)
  assert not names & {"drawer", "cabinet", "basket", "bin"}  # held out; and what has a colour is called by it


def test_one_seed_gives_one_picture_and_another_gives_another(made):
  again, other = stills.scene(PLAN, 4), stills.scene(dataclasses.replace(PLAN, seed=4), 4)
  mine = [still for index in range(5) for still in stills.scene(PLAN, index)][-len(again) :]
  for a, b in zip(again, mine):
    assert a.names == b.names
    np.testing.assert_array_equal(a.picture_YxXx3, b.picture_YxXx3)
    np.testing.assert_array_equal(a.place_Nx2, b.place_Nx2)
  assert any((a.picture_YxXx3 != b.picture_YxXx3).any() for a, b in zip(again, other))


def test_arrangements_of_a_scene_differ(made):
  first, second = stills.scene(PLAN, 0)[:2]
  same = set(first.names) & set(second.names)
  moved = [np.linalg.norm(first.place_Nx2[first.names.index(n)] - second.place_Nx2[second.names.index(n)]) for n in same]
  assert max(moved) > 0.05


def test_places_are_where_the_rays_meet_the_thing(monkeypatch):
  """Against the depth picture, which asks a ray a pixel."""
  seen = []
  picture = episode.Camera.picture

  def spy(camera, T_world_camera):
    renderer = render.Renderer(camera._trial.world, camera.K_3x3, (64, 64), camera._trial.room.texture)
    model, (_, geom) = camera._trial.world.model, renderer.depth(T_world_camera)
    seen.append([model.body(model.body_rootid[model.geom_bodyid[g]]).name if g >= 0 else "" for g in geom.ravel()])
    return picture(camera, T_world_camera)

  monkeypatch.setattr(episode.Camera, "picture", spy)
  made, met = [still for index in (0, 2, 4) for still in stills.scene(PLAN, index)], 0
  for still, names in zip(made, seen, strict=True):
    for name, place in zip(still.names, still.place_Nx2):
      column, row = np.minimum((place * 64).astype(int), 63)
      around = {names[64 * r + c] for r in range(max(row - 2, 0), min(row + 3, 64)) for c in range(max(column - 2, 0), min(column + 3, 64))}
      met += name in around or name in ("card", "stand", "fork", "syringe", "rack")  # those stand in each other
      assert not around <= {"rightHand", "leftHand"}, name
  assert met == sum(len(still.names) for still in made)


def test_what_stands_in_each_other_stays_together_and_the_rest_apart():
  trial = episode.start(tasks.TASKS["unscrew"], bodies.BODIES["dex3"], "train", 0)
  table, rng = stills._Table(trial.world), np.random.default_rng(0)
  at = lambda name: trial.world.pose(name)[:3, 3]  # noqa: E731
  above = at("cap") - at("bottle")
  for _ in range(20):
    table.arrange(rng)
    mujoco.mj_kinematics(trial.world.model, trial.world.data)
    np.testing.assert_allclose(at("cap") - at("bottle"), above, atol=1e-9)
    spots = [trial.world.data.xpos[group[0], :2] for group in table.groups]
    apart = [np.linalg.norm(a - b) for i, a in enumerate(spots) for b in spots[:i]]
    assert min(apart, default=1) > 0.07


def test_hands_go_where_they_are_put():
  trial = episode.start(tasks.TASKS["pick_place"], bodies.BODIES["sharpa_wave"], "train", 0)
  wrists, joints = trial.rest_2x4x4.copy(), trial.world.joint_targets_2xJ + 0.05
  wrists[1, :3, 3] = (0.02, 0.1, 0.15)
  trial.world.place(wrists, joints)
  mujoco.mj_kinematics(trial.world.model, trial.world.data)
  np.testing.assert_allclose(trial.world.joints_2xJ, joints)
  base = trial.world.pose("rightHand") @ trial.body.T_base_wrist_2x4x4()[1]
  np.testing.assert_allclose(base, wrists[1], atol=1e-6)  # as a hand says where its wrist is: in float32

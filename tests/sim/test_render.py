"""The ray caster against geometry done by hand."""

import numpy as np
import pytest

from egoscale_jax import geometry
from egoscale_jax.sim import human, motion, record, render, scene

SIZE = (96, 96)
K = render.intrinsics(SIZE, 60.0)
CAMERA = scene.look_at(np.array([0.02, -0.12, 0.42]), np.array([0.0, 0.13, 0.0]))


@pytest.fixture(scope="module")
def stage():
  """A ball on the table, both hands far behind the camera."""
  person = human.Person(1.0, (0.5, 0.4, 0.3), (0, 0, 1))
  stage = scene.Stage(scene.sample_scene(np.random.default_rng(0), person, [scene.Thing("ball", "red", (0.04, 0.04))]))
  away = geometry.se3(np.eye(3), np.array([0.0, -3.0, 0.0]))
  stage.pose(np.stack([away, away]), np.zeros((2, 20)), [geometry.se3(np.eye(3), np.array([0.05, 0.16, 0.04]))])
  return stage


def rays():
  rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
  local = np.stack([(columns - K[0, 2]) / K[0, 0], (rows - K[1, 2]) / K[1, 1], np.ones(SIZE)], axis=-1)
  return local @ CAMERA[:3, :3].T


def test_depth_is_that_of_the_ball_and_of_the_table(stage):
  depth, geom = render.Renderer(stage, K, SIZE).depth(CAMERA)
  ray, origin, centre = rays(), CAMERA[:3, 3], np.array([0.05, 0.16, 0.04])
  a, b, c = (ray * ray).sum(-1), ray @ (origin - centre), (origin - centre) @ (origin - centre) - 0.04**2
  inside = b * b - a * c
  ball = (-b - np.sqrt(np.maximum(inside, 0))) / a
  np.testing.assert_array_equal(geom >= 0, inside > 0)
  assert 150 < (geom >= 0).sum() < 2000
  np.testing.assert_allclose(depth[inside > 0], ball[inside > 0], atol=1e-6)
  table = np.isfinite(depth) & (inside <= 0)
  np.testing.assert_allclose(depth[table], (-origin[2] / ray[..., 2])[table], atol=1e-6)
  assert table.mean() > 0.7


def test_ball_has_its_colour_and_a_shadow(stage):
  renderer = render.Renderer(stage, K, SIZE)
  picture = renderer.frame(CAMERA).astype(float)
  centre = geometry.project(K.astype(float), geometry.transform(geometry.se3_inverse(CAMERA), np.array([[0.05, 0.16, 0.04]])))[0]
  column, row = centre.astype(int)
  red, green, blue = picture[row, column]
  assert red > 2.5 * max(green, blue)
  shadow = renderer._shadow()
  assert shadow.min() < 0.1
  lamp, ball = stage.scene.lamp, np.array([0.05, 0.16, 0.04])
  foot = lamp + (ball - lamp) * lamp[2] / (lamp[2] - ball[2])
  assert render._bilinear(shadow, foot[None, :2])[0] < 0.2
  assert render._bilinear(shadow, np.array([[-0.3, 0.0]]))[0] == 1.0


def test_boxes_around_shapes_lose_no_pixel():
  """Rays are cast only near shapes: the picture must be the one of casting them all."""
  shot = record.take(3, 1)
  stage = scene.Stage(shot.scene)
  renderer = render.Renderer(stage, K, SIZE)
  for frame in range(0, len(shot.joints_Fx2x20), 12):
    stage.pose(shot.T_world_wrist_Fx2x4x4[frame], shot.joints_Fx2x20[frame], shot.T_world_thing_FxNx4x4[frame])
    camera = shot.T_world_camera_Fx4x4[frame]
    near = renderer._near_shapes(camera)
    _, geom = renderer.depth(camera)
    assert not ((geom >= 0) & ~near).any()
    assert near.mean() < 0.75


def test_camera_looks_where_it_is_told():
  point = geometry.transform(geometry.se3_inverse(CAMERA), np.array([[0.0, 0.13, 0.0], [0.1, 0.13, 0.0], [0.0, 0.2, 0.0]]))
  middle, right, far = geometry.project(K.astype(float), point)
  np.testing.assert_allclose(middle, (48, 48), atol=1e-6)
  assert right[0] > middle[0]
  assert far[1] < middle[1], "farther away is higher in the picture"
  np.testing.assert_allclose(motion.minimum_jerk(np.array([0.0, 0.5, 1.0])), (0, 0.5, 1))

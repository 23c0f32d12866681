"""The conventions of geometry.py and of the wrist frame, each asserted once, on numpy and on JAX arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egoscale_jax import geometry
from egoscale_jax.hands import keypoints

RNG = np.random.default_rng(0)
AXES = geometry.normalize(np.concatenate([np.eye(3), -np.eye(3), RNG.normal(size=(20, 3))]))
ARRAYS = pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
QUARTER_Z = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])  # x -> y


def rotations(count):
  return geometry.so3_exp(2.0 * RNG.normal(size=(count, 3)))


@ARRAYS
@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-4, 9.9e-4, 1.1e-3, 0.1, 1.0, 3.0, np.pi - 1e-4])
def test_exp_and_log_are_inverse(array, angle):
  vector = array((angle * AXES).astype(np.float32))
  rotation = geometry.so3_exp(vector)
  assert rotation.dtype == np.float32
  assert isinstance(rotation, jax.Array) == (array is jnp.asarray)
  np.testing.assert_allclose(np.asarray(rotation @ rotation.swapaxes(-1, -2)), np.broadcast_to(np.eye(3), (26, 3, 3)), atol=1e-6)
  np.testing.assert_allclose(geometry.so3_log(rotation), vector, atol=2e-6 if angle < 3 else 2e-4)
  np.testing.assert_allclose(geometry.so3_angle(rotation), angle, atol=2e-6)


@ARRAYS
def test_log_at_pi(array):
  """Both signs of the axis are right; none is NaN and the length is pi."""
  rotation = array(geometry.so3_exp(np.pi * AXES))
  log = np.asarray(geometry.so3_log(rotation))
  np.testing.assert_allclose(np.linalg.norm(log, axis=-1), np.pi, atol=1e-6)
  np.testing.assert_allclose(np.abs((log * AXES).sum(-1)), np.pi, atol=1e-6)


def test_exp_equals_the_power_series():
  vector = RNG.normal(size=3)
  series, term = np.eye(3), np.eye(3)
  for n in range(1, 30):
    term = term @ geometry.hat(vector) / n
    series = series + term
  np.testing.assert_allclose(geometry.so3_exp(vector), series, atol=1e-12)
  np.testing.assert_allclose(geometry.so3_exp(np.array([0, 0, np.pi / 2])), QUARTER_Z, atol=1e-15)


def test_gradients_are_finite_and_right_at_zero():
  with jax.enable_x64(True):
    zero = jnp.zeros(3)
    generators = jax.jit(jax.jacfwd(geometry.so3_exp))(zero)
    np.testing.assert_allclose(generators, np.stack([geometry.hat(e) for e in np.eye(3)], -1), atol=1e-12)
    there_and_back = jax.jit(jax.jacrev(lambda v: geometry.so3_log(geometry.so3_exp(v))))
    np.testing.assert_allclose(there_and_back(zero), np.eye(3), atol=1e-9)
    assert np.isfinite(there_and_back(jnp.array([np.pi, 0.0, 0.0]))).all()
    assert np.isfinite(jax.jit(jax.grad(lambda v: geometry.so3_angle(geometry.so3_exp(v))))(zero)).all()
    assert np.isfinite(jax.jit(jax.jacrev(geometry.normalize))(zero)).all()


@pytest.mark.parametrize("angle", [1e-4, 1.1e-3, 1e-2])
def test_exp_keeps_its_gradient_in_single_precision_at_small_angles(angle):
  """Turning about z with a little x: the derivative of entry (x, z) is (1 - cos) / angle, which loses its digits as written."""
  found = jax.jvp(lambda v: geometry.so3_exp(v)[0, 2], (jnp.array([0.0, 0.0, angle]),), (jnp.array([1.0, 0.0, 0.0]),))[1]
  np.testing.assert_allclose(found, 2 * np.sin(angle / 2) ** 2 / angle, rtol=1e-5)


@ARRAYS
def test_quaternions_are_wxyz(array):
  quat = geometry.so3_to_quat(array(QUARTER_Z))
  np.testing.assert_allclose(quat, [np.sqrt(0.5), 0, 0, np.sqrt(0.5)], atol=1e-7)
  rotation = array(np.concatenate([rotations(50), geometry.so3_exp(np.pi * AXES)]))
  quat = geometry.so3_to_quat(rotation)
  assert (np.asarray(quat[..., 0]) >= 0).all()
  np.testing.assert_allclose(np.linalg.norm(np.asarray(quat), axis=-1), 1.0, atol=1e-6)
  np.testing.assert_allclose(geometry.quat_to_so3(quat), rotation, atol=2e-6)
  np.testing.assert_allclose(geometry.quat_to_so3(-3.0 * quat), rotation, atol=2e-6)  # any sign, any norm


@ARRAYS
def test_rot6d_is_the_first_two_rows(array):
  np.testing.assert_array_equal(geometry.so3_to_rot6d(array(QUARTER_Z)), [0, -1, 0, 1, 0, 0])
  rotation = array(rotations(10).reshape(2, 5, 3, 3))
  rot6d = geometry.so3_to_rot6d(rotation)
  assert rot6d.shape == (2, 5, 6)
  np.testing.assert_allclose(geometry.rot6d_to_so3(rot6d), rotation, atol=1e-6)
  skewed = geometry.rot6d_to_so3(2.0 * rot6d + array(np.float32(0.1)))
  np.testing.assert_allclose(np.asarray(skewed @ skewed.swapaxes(-1, -2)), np.broadcast_to(np.eye(3), (2, 5, 3, 3)), atol=1e-6)
  np.testing.assert_allclose(np.linalg.det(np.asarray(skewed)), 1.0, atol=1e-5)


@ARRAYS
def test_poses_map_the_right_way(array):
  """T_a_b maps points of b into a: b sits at (1, 2, 3) of a, turned so that its x is a's y."""
  T_a_b = geometry.se3(array(QUARTER_Z), array(np.array([1.0, 2.0, 3.0])))
  np.testing.assert_allclose(geometry.transform(T_a_b, array(np.array([[1.0, 0.0, 0.0]]))), [[1, 3, 3]], atol=1e-6)
  pose = geometry.se3(array(rotations(6).reshape(2, 3, 3, 3)), array(RNG.normal(size=(2, 3, 3))))
  np.testing.assert_allclose(geometry.se3_inverse(pose) @ pose, np.broadcast_to(np.eye(4), (2, 3, 4, 4)), atol=1e-6)
  points = array(RNG.normal(size=(2, 3, 7, 3)))
  np.testing.assert_allclose(geometry.transform(geometry.se3_inverse(pose), geometry.transform(pose, points)), points, atol=2e-6)


@ARRAYS
def test_projection_is_x_right_y_down_z_forward(array):
  intrinsics = array(np.array([[500.0, 0.0, 320.0], [0.0, 400.0, 240.0], [0.0, 0.0, 1.0]]))
  points = array(np.array([[0.0, 0.0, 2.0], [0.2, 0.0, 2.0], [0.0, 0.2, 2.0], [0.2, 0.0, 4.0]]))
  np.testing.assert_allclose(geometry.project(intrinsics, points), [[320, 240], [370, 240], [320, 280], [345, 240]], atol=1e-4)
  behind = geometry.project(intrinsics, array(np.array([[0.1, 0.1, -1.0], [0.1, 0.1, 0.0]])))
  assert np.isnan(np.asarray(behind)).all()


def flat_right_hand():
  """A right hand on a table, palm down, seen from above in a frame with x away from the body, y to the left, z up: the thumb is at +y."""
  points_Px3 = np.zeros((21, 3))
  for finger, (y, length) in enumerate(((0.05, 0.03), (0.03, 0.09), (0.01, 0.1), (-0.01, 0.09), (-0.03, 0.08))):
    for joint in range(4):
      points_Px3[1 + 4 * finger + joint] = (length + 0.025 * joint, y, 0.0)
  return points_Px3


@ARRAYS
def test_wrist_frame_axes(array):
  """x to the knuckles, z out of the back, y to the thumb on the right and to the little finger on the left."""
  right_Px3 = flat_right_hand()
  left_Px3 = right_Px3 * [1, -1, 1]  # also palm down: its back is up as well
  for points_Px3, side in ((right_Px3, "right"), (left_Px3, "left")):
    T_a_wrist = np.asarray(keypoints.wrist_frame(array(points_Px3 + [0.3, 0.2, 0.1]), side))
    np.testing.assert_allclose(T_a_wrist, geometry.se3(np.eye(3), np.array([0.3, 0.2, 0.1])), atol=1e-6)
  assert right_Px3[keypoints.NAMES.index("thumb_tip"), 1] > 0  # +y
  assert left_Px3[keypoints.NAMES.index("little_tip"), 1] > 0


@ARRAYS
def test_wrist_frame_moves_with_the_hand_and_mirrors(array):
  points_Px3 = flat_right_hand() + 0.005 * RNG.normal(size=(4, 21, 3))
  pose = geometry.se3(rotations(4), RNG.normal(size=(4, 3)))
  plain, moved = (np.asarray(keypoints.wrist_frame(array(p), "right")) for p in (points_Px3, geometry.transform(pose, points_Px3)))
  np.testing.assert_allclose(moved, pose @ plain, atol=1e-5)
  mirror = np.diag([1.0, -1.0, 1.0])
  left = np.asarray(keypoints.wrist_frame(array(points_Px3 @ mirror), "left"))
  np.testing.assert_allclose(left[:, :3, :3], mirror @ plain[:, :3, :3] @ mirror, atol=1e-5)
  both = np.asarray(keypoints.wrist_frames(array(np.stack([points_Px3 @ mirror, points_Px3], axis=1))))
  np.testing.assert_allclose(both, np.stack([left, plain], axis=1), atol=1e-7)


@ARRAYS
def test_wrist_frame_of_a_missing_or_flat_palm_is_nan(array):
  """A missing hand stored as zeros must not become a pose."""
  assert np.isnan(np.asarray(keypoints.wrist_frame(array(np.zeros((21, 3))), "left"))[:3, :3]).any()
  holed_Px3 = flat_right_hand()
  holed_Px3[keypoints.KNUCKLES[1]] = np.nan
  assert np.isnan(np.asarray(keypoints.wrist_frame(array(holed_Px3), "right"))[:3, :3]).all()

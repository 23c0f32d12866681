"""Fixed-noise validation: the points, the baselines, the sums, and that nothing but the parameters moves the figures."""

import jax
import numpy as np
import pytest
import tiny

from egoscale_jax import geometry
from egoscale_jax.data import actions, statistics
from egoscale_jax.data import shards as shards_lib
from egoscale_jax.evaluate import points as points_lib
from egoscale_jax.evaluate import validation
from egoscale_jax.train import run as run_lib


def test_points_are_even_fixed_and_labelled(shards):
  data = points_lib.HeldOut(shards, "train")
  points = points_lib.fixed_points([data], episodes=3, times=5, horizon=4, stride=2)
  assert points == points_lib.fixed_points([data], episodes=3, times=5, horizon=4, stride=2)
  assert len({point.episode for point in points}) == 3
  assert len(points) == 15
  for point in points:
    window = data.window(point)
    assert window.clip.episode == point.episode
    assert window.clip.start + window.frame == point.time
    valid_Fx2, frame = window.clip.valid_Fx2, window.frame
    assert (valid_Fx2[frame] & valid_Fx2[frame + 2 : frame + 9 : 2].any(axis=0)).any()
  times = [point.time for point in points if point.episode == points[0].episode]
  assert np.ptp(np.diff(times)) <= 1
  assert times[0] == 0


def test_hold_still_is_the_pose_at_the_start(shards):
  joints_2xJ = shards_lib.open_split(shards, "train")[0].joints_Fx2xJ[2]
  pose, joints = actions.split_chunk(validation.hold_still(joints_2xJ, horizon=3), joints_2xJ.shape[-1])
  np.testing.assert_allclose(pose, np.broadcast_to(np.eye(4), pose.shape), atol=1e-6)
  np.testing.assert_array_equal(joints, np.broadcast_to(joints_2xJ, joints.shape))


def test_totals_are_plain_sums():
  rng = np.random.default_rng(0)
  size = actions.action_dim(22)
  ends = np.full(size, -0.5, np.float32), np.full(size, 1.5, np.float32)
  normalizer = statistics.Normalizer(*ends, *np.ones((2, size), bool), np.zeros(size, np.float32))
  rotation = geometry.so3_exp(np.array([0.0, 0, 0.3]))
  truth = np.zeros((4, 2, 31), np.float32)
  truth[..., 3:9] = geometry.so3_to_rot6d(np.eye(3))
  predicted = truth.copy()
  predicted[..., 0] += 0.01
  predicted[..., 3:9] = geometry.so3_to_rot6d(rotation)
  predicted[..., 9:] += np.deg2rad(2.0)
  mask = np.ones((4, 2, 31), bool)
  mask[3, 1] = False
  predicted[3, 1] = rng.standard_normal(31)  # masked: counts nowhere
  flat = lambda a: a.reshape(4, size)  # noqa: E731
  total = validation.Totals()
  samples = normalizer.normalize(np.stack([flat(predicted), flat(predicted)]))
  still, chunk = normalizer.normalize(flat(truth)), normalizer.normalize(np.zeros((4, size), np.float32))
  total.add(normalizer, flat(mask), still, samples, (still, chunk), 3.5)
  figures = total.figures(1, 1, 2)
  assert figures["wrist_mm"] == pytest.approx(10, rel=1e-3)
  assert figures["wrist_degrees"] == pytest.approx(np.rad2deg(0.3), rel=1e-3)
  assert figures["joint_degrees"] == pytest.approx(2, rel=1e-3)
  assert figures["hold_still_mse"] == 0
  assert figures["action_mse"] == pytest.approx(np.mean((predicted - truth)[mask] ** 2), rel=1e-3)  # high - low = 2: units are kept
  assert figures["flow_loss"] == pytest.approx(3.5 / mask.sum())


@pytest.fixture(scope="module")
def opened(tiny_run):
  return run_lib.open_run(tiny_run)


def test_figures_depend_on_neither_batch_size_nor_the_run(opened):
  run, params, _ = opened
  config = run.config.copy_and_resolve_references()

  def figures(batch_size):
    config.validation = dict(episodes=1, times=5, draws=2, batch_size=batch_size)
    return validation.Validation(config, run.prompt, run.model, run.statistics).run(params)

  first, second, other = figures(4), figures(4), figures(3)
  assert first == second
  assert first["points"] == 5
  for key, value in first.items():
    assert other[key] == pytest.approx(value, rel=1e-4), key


def test_other_parameters_give_other_figures(opened):
  run, params, _ = opened
  held_out = validation.Validation(run.config, run.prompt, run.model, run.statistics)
  before = held_out.run(params)
  after = held_out.run(jax.tree.map(lambda leaf: leaf * 1.1, params))
  assert before["action_mse"] != after["action_mse"]
  assert before["hold_still_mse"] == after["hold_still_mse"]


def test_no_validation_split_is_no_points(opened, shards, tmp_path):
  import json
  import shutil

  run, params, _ = opened
  shutil.copytree(shards, tmp_path / "one")
  index = shards_lib.load_index(tmp_path / "one")
  index["split"] = 0
  shards_lib.save_index(index, tmp_path / "one")
  data = json.loads((tmp_path / "one" / "manifest.json").read_text())
  data["index_sha256"] = shards_lib.checksum(shards_lib.index_path(tmp_path / "one"))["sha256"]
  (tmp_path / "one" / "manifest.json").write_text(json.dumps(data))
  held_out = validation.Validation(tiny.config(tmp_path / "one"), run.prompt, run.model, run.statistics)
  assert held_out.run(params) == {"points": 0}

import dataclasses
import json

import numpy as np
import pytest
import recordings

from egoscale_jax.data import actions, statistics
from egoscale_jax.errors import UserError

J = 4
NAMES = (tuple(f"left_{i}" for i in range(J)), tuple(f"right_{i}" for i in range(J)))
EPISODES = [
  recordings.labels(30, J, seed=0, invalid=[(4, 0), (slice(10, 14),)]),
  recordings.labels(90, J, seed=1, invalid=[(80, 1)]),
  recordings.labels(20, J, seed=2),
]


def accumulate(episodes):
  accumulator = statistics.Accumulator("a_hand", NAMES)
  for labels in episodes:
    accumulator.add(labels)
  return accumulator.finish()


@pytest.fixture(scope="module")
def stats():
  return accumulate(EPISODES)


def reference(episodes, lag):
  """Every chunk of every frame by make_chunk, the step of that lag: [N, A] with NaN where masked."""
  rows = []
  for labels in episodes:
    for start in range(len(labels.valid_Fx2)):
      rows.append(actions.make_chunk(labels.T_world_wrist_Fx2x4x4, labels.joints_Fx2xJ, labels.valid_Fx2, start, 1, lag)[0][0])
  return np.array(rows, np.float64)


@pytest.mark.parametrize("lag", [1, 7, 25, 64])
def test_equals_plain_numpy_over_all_chunks(stats, lag):
  rows = reference(EPISODES, lag)
  np.testing.assert_array_equal(stats.count_LxA[lag - 1], np.isfinite(rows).sum(axis=0))
  np.testing.assert_allclose(stats.mean_LxA[lag - 1], np.nanmean(rows, axis=0), atol=1e-6)
  np.testing.assert_allclose(stats.std_LxA[lag - 1], np.nanstd(rows, axis=0), atol=1e-6)
  np.testing.assert_allclose(stats.q01_LxA[lag - 1], np.nanquantile(rows, 0.01, axis=0), atol=1e-6)
  np.testing.assert_allclose(stats.q99_LxA[lag - 1], np.nanquantile(rows, 0.99, axis=0), atol=1e-6)


def test_the_quantiles_subsample_is_bounded_and_every_nth(monkeypatch):
  monkeypatch.setattr(statistics, "ROWS", 100)
  sample = statistics._Sample()
  rows = np.arange(1000.0)[:, None]
  for part in np.split(rows, [3, 90, 95, 400, 401, 950]):
    sample.add(part)
  np.testing.assert_array_equal(sample.rows(), rows[::16])  # 63 rows: ROWS / 2 to ROWS


def test_a_subsample_hardly_moves_the_quantiles(monkeypatch, stats):
  long = [recordings.labels(2000, J, seed=3)]
  whole = accumulate(long)
  monkeypatch.setattr(statistics, "ROWS", 512)
  part = accumulate(long)
  np.testing.assert_array_equal(part.mean_LxA, whole.mean_LxA)
  np.testing.assert_allclose(part.q99_LxA[0], whole.q99_LxA[0], atol=0.5)  # joints are standard normal: 2.33 +- 0.17 at 250 rows
  assert not np.array_equal(part.q99_LxA, whole.q99_LxA)


def test_saved_and_loaded_is_the_same(stats, tmp_path):
  short = accumulate(EPISODES[2:])  # 20 frames: lags above 19 were never seen
  assert np.isnan(short.mean_LxA[19:]).all()
  for written in (stats, short):
    written.save(tmp_path / "s.json")
    read = statistics.load(tmp_path / "s.json")
    for field in dataclasses.fields(written):
      np.testing.assert_array_equal(getattr(read, field.name), getattr(written, field.name))
  assert "NaN" not in (tmp_path / "s.json").read_text()
  assert read.action_names[:4] == ("left.x", "left.y", "left.z", "left.r00")
  assert read.action_names[9 + J + 9] == "right.right_0"
  assert len(read.action_names) == actions.action_dim(len(read.joint_names))


def test_load_refuses_what_is_not_ours(tmp_path):
  path = tmp_path / "s.json"
  with pytest.raises(UserError, match="no such file"):
    statistics.load(path)
  for content, cause in (("{", "not JSON"), (json.dumps({"version": 0}), "version 1"), ("[]", "version 1")):
    path.write_text(content)
    with pytest.raises(UserError, match=cause):
      statistics.load(path)


@pytest.mark.parametrize(("horizon", "stride"), [(8, 1), (5, 3), (1, 64)])
def test_range_is_the_envelope_over_the_chunk_s_lags(stats, horizon, stride):
  normalizer = stats.normalizer(horizon, stride)
  lags = [stride * k for k in range(1, horizon + 1)]
  low = np.min([np.nanquantile(reference(EPISODES, lag), 0.01, axis=0) for lag in lags], axis=0)
  high = np.max([np.nanquantile(reference(EPISODES, lag), 0.99, axis=0) for lag in lags], axis=0)
  np.testing.assert_allclose(normalizer.low_A, low, atol=1e-6)
  np.testing.assert_allclose(normalizer.high_A, high, atol=1e-6)
  assert normalizer.observed_A.all()
  np.testing.assert_allclose(normalizer.normalize(low), -1, atol=1e-4)
  np.testing.assert_allclose(normalizer.normalize(high), 1, atol=1e-4)


def test_denormalize_inverts_normalize_and_nan_stays(stats):
  labels = EPISODES[1]
  action, mask = actions.make_chunk(labels.T_world_wrist_Fx2x4x4, labels.joints_Fx2xJ, labels.valid_Fx2, 75, 16)
  normalizer = stats.normalizer(16)
  normalized = normalizer.normalize(action)
  assert normalized.dtype == np.float32
  assert (np.isnan(normalized) == ~mask).all()
  np.testing.assert_allclose(normalizer.denormalize(normalized), action, atol=2e-6)


def test_a_constant_dimension_does_not_explode():
  labels = recordings.labels(40, J)
  labels.joints_Fx2xJ[..., 0] = 0.7
  normalizer = accumulate([labels]).normalizer(4)
  values = np.zeros(actions.action_dim(J), np.float32) + np.float32(0.7)
  assert abs(normalizer.normalize(values)[9]) < 1e-3  # in the middle
  np.testing.assert_allclose(normalizer.high_A[9] - normalizer.low_A[9], 1e-3, rtol=1e-3)
  assert abs(normalizer.normalize(values + np.float32(1e-4))[9]) < 0.3


def test_an_absent_hand_is_reported_and_left_as_it_is():
  stats = accumulate([recordings.labels(40, J, invalid=[(slice(None), 0)])])
  normalizer = stats.normalizer(8)
  left = np.arange(actions.action_dim(J)) < 9 + J
  np.testing.assert_array_equal(normalizer.observed_A, ~left)
  assert (normalizer.low_A[left] == -1).all()
  assert (normalizer.high_A[left] == 1).all()
  assert np.isfinite(normalizer.low_A).all()
  assert np.isnan(stats.mean_chunk(8)[:, left]).all()
  assert np.isfinite(stats.mean_chunk(8)[:, ~left]).all()


def test_lags_too_long_for_the_data_do_not_hide_those_that_are_there():
  normalizer = accumulate(EPISODES[2:]).normalizer(32)  # 20 frames
  assert normalizer.observed_A.all()
  assert np.isfinite(normalizer.low_A).all()
  assert (normalizer.low_A < normalizer.high_A).all()


def test_mean_chunk_is_the_mean_of_each_step(stats):
  np.testing.assert_allclose(stats.mean_chunk(5, 3)[1], np.nanmean(reference(EPISODES, 6), axis=0), atol=1e-6)


@pytest.mark.parametrize(("horizon", "stride"), [(65, 1), (22, 3), (0, 1), (4, 0)])
def test_a_lag_beyond_the_tail_is_refused(stats, horizon, stride):
  with pytest.raises(UserError, match=rf"horizon {horizon} and stride {stride}: found {horizon * stride} frames, expected 1 to 64"):
    stats.normalizer(horizon, stride)

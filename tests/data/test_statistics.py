import dataclasses
import functools
import hashlib
import json

import numpy as np
import pytest
import recordings

from egoscale_jax import geometry
from egoscale_jax.data import actions, schema, statistics, wrist_pairs
from egoscale_jax.errors import UserError
from egoscale_jax.hands import keypoints

J = 4
NAMES = (tuple(f"left_{i}" for i in range(J)), tuple(f"right_{i}" for i in range(J)))
JOINTS = np.arange(actions.action_dim(J)) % (9 + J) >= 9
EPISODES = [
  recordings.labels(30, J, seed=0, invalid=[(4, 0), (slice(10, 14),)]),
  recordings.labels(90, J, seed=1, invalid=[(80, 1)]),
  recordings.labels(20, J, seed=2),
]


def accumulate(episodes):
  accumulator = statistics.Accumulator("a_hand", NAMES)
  for labels in episodes:
    accumulator.add(labels)
  return accumulator


@pytest.fixture(scope="module")
def stats():
  return accumulate(EPISODES).finish()


@functools.cache
def many():
  """40 episodes of 1,500 frames, each in another place: the joints, and all but the longest lags, go through the digests."""
  rng = np.random.default_rng(5)
  result = []
  for seed in range(40):
    labels = recordings.labels(1500, 1, seed=seed, invalid=[(slice(100, 150), seed % 2)])
    joints = (rng.normal() + rng.lognormal(size=(1500, 2, 1))).astype(np.float32)
    pose = labels.T_world_wrist_Fx2x4x4.copy()
    pose[..., :3, 3] *= rng.lognormal()
    result.append(dataclasses.replace(labels, joints_Fx2xJ=joints, T_world_wrist_Fx2x4x4=pose))
  return result


@functools.cache
def parts():
  """`many` in eight parts."""
  result = [statistics.Accumulator("a_hand", (("a",), ("a",))) for _ in range(8)]
  for i, labels in enumerate(many()):
    result[i // 5].add(labels)
  return result


def merge(accumulators):
  whole = statistics.Accumulator("a_hand", (("a",), ("a",)))
  for accumulator in accumulators:
    whole.merge(accumulator)
  return whole


def reference(episodes, lag):
  """Every chunk of every frame by make_chunk, the step of that lag: [N, A] with NaN where masked."""
  rows = []
  for labels in episodes:
    for start in range(len(labels.valid_Fx2)):
      rows.append(actions.make_chunk(labels.T_world_wrist_Fx2x4x4, labels.joints_Fx2xJ, labels.valid_Fx2, start, 1, lag)[0][0])
  return np.array(rows, np.float64)


def all_joints(episodes):
  """Every frame but the first: [N, A], only the joints are meant."""
  rows = [labels.joints_Fx2xJ[1:] for labels in episodes]
  return np.concatenate([np.pad(row, ((0, 0), (0, 0), (9, 0))).reshape(len(row), -1) for row in rows])


def lagged(episodes, lag):
  """Quick `reference` for the wrists: [N, 2, 9]."""
  rows = []
  for labels in episodes:
    pose = np.where(labels.valid_Fx2[..., None, None], labels.T_world_wrist_Fx2x4x4, np.nan).astype(np.float64)
    moved = geometry.se3_inverse(pose[:-lag]) @ pose[lag:]
    rows.append(np.concatenate([moved[..., :3, 3], geometry.so3_to_rot6d(moved[..., :3, :3])], axis=-1))
  return np.concatenate(rows).astype(np.float32)


def rank_errors(values_N, found_Q, ranks):
  values_N = np.sort(values_N[np.isfinite(values_N)])
  return np.abs(np.searchsorted(values_N, found_Q) / len(values_N) - ranks)


@pytest.mark.parametrize("lag", [1, 7, 25, 64])
def test_equals_plain_numpy_over_all_chunks(stats, lag):
  rows, joints = reference(EPISODES, lag), all_joints(EPISODES)
  for name, exact in (
    ("count", lambda x: np.isfinite(x).sum(axis=0)),
    ("mean", lambda x: np.nanmean(x, axis=0)),
    ("std", lambda x: np.nanstd(x, axis=0)),
    ("q01", lambda x: np.nanquantile(x, 0.01, axis=0)),
    ("q99", lambda x: np.nanquantile(x, 0.99, axis=0)),
    ("min", lambda x: np.nanmin(x, axis=0)),
    ("max", lambda x: np.nanmax(x, axis=0)),
  ):
    found = getattr(stats, f"{name}_LxA")[lag - 1]
    np.testing.assert_allclose(found[~JOINTS], exact(rows)[~JOINTS], atol=1e-6, err_msg=name)
    np.testing.assert_allclose(found[JOINTS], exact(joints)[JOINTS], atol=1e-6, err_msg=name)


@pytest.mark.parametrize("frames", [1, 100])
def test_the_size_of_a_batch_of_episodes_changes_no_byte(monkeypatch, frames):
  expected = accumulate(EPISODES).to_bytes()
  monkeypatch.setattr(statistics, "_BATCH_FRAMES", frames)
  assert accumulate(EPISODES).to_bytes() == expected


def test_many_rows_are_within_a_thousandth_of_exact_in_rank_and_their_moments_exact():
  whole = merge(parts())
  ranks = np.linspace(0.005, 0.995, 199)
  found_QxLxA, stats = whole.quantiles(ranks), whole.finish()
  exact = {9: np.concatenate([labels.joints_Fx2xJ[1:, 0, 0][labels.valid_Fx2[1:, 0]] for labels in many()])}
  exact |= {(lag, i): lagged(many(), lag)[:, 1, i] for lag in (1, 30, 64) for i in (0, 3, 8)}
  for key, values in exact.items():
    row, column = (0, 9) if key == 9 else (key[0] - 1, 10 + key[1])
    assert rank_errors(values, found_QxLxA[:, row, column], ranks).max() < 1e-3, key
    values = values[np.isfinite(values)].astype(np.float64)
    moments = [getattr(stats, f"{name}_LxA")[row, column] for name in ("count", "mean", "std", "min", "max")]
    np.testing.assert_allclose(moments, [len(values), values.mean(), values.std(), values.min(), values.max()], rtol=2e-5, atol=1e-6)
    assert rank_errors(values, stats.q99_LxA[row, column], 0.99) < 1e-3
  assert stats.count_LxA[0, 9] > 50_000  # else all of it was exact


def test_the_order_of_merging_moves_quantiles_by_less_than_a_thousandth_in_rank_and_the_rest_by_rounding():
  orders = (range(8), range(7, -1, -1), (3, 1, 4, 0, 5, 7, 2, 6))
  pairs = [merge(parts()[i : i + 2]) for i in range(0, 8, 2)]
  wholes = [merge([parts()[i] for i in order]).finish() for order in orders] + [merge([merge(pairs[:2]), merge(pairs[2:])]).finish()]
  joint = np.concatenate([labels.joints_Fx2xJ[1:, 0, 0][labels.valid_Fx2[1:, 0]] for labels in many()])
  for other in wholes[1:]:
    np.testing.assert_array_equal(other.count_LxA, wholes[0].count_LxA)
    np.testing.assert_array_equal(other.max_LxA, wholes[0].max_LxA)
    np.testing.assert_allclose(other.mean_LxA, wholes[0].mean_LxA, atol=1e-12)
    np.testing.assert_allclose(other.std_LxA, wholes[0].std_LxA, atol=1e-12)
    ranks = [np.searchsorted(np.sort(joint), stats.q99_LxA[0, 9]) / len(joint) for stats in (other, wholes[0])]
    assert abs(ranks[0] - ranks[1]) < 1e-3


def test_much_data_counts_every_target_of_the_shortest_lags_and_every_other_of_longer_ones_whatever_the_order(monkeypatch):
  monkeypatch.setattr(wrist_pairs, "ALL_PAIRS_FRAMES", 100)
  for order in (EPISODES, EPISODES[::-1]):
    stats = accumulate(order).finish()
    for lag in (1, 4, 5, 16, 63, 64):
      step = 1 if lag <= 4 else 2
      whole = np.concatenate([reference([labels], lag)[-lag % step :: step] for labels in order])  # start + lag is a multiple
      np.testing.assert_array_equal(stats.count_LxA[lag - 1, ~JOINTS], np.isfinite(whole).sum(axis=0)[~JOINTS])
      np.testing.assert_allclose(stats.q99_LxA[lag - 1, ~JOINTS], np.nanquantile(whole, 0.99, axis=0)[~JOINTS], atol=1e-6)
    one, two = accumulate(order[:2]), accumulate(order[2:])
    one.merge(statistics.Accumulator.from_bytes(two.to_bytes(), "part"))
    read = statistics.Accumulator.from_bytes(one.to_bytes(), "part")
    np.testing.assert_allclose(read.finish().mean_LxA, stats.mean_LxA, atol=1e-12)


def test_little_data_is_the_same_in_parts(stats):
  other = statistics.merged([accumulate(EPISODES[2:]), accumulate(EPISODES[:2])])
  for field in dataclasses.fields(stats):
    if field.name.endswith("LxA"):
      np.testing.assert_allclose(getattr(other, field.name), getattr(stats, field.name), atol=1e-12)


def test_merged_leaves_its_parts_as_they_are():
  before = [hashlib.sha256(part.to_bytes()).digest() for part in parts()[:2]]
  statistics.merged(parts()[:2])
  assert [hashlib.sha256(part.to_bytes()).digest() for part in parts()[:2]] == before


def test_the_same_labels_give_the_same_bytes():
  episodes = many()[:12]  # 18,000 frames: a fold
  one, two = (statistics.Accumulator("a_hand", (("a",), ("a",))) for _ in range(2))
  for labels in episodes:
    one.add(labels)
    two.add(labels)
    two.finish()  # looking changes nothing
  assert one.to_bytes() == two.to_bytes()


def test_bytes_come_back_as_they_were():
  small, large = accumulate(EPISODES), merge(parts()[:4])
  for accumulator in (small, large, accumulate([])):
    data = accumulator.to_bytes()
    read = statistics.Accumulator.from_bytes(data, "part")
    assert read.to_bytes() == data
    assert (read.hand, read.joint_names) == (accumulator.hand, accumulator.joint_names)
    for field in dataclasses.fields(statistics.Statistics):
      np.testing.assert_array_equal(getattr(read.finish(), field.name), getattr(accumulator.finish(), field.name))
  read = statistics.Accumulator.from_bytes(large.to_bytes(), "part")
  read.merge(parts()[4])  # and go on as if nothing had been written
  large.merge(parts()[4])
  assert read.to_bytes() == large.to_bytes()


def test_damaged_bytes_are_one_line_that_names_the_file():
  data = accumulate(EPISODES[:1]).to_bytes()
  rng = np.random.default_rng(0)
  damaged = [data[:n] for n in (0, 1, 21, 40, 53, 54, 60, len(data) - 1)] + [data + b"\0", b"\0" * 100]
  for place in [*range(60), *rng.integers(len(data), size=60)]:
    damaged.append(data[:place] + bytes([data[place] ^ 1 << int(rng.integers(8))]) + data[place + 1 :])
  for content in damaged:
    with pytest.raises(UserError, match=r"^parts/7\.bin: [^\n]*; prepare the data again$"):
      statistics.Accumulator.from_bytes(content, "parts/7.bin")
  with pytest.raises(UserError, match="of version 4"):
    statistics.Accumulator.from_bytes(data.replace(b"statistics 4", b"statistics 3", 1), "part")


def test_only_the_same_hand_merges():
  accumulator = accumulate(EPISODES)
  with pytest.raises(UserError, match="found hand 'another', expected 'a_hand'"):
    accumulator.merge(statistics.Accumulator("another", NAMES))
  with pytest.raises(UserError, match=r"found joints .*'thumb'.*, expected .*'left_0'"):
    accumulator.merge(statistics.Accumulator("a_hand", (("thumb",), ("thumb",))))


def test_where_the_world_s_origin_lies_changes_nothing(stats):
  T_new_world = geometry.se3(geometry.so3_exp(np.array([0.5, -1.0, 2.0])), np.array([0.7, -0.2, 0.4]))
  moved = [
    dataclasses.replace(labels, T_world_wrist_Fx2x4x4=(T_new_world @ labels.T_world_wrist_Fx2x4x4).astype(np.float32))
    for labels in EPISODES
  ]
  other = accumulate(moved).finish()
  for field in dataclasses.fields(stats):
    if field.name.endswith("LxA"):
      np.testing.assert_allclose(getattr(other, field.name), getattr(stats, field.name), atol=2e-6)


def test_what_a_mask_hides_changes_nothing(stats):
  poisoned = []
  for labels in EPISODES:
    mask = labels.valid_Fx2[..., None]
    pose = np.where(mask[..., None], labels.T_world_wrist_Fx2x4x4, np.float32(1e6))
    poisoned.append(
      dataclasses.replace(labels, T_world_wrist_Fx2x4x4=pose, joints_Fx2xJ=np.where(mask, labels.joints_Fx2xJ, np.float32(1e6)))
    )
  for field in dataclasses.fields(stats):
    np.testing.assert_array_equal(getattr(accumulate(poisoned).finish(), field.name), getattr(stats, field.name))


def test_a_label_that_is_not_finite_is_our_fault_and_told():
  labels = recordings.labels(20, J)
  labels.joints_Fx2xJ[3, 1, 2] = np.nan
  with pytest.raises(ValueError, match="not finite"):
    accumulate([labels]).finish()


def test_saved_and_loaded_is_the_same(stats, tmp_path):
  short = accumulate(EPISODES[2:]).finish()  # 20 frames: lags above 19 were never seen
  assert np.isnan(short.mean_LxA[19:, ~JOINTS]).all()
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
  for content, cause in (("{", "not JSON"), (json.dumps({"version": 1}), "version 2"), ("[]", "version 2")):
    path.write_text(content)
    with pytest.raises(UserError, match=cause):
      statistics.load(path)


@pytest.mark.parametrize(("horizon", "stride"), [(8, 1), (5, 3), (1, 64)])
def test_range_is_the_envelope_over_the_chunk_s_lags(stats, horizon, stride):
  normalizer = stats.normalizer(horizon, stride)
  tables = [reference(EPISODES, stride * k) for k in range(1, horizon + 1)]
  joints_Qx = np.nanquantile(all_joints(EPISODES), (0.01, 0.99), axis=0)
  low, high = (
    np.where(JOINTS, joints_Qx[i], pick([np.nanquantile(rows, rank, axis=0) for rows in tables], axis=0))
    for i, (pick, rank) in enumerate(((np.min, 0.01), (np.max, 0.99)))
  )
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


def dead(joint=None, position=None, turned=True):
  """Statistics of labels in which something stands still."""
  labels = recordings.labels(40, J)
  pose = labels.T_world_wrist_Fx2x4x4.astype(np.float64)
  if joint is not None:
    labels.joints_Fx2xJ[:, 0, joint] = 0.7
  if not turned:
    pose[:, 1, :3, :3] = pose[0, 1, :3, :3]
  if position is not None:
    pose[:, 1, position, 3] = 0.3
  return accumulate([dataclasses.replace(labels, T_world_wrist_Fx2x4x4=pose.astype(np.float32))]).finish()


@pytest.mark.parametrize("step", [np.float32(1e-7), np.float32(0.0)])
def test_what_never_moves_is_refused_with_its_names_and_values(step):
  labels = recordings.labels(40, J)
  labels.joints_Fx2xJ[:, 0, 0], labels.joints_Fx2xJ[:, 1, 2] = 0.7, 12.5
  labels.joints_Fx2xJ[::2, 0, 0] += step
  stats = accumulate([labels]).finish()
  told = r"^statistics of a_hand: found constant left\.left_0 = 0\.7, right\.right_2 = 12\.5, expected .*config\.data\.resting [^\n]*$"
  with pytest.raises(UserError, match=told):
    stats.normalizer(4)
  with pytest.raises(UserError, match=r"found constant right\.right_2 = 12\.5, expected"):
    stats.normalizer(4, resting=(r"left\.left_0", r"right\.right"))  # the whole name must match
  learnt_A = stats.normalizer(4, resting=(r".*_[02]",)).learnt_A
  np.testing.assert_array_equal(learnt_A, [not name.endswith(("_0", "_2")) for name in stats.action_names])


def test_a_constant_that_is_allowed_does_not_explode():
  normalizer = dead(joint=0).normalizer(4, resting=("left.left_0",))
  assert normalizer.rest_A[9] == np.float32(0.7)
  values = np.zeros(actions.action_dim(J), np.float32) + np.float32(0.7)
  assert abs(normalizer.normalize(values)[9]) < 1e-3  # in the middle
  np.testing.assert_allclose(normalizer.high_A[9] - normalizer.low_A[9], 1e-3, rtol=1e-3)
  assert abs(normalizer.normalize(values + np.float32(1e-4))[9]) < 0.3


def test_a_wrist_that_never_turns_is_refused():
  with pytest.raises(
    UserError, match=r"constant right\.r00 = 1, right\.r01 = \S+, right\.r02 = \S+, right\.r10 .* right\.r12 = \S+, expected"
  ):
    dead(turned=False).normalizer(8)


def test_a_wrist_that_never_moves_along_an_axis_is_refused():
  with pytest.raises(UserError, match=r"found constant right\.r00 = 1, .*r12"):  # it moves along all three, being at an angle
    dead(position=1, turned=False).normalizer(8)
  labels = recordings.labels(40, J)
  pose = labels.T_world_wrist_Fx2x4x4.copy()
  pose[:, 0, :3, 3] = 0.1
  with pytest.raises(UserError, match=r"found constant left\.x = 0, left\.y = 0, left\.z = 0, expected"):
    accumulate([dataclasses.replace(labels, T_world_wrist_Fx2x4x4=pose)]).finish().normalizer(8)


def test_a_wrist_that_turns_about_one_axis_or_hardly_is_not_refused():
  labels = recordings.labels(200, J)
  pose = labels.T_world_wrist_Fx2x4x4.astype(np.float64)
  angle_F = 0.3 * np.sin(np.arange(200) / 40)
  pose[..., :3, :3] = geometry.so3_exp(angle_F[:, None, None] * np.array([1.0, 0.0, 0.0]))
  stats = accumulate([dataclasses.replace(labels, T_world_wrist_Fx2x4x4=pose.astype(np.float32))]).finish()
  assert stats.max_LxA[0, 3] - stats.min_LxA[0, 3] < 1e-6  # r00 is 1
  for horizon in (1, 40):
    normalizer = stats.normalizer(horizon)
    np.testing.assert_allclose((normalizer.high_A - normalizer.low_A)[3], 1e-3, rtol=1e-3)


def test_a_joint_that_moves_rarely_is_not_refused():
  labels = recordings.labels(1000, J)
  labels.joints_Fx2xJ[:, 1, 0] = 0.0
  labels.joints_Fx2xJ[500, 1, 0] = 1.0
  stats = accumulate([labels]).finish()
  assert stats.q01_LxA[0, -J] == stats.q99_LxA[0, -J] == 0.0
  stats.normalizer(8)


def test_a_pattern_that_is_none_is_the_user_s_mistake(stats):
  with pytest.raises(UserError, match=r"config\.data\.resting: found \('\(',\), expected regular expressions"):
    stats.normalizer(8, resting=("(",))


def test_an_absent_hand_is_reported_and_left_as_it_is():
  stats = accumulate([recordings.labels(40, J, invalid=[(slice(None), 0)])]).finish()
  normalizer = stats.normalizer(8)
  left = np.arange(actions.action_dim(J)) < 9 + J
  np.testing.assert_array_equal(normalizer.observed_A, ~left)
  assert (normalizer.low_A[left] == -1).all()
  assert (normalizer.high_A[left] == 1).all()
  assert np.isfinite(normalizer.low_A).all()
  assert np.isnan(stats.mean_chunk(8)[:, left]).all()
  assert np.isfinite(stats.mean_chunk(8)[:, ~left]).all()


def test_lags_too_long_for_the_data_do_not_hide_those_that_are_there():
  normalizer = accumulate(EPISODES[2:]).finish().normalizer(32)  # 20 frames
  assert normalizer.observed_A.all()
  assert np.isfinite(normalizer.low_A).all()
  assert (normalizer.low_A < normalizer.high_A).all()


def test_an_episode_without_a_frame_or_with_one_adds_nothing():
  empty = [recordings.labels(frames, J) for frames in (0, 1)]
  assert not accumulate(empty).finish().count_LxA.any()


def test_mean_chunk_is_the_mean_of_each_step(stats):
  expected = np.where(JOINTS, np.nanmean(all_joints(EPISODES), axis=0), np.nanmean(reference(EPISODES, 6), axis=0))
  np.testing.assert_allclose(stats.mean_chunk(5, 3)[1], expected, atol=1e-6)


@pytest.mark.parametrize(("horizon", "stride"), [(65, 1), (22, 3), (0, 1), (4, 0)])
def test_a_lag_beyond_the_tail_is_refused(stats, horizon, stride):
  with pytest.raises(UserError, match=rf"horizon {horizon} and stride {stride}: found {horizon * stride} frames, expected 1 to 64"):
    stats.normalizer(horizon, stride)


def test_the_real_samples_pass_without_the_knob(shared):
  """Their wrists; the joints here are the fingertips seen from the wrist, as retargeting takes long."""
  episodes = [episode for episode in recordings.read_real(shared).values() if isinstance(episode, schema.Episode)]
  accumulator = statistics.Accumulator("a_hand", (tuple("abc"), tuple("abc")))
  for episode in episodes:
    pose = keypoints.wrist_frames(episode.keypoints_Fx2xPx3).astype(np.float32)
    tip = geometry.transform(geometry.se3_inverse(pose), episode.keypoints_Fx2xPx3[:, :, 8:9])[:, :, 0].astype(np.float32)
    valid = np.isfinite(pose).all(axis=(2, 3)) & np.isfinite(tip).all(axis=2)
    accumulator.add(schema.Labels(pose, tip, np.zeros(valid.shape, np.float32), valid))
  for horizon, stride in ((1, 1), (40, 1), (8, 8)):
    assert accumulator.finish().normalizer(horizon, stride).observed_A.all()

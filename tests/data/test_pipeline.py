"""Position = step: the same batch for any number of processes and workers and after any restart; what is in it; what cannot be read."""

import dataclasses
import itertools
import shutil

import jax
import numpy as np
import pytest
import tiny

from egoscale_jax.data import actions, examples, manifest, mixture, pipeline, shards, slots, tokenizer
from egoscale_jax.errors import UserError

STEPS = 12


@pytest.fixture(scope="module")
def setup(shards):
  config = tiny.config(shards, steps=STEPS)
  texts = [episode["text"] for episode in manifest.load(shards)["episodes"]]
  prompt = tokenizer.Prompt(tokenizer.build(texts, 512), 1, tiny.image_tokens(config), config.data.text_tokens)
  stats = slots.gather(config)
  whole = copies(pipeline.train_batches(config, prompt, stats, 0, 0, 1))
  return config, prompt, stats, whole


def copies(batches):
  return [jax.tree.map(np.array, batch) for batch in batches]


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def changed(config, **fields):
  config = config.copy_and_resolve_references()
  config.data.update(fields)
  return config


def test_stream_ends_with_the_run_and_batches_differ(setup):
  config, _, _, whole = setup
  assert len(whole) == STEPS
  np.testing.assert_array_equal(whole[3].position_B, 3 * config.batch_size + np.arange(config.batch_size))
  assert not np.array_equal(whole[0].image_BxCxYxXx3, whole[1].image_BxCxYxXx3)


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_batch_is_the_same_for_any_number_of_processes(setup, processes):
  config, prompt, stats, whole = setup
  parts = [itertools.islice(pipeline.train_batches(config, prompt, stats, 0, p, processes), 3) for p in range(processes)]
  for step, part in enumerate(zip(*parts)):
    same(jax.tree.map(lambda *rows: np.concatenate(rows), *part), whole[step])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("first_step", [0, 5, 11])
def test_batch_is_the_same_with_workers_and_after_a_resume(setup, workers, first_step):
  config, prompt, stats, whole = setup
  count = 0
  for step, batch in enumerate(pipeline.train_batches(changed(config, workers=workers), prompt, stats, first_step, 0, 1), first_step):
    same(batch, whole[step])
    count += 1
  assert count == STEPS - first_step


def test_workers_and_processes_together(setup):
  config, prompt, stats, whole = setup
  parts = [copies(pipeline.train_batches(changed(config, workers=2), prompt, stats, 9, p, 2)) for p in range(2)]
  for step, part in enumerate(zip(*parts)):
    same(jax.tree.map(lambda *rows: np.concatenate(rows), *part), whole[9 + step])


def test_threads_cache_and_prefetch_change_nothing(setup):
  config, prompt, stats, whole = setup
  for fields in (dict(cache_bytes=1), dict(threads=4), dict(prefetch_bytes=100_000)):
    for step, batch in enumerate(pipeline.train_batches(changed(config, **fields), prompt, stats, 0, 0, 1)):
      same(batch, whole[step])


def test_a_batch_that_is_held_is_not_written_again(setup):
  config, prompt, stats, whole = setup
  held = list(pipeline.train_batches(config, prompt, stats, 0, 0, 1))
  for step, batch in enumerate(held):
    same(batch, whole[step])
  assert len({batch.image_BxCxYxXx3.ctypes.data for batch in held}) == STEPS


def test_arrays_of_batches_are_taken_again_when_they_are_free():
  buffers = examples.Buffers()
  first = buffers.take(np.uint8, 4, 2)
  view, address = first[1:], first.ctypes.data
  assert buffers.take(np.uint8, 4, 2).ctypes.data != address
  del first
  assert buffers.take(np.uint8, 4, 2).ctypes.data != address  # the view holds it
  del view
  addresses = {array.ctypes.data for array in (buffers.take(np.uint8, 4, 2), buffers.take(np.uint8, 4, 2))}
  assert address in addresses
  assert buffers.take(np.float32, 4, 2).dtype == np.float32


def test_another_seed_is_another_stream(setup):
  config, prompt, stats, whole = setup
  config = config.copy_and_resolve_references()
  config.seed = 1
  other = next(pipeline.train_batches(config, prompt, stats, 0, 0, 1))
  assert not np.array_equal(other.action_BxTxA, whole[0].action_BxTxA)


def test_a_subset_of_the_hours_is_read_where_it_was_asked_for(setup, shards):
  config, *_ = setup
  numbers = {n: set(map(int, mixture.make(changed(config, twentieths=n)).components[0].split.record_ids)) for n in (1, 10, 20)}
  assert numbers[1] < numbers[10] < numbers[20]
  with pytest.raises(UserError, match=r"config.data.twentieths: found 21, expected 1 to 20"):
    mixture.make(changed(config, twentieths=21))


@pytest.fixture
def clip(shards):
  return shards_split(shards)[0]


def shards_split(folder):
  return shards.open_split(folder, shards.TRAIN)


def make(assembler, *windows):
  batch = assembler.allocate(len(windows))
  for row, window in enumerate(windows):
    assembler.decode(window, batch, row)
  return assembler.fill(batch, list(windows), np.arange(len(windows), dtype=np.int32))


def test_example_holds_the_chunk_of_its_frame(setup, clip):
  config, prompt, stats, _ = setup
  assembler = examples.make_assembler(config, prompt, stats)
  batch = make(assembler, examples.Window(clip, 3), examples.Window(clip, 0))
  width, horizon = actions.action_dim(22), config.model.horizon
  restored = assembler.slots[0].normalizer.denormalize(batch.action_BxTxA[..., :width])
  for row, frame in enumerate((3, 0)):
    mask = batch.action_mask_BxTxA[row, :, :width]
    assert mask.any()
    pose, joints = actions.split_chunk(restored[row], 22)
    for step in range(horizon):
      for side in range(2):
        valid = clip.valid_Fx2[[frame, frame + step + 1], side].all()
        assert mask[step].reshape(2, -1)[side].all() == mask[step].reshape(2, -1)[side].any() == valid
        if valid:  # the wrist as it is seen from the wrist at the start
          expected = np.linalg.inv(clip.T_world_wrist_Fx2x4x4[frame, side]) @ clip.T_world_wrist_Fx2x4x4[frame + step + 1, side]
          np.testing.assert_allclose(pose[step, side], expected, atol=2e-4)
          np.testing.assert_allclose(joints[step, side], clip.joints_Fx2xJ[frame + step + 1, side], atol=1e-4)
  assert not batch.action_mask_BxTxA[..., width:].any()
  assert not batch.action_BxTxA[..., width:].any()
  assert (batch.action_weight_BxTxA == 1).all()
  assert not batch.state_mask_B.any()
  assert batch.image_mask_BxC.all()


def test_steps_past_the_end_and_from_a_missing_hand_are_masked(setup, clip):
  config, prompt, stats, _ = setup
  assembler = examples.make_assembler(config, prompt, stats)
  short = dataclasses.replace(
    clip,
    T_world_wrist_Fx2x4x4=clip.T_world_wrist_Fx2x4x4[:7],
    joints_Fx2xJ=clip.joints_Fx2xJ[:7],
    valid_Fx2=clip.valid_Fx2[:7] & np.array([True, False]),
    residual_m_Fx2=clip.residual_m_Fx2[:7],
  )
  hands = make(assembler, examples.Window(short, 3)).action_mask_BxTxA[0, :, :62].reshape(-1, 2, 31)
  np.testing.assert_array_equal(hands[:, 0].all(axis=1), np.arange(len(hands)) < 3)
  assert not hands[:, 1].any()
  start = dataclasses.replace(clip, valid_Fx2=np.where(np.arange(len(clip.valid_Fx2))[:, None] == 3, False, clip.valid_Fx2))
  lost = make(assembler, examples.Window(start, 3))
  assert not lost.action_mask_BxTxA.any()
  dims = np.arange(config.model.action_dim) < 62  # what the hand has, whatever is labelled
  np.testing.assert_array_equal(lost.action_dims_BxA, dims[None])


def test_a_robot_that_tells_its_joints_alone_has_no_wrist_labels(setup, clip):
  config, prompt, stats, _ = setup
  blind = dataclasses.replace(clip, T_world_wrist_Fx2x4x4=np.full_like(clip.T_world_wrist_Fx2x4x4, np.nan))
  batch = make(examples.make_assembler(config, prompt, stats), examples.Window(blind, 3))
  hands = batch.action_mask_BxTxA[0, :, :62].reshape(-1, 2, 31)
  assert not hands[..., :9].any()
  assert hands[..., 9:].all()
  assert np.isfinite(batch.action_BxTxA).all()


def test_the_residual_weighs_the_joints_where_it_was_asked_for(setup, clip):
  config, prompt, stats, _ = setup
  residual = np.full_like(clip.residual_m_Fx2, np.nan)
  residual[5, 0], residual[5, 1], residual[6, 1] = 0.01, 0.02, 0.0
  window = examples.Window(dataclasses.replace(clip, residual_m_Fx2=residual), 3)
  assert (make(examples.make_assembler(config, prompt, stats), window).action_weight_BxTxA == 1.0).all()
  weight = make(examples.make_assembler(changed(config, residual_soft_m=0.01), prompt, stats), window).action_weight_BxTxA[0]
  hands = weight[:, :62].reshape(-1, 2, 31)
  np.testing.assert_allclose(hands[1, 0, 9:], 0.5)  # step 1 of a chunk at frame 3 is frame 5
  np.testing.assert_allclose(hands[1, 1, 9:], 0.2)
  hands[1, :, 9:] = 1.0
  assert (hands == 1.0).all()
  assert (weight[:, 62:] == 1.0).all()
  with pytest.raises(UserError, match=r"config.data.residual_soft_m: found -1.0, expected metres"):
    examples.make_assembler(changed(config, residual_soft_m=-1.0), prompt, stats)


def test_state_is_the_hands_seen_from_the_camera_and_only_where_it_was_asked_for(setup, clip):
  config, prompt, stats, _ = setup
  assembler = examples.make_assembler(changed(config, human_state=True), prompt, stats)
  batch = make(assembler, examples.Window(clip, 3))
  assert batch.state_mask_B.all()
  state = batch.state_BxS[0, :62].reshape(2, 31)
  wrist, camera = clip.keypoints_Nx2xPx3[3, :, 0], clip.T_world_camera_CxNx4x4[0, 3]
  np.testing.assert_allclose(state[:, :3] * actions.STATE_METRES, (wrist - camera[:3, 3]) @ camera[:3, :3], atol=1e-5)
  joints = assembler.slots[0].normalizer.denormalize(batch.state_BxS[0, :62]).reshape(2, 31)[:, 9:]
  np.testing.assert_allclose(joints, clip.joints_Fx2xJ[3], atol=1e-5)
  # A hand that is missing leaves no state: nothing is made up for it.
  valid = clip.valid_Fx2.copy()
  valid[3, 0] = False
  assert not make(assembler, examples.Window(dataclasses.replace(clip, valid_Fx2=valid), 3)).state_mask_B.any()
  assert not make(examples.make_assembler(config, prompt, stats), examples.Window(clip, 3)).state_mask_B.any()


def test_cameras_are_found_by_name_and_an_absent_one_is_masked(setup, clip):
  config, _, stats, _ = setup
  prompt = tokenizer.Prompt(setup[1].tokenizer, 3, tiny.image_tokens(config), config.data.text_tokens)
  wanted = changed(config, cameras=("left_wrist", "ego", clip.cameras[0]))
  batch = make(examples.make_assembler(wanted, prompt, stats), examples.Window(clip, 2))
  np.testing.assert_array_equal(batch.image_mask_BxC, [[False, True, True]])
  assert not batch.image_BxCxYxXx3[0, 0].any()
  np.testing.assert_array_equal(batch.image_BxCxYxXx3[0, 1], batch.image_BxCxYxXx3[0, 2])


def test_user_mistakes_are_named(setup, shards):
  config, prompt, stats, _ = setup

  def change(**overrides):
    return tiny.config(shards, **overrides)

  with pytest.raises(UserError, match=r"config.model.action_dim: found 60, the hand sharpa_wave needs 62"):
    examples.make_assembler(change(**{"model.action_dim": 60}), prompt, stats)
  with pytest.raises(UserError, match=r"config.data.cameras: found none"):
    examples.make_assembler(changed(config, cameras=()), prompt, stats)
  bad = change()
  with bad.unlocked():
    bad.data.slots = dict(robot=0)
  with pytest.raises(UserError, match=r"no slot for the embodiment 'human'"):
    slots.gather(bad)
  with pytest.raises(UserError, match=r"horizon 8 and stride 9: found 72 frames"):
    examples.make_assembler(change(**{"data.stride": 9}), prompt, stats)
  with pytest.raises(UserError, match=r"config.batch_size: found 8, expected a multiple of the 3 processes"):
    pipeline.train_batches(config, prompt, stats, 0, 0, 3)
  with pytest.raises(UserError, match=r"config.data.workers: found 3, expected a divisor of the 8 rows"):
    pipeline.train_batches(changed(config, workers=3), prompt, stats, 0, 0, 1)
  with pytest.raises(UserError, match=r"config.data.prefetch_bytes: found 10, one batch of this process takes \d+"):
    pipeline.train_batches(changed(config, prefetch_bytes=10), prompt, stats, 0, 0, 1)


@pytest.fixture
def damaged(shards, tmp_path):
  """A copy of the shards in which the pictures of one clip in five are zeros."""
  folder = tmp_path / "damaged"
  shutil.copytree(shards, folder)
  for path in sorted(folder.glob("egoscale/*/*array_record*"))[:1]:
    data = bytearray(path.read_bytes())
    begin = data.find(b"\xff\xd8\xff")
    data[begin : begin + 4000] = bytes(4000)
    path.write_bytes(data)
  return folder


def test_what_cannot_be_read_is_replaced_by_its_neighbour_counted_and_ends_the_run_above_a_limit(setup, damaged):
  config, prompt, stats, whole = setup
  config = changed(config, shards=str(damaged), unreadable=1.0)
  batches = pipeline.train_batches(config, prompt, stats, 0, 0, 1)
  lines, told = [], []
  for step, batch in enumerate(batches):
    told += batches.info.unreadable
    lines.append(jax.tree.map(np.array, batch))
    rows = {int(line.split("row ")[1].split(":")[0]) for line in batches.info.unreadable}
    for row in set(range(config.batch_size)) - rows:  # all others are as they were
      np.testing.assert_array_equal(batch.image_BxCxYxXx3[row], whole[step].image_BxCxYxXx3[row])
      np.testing.assert_array_equal(batch.action_BxTxA[row], whole[step].action_BxTxA[row])
  assert told
  assert all("the clip after it stands in its place" in line for line in told)
  for first_step, processes, workers in ((0, 2, 0), (5, 1, 0), (5, 1, 2)):  # the neighbour is the same wherever and whenever it is read
    parts = [
      copies(pipeline.train_batches(changed(config, workers=workers), prompt, stats, first_step, p, processes)) for p in range(processes)
    ]
    for step, part in enumerate(zip(*parts), first_step):
      same(jax.tree.map(lambda *rows: np.concatenate(rows), *part), lines[step])
  strict = tiny.config(damaged, steps=500, **{"data.unreadable": 1e-4})
  with pytest.raises(UserError, match=r"config.data.unreadable: \d+ of \d+ examples could not be read, expected at most a share of 0.0001"):
    for _ in pipeline.train_batches(strict, prompt, stats, 0, 0, 1):
      pass


def test_a_lost_file_ends_the_run_by_its_name(setup, damaged):
  config, prompt, stats, _ = setup
  for path in damaged.glob("egoscale/*/*array_record*"):
    path.unlink()
  with pytest.raises(UserError, match=r"8 clips in a row cannot be read: .*egoscale-clips.array_record-0000\d: record \d+ cannot be read"):
    next(pipeline.train_batches(changed(config, shards=str(damaged)), prompt, stats, 0, 0, 1))


def test_batches_tell_their_different_episodes(setup):
  config, prompt, stats, _ = setup
  for processes in (1, 2):
    batches = pipeline.train_batches(config, prompt, stats, 0, 0, processes)
    batch = next(batches)
    assert 1 <= batches.info.episodes <= min(5, len(batch.position_B))


def test_statistics_of_a_run_before_are_taken_and_must_be_of_these_joints(shards, tmp_path):
  own = slots.gather(tiny.config(shards))
  moved = {0: dataclasses.replace(own[0], mean_LxA=own[0].mean_LxA + 1)}
  slots.save(moved, tmp_path / "statistics.json")
  given = slots.of_run(tiny.config(shards, **{"data.statistics": tmp_path / "statistics.json"}))
  np.testing.assert_allclose(given[0].mean_LxA, own[0].mean_LxA + 1)
  other = dataclasses.replace(own[0], joint_names=tuple(f"joint_{i}" for i in range(7)))
  slots.save({0: other}, tmp_path / "other.json")
  with pytest.raises(UserError, match=r"config\.data\.statistics=.*: found 7 joints from joint_0, expected slot 0 with 22 joints"):
    slots.of_run(tiny.config(shards, **{"data.statistics": tmp_path / "other.json"}))
  slots.save({}, tmp_path / "none.json")
  with pytest.raises(UserError, match=r"found slots \[\], expected slot 0"):
    slots.of_run(tiny.config(shards, **{"data.statistics": tmp_path / "none.json"}))

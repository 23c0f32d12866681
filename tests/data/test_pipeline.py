"""Position = step: the same batch for any number of processes and workers and after any restart."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
import tiny

from egoscale_jax.data import actions, builder, manifest, pipeline, statistics, tokenizer
from egoscale_jax.errors import UserError

STEPS = 12


@pytest.fixture(scope="module")
def setup(shards):
  config = tiny.config(shards, steps=STEPS)
  texts = [episode["text"] for episode in manifest.load(shards)["episodes"]]
  prompt = tokenizer.Prompt(tokenizer.build(texts, 512), 1, tiny.image_tokens(config), config.data.text_tokens)
  stats = statistics.load(shards / "statistics.json")
  whole = list(pipeline.train_batches(config, prompt, stats, 0, 0, 1))
  return config, prompt, stats, whole


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


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
  config = config.copy_and_resolve_references()
  config.data.workers = workers
  count = 0
  for step, batch in enumerate(pipeline.train_batches(config, prompt, stats, first_step, 0, 1), first_step):
    same(batch, whole[step])
    count += 1
  assert count == STEPS - first_step


def test_workers_and_processes_together(setup):
  config, prompt, stats, whole = setup
  config = config.copy_and_resolve_references()
  config.data.workers = 2
  parts = [list(pipeline.train_batches(config, prompt, stats, 9, p, 2)) for p in range(2)]
  for step, part in enumerate(zip(*parts)):
    same(jax.tree.map(lambda *rows: np.concatenate(rows), *part), whole[9 + step])


def test_another_seed_is_another_stream(setup):
  config, prompt, stats, whole = setup
  config = config.copy_and_resolve_references()
  config.seed = 1
  other = next(pipeline.train_batches(config, prompt, stats, 0, 0, 1))
  assert not np.array_equal(other.action_BxTxA, whole[0].action_BxTxA)


def test_every_clip_is_seen_once_an_epoch(shards):
  source = builder.open_split(shards, "train")
  names = [f"{record['episode']}#{record['start']}" for record in map(source.__getitem__, range(len(source)))]
  stream = pipeline.make_stream(source, lambda record, frame: f"{record['episode']}#{record['start']}", seed=0)
  for epoch in range(3):
    seen = [stream[i] for i in range(epoch * len(names), (epoch + 1) * len(names))]
    assert sorted(seen) == sorted(names)


def test_example_holds_the_chunk_of_its_frame(setup, shards):
  config, prompt, stats, _ = setup
  examples = pipeline.make_examples(config, prompt, stats)
  record = builder.open_split(shards, "train")[0]
  example = examples(record, 3)
  width = actions.action_dim(22)
  mask = example["action_mask_BxTxA"][:, :width]
  chunk, expected_mask = actions.make_chunk(record["T_world_wrist"], record["joints"], record["valid"], 3, config.model.horizon)
  np.testing.assert_array_equal(mask, expected_mask)
  assert mask.any()
  restored = examples.normalizer.denormalize(example["action_BxTxA"][:, :width])
  np.testing.assert_allclose(restored[mask], chunk[mask], atol=1e-5)
  assert not example["action_mask_BxTxA"][:, width:].any()
  assert not example["state_mask_B"]


def test_the_residual_weighs_the_joints_where_it_was_asked_for(setup, shards):
  config, prompt, stats, _ = setup
  record = dict(builder.open_split(shards, "train")[0])
  record["residual_m"] = np.full_like(record["residual_m"], np.nan)
  record["residual_m"][5, 0], record["residual_m"][5, 1], record["residual_m"][6, 1] = 0.01, 0.02, 0.0
  assert (pipeline.make_examples(config, prompt, stats)(record, 3)["action_weight_BxTxA"] == 1.0).all()
  example = pipeline.make_examples(tiny.config(shards, **{"data.residual_soft_m": 0.01}), prompt, stats)(record, 3)
  weight = example["action_weight_BxTxA"]
  assert weight.shape == example["action_mask_BxTxA"].shape
  hands = weight[:, :62].reshape(-1, 2, 31)
  np.testing.assert_allclose(hands[1, 0, 9:], 0.5)  # step 1 of a chunk at frame 3 is frame 5
  np.testing.assert_allclose(hands[1, 1, 9:], 0.2)
  hands[1, :, 9:] = 1.0
  assert (hands == 1.0).all()
  assert (weight[:, 62:] == 1.0).all()
  with pytest.raises(UserError, match=r"config.data.residual_soft_m: found -1.0, expected metres"):
    pipeline.make_examples(tiny.config(shards, **{"data.residual_soft_m": -1.0}), prompt, stats)


def test_state_is_the_hands_seen_from_the_camera_and_only_where_it_was_asked_for(setup, shards):
  config, prompt, stats, _ = setup
  told = tiny.config(shards, **{"data.human_state": True})
  examples = pipeline.make_examples(told, prompt, stats)
  record = builder.open_split(shards, "train")[0]
  example = examples(record, 3)
  assert example["state_mask_B"]
  state = example["state_BxS"][:62].reshape(2, 31)
  wrist = record["keypoints"][3, :, 0]
  camera = record["T_world_camera"][3]
  np.testing.assert_allclose(state[:, :3] * actions.STATE_METRES, (wrist - camera[:3, 3]) @ camera[:3, :3], atol=1e-5)
  joints = examples.normalizer.denormalize(example["state_BxS"][:62]).reshape(2, 31)[:, 9:]
  np.testing.assert_allclose(joints, record["joints"][3], atol=1e-5)
  # A hand that is missing leaves no state: nothing is made up for it.
  gap = {**record, "valid": record["valid"].copy()}
  gap["valid"][3, 0] = False
  assert not examples(gap, 3)["state_mask_B"]
  assert not pipeline.make_examples(config, prompt, stats)(record, 3)["state_mask_B"]


def test_user_mistakes_are_named(setup, shards):
  config, prompt, stats, _ = setup

  def change(**overrides):
    return tiny.config(shards, **overrides)

  with pytest.raises(UserError, match=r"config.model.action_dim: found 60, the hand sharpa_wave needs 62"):
    pipeline.make_examples(change(**{"model.action_dim": 60}), prompt, stats)
  with pytest.raises(UserError, match=r"config.data.cameras"):
    pipeline.make_examples(change(**{"data.cameras": ("ego", "left")}), prompt, stats)
  bad = change()
  with bad.unlocked():
    bad.data.slots = dict(robot=0)
  with pytest.raises(UserError, match=r"no slot for the embodiment 'human'"):
    pipeline.make_examples(bad, prompt, stats)
  with pytest.raises(UserError, match=r"horizon 8 and stride 9: found 72 frames"):
    pipeline.make_examples(change(**{"data.stride": 9}), prompt, stats)
  with pytest.raises(UserError, match=r"hand 'sharpa_wave', the run's is 'dex3'"):
    pipeline.make_examples(config, prompt, dataclasses.replace(stats, hand="dex3"))
  with pytest.raises(UserError, match=r"config.batch_size: found 8, expected a multiple of the 3 processes"):
    pipeline.train_batches(config, prompt, stats, 0, 0, 3)

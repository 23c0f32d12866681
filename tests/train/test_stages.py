"""From stage to stage: pairs in the ratio asked for, a beginning anew but for the parameters, and mistakes in one line."""

import collections

import jax
import numpy as np
import optax
import pytest
import recordings
import robots
import tiny

from egoscale_jax import cli
from egoscale_jax.data import prepare, schema
from egoscale_jax.errors import UserError
from egoscale_jax.train import checkpoint, main, run, sharding

TASKS = ("Fold the shirt.", "Open the bottle.")
BATCH, STEPS = 16, 8


def human(i, text):
  return recordings.episode(50 + i, i, f"human/{i:03d}", scene=f"human {i}", text=text)


def robot(i, text):
  return recordings.robot(40 + i, i, f"robot/{i:03d}", scene=f"robot {i}", text=text)


def prepared(folder, episodes):
  source = recordings.Cached({schema.Recording(e.id, (f"{e.id}.hdf5",)): e for e in episodes})
  prepare.prepare(source, folder, folder / "out", "testbot" if episodes[0].embodiment == "human" else None, image_size=64, validation=0.0)
  return str(folder / "out")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """{name: shards}: play of people and of a robot in two tasks, demonstrations of the first one, and other video of people."""
  root = tmp_path_factory.mktemp("stages")

  episodes = {
    "human_play": [human(i, TASKS[i % 2]) for i in range(6)],
    "video": [human(10 + i, "Wash up.") for i in range(3)],
    "robot_play": [robot(i, TASKS[i % 2]) for i in range(2)],
    "one_demonstration": [robot(7, TASKS[0])],
    "human_demonstrations": [human(20 + i, TASKS[0]) for i in range(20)],
  }
  result = {}
  with robots.quick_labels("l0", "l1"):
    for name, several in episodes.items():
      (root / name).mkdir()
      result[name] = prepared(root / name, several)
  return result


def make_config(stage, mixture, **overrides):
  """A stage's own parts on the model of `tiny_run`."""
  fields = {**tiny.RUN, "batch_size": BATCH, "steps": STEPS, "checkpoint_every": STEPS, "validation.episodes": 0, **overrides}
  parts = {"midtrain": ("vision/.*", "expert/.*"), "posttrain": ("expert/.*",)}[stage]  # tiny_run has no mixer
  config = tiny.config(**fields, train_parts=parts)
  with config.unlocked():
    config.data.mixture = mixture
    config.data.slots = dict(human=0, testbot=1)  # here apart, so that a batch tells who is in a row
    config.data.temperature = float("inf")
    config.data.windows = 1  # shares are dealt by the record: with `mix` of them a row, these steps see each once
    config.data.resting = (r"left\..*",)
  return config


def train(config, workdir, monkeypatch):
  """-> every batch that reached the step."""
  seen, to_global = [], sharding.to_global

  def noted(batch, mesh):
    seen.append(jax.tree.map(np.copy, batch))
    return to_global(batch, mesh)

  monkeypatch.setattr(sharding, "to_global", noted)
  main.main(config, workdir, jax.devices()[:1])
  assert len(seen) == config.steps
  return seen


def test_midtraining_takes_pairs_in_the_ratio_and_begins_anew_but_for_the_parameters(folders, tiny_run, tmp_path, monkeypatch):
  play = dict(shards=folders["robot_play"], pairs=folders["human_play"], weight=3.0)
  config = make_config("midtrain", {"play": play, "video": dict(shards=folders["video"])}, init_from=str(tiny_run))
  batches = train(config, tmp_path / "mid", monkeypatch)
  pairs = np.concatenate([batch.embodiment_B.reshape(-1, 2) for batch in batches])
  text = np.concatenate([batch.token_BxL.reshape(-1, 2, batch.token_BxL.shape[1]) for batch in batches])
  kinds = collections.Counter(map(tuple, pairs.tolist()))
  assert set(kinds) == {(0, 1), (0, 0)}, "a person and the robot, or two of other video"
  assert kinds[0, 1] / len(pairs) == pytest.approx(0.75, abs=0.05)
  of_pairs = text[pairs[:, 1] == 1]
  np.testing.assert_array_equal(of_pairs[:, 0], of_pairs[:, 1])  # of one task
  assert len(np.unique(of_pairs[:, 0], axis=0)) == len(TASKS)
  assert np.concatenate([batch.action_mask_BxTxA.reshape(BATCH, -1).any(axis=1) for batch in batches]).mean() > 0.9

  begun, params, step = run.open_run(tmp_path / "mid")
  _, before, _ = run.open_run(tiny_run)
  assert step == STEPS, "counted from the stage's own first step, not from the 24 before it"
  with checkpoint.manager(tmp_path / "mid") as checkpoints:
    state = checkpoint.restore(checkpoints, step, begun.state_shapes, begun.state_shardings)
  counts = [int(leaf) for leaf in jax.tree.leaves(state.opt_state) if not leaf.ndim]
  assert counts == [STEPS, STEPS], "Adam's and the schedule's"
  jax.tree.map(np.testing.assert_array_equal, params["language"], before["language"])
  for part in ("vision", "expert"):
    moved = optax.tree.norm(jax.tree.map(np.subtract, params[part], before[part]))
    assert 0 < moved < 0.2 * optax.tree.norm(before[part]), "from where the stage before ended"


def test_one_demonstration_beside_many_of_people(folders, tiny_run, tmp_path, monkeypatch):
  """The paper's one-shot: every second row is of the robot's one demonstration, those before them of people's (test_mixture: of all)."""
  pairs = dict(shards=folders["one_demonstration"], pairs=folders["human_demonstrations"])
  config = make_config("posttrain", {"shirt": pairs}, init_from=str(tiny_run), **{"data.windows": 1, "data.mix": 2})
  config.steps = 3 * STEPS
  batches = train(config, tmp_path / "post", monkeypatch)
  assert all((batch.embodiment_B == np.tile((0, 1), BATCH // 2)).all() for batch in batches)
  chunks = [len({batch.action_BxTxA[row].tobytes() for batch in batches for row in range(first, BATCH, 2)}) for first in (0, 1)]
  assert chunks[0] > 60, "so many windows of people"
  assert chunks[1] <= 47, "of the one demonstration's 47 frames"
  _, params, _ = run.open_run(tmp_path / "post")
  _, before, _ = run.open_run(tiny_run)
  for part in ("vision", "language"):
    jax.tree.map(np.testing.assert_array_equal, params[part], before[part])


MISTAKES = [
  ({"mesh.data": 3, "mesh.fsdp": 1}, "config.mesh: found {'data': 3, 'fsdp': 1, 'tensor': 1}, expected a product of 8 devices"),
  ({"batch_size": 12, "mesh.data": 8}, "config.batch_size: found 12, expected a multiple of data x fsdp = 8"),
  (
    {"batch_size": 16, "mesh.data": 8, "accumulate": 4},
    "config.batch_size: found 16, expected a multiple of data x fsdp x config.accumulate = 8 x 4",
  ),
  ({"batch_size": 8, "train_parts": "('visoin/.*',)"}, "config.train_parts: 'visoin/.*' matches no parameter"),
  (
    {"mesh.data": -1, "mesh.fsdp": -1},
    "config.mesh: found {'data': -1, 'fsdp': -1, 'tensor': 1}, expected sizes from 1, or of one of them -1",
  ),
  (
    {"batch_size": 8, "train_parts": "('*expert',)"},
    "config.train_parts: found '*expert', expected a regular expression: nothing to repeat",
  ),
  (
    {"batch_size": 8, "optim.rates": "(('*expert', 0.1),)"},
    "config.optim.rates: found '*expert', expected a regular expression: nothing to repeat",
  ),
  (
    {"batch_size": 8, "lora.rank": 2, "lora.paths": "('expert/(',)"},
    "config.lora.paths: found 'expert/(', expected a regular expression: missing )",
  ),
  ({"validation.batch_size": 0}, "config.validation.batch_size: found 0, expected at least 1"),
  ({"validation.draws": 0}, "config.validation.draws: found 0, expected at least 1"),
  ({"validation.times": 0}, "config.validation.times: found 0, expected at least 1"),
  ({"model.flow.steps": 0}, "config.model.flow.steps: found 0, expected at least 1"),
  ({"profile": "(1, 'a')"}, "config.profile: found (1, 'a'), expected (first, last) step, or ()"),
  ({"batch_size": 8, "init_from": "nowhere"}, "nowhere: config.json is missing, expected a work directory of `egoscale train`"),
]


@pytest.mark.parametrize(("fields", "expected"), MISTAKES)
def test_a_mistake_is_one_line_before_the_first_step(shards, tmp_path, capsys, fields, expected):
  flags = tiny.flags(shards, {**tiny.RUN, "validation.episodes": 0, **fields})
  assert cli.main(["train", f"--workdir={tmp_path}/run", *flags]) == 1
  told = capsys.readouterr().err
  assert told.startswith(f"egoscale train: {expected}")
  assert told.count("\n") == 1
  assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_init_from_of_another_model_lists_the_paths(shards, tiny_run, tmp_path):
  config = tiny.config(shards, **{**tiny.RUN, "init_from": str(tiny_run), "model.expert.output": 48, "model.vision.mlp": 48})
  with pytest.raises(UserError) as told:
    main.main(config, tmp_path / "run", jax.devices()[:1])
  line = str(told.value)
  assert line.count("params/") == 3
  assert "more)" in line
  assert "\n" not in line
  assert str(tiny_run) in line

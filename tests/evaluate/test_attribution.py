"""Ranking of training data by its gradients: by hand where these are known, and on a run with a source whose labels are wrong (slow)."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recordings
import tiny

from egoscale_jax import cli
from egoscale_jax.data import prepare, schema
from egoscale_jax.data.sources import egodex
from egoscale_jax.errors import UserError
from egoscale_jax.evaluate import attribution
from egoscale_jax.train import main


class Known:
  """Groups without data: a batch of group g is the point whose gradient is direction[g] plus noise of its own."""

  def __init__(self, directions, noise, folds):
    self.directions, self.noise, self.folds = directions, noise, folds

  def group(self, kind, name):
    return types.SimpleNamespace(
      kind=kind, name=name, hours=1.0, episodes=range(self.folds), folds=lambda count: [name] * min(count, self.folds)
    )

  def batch(self, assembler, fold, size, seed, number):
    rng = np.random.default_rng([seed, number, sum(map(ord, fold))])
    return jnp.asarray(self.directions[fold] + self.noise * rng.standard_normal(len(self.directions[fold])), jnp.float32)


def ranked(monkeypatch, directions, noise=0.0, folds=8, batches=8):
  known = Known(directions, noise, folds)
  monkeypatch.setattr(attribution, "batch", known.batch)
  groups = [known.group(attribution.SOURCES, name) for name in directions if name != "goal"]
  loss = lambda learned, batch, seed: jnp.vdot(learned, batch)  # noqa: E731  # whose gradient is the batch
  told = attribution.rank(loss, jnp.zeros(len(directions["goal"])), None, known.group("target", "goal"), groups, batches, 4)
  return {row["name"]: row for row in told["groups"]}, told


def test_effects_by_hand(monkeypatch):
  """Target (2, 0): (2, 0) is the target itself; (1, 1) half of it, at 45 degrees; (0, 3) nothing; (-2, 0) its opposite."""
  directions = {"goal": (2.0, 0.0), "same": (2.0, 0.0), "half": (1.0, 1.0), "other": (0.0, 3.0), "harm": (-2.0, 0.0)}
  rows, told = ranked(monkeypatch, {name: np.array(d) for name, d in directions.items()})
  assert [row["name"] for row in told["groups"]] == ["same", "half", "other", "harm"]
  assert [row["effect"] for row in told["groups"]] == pytest.approx([1.0, 0.5, 0.0, -1.0])
  assert [row["cosine"] for row in told["groups"]] == pytest.approx([1.0, np.sqrt(0.5), 0.0, -1.0])
  assert rows["harm"]["rank"] == 4
  assert rows["half"]["effect_95"] == pytest.approx([0.5, 0.5]), "without noise there is nothing unsure"
  assert len(attribution.lines(told)) == 6


def test_noise_widens_the_interval_and_biases_nothing(monkeypatch):
  """Gradients under noise 3 times as long as they are: the effect stays where it is, the norms too."""
  rng = np.random.default_rng(0)
  goal = rng.standard_normal(2000)
  goal /= np.linalg.norm(goal)
  noise = 3.0 / np.sqrt(2000)
  rows, _ = ranked(monkeypatch, {"goal": goal, "same": goal, "harm": -goal}, noise, folds=16, batches=16)
  assert rows["same"]["effect"] == pytest.approx(1.0, abs=0.35)
  assert rows["same"]["cosine"] == pytest.approx(1.0, abs=0.35)
  low, high = rows["same"]["effect_95"]
  assert 0.05 < high - low < 1.0
  assert low < 1.0 < high
  assert rows["harm"]["effect_95"][1] < 0 < low


def test_a_groups_own_product_is_of_different_batches():
  """(1, 1) . (1, -1) = 0, whatever their lengths."""
  product_KxM, own = attribution._products(jnp.array([[2.0, 0.0]]), iter(jnp.array([[1.0, 1.0], [1.0, -1.0]])))
  np.testing.assert_allclose(product_KxM, [[2.0], [2.0]])
  assert own == pytest.approx(0.0)


def test_few_episodes_have_no_interval(monkeypatch):
  rows, _ = ranked(monkeypatch, {"goal": np.ones(2), "same": np.ones(2)}, folds=2)
  assert rows["same"]["effect_95"] is None
  assert rows["same"]["batches"] == 2
  rows, told = ranked(monkeypatch, {"goal": np.ones(2), "same": np.ones(2)}, folds=8)
  assert rows["same"]["effect_95"] is not None
  assert "too few" not in "".join(attribution.lines(told))
  with pytest.raises(UserError, match="--batches: found 2, expected at least 3"):
    ranked(monkeypatch, {"goal": np.ones(2), "same": np.ones(2)}, batches=2)


def test_a_target_without_a_gradient_is_refused(monkeypatch):
  with pytest.raises(UserError, match="cannot be told from zero"):
    ranked(monkeypatch, {"goal": np.zeros(2), "same": np.ones(2)})


def test_folds_and_groups_are_of_different_episodes(shards):
  config = tiny.config(shards)
  groups = attribution.groups(config)
  source = next(group for group in groups if group.kind == attribution.SOURCES)
  assert source.name == f"{shards.name} ({schema.HUMAN})"
  assert len(source.episodes) == 5
  assert len([group for group in groups if group.kind == attribution.TASKS]) == 5
  folds = source.folds(3)
  assert sorted(len(fold) for fold in folds) == [1, 2, 2]
  assert sorted(row for fold in folds for _, row in fold) == sorted(row for _, row in source.episodes)
  assert sum(group.hours for group in groups if group.kind == attribution.TASKS) == pytest.approx(source.hours)
  half = attribution.groups(tiny.config(shards, **{"data.twentieths": 8}))
  assert len(half[0].episodes) == 2, "only what the run trained on"
  with pytest.raises(UserError, match="found 1 held-out episodes, expected at least 2"):
    attribution.target(shards)


def write_source(folder, change=None):
  """Shards of 12 scenes: frame i of a video is grey(i), and tells where in its motion, the same in all, the hands are."""
  for i in range(12):
    recordings.write(folder / "in", f"scene{i}/0", frames=60, seed=0, change=change)
  prepare.prepare(egodex, folder / "in", folder / "out", "sharpa_wave", workers=1, image_size=64, validation=0.25)
  return str(folder / "out")


def backwards(file):
  """The labels run backwards while the pictures run on."""
  for key in set(file["transforms"]) - {"camera"}:
    file[f"transforms/{key}"][...] = file[f"transforms/{key}"][()][::-1]


@pytest.mark.slow
def test_a_source_with_wrong_labels_ranks_last(tmp_path, capsys):
  """Two sources whose labels fit share a run with one whose labels do not; the target is the held-out split of the first."""
  folders = {
    "fits": write_source(tmp_path / "a"),
    "fits_too": write_source(tmp_path / "b"),
    "wrong": write_source(tmp_path / "c", backwards),
  }
  made = tiny.config("", **tiny.SHALLOW, **{"steps": 300, "batch_size": 16, "checkpoint_every": 300, "validate_every": 300}).unlock()
  made.data.mixture = {name: dict(shards=path) for name, path in folders.items()}
  main.main(made.lock(), tmp_path / "run", jax.devices()[:1])
  argv = ["scaling", "--attribute", f"--workdir={tmp_path / 'run'}"]
  assert cli.main(argv) == 1
  assert "--target: found none, expected one of" in capsys.readouterr().err
  assert cli.main([*argv, f"--target={folders['fits']}", "--batch_size=64"]) == 0
  print(capsys.readouterr().out)
  told = json.loads((tmp_path / "run" / "attribution.json").read_text())
  rows = [row for row in told["groups"] if row["kind"] == attribution.SOURCES]
  assert [row["name"].split()[0] for row in rows][-1] == "wrong"
  assert all(row["effect_95"][0] > rows[-1]["effect_95"][1] for row in rows[:-1]), "and its interval lies below the others'"
  assert rows[-1]["effect"] < 0 < rows[1]["effect"]
  assert told["step"] == 300

"""What a checkpoint holds, what moved between two, and its parameters alone."""

import json

import jax
import numpy as np
import pytest
import tiny

from egoscale_jax.errors import UserError
from egoscale_jax.models import vla
from egoscale_jax.train import checkpoint, contents
from egoscale_jax.train import step as step_lib


def save(workdir, **states):
  """{"at_3": tree} -> checkpoints of those steps."""
  with checkpoint.manager(workdir, keep=9) as checkpoints:
    for name, tree in states.items():
      checkpoint.save(checkpoints, int(name.removeprefix("at_")), tree)
    checkpoints.wait_until_finished()


def tree(scale, **more):
  vision = {"kernel": scale * np.arange(6, dtype=np.float32).reshape(2, 3)}
  params = {"vision": vision, "expert": {"out": {"kernel": np.ones((4,), np.float32), "bias": np.zeros(2, np.float32)}}}
  return {"step": np.int32(7), "params": params, "average": ({"vision": {"kernel": np.full((2, 3), 9, np.float32)}}, None), **more}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("contents")
  moved = tree(1.0)
  moved["params"]["vision"]["kernel"][1, 2] += 3.0
  moved["params"]["expert"]["out"]["bias"][0] = np.nan
  save(folder, at_2=tree(1.0), at_5=moved)
  return folder


def test_leaves_are_listed_without_a_value(workdir, monkeypatch):
  monkeypatch.setattr(checkpoint, "read", lambda *_: pytest.fail("a value was read"))
  assert contents.steps(workdir) == [2, 5]
  found = {leaf.name: (leaf.shape, leaf.dtype.name, leaf.bytes) for leaf in contents.leaves(workdir, 2)}
  assert found == {
    "average/0/vision/kernel": ((2, 3), "float32", 24),
    "params/expert/out/bias": ((2,), "float32", 8),
    "params/expert/out/kernel": ((4,), "float32", 16),
    "params/vision/kernel": ((2, 3), "float32", 24),
    "step": ((), "int32", 4),
  }


@pytest.mark.parametrize("group_bytes", [1, 2**30])
def test_values_are_those_asked_for_and_no_others(workdir, monkeypatch, group_bytes):
  monkeypatch.setattr(contents, "GROUP_BYTES", group_bytes)
  asked, read = [], checkpoint.read
  monkeypatch.setattr(checkpoint, "read", lambda workdir, step, names: asked.append(names) or read(workdir, step, names))
  found = dict(contents.values(workdir, "params/vision/.*|average/.*", 2))
  assert list(found) == ["average/0/vision/kernel", "params/vision/kernel"]
  np.testing.assert_array_equal(found["params/vision/kernel"], np.arange(6).reshape(2, 3))
  np.testing.assert_array_equal(found["average/0/vision/kernel"], np.full((2, 3), 9))
  assert [name for names in asked for name in names] == list(found)
  assert len(asked) == (2 if group_bytes == 1 else 1)


def test_norms_of_leaves_and_of_parts(workdir):
  found = contents.norms(workdir, step=2)
  assert found["params/expert/out/kernel"] == contents.Norm(4, 1.0, 1.0, 0)
  parts = contents.part_norms(found)
  assert list(parts) == ["params/expert", "params/vision"]
  assert parts["params/expert"] == contents.Norm(6, pytest.approx((4 / 6) ** 0.5), 1.0, 0)
  assert parts["params/vision"].rms == pytest.approx((55 / 6) ** 0.5)
  assert contents.part_norms(found, 1)["params"].size == 12
  assert contents.norms(workdir, step=5)["params/expert/out/bias"] == contents.Norm(2, 0.0, 0.0, 1)


def test_what_moved_and_what_did_not(workdir):
  found = contents.compare(workdir, workdir, "params/(vision|expert/out/kernel).*", 2, 5)
  assert found["params/expert/out/kernel"].share == 0.0
  vision = found["params/vision/kernel"]
  assert (vision.difference, vision.first) == (3.0, pytest.approx(55**0.5))
  parts = contents.part_moves(found, 1)
  assert parts["params"].size == 10
  assert parts["params"].share == pytest.approx(3 / 59**0.5)
  assert contents.Moved(1, 0.0, 2.0, 2.0).share == np.inf


def test_mistakes_are_one_line(workdir, tmp_path):
  with pytest.raises(UserError, match=r"found no checkpoint of step 3, expected one of \[2, 5\]"):
    contents.leaves(workdir, 3)
  with pytest.raises(UserError, match=r"'language/\.\*' matches no leaf of step 2, expected a name such as 'average/0/vision/kernel'"):
    next(contents.values(workdir, "language/.*", 2))
  other = tree(1.0)
  other["params"]["vision"]["kernel"] = np.zeros((2, 4), np.float32)
  save(tmp_path, at_1=other)
  with pytest.raises(UserError, match=r"params/vision/kernel: found \(2, 4\), expected \(2, 3\) as in .*other models"):
    contents.compare(workdir, tmp_path, first_step=2)
  with pytest.raises(UserError, match=r"found something there, expected a new or an empty folder"):
    contents.take_parameters(workdir, tmp_path)


def test_the_running_mean_or_what_was_under_training_alone(tmp_path):
  config = tiny.config(**tiny.SHALLOW, **{"ema": 0.5, "train_parts": ("mixer/.*", "expert/.*")})
  model = vla.VLA(config.model)
  state = jax.eval_shape(lambda batch: step_lib.init_state(model, config, batch), vla.blank_batch(config.model, 1))
  state = tiny.params({name: getattr(state, name) for name in ("params", "average")})
  save(tmp_path / "run", at_3=state)
  (tmp_path / "run" / "config.json").write_text(config.to_json())
  (tmp_path / "run" / "tokenizer.json").write_text("{}")
  mean = tmp_path / "mean"
  contents.take_parameters(tmp_path / "run", mean)
  contents.take_parameters(tmp_path / "run", tmp_path / "trained", averaged=False)
  assert contents.steps(mean) == [3]
  assert (mean / "tokenizer.json").read_text() == "{}"
  assert json.loads((mean / "config.json").read_text())["ema"] == 0
  assert all(leaf.name.startswith("params/") for leaf in contents.leaves(mean))
  taken, trained = dict(contents.values(mean)), dict(contents.values(tmp_path / "trained"))
  was = dict(contents.values(tmp_path / "run"))
  learned = [name for name in taken if f"average/0/{name.removeprefix('params/')}" in was]
  assert 0 < len(learned) < len(taken)
  for name in taken:
    np.testing.assert_array_equal(trained[name], was[name])
    of_mean = f"average/0/{name.removeprefix('params/')}"
    np.testing.assert_array_equal(taken[name], was[of_mean if name in learned else name])
  assert not np.array_equal(taken[learned[0]], trained[learned[0]])

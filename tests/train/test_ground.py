"""The backbone's school: pictures in a folder, a work directory that the next stage begins from, and the same numbers again."""

import functools
import hashlib
import json
import shutil

import jax
import numpy as np
import pytest
import tiny

from egoscale_jax.data import tokenizer
from egoscale_jax.errors import UserError
from egoscale_jax.evaluate import steps
from egoscale_jax.models import vla
from egoscale_jax.sim.bench import stills
from egoscale_jax.train import ground
from egoscale_jax.train import run as run_lib

PLAN = stills.Plan("train", 0, 3, 3, 32)


@pytest.fixture(scope="module")
def school(tmp_path_factory):
  """-> (folder of pictures, config of a tiny model with a tokenizer)."""
  folder = tmp_path_factory.mktemp("school")
  ground.make_stills(folder / "stills", PLAN, 1)
  texts = ["Pick up the red cube and place it in the blue basket.", "Where is the yellow can?", "Open the bottle with the green cap."]
  (folder / "tokenizer.json").write_text(tokenizer.build(texts, 512).to_str())
  config = tiny.config(**{**tiny.SHALLOW, "steps": 3, "batch_size": 4, "model.language.vocab": 512, "data.text_tokens": 64})
  config = config.copy_and_resolve_references().unlock()
  config.data.tokenizer = str(folder / "tokenizer.json")
  config.model.image_token = 2
  return folder, config


def leaves(workdir):
  """Of the newest parameters of a work directory."""
  _, params, step = run_lib.open_run(workdir)
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)}, step


def test_the_folder_holds_what_the_scenes_show(school):
  folder, config = school
  made = [still for index in range(PLAN.scenes) for still in stills.scene(PLAN, index)]
  found = ground.Stills(folder / "stills", run_lib.make_prompt(config, tokenizer.load(config.data.tokenizer)))
  assert found.count == len(made)
  for i, still in enumerate(made):
    np.testing.assert_array_equal(found.picture_NxYxXx3[i], still.picture_YxXx3)
    assert tuple(found.names[i]) == still.names
    np.testing.assert_allclose(found.place_NxQx2[i, : len(still.names)], still.place_Nx2)
    assert found.name_mask_NxQxW[i].any(axis=-1).sum() == len(still.names)


def test_a_sentence_names_what_it_asks_for(school):
  folder, config = school
  text = tokenizer.load(config.data.tokenizer)
  found = ground.Stills(folder / "stills", run_lib.make_prompt(config, text))
  rows, twos = np.repeat(np.arange(found.count), 10), 0
  asked = found.ask(np.random.default_rng(0), rows)
  for k, row in enumerate(rows):
    sentence = text.decode(asked.token_BxL[k][asked.token_mask_BxL[k]].tolist())
    names = [found.names[row][i] for i in asked.said_BxN[k][asked.said_mask_BxN[k]]]
    places = [sentence.index(name) for name in names]
    assert places == sorted(places)
    twos += len(names) == 2
  assert 0.2 * len(rows) < twos < 0.8 * len(rows)


def test_a_run_begins_from_what_was_learned_and_killed_school_gives_the_same(school, tmp_path):
  folder, config = school
  attend = functools.partial(ground.main, config=config, train=folder / "stills", held_out=folder / "stills")
  figures = [attend(tmp_path / "a")]
  shutil.copytree(tmp_path / "a", tmp_path / "b")
  (tmp_path / "b" / "config.json").unlink()  # as one that was killed while it saved leaves it
  figures.append(attend(tmp_path / "b"))
  assert figures[0] == figures[1] == json.loads((tmp_path / "a" / steps.POINTING).read_text())
  assert figures[0]["step"] == 3
  (first, step), (second, _) = (leaves(tmp_path / name) for name in "ab")
  assert step == 0
  fresh = vla.VLA(config.model).init(jax.random.key(config.seed), vla.blank_batch(config.model, 1))["params"]
  fresh = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(fresh)}
  assert first.keys() == fresh.keys()
  for name in fresh:
    np.testing.assert_array_equal(first[name], second[name])
  changed = {name.split("'")[1] for name in fresh if (first[name] != fresh[name]).any()}
  assert changed == {"vision", "language", "mixer"}  # the expert has learned nothing


def test_pictures_are_the_same_bytes_on_one_process_and_two(school, tmp_path):
  ground.make_stills(tmp_path / "again", PLAN, 2)
  digest = lambda at: [hashlib.sha256((at / name).read_bytes()).hexdigest() for name in (ground.PICTURES, ground.THINGS)]  # noqa: E731
  assert digest(tmp_path / "again") == digest(school[0] / "stills")


def test_a_sentence_that_may_not_fit_is_told_before_training(school):
  folder, config = school
  config = config.copy_and_resolve_references()
  config.data.text_tokens = 14
  with pytest.raises(UserError, match=r"config.data.text_tokens: found 14, the instruction '"):
    ground.Stills(folder / "stills", run_lib.make_prompt(config, tokenizer.load(config.data.tokenizer)))

"""How a work directory begins: what it takes from the stage before it, and what is refused before it is a run."""

import json
import shutil

import jax
import pytest
import tiny

from egoscale_jax.data import tokenizer
from egoscale_jax.errors import UserError
from egoscale_jax.train import contents, main, run


def begin(workdir, shards, **overrides):
  return run.start(tiny.config(shards, **{**tiny.RUN, "validation.episodes": 0, **overrides}), workdir, jax.devices()[:1])


@pytest.fixture(scope="module")
def other(shards, tmp_path_factory):
  """`shards` with other instructions, of which a new tokenizer would make other tokens."""
  folder = shutil.copytree(shards, tmp_path_factory.mktemp("other") / "out")
  told = json.loads((folder / "manifest.json").read_text())
  for i, episode in enumerate(told["episodes"]):
    episode["text"] = f"Wash dish {i}."
  (folder / "manifest.json").write_text(json.dumps(told))
  return folder


def test_a_stage_reads_with_the_tokenizer_of_the_one_before(tiny_run, other, tmp_path):
  begun = begin(tmp_path / "next", other, init_from=str(tiny_run))
  before = tokenizer.load(tiny_run / "tokenizer.json")
  assert begun.prompt.tokenizer.get_vocab() == before.get_vocab()
  assert begun.prompt.tokenizer.encode("Pour tea into cup 1.").ids == before.encode("Pour tea into cup 1.").ids
  given = begin(tmp_path / "given", other, init_from=str(tiny_run), **{"data.tokenizer": str(tiny_run / "tokenizer.json")})
  assert given.prompt.tokenizer.to_str() == begun.prompt.tokenizer.to_str()
  assert begin(tmp_path / "alone", other).prompt.tokenizer.get_vocab() != before.get_vocab(), "else this test tells nothing"


def test_another_tokenizer_than_the_stage_before_had_is_refused(tiny_run, other, tmp_path):
  tokenizer.build(["Wash dish 1."], 512).save(str(tmp_path / "t.json"))
  with pytest.raises(UserError, match=r"config.data.tokenizer=\S+: found \d+ tokens, \d+ of them not in \S+ with the same id") as told:
    begin(tmp_path / "next", other, init_from=str(tiny_run), **{"data.tokenizer": str(tmp_path / "t.json")})
  assert "\n" not in str(told.value)
  with pytest.raises(UserError, match=r"config.data.text_tokens: found 12, the instruction 'Wash dish 0.' takes"):
    begin(tmp_path / "next", other, init_from=str(tiny_run), **{"data.text_tokens": 12})
  assert not (tmp_path / "next" / "config.json").exists()


def test_parameters_without_a_tokenizer_need_one(tiny_run, other, tmp_path):
  """As `egoscale convert` writes them of a checkpoint that has none."""
  bare = shutil.copytree(tiny_run, tmp_path / "bare")
  (bare / "tokenizer.json").unlink()
  with pytest.raises(UserError, match=r"config.data.tokenizer: empty, and \S+/tokenizer.json is missing"):
    begin(tmp_path / "next", other, init_from=str(bare))
  begin(tmp_path / "next", other, init_from=str(bare), **{"data.tokenizer": str(tiny_run / "tokenizer.json")})


def test_a_command_with_a_wrong_init_from_leaves_no_begun_run(shards, tiny_run, tmp_path):
  """The corrected one goes on in the same work directory."""
  empty = tmp_path / "empty"
  empty.mkdir()
  shutil.copy(tiny_run / "config.json", empty)
  wrong = (
    ({"init_from": "mistyped"}, "mistyped: config.json is missing"),
    ({"init_from": str(empty)}, "found no checkpoints"),
    (
      {"init_from": str(tiny_run), "model.expert.output": 48},
      r"/24 does not fit the config: params/expert/action_decoder/\S+: found \(.*\), exp",
    ),
  )
  for fields, told in wrong:
    with pytest.raises(UserError, match=told):
      main.main(tiny.config(shards, **{**tiny.RUN, "validation.episodes": 0, **fields}), tmp_path / "run", jax.devices()[:1])
    assert not (tmp_path / "run" / "config.json").exists()
  begin(tmp_path / "run", shards, init_from=str(tiny_run))


def test_no_run_goes_on_from_parameters_alone(shards, tiny_run, tmp_path):
  """As contents.take_parameters and `egoscale convert` leave them."""
  alone = tmp_path / "alone"
  contents.take_parameters(tiny_run, alone)
  with pytest.raises(
    UserError, match=rf"^--workdir={alone}: shards.sha256 is missing.*expected a new --workdir with --config.init_from={alone}$"
  ):
    main.main(tiny.config(shards, **tiny.RUN), alone, jax.devices()[:1])
  begin(tmp_path / "next", shards, init_from=str(alone))

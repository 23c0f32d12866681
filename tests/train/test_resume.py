"""kill -9 in the middle of training, start again: the numbers after it are those of an uninterrupted run, bit for bit."""

import json
import shutil
import time

import jax
import numpy as np
import pytest
import tiny

from egoscale_jax.errors import UserError
from egoscale_jax.train import checkpoint, main, run


def losses(workdir):
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return {line["step"]: (line["loss"], line["grad_norm"]) for line in lines if "loss" in line}


def test_killed_run_continues_bit_for_bit(shards, tiny_run, tmp_path):
  """Against `tiny_run`, which ran in another process and was not killed; validation changes no number and is left out here."""
  killed = tmp_path / "killed"
  with open(tmp_path / "log", "w") as log:
    process = tiny.train(shards, killed, log, **{"validation.episodes": 0})
    while not (killed / "checkpoints" / "8").is_dir() or len(losses(killed)) < 10:
      assert process.poll() is None, (tmp_path / "log").read_text()
      time.sleep(0.02)
    process.kill()
    process.wait()
    reached = max(losses(killed))
    assert reached < 24, "the run ended before it could be killed"

    again = tiny.train(shards, killed, log, **{"validation.episodes": 0})
    assert again.wait(300) == 0, (tmp_path / "log").read_text()
  assert "from step" in (tmp_path / "log").read_text()
  expected = losses(tiny_run)
  assert sorted(expected) == list(range(1, 25))
  assert losses(killed) == expected
  assert len(set(expected.values())) == 24, "every step has its own numbers"


def test_a_finished_run_is_left_alone_and_another_config_is_refused(shards, tiny_run, tmp_path):
  before = (tiny_run / "metrics.jsonl").read_text().splitlines()
  main.main(tiny.config(shards, **tiny.RUN), tiny_run, jax.devices()[:1])
  assert (tiny_run / "metrics.jsonl").read_text().splitlines() == before
  with pytest.raises(UserError, match=r"holds another run: config.optim.learning_rate: found 0.5, the run began with 0.001"):
    main.main(tiny.config(shards, **tiny.RUN, **{"optim.learning_rate": 0.5}), tiny_run, jax.devices()[:1])
  moved = tmp_path / "moved"
  shutil.copytree(shards, moved)
  run.start(tiny.config(moved, **tiny.RUN), tiny_run, jax.devices()[:1])
  content = json.loads((moved / "manifest.json").read_text())
  (moved / "manifest.json").write_text(json.dumps({**content, "image_size": 32}))
  with pytest.raises(UserError, match="holds other data than the run"):
    run.start(tiny.config(moved, **tiny.RUN), tiny_run, jax.devices()[:1])
  run.start(tiny.config(shards, **{**tiny.RUN, "log_every": 7}), tiny_run, jax.devices()[:1])  # what changes no number may change


def test_the_next_stage_takes_the_parameters_and_nothing_else(shards, tiny_run, tmp_path):
  config = tiny.config(shards, steps=1, init_from=str(tiny_run), train_parts=("expert/.*",), **tiny.SHALLOW, **{"validation.episodes": 0})
  main.main(config, tmp_path / "next", jax.devices()[:1])
  _, params, step = run.open_run(tmp_path / "next")
  _, before, _ = run.open_run(tiny_run)
  assert step == 1
  assert sorted(path.name for path in (tmp_path / "next" / "hands").iterdir()) == ["sharpa_wave_left.xml", "sharpa_wave_right.xml"]
  jax.tree.map(np.testing.assert_array_equal, params["vision"], before["vision"])


def test_a_checkpoint_of_another_model_is_named_by_path(shards, tiny_run, tmp_path):
  config = tiny.config(shards, init_from=str(tiny_run), **tiny.SHALLOW, **{"model.expert.output": 48})
  with pytest.raises(UserError, match=r"does not fit the config: params/expert/action_decoder/\S+: found \(.*\), expected \("):
    main.main(config, tmp_path / "other", jax.devices()[:1])
  with pytest.raises(UserError, match="found no checkpoints"):
    checkpoint.latest_step(tmp_path / "nowhere")

"""A study from end to end on recorded metrics: its plan, its table after a stop, its page; and two real runs (slow)."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny
from conftest import ROOT

from egoscale_jax import cli
from egoscale_jax import config as config_lib
from egoscale_jax.errors import Preempted, UserError
from egoscale_jax.evaluate import apart, scaling, study_plan
from egoscale_jax.evaluate import folder as folder_lib
from egoscale_jax.view import scaling_page

GRID = {"scaling.twentieths": (4, 8, 12, 20), "scaling.seeds": (0, 1), "scaling.validations": 2, "steps": 40}  # 1, 2, 3, 5 episodes


def flags(shards, **more):
  sizes = {key: value for key, value in tiny.SIZES.items() if not key.startswith("model.") or key.startswith("model.vision.position")}
  fields = {"data.shards": shards, **sizes, **GRID, **more}
  return [f"--config={ROOT}/configs/scaling.py:debug", *(f"--config.{key}={value}" for key, value in fields.items())]


def config(shards, **more):
  made = config_lib.parse(flags(shards, **more)).unlock()
  made.scaling.sizes.wide = dict(model=dict(expert=dict(output=256)), optim=dict(learning_rate=5e-4))
  return made.lock()


class Fake:
  """In the place of `egoscale train`: metrics of a known law. stop_at: the run (counted) in whose middle it is killed."""

  def __init__(self, stop_at=None):
    self.stop_at, self.made = stop_at, []

  def __call__(self, made, workdir, log):
    self.made.append(workdir.name)
    workdir.mkdir(exist_ok=True)
    hours = float(study_plan.subset(made)["hours"])
    loss = 0.2 - 0.05 * np.log(hours / 1e-4) - 0.01 * (made.optim.learning_rate < 1e-3) + 0.001 * made.seed
    looks = [made.validate_every, made.steps]
    with open(workdir / "metrics.jsonl", "w") as file:
      for step in dict.fromkeys(looks):
        figures = {"action_mse": float(loss + 0.05 * (step < made.steps)), "flow_loss": 0.5, "points": 6, "draws": 2}
        figures |= {"hold_still_mse": 0.3, "mean_chunk_mse": 0.4}
        file.write(json.dumps({"step": step, "loss": 1.0, "seconds": 0.5}) + "\n")
        if len(self.made) == self.stop_at:
          raise KeyboardInterrupt
        file.write(json.dumps({"step": step, "validation": figures}) + "\n")


def finish(made, workdir, train):
  return list(scaling.run(made, workdir, train))[-1]


@pytest.fixture(scope="module")
def study(shards, tmp_path_factory):
  """(its config, its folder, its result)."""
  made, folder = config(shards), tmp_path_factory.mktemp("study")
  return made, folder, finish(made, folder, Fake())


def test_plan_is_nested_and_its_budgets_are_equal(shards):
  made = config(shards)
  cells = study_plan.cells(made)
  assert len(cells) == 2 * 2 * (4 + 3), "two seeds, two sizes; the largest subset's run serves both budgets"
  assert [cell.seed for cell in cells] == [0] * 14 + [1] * 14
  assert len({cell.name for cell in cells}) == len(cells)
  first = {cell.twentieths: cell for cell in cells if cell.seed == 0 and cell.size == "toy" and study_plan.PASSES in cell.budgets}
  assert [cell.episodes for cell in first.values()] == [1, 2, 3, 5]
  assert first[20].budgets == study_plan.BUDGETS
  for cell in first.values():
    assert cell.steps == max(1, round(40 * cell.frames / first[20].frames))
    assert cell.flops == cell.flops_per_example * cell.steps * made.batch_size
  assert all(cell.steps == 40 for cell in cells if study_plan.STEPS in cell.budgets)
  toy, wide = (next(cell for cell in cells if cell.size == size) for size in ("toy", "wide"))
  assert wide.parameters > toy.parameters
  assert wide.flops_per_example > toy.flops_per_example


def test_a_runs_config_is_an_ordinary_one(shards):
  made = config(shards)
  cell = next(cell for cell in study_plan.cells(made) if cell.size == "wide" and cell.twentieths == 8 and cell.seed == 1)
  ordinary = study_plan.run_config(made, cell)
  assert "scaling" not in ordinary
  assert (ordinary.data.twentieths, ordinary.seed, ordinary.steps, ordinary.optim.learning_rate) == (8, 1, cell.steps, 5e-4)
  assert ordinary.model.expert.output == 256
  assert -(-ordinary.steps // ordinary.validate_every) <= 2
  assert made.model.expert.output == 128, "the study's own is as it was"
  with pytest.raises(AttributeError):
    ordinary.nonsense = 1


def test_the_law_that_the_runs_follow_is_found(study):
  _, folder, told = study
  assert told["complete"] == told["runs"] == 28
  entry = told["laws"][0]
  assert (entry["budget"], entry["size"], entry["runs"]) == (study_plan.STEPS, "toy", 8)
  assert entry["log"]["b"] == pytest.approx(0.05, rel=1e-9)
  assert entry["log"]["a"] == pytest.approx(0.2 + 0.05 * np.log(1e-4) + 0.0005, rel=1e-9)
  assert entry["log"]["r2_of_means"] == pytest.approx(1, abs=1e-9)
  assert entry["log"]["left_out"]["error"] == pytest.approx(0, abs=1e-9)
  wide = next(e for e in told["laws"] if e["size"] == "wide" and e["budget"] == study_plan.STEPS)
  assert entry["log"]["a"] - wide["log"]["a"] == pytest.approx(0.01, rel=1e-6)
  row = json.loads((folder / "runs.jsonl").read_text().splitlines()[0])
  assert row["loss_step"] == row["steps"], "the least of the validations"
  assert row["curve"][0][1] > row["loss"]
  assert len(told["allocation"]) == 5
  assert json.loads((folder / "scaling.json").read_text())["laws"] == json.loads(json.dumps(told["laws"]))


def test_a_stopped_study_goes_on_and_gives_the_same_bytes(shards, tmp_path):
  made, folder = config(shards, **{"scaling.seeds": (3,)}), tmp_path / "whole"
  finish(made, folder, Fake())
  tmp_path = tmp_path / "stopped"
  first, then = Fake(stop_at=9), Fake()
  with pytest.raises(KeyboardInterrupt):
    finish(made, tmp_path, first)
  finish(made, tmp_path, then)
  assert then.made[0] == first.made[-1], "the run that was stopped is made again, or goes on"
  assert not set(first.made[:-1]) & set(then.made), "those that were complete are not"
  again = Fake()
  finish(made, tmp_path, again)
  assert again.made == []
  for name in ("runs.jsonl", "scaling.json"):
    assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_another_config_is_refused_by_its_field(study, shards):
  _, folder, _ = study
  changed = config(shards, **{"validation.draws": 5})
  with pytest.raises(UserError, match=r"config\.validation\.draws: found 5, the study began with 2") as error:
    finish(changed, folder, Fake())
  assert "\n" not in str(error.value)
  finish(config(shards, checkpoint_every=3), folder, Fake())  # changes no number


def test_one_process_at_a_time(study):
  made, folder, _ = study
  with folder_lib.alone(folder), pytest.raises(UserError, match="another process is at this study"):
    finish(made, folder, Fake())


@pytest.mark.parametrize(
  ("more", "told"),
  [
    ({"scaling.twentieths": (1, 2, 20)}, "1 and 2 hold the same 1 episodes"),
    ({"scaling.twentieths": (20, 20)}, "expected different numbers"),
    ({"scaling.validations": 0}, "expected at least 1"),
    ({"validation.episodes": 0}, "expected a validation split"),
    ({"lora.rank": 2}, "FLOPs of adapters"),
  ],
)
def test_a_plan_that_cannot_be_is_refused(shards, more, told):
  with pytest.raises(UserError, match=told):
    study_plan.cells(config(shards, **more))


@pytest.mark.parametrize(
  ("given", "told"),
  [({"data": {"stride": 2}}, "expected model and optim"), ({"model": {"vision": {"wdth": 2}}}, "sizes.bad.model.vision: found wdth")],
)
def test_a_size_that_cannot_be_is_refused(shards, given, told):
  made = config(shards).unlock()
  made.scaling.sizes.bad = given
  with pytest.raises(UserError, match=told):
    study_plan.cells(made)


def test_a_loss_that_is_not_finite_ends_the_study_with_its_run(shards, tmp_path):
  def diverged(made, workdir, log):
    Fake()(made, workdir, log)
    path = workdir / "metrics.jsonl"
    path.write_text(path.read_text().replace('"action_mse": 0', '"action_mse": NaN, "was": 0'))

  with pytest.raises(UserError, match=r"metrics.jsonl: step .*: action_mse is nan, expected a number"):
    finish(config(shards), tmp_path, diverged)
  assert not list((tmp_path / "done").iterdir())


def test_the_page_tells_the_law_and_needs_nothing_beside_it(study, tmp_path):
  made, _, told = study
  scaling_page.write(told, made, "egoscale scaling <&>", tmp_path / "scaling.html")
  page = (tmp_path / "scaling.html").read_text()
  assert page.count("data:image/png;base64,") == 3
  assert 'src="http' not in page
  assert "egoscale scaling &lt;&amp;&gt;" in page
  assert f"{told['laws'][0]['log']['b']:.5f}" in page
  scaling_page.write(told | {"rows": [], "complete": 0}, made, "", tmp_path / "empty.html")
  assert "No run is complete yet" in (tmp_path / "empty.html").read_text()


def test_a_partial_study_says_what_is_missing(study, shards, tmp_path):
  made, _, _ = study
  steps = scaling.run(made, tmp_path, Fake())
  told = [next(steps) for _ in range(3)][-1]
  steps.close()
  assert told["complete"] == 2
  assert told["laws"][0]["log"] is None
  assert "a law takes 3" in told["laws"][0]["missing"]
  scaling_page.write(told, made, "", tmp_path / "scaling.html")
  assert "2 of 28" in (tmp_path / "scaling.html").read_text()


def _fails(kind):
  print("told", flush=True)
  {"user": _user, "bug": _bug, "dies": os.abort, "fine": lambda: None}[kind]()


def _user():
  raise UserError("field: found 1, expected 2")


def _bug():
  raise ZeroDivisionError("one")


@pytest.mark.slow
def test_apart_hands_errors_on(tmp_path):
  log = tmp_path / "log"
  apart.run(_fails, ("fine",), log)
  with pytest.raises(UserError, match="field: found 1"):
    apart.run(_fails, ("user",), log)
  with pytest.raises(RuntimeError, match="ZeroDivisionError: one"):
    apart.run(_fails, ("bug",), log)
  with pytest.raises(UserError, match="died with exit code -6"):
    apart.run(_fails, ("dies",), log)
  assert log.read_text().count("told") == 4
  assert issubclass(Preempted, Exception)


REAL = {"scaling.twentieths": (8, 20), "scaling.seeds": (0,), "scaling.passes": 0.0, "steps": 6, "checkpoint_every": 2}


def start(shards, workdir):
  command = [sys.executable, "-m", "egoscale_jax.cli", "scaling", f"--workdir={workdir}", *flags(shards, **REAL)]
  with open(f"{workdir}.log", "a") as log:
    return subprocess.Popen(command, env={**os.environ, "PYTHONWARNINGS": "error"}, stdout=log, stderr=subprocess.STDOUT)


@pytest.mark.slow
def test_a_real_study_killed_and_started_again(shards, tmp_path, capsys):
  """Three runs; the study is killed (-9) in its second, and nothing of it goes on; then it gives the bytes of one that was not killed."""
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  assert start(shards, whole).wait(500) == 0, (tmp_path / "whole.log").read_text()
  process = start(shards, killed)
  second = None
  while second is None:
    assert process.poll() is None, (tmp_path / "killed.log").read_text()
    time.sleep(0.02)
    begun = [path for path in (killed / "runs").glob("*/metrics.jsonl") if not (killed / "done" / path.parent.name).exists()]
    second = next((path for path in begun if len(list((killed / "done").iterdir())) == 1 and path.read_text().count("\n") >= 2), None)
  process.send_signal(signal.SIGKILL)
  process.wait()
  time.sleep(1.0)
  before = second.read_text()
  time.sleep(2.0)
  assert second.read_text() == before, "its training ended with it"
  assert start(shards, killed).wait(500) == 0, (tmp_path / "killed.log").read_text()
  for name in ("runs.jsonl", "scaling.json"):
    assert (killed / name).read_bytes() == (whole / name).read_bytes()
  assert (killed / "scaling.html").read_text().count("data:image/png;base64,") == 3
  code = cli.main(["scaling", f"--workdir={whole}", *flags(shards, **{**REAL, "seed": 5})])
  assert code == 1
  assert "config.seed: found 5" in capsys.readouterr().err

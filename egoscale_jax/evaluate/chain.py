"""Carries out the steps of a study, one after the other, and reads what they left.

```
workdir/study.json              the config that it began with
        made/NAME logs/NAME.log what a step wrote, what it printed
        done/NAME               this step is complete and is not made again; when, how long, of which commit
        results.jsonl           a line a case whose step is complete; the same bytes, however often the study stopped
```
"""

import json
import math
import pathlib
import time

from egoscale_jax import progress
from egoscale_jax.errors import UserError
from egoscale_jax.evaluate import apart, folder, rollout, steps, study_plan
from egoscale_jax.evaluate.study import BACKBONE


def run(config, plan, workdir, commit, go=apart.run):
  """Makes or continues a study; yields `result` at the start and after every step, each of which is go(function, arguments, log)."""
  workdir = pathlib.Path(workdir)
  with folder.alone(workdir):
    folder.begin(workdir, study_plan.only_config(config), ("made", "logs", "done"))
    waiting = [step for step in plan.steps if not _is_done(workdir, step.name)]
    yield result(plan, workdir)
    with progress.bar(len(plan.steps), "study", "step") as bar:
      bar.update(len(plan.steps) - len(waiting))
      for step in waiting:
        bar.set_postfix_str(step.name)
        began = time.time()
        go(step.make, step.arguments, workdir / "logs" / f"{step.name}.log")
        for case in plan.cases:
          if case.name == step.name:
            row(case, workdir)  # what cannot be read ends the study here
        told = {"ended": round(time.time()), "seconds": round(time.time() - began, 1), "commit": commit}
        folder.write(workdir / "done" / step.name, json.dumps(told) + "\n")
        bar.update()
        yield result(plan, workdir)


def _is_done(workdir, name):
  return (workdir / "done" / name).is_file()


def result(plan, workdir) -> dict:
  """{rows: of the cases whose trials are complete, cases: all, steps: names, done: {step: its marker}, backbones: {step: how they point}};
  writes results.jsonl."""
  done = {
    step.name: json.loads((workdir / "done" / step.name).read_text(encoding="utf-8")) for step in plan.steps if _is_done(workdir, step.name)
  }
  rows = [row(case, workdir) for case in plan.cases if case.name in done]
  folder.write(workdir / "results.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
  backbones = {
    name: json.loads((workdir / "made" / name / steps.POINTING).read_text(encoding="utf-8")) for name in done if name.startswith(BACKBONE)
  }
  return {"rows": rows, "cases": plan.cases, "steps": [step.name for step in plan.steps], "done": done, "backbones": backbones}


def row(case, workdir) -> dict:
  """A case with its trials: figures by task, [task, trial, success, score] each, and the loss of its pre-training where it tells one."""
  path = workdir / "made" / case.name / "trials.jsonl"
  if not path.is_file():
    raise UserError(f"{path}: missing, although the step is complete")
  trials = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
  counted = {name: sum(t["task"] == name for t in trials) for name in case.tasks}
  if len(trials) != sum(counted.values()) or any(count != case.trials for count in counted.values()):
    raise UserError(f"{path}: found {counted} trials, expected {case.trials} of each")
  results = {name: rollout.figures([t for t in trials if t["task"] == name]) for name in case.tasks} | {"all": rollout.figures(trials)}
  for figures in results.values():
    figures.pop("score_error")  # NaN with one trial; intervals are claims.py's
  told = {key: getattr(case, key) for key in ("table", "name", "body", "arm", "seed", "size", "twentieths")}
  told |= {"results": results, "trials": [[t["task"], t["trial"], bool(t["success"]), t["score"]] for t in trials]}
  return told | ({"loss": loss(workdir / "made" / case.pretrained)} if case.pretrained else {})


def loss(run) -> float:
  """Action MSE of the last fixed-noise validation: of the checkpoint that was handed on."""
  path = run / "metrics.jsonl"
  lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
  found = [line["validation"].get("action_mse", math.nan) for line in lines if "validation" in line]
  if not found or not math.isfinite(found[-1]):
    raise UserError(f"{path}: found {found[-1:] or 'no validation'}, expected an action_mse")
  return found[-1]

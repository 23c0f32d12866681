"""A scaling study: its runs, one after the other, and what they say (paper section 3.3, figure 5).

```
workdir/study.json                 the config and the data that it began with
        runs/NAME/ logs/NAME.log   each an ordinary work directory of `egoscale train`
        done/NAME                  this run is complete, and not touched again
        runs.jsonl scaling.json    a line a complete run; laws and tables; the same bytes, however often it stopped
        costs.json                 seconds of training, of this machine
```
A run's loss is the action MSE of its fixed-noise validation, the least of its validations ("optimal loss", paper section 3.3), read from
its own metrics.jsonl; the last one's is told beside it.
"""

import functools
import json
import math
import pathlib

import numpy as np

from egoscale_jax import progress
from egoscale_jax.errors import UserError
from egoscale_jax.evaluate import allocation, folder, laws, study_plan

LAWS = {"log": laws.fit_log, "power": laws.fit_power}


def run(config, workdir, train):
  """Makes or continues a study; yields `result` at the start and after every run, each of which is train(config, workdir, log)."""
  workdir = pathlib.Path(workdir)
  cells = study_plan.cells(config)
  with folder.alone(workdir):
    folder.begin(workdir, study_plan.to_json(config), ("runs", "logs", "done"))
    done = [cell for cell in cells if (workdir / "done" / cell.name).is_file()]
    yield result(config, cells, workdir)
    with progress.bar(len(cells), "scaling", "run") as bar:
      bar.update(len(done))
      for cell in (cell for cell in cells if cell not in done):
        bar.set_postfix_str(cell.name)
        train(study_plan.run_config(config, cell), workdir / "runs" / cell.name, workdir / "logs" / f"{cell.name}.log")
        read(cell, workdir)  # a loss that is not finite ends the study here
        (workdir / "done" / cell.name).touch()
        bar.update()
        yield result(config, cells, workdir)


def read(cell, workdir) -> dict:
  """A complete run's row, from its metrics; UserError where a figure is missing or not finite."""
  path = workdir / "runs" / cell.name / "metrics.jsonl"
  if not path.is_file():
    raise UserError(f"{path}: missing, although the run is marked as complete in {workdir / 'done'}")
  lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
  looks = [(line["step"], line["validation"]) for line in lines if "validation" in line]
  if not looks or looks[-1][0] != cell.steps:
    raise UserError(f"{path}: found {len(looks)} validations, expected the last one at step {cell.steps}")
  for step, figures in looks:
    if not math.isfinite(figures.get("action_mse", math.nan)):
      raise UserError(f"{path}: step {step}: action_mse is {figures.get('action_mse', 'missing')}, expected a number")
  best_step, best = min(looks, key=lambda look: (look[1]["action_mse"], look[0]))
  last = looks[-1][1]
  row = {name: getattr(cell, name) for name in ("name", "size", "twentieths", "seed", "steps", "hours", "episodes", "frames")}
  row |= {"budgets": list(cell.budgets), "parameters": cell.parameters, "flops": cell.flops}
  row |= {"loss": best["action_mse"], "loss_step": best_step, "last_loss": last["action_mse"], "flow_loss": last["flow_loss"]}
  row |= {name: last[name] for name in ("hold_still_mse", "mean_chunk_mse", "points", "episodes", "draws") if name != "episodes"}
  row["curve"] = [[step, figures["action_mse"]] for step, figures in looks]
  return row


def result(config, cells, workdir) -> dict:
  """What the complete runs say, written to runs.jsonl, scaling.json and costs.json."""
  complete = [cell for cell in cells if (workdir / "done" / cell.name).is_file()]
  rows = [read(cell, workdir) for cell in complete]
  told = {"runs": len(cells), "complete": len(rows), "laws": _laws(cells, rows), "subsets": _subsets(cells), "sizes": _sizes(cells)}
  told["allocation"] = _allocation(config, cells, rows)
  folder.write(workdir / "runs.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
  folder.write(workdir / "scaling.json", json.dumps(told, indent=1) + "\n")
  costs = {cell.name: _seconds(workdir / "runs" / cell.name) for cell in complete}
  folder.write(workdir / "costs.json", json.dumps(costs, indent=1) + "\n")
  return told | {"rows": rows, "costs": costs}


def _seconds(path):
  """Of all its steps, over all its starts; without compiling, validation and waiting for data."""
  lines = (json.loads(line) for line in (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
  return round(sum(line.get("seconds", 0.0) for line in lines), 1)


def _of(rows, budget, size):
  return [row for row in rows if budget in row["budgets"] and row["size"] == size]


def _laws(cells, rows):
  """A law a budget and size, where all its runs are complete; else what is missing."""
  found = []
  for budget in study_plan.BUDGETS:
    for size in dict.fromkeys(cell.size for cell in cells):
      wanted = sum(cell.size == size and budget in cell.budgets for cell in cells)
      chosen = _of(rows, budget, size)
      entry = {"budget": budget, "size": size, "runs": len(chosen)}
      hours, loss, names = ([row[key] for row in chosen] for key in ("hours", "loss", "name"))
      for kind, fit in LAWS.items():
        different = len(set(hours))
        if different < laws.LEAST[kind]:
          entry[kind] = None
          entry["missing"] = (
            f"{different} subsets of the hours are complete, of {wanted} runs {len(chosen)}; a law takes {laws.LEAST['log']}"
          )
        else:
          entry[kind] = _summary(kind, fit, tuple(hours), tuple(loss), tuple(names))
      found.append(entry)
  return found


_summary = functools.cache(laws.summary)  # a run that is added changes one budget and size, or two


def _subsets(cells):
  keys = ("twentieths", "hours", "episodes", "frames")
  return [dict(zip(keys, values)) for values in sorted({tuple(getattr(cell, key) for key in keys) for cell in cells})]


def _sizes(cells):
  return {cell.size: {"parameters": cell.parameters, "flops_per_example": cell.flops_per_example} for cell in cells}


def _allocation(config, cells, rows):
  """Of the log laws at equal passes."""
  passes = config.scaling.passes
  largest = max(cells, key=lambda cell: cell.hours)
  passes = passes or config.steps * config.batch_size / largest.frames
  fitted, per_hour = {}, {}
  for size, told in _sizes(cells).items():
    chosen = _of(rows, study_plan.PASSES, size)
    if len({row["hours"] for row in chosen}) < laws.LEAST["log"]:
      return []
    fitted[size] = laws.fit_log([row["hours"] for row in chosen], [row["loss"] for row in chosen])
    per_hour[size] = told["flops_per_example"] * passes * largest.frames / largest.hours
  hours = [cell.hours for cell in cells]
  return allocation.table(fitted, per_hour, (min(hours), max(hours)))


def fitted(told, budget, size, kind="log"):
  """-> the law itself, for its curve and band, and its points; None where there are too few runs."""
  chosen = _of(told["rows"], budget, size)
  hours, loss = [row["hours"] for row in chosen], [row["loss"] for row in chosen]
  if len(set(hours)) < laws.LEAST[kind]:
    return None, hours, loss
  return LAWS[kind](hours, loss), hours, loss


def lines(told) -> list[str]:
  """For a person at the end: the laws, and the runs' mean loss a subset."""
  found = [f"{'budget':<14}{'size':<10}{'runs':>5}{'a':>10}{'b':>10}{'95 % of b':>20}{'R2':>8}{'last told':>11}"]
  for entry in told["laws"]:
    law, head = entry["log"], f"{entry['budget']:<14}{entry['size']:<10}{entry['runs']:>5}"
    if law is None:
      found.append(f"{head}  no law: {entry['missing']}")
      continue
    interval = "{:.5f} to {:.5f}".format(*law["b_95"]) if law["b_95"] else "too few runs"
    left = f"{law['left_out']['error']:+.1%}" if law["left_out"] else ""
    found.append(f"{head}{law['a']:>10.5f}{law['b']:>10.5f}{interval:>20}{law['r2_of_means']:>8.4f}{left:>11}")
  return found


def mean_losses(told, budget, size):
  """-> {hours: (mean, least, most, runs)} over the seeds."""
  chosen = _of(told["rows"], budget, size)
  values = {hours: [row["loss"] for row in chosen if row["hours"] == hours] for hours in sorted({row["hours"] for row in chosen})}
  return {hours: (float(np.mean(v)), min(v), max(v), len(v)) for hours, v in values.items()}

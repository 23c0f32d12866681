"""What the trials of a study say: success with intervals, differences of arms, rank correlation of loss and success, and the aims.

```
success      Wilson's 95 % interval over all trials of an arm, its seeds together (rollout.py)
difference   of two arms' success: scene by scene (task and trial), since both were tried on the same scenes; 95 % percentiles of a
             bootstrap that draws scenes anew within each task. A scene's seeds stay together.
correlation  Spearman's, of minus the loss and the success of checkpoints; 95 % percentiles of a bootstrap over checkpoints
```
The seeds are of post-training: what two pre-trainings on the same data would differ by is in no interval.
"""

import numpy as np

from egoscale_jax.evaluate import rollout, study
from egoscale_jax.evaluate.laws import DRAWS, LEVEL

LEAST = 4  # checkpoints for a correlation
ENOUGH = 10  # those that the claim asks for
# The aims, in points of success and as shares; a miss is a result too.
GAIN, GAIN_FEWER_JOINTS, SHOT_WITH, SHOT_WITHOUT, RANK = 0.40, 0.30, 0.50, 0.20, 0.9


def average_ranks(values):
  """1 for the least; those that are equal share the mean of their ranks."""
  values = np.asarray(values, np.float64)
  return (values[:, None] > values).sum(axis=1) + ((values[:, None] == values).sum(axis=1) + 1) / 2


def spearman(x_N, y_N) -> float:
  """NaN where one of them does not vary."""
  x, y = (average_ranks(v) - (len(v) + 1) / 2 for v in (x_N, y_N))
  spread = np.sqrt(np.sum(x * x) * np.sum(y * y))
  return float(np.sum(x * y) / spread) if spread > 0 else float("nan")


def correlation(x_N, y_N, seed=0):
  """-> {value, low, high, checkpoints}, None with fewer than LEAST or where one does not vary."""
  x_N, y_N = np.asarray(x_N), np.asarray(y_N)
  if len(x_N) < LEAST or np.isnan(value := spearman(x_N, y_N)):
    return None
  chosen = np.random.default_rng(seed).integers(0, len(x_N), (DRAWS, len(x_N)))
  draws = np.array([spearman(x_N[row], y_N[row]) for row in chosen])
  low, high = np.percentile(draws[~np.isnan(draws)], LEVEL)  # a draw of one checkpoint only has none
  return {"value": value, "low": float(low), "high": float(high), "checkpoints": len(x_N)}


def _scenes(rows):
  """-> {(task, trial): mean success over the rows' seeds}."""
  found = {}
  for row in rows:
    for task, trial, success, _ in row["trials"]:
      found.setdefault((task, trial), []).append(success)
  return {scene: float(np.mean(values)) for scene, values in sorted(found.items())}


def difference(after, before, seed=0):
  """Rows of two arms -> {value, low, high} of the success of the one minus the other's; None where one has no trials.

  Where all scenes say the same a bootstrap knows of no doubt, and there is some: low and high are then None.
  """
  if not after or not before:
    return None
  first, second = _scenes(after), _scenes(before)
  scenes = sorted(first.keys() & second.keys())
  gain = np.array([first[scene] - second[scene] for scene in scenes])
  task = np.array([name for name, _ in scenes])
  rng, draws = np.random.default_rng(seed), np.zeros(DRAWS)
  for name in np.unique(task):
    of = gain[task == name]
    draws += of[rng.integers(0, len(of), (DRAWS, len(of)))].sum(axis=1)
  low, high = np.percentile(draws / len(gain), LEVEL)
  if np.ptp(gain) == 0:
    return {"value": float(gain.mean()), "low": None, "high": None}
  return {"value": float(gain.mean()), "low": float(low), "high": float(high)}


def pooled(rows) -> dict:
  """Rows of one arm -> {task: figures, "all": figures} over its seeds."""
  trials = [dict(zip(("task", "trial", "success", "score"), trial), frames=0) for row in rows for trial in row["trials"]]
  tasks = dict.fromkeys(trial["task"] for trial in trials)
  return {name: rollout.figures([t for t in trials if t["task"] == name]) for name in tasks} | {"all": rollout.figures(trials)}


def groups(told, table) -> list[dict]:
  """An entry a body, arm and, of one-shot, task: its complete rows, their figures, its seeds and how many there will be."""
  found = {}
  for case in (c for c in told["cases"] if c.table == table):
    key = (case.body, case.arm, case.tasks)
    entry = found.setdefault(key, {"body": case.body, "arm": case.arm, "tasks": case.tasks, "trials": case.trials, "of": 0, "rows": []})
    entry["of"] += 1
    entry["rows"] += [row for row in told["rows"] if row["table"] == table and row["name"] == case.name]
  for entry in found.values():
    entry["seeds"] = [row["seed"] for row in entry["rows"]]
    entry["figures"] = pooled(entry["rows"]) if entry["rows"] else None
  return list(found.values())


def ladder(told) -> dict:
  """{rows, of, success, score}: the checkpoints, and the correlation of minus their loss with either."""
  rows = [row for row in told["rows"] if row["table"] == study.LADDER]
  told_of = {"rows": rows, "of": sum(case.table == study.LADDER for case in told["cases"])}
  loss = [-row["loss"] for row in rows]
  return told_of | {name: correlation(loss, [row["results"]["all"][name] for row in rows]) for name in ("success", "score")}


def _arm(entries, body, arm, tasks=None):
  """The entry's rows where all its seeds are complete, else none: half an arm is no result."""
  for entry in entries:
    if (entry["body"], entry["arm"]) == (body, arm) and tasks in (None, entry["tasks"]):
      return entry["rows"] if len(entry["rows"]) == entry["of"] else []
  return []


def against(told, body, arm, base) -> dict | None:
  """`difference` of two arms of the four-way comparison, both complete."""
  entries = groups(told, study.FOUR)
  return difference(_arm(entries, body, arm), _arm(entries, body, base))


def verdicts(told, config) -> list[dict]:
  """The claims, each {claim, aim, measured, holds}; measured and holds None where the trials for it are not complete."""
  body, others = study.bodies(config.study)[0], study.bodies(config.study)[1:]
  found = [_gain(f"{body}: both stages against none", against(told, body, "both", "none"), GAIN)]
  found += [
    _gain(f"{other}: both stages against no human pre-training", against(told, other, "both", "mid"), GAIN_FEWER_JOINTS) for other in others
  ]
  shots = groups(told, study.SHOT)
  for task in config.study.one_shot:
    after, before = (_arm(shots, body, arm, (task,)) for arm in ("both", "mid"))
    entry = {"claim": f"{task} from one demonstration,\nwith and without human pre-training"}
    entry |= {"aim": f"at least {SHOT_WITH:.0%}, under {SHOT_WITHOUT:.0%}", "measured": None, "holds": None}
    if after and before:
      most, least = pooled(after)["all"], pooled(before)["all"]
      entry["measured"] = f"{_share(most)};\n{_share(least)}"
      entry["holds"] = most["success"] >= SHOT_WITH and least["success"] < SHOT_WITHOUT
    found.append(entry)
  return [*found, _rank(ladder(told)), _controls(told), *([_order(told)] if config.study.ablation else [])]


def points(found) -> str:
  """A difference with its interval."""
  interval = "all scenes alike" if found["low"] is None else f"{100 * found['low']:+.0f} to {100 * found['high']:+.0f}"
  return f"{100 * found['value']:+.0f} points ({interval})"


def _gain(claim, found, aim):
  entry = {"claim": claim, "aim": f"at least {100 * aim:.0f} points", "measured": None, "holds": None}
  if found:
    entry["measured"] = points(found)
    entry["holds"] = found["value"] >= aim
  return entry


def _share(figures):
  return f"{figures['success']:.0%} ({figures['low']:.0%} to {figures['high']:.0%})"


def _rank(found):
  entry = {"claim": "less loss, more success: Spearman", "aim": f"at least {RANK}, {ENOUGH} checkpoints", "measured": None, "holds": None}
  if len(found["rows"]) == found["of"]:
    told = found["success"]
    if told is None:
      return entry | {"measured": f"no correlation: {len(found['rows'])} checkpoints, or all alike", "holds": False}
    entry["measured"] = f"{told['value']:.2f} ({told['low']:.2f} to {told['high']:.2f}), {told['checkpoints']} checkpoints"
    entry["holds"] = told["value"] >= RANK and told["checkpoints"] >= ENOUGH
  return entry


def _order(told):
  """Of the representations, by success over all tasks; in the paper's order, and none that ties is out of it."""
  entry = {"claim": "action representation: joints, fingertips, wrist only", "aim": "in this order", "measured": None, "holds": None}
  entries = {e["arm"]: e for e in groups(told, study.ABLATION)}
  order = [entries[arm] for arm in (study.JOINTS, study.TIPS, study.WRISTS) if arm in entries]
  if order and all(len(e["rows"]) == e["of"] for e in order):
    entry["measured"] = "\n".join(f"{e['arm']} {_share(e['figures']['all'])}" for e in order)
    shares = [e["figures"]["all"]["success"] for e in order]
    entry["holds"] = shares == sorted(shares, reverse=True)
  return entry


def _controls(told):
  """They fail, as they should, where no interval lies above hold still's."""
  entry = {"claim": "shuffled labels and no pictures near hold still", "aim": "intervals that meet", "measured": None, "holds": None}
  found = groups(told, study.CONTROLS)
  if found and all(len(e["rows"]) == e["of"] for e in found):
    figures = {e["arm"]: e["figures"]["all"] for e in found}
    still = figures["hold still"]
    entry["measured"] = "\n".join(f"{arm} {_share(f)}" for arm, f in figures.items())
    entry["holds"] = all(f["low"] <= still["high"] for f in figures.values())
  return entry

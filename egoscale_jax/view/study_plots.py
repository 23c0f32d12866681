"""The figures of the study, as PNG bytes: success of the arms by task, and success against loss."""

import numpy as np
from matplotlib import ticker

from egoscale_jax.view import plots

COLOURS = {"none": "#a1a1aa", "mid": "#f59e0b", "human": "#60a5fa", "both": "#1d4ed8"}
SIZES = ("#2563eb", "#ea580c", "#16a34a", "#9333ea")


def _success(axes, high):
  axes.yaxis.set_major_formatter(ticker.PercentFormatter(1.0, decimals=0))
  axes.set_ylim(0, min(1.02, max(0.1, 1.12 * high)))
  axes.set_ylabel("success")


def arms(entries, tasks):
  """entries: claims.groups of one body. Bars: an arm's success, with its interval; what has no trials yet says so."""
  names = ("all", *tasks) if len(tasks) > 1 else tuple(tasks)
  canvas, axes = plots.panels(1.6 + 1.35 * len(names) * max(1.0, len(entries) / 4), 3.4)
  wide, high = 0.82 / len(entries), 0.0
  for place, entry in enumerate(entries):
    x = np.arange(len(names)) + (place - (len(entries) - 1) / 2) * wide
    colour, figures = COLOURS[entry["arm"]], entry["figures"]
    axes.bar(x, [0] * len(x), wide * 0.92, color=colour, label=entry["arm"])  # the legend's, also where there are no trials
    for at, name in zip(x, names):
      if figures is None:
        axes.annotate(
          "missing", (at, 0), xytext=(0, 4), textcoords="offset points", rotation=90, ha="center", fontsize=7, color=plots.MUTED
        )
        continue
      f = figures[name]
      axes.bar(at, f["success"], wide * 0.92, color=colour)
      error = [[f["success"] - f["low"]], [f["high"] - f["success"]]]
      axes.errorbar(at, f["success"], yerr=np.maximum(error, 0), color=plots.INK, linewidth=0.9, capsize=2)
      high = max(high, f["high"])
  axes.set_xticks(range(len(names)), ["all tasks" if name == "all" else name for name in names])
  axes.tick_params(axis="x", length=0)
  _success(axes, high)
  axes.legend(frameon=False, fontsize=8.5, ncols=len(entries), loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.2)
  return plots.png(canvas)


def ladder(found):
  """found: claims.ladder. A dot a checkpoint: success against loss; beside it the share of the people's hours, in twentieths."""
  canvas, axes = plots.panels(6.2, 3.8)
  sizes = list(dict.fromkeys(row["size"] for row in found["rows"]))
  for colour, size in zip(SIZES, sizes):
    rows = [row for row in found["rows"] if row["size"] == size]
    all_tasks = [row["results"]["all"] for row in rows]
    loss, success = [row["loss"] for row in rows], [f["success"] for f in all_tasks]
    error = [[f["success"] - f["low"] for f in all_tasks], [f["high"] - f["success"] for f in all_tasks]]
    axes.errorbar(loss, success, yerr=np.maximum(error, 0), fmt="o", color=colour, markersize=5.5, linewidth=0.9, capsize=2, label=size)
    for x, y, row in zip(loss, success, rows):
      axes.annotate(f"{row['twentieths']}", (x, y), xytext=(5, 4), textcoords="offset points", fontsize=8, color=colour)
  axes.set_xlabel("validation action MSE on people's held-out recordings (normalised)")
  _success(axes, max(row["results"]["all"]["high"] for row in found["rows"]))
  axes.legend(frameon=False, fontsize=8.5, title="size", title_fontsize=8.5)
  return plots.png(canvas)

"""The figures of a scaling study, as PNG bytes: loss against hours with its law, loss curves of the subsets, loss against FLOPs."""

import numpy as np
from matplotlib import colormaps, ticker

from egoscale_jax.evaluate import scaling, study_plan
from egoscale_jax.view import plots

COLOURS = ("#2563eb", "#ea580c", "#16a34a", "#9333ea", "#db2777", "#0891b2")  # of the sizes


def _panels(count, height=3.6):
  canvas, axes = plots.panels(max(4.1 * count + 0.4, 5.6), height, count)
  return canvas, np.atleast_1d(axes)


def _hours(axes, hours):
  """A logarithmic axis that names the measured hours."""
  axes.set_xscale("log")
  axes.set_xticks(hours, [_short(h) for h in hours])
  axes.xaxis.set_minor_locator(ticker.NullLocator())
  axes.set_xlabel("hours of training data (logarithmic)")


def _short(hours):
  return f"{hours:.3g}" if hours >= 0.01 else f"{hours:.2g}"


def laws(told):
  """Panels: equal steps, equal passes. Dots: runs; line and band: log law with its 95 %; dashed: power law."""
  canvas, panels = _panels(2)
  hours = [row["hours"] for row in told["subsets"]]
  for axes, budget in zip(panels, study_plan.BUDGETS):
    for colour, size in zip(COLOURS, told["sizes"]):
      law, x, y = scaling.fitted(told, budget, size)
      name = f"{size} ({told['sizes'][size]['parameters'] / 1e6:.1f} M)"
      axes.plot(x, y, "o", color=colour, markersize=4.5, alpha=0.75, markeredgewidth=0, label=None if law else name)
      if law:
        grid = np.geomspace(min(hours), max(hours), 80)
        low, high = law.band(grid)
        axes.plot(grid, law.at(grid), color=colour, linewidth=1.8, label=name)
        axes.fill_between(grid, low, high, color=colour, alpha=0.15, linewidth=0)
        power, _, _ = scaling.fitted(told, budget, size, "power")
        if power:
          axes.plot(grid, power.at(grid), color=colour, linewidth=1.1, linestyle=(0, (4, 3)))
    _hours(axes, hours)
    axes.set_title(budget, fontsize=10.5, color=plots.INK)
  panels[0].set_ylabel("validation action MSE (normalised)")
  if panels[0].get_legend_handles_labels()[0]:
    panels[0].legend(frameon=False, fontsize=9)
  return plots.png(canvas)


def curves(told):
  """A panel a size, at equal steps: validation loss against steps, a colour a subset; thick the mean of the seeds, thin each of them."""
  canvas, panels = _panels(len(told["sizes"]))
  subsets = told["subsets"]
  shades = [colormaps["viridis"](x) for x in np.linspace(0.88, 0.05, len(subsets))]
  for axes, size in zip(panels, told["sizes"]):
    for shade, subset in zip(shades, subsets):
      rows = [r for r in told["rows"] if study_plan.STEPS in r["budgets"] and r["size"] == size and r["hours"] == subset["hours"]]
      for row in rows:
        axes.plot(*zip(*row["curve"]), color=shade, linewidth=0.6, alpha=0.6)
      if rows:
        steps = [step for step, _ in rows[0]["curve"]]
        mean = np.mean([[loss for _, loss in row["curve"]] for row in rows], axis=0)
        axes.plot(steps, mean, color=shade, linewidth=2.0, marker="o", markersize=3.5, label=f"{_short(subset['hours'])} h")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:.3g}"))
    axes.yaxis.set_minor_formatter(ticker.StrMethodFormatter("{x:.3g}"))
    axes.set_xlabel("step")
    axes.set_title(f"{size}, {study_plan.STEPS}", fontsize=10.5, color=plots.INK)
  panels[0].set_ylabel("validation action MSE (normalised)")
  if panels[0].get_legend_handles_labels()[0]:
    panels[0].legend(frameon=False, fontsize=9, title="data")
  return plots.png(canvas)


def flops(told):
  """Loss against training FLOPs: every run; lines join a size's mean losses at equal passes."""
  canvas, (axes,) = _panels(1)
  for colour, size in zip(COLOURS, told["sizes"]):
    for budget, marker in zip(study_plan.BUDGETS, ("o", "s")):
      rows = [r for r in told["rows"] if r["size"] == size and budget in r["budgets"]]
      if not rows:
        continue
      label = f"{size}, {budget}"
      axes.plot([r["flops"] for r in rows], [r["loss"] for r in rows], marker, color=colour, markersize=4.5, label=label)
      if budget == study_plan.PASSES:
        cost = sorted({r["flops"] for r in rows})
        axes.plot(cost, [np.mean([r["loss"] for r in rows if r["flops"] == c]) for c in cost], color=colour, linewidth=1.2)
  axes.set_xscale("log")
  axes.xaxis.set_minor_formatter(ticker.NullFormatter())  # of a narrow range they lie over each other
  axes.set_xlabel("training FLOPs of the run (logarithmic)")
  axes.set_ylabel("validation action MSE (normalised)")
  if axes.get_legend_handles_labels()[0]:
    axes.legend(frameon=False, fontsize=8.5)
  return plots.png(canvas)

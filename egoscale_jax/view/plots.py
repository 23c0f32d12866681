"""Plots of a run, as PNG files or bytes; matplotlib's object interface, so that no window system is needed."""

import io

import numpy as np
from matplotlib import figure

INK, MUTED, ACCENT = "#18181b", "#a1a1aa", "#2563eb"


def panels(width, height, count=1):
  """-> a figure and its axes: one, or `count` side by side that share their y axis."""
  canvas = figure.Figure(figsize=(width, height), dpi=130, layout="constrained")
  several = canvas.subplots(1, count, sharey=True, squeeze=False)[0]
  for axes in several:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e4e7", linewidth=0.8)
    axes.set_axisbelow(True)
  return canvas, several if count > 1 else several[0]


def baselines(figures, target=None):
  """Bars: action MSE of the policy and of the two baselines. -> PNG bytes, and written to `target` if given."""
  names = ("policy", "policy,\none sample", "hold still", "mean chunk")
  keys = ("action_mse", "action_mse_one_sample", "hold_still_mse", "mean_chunk_mse")
  canvas, axes = panels(5.6, 3.2)
  bars = axes.bar(names, [figures[key] for key in keys], color=[ACCENT, "#93c5fd", MUTED, MUTED], width=0.62)
  axes.bar_label(bars, fmt="%.4f", padding=2, color=INK)
  axes.margins(y=0.12)  # room for the tallest bar's figure below the title
  axes.set_ylabel("action MSE (normalised)")
  axes.set_title(f"{figures['points']} held-out queries, {figures['draws']} samples each", fontsize=10, color=INK)
  return png(canvas, target)


def losses(lines, target=None):
  """Training loss a step (thin: raw, thick: running mean) and the validation's flow loss. `lines` of metrics.jsonl."""
  steps = [line["step"] for line in lines if "loss" in line]
  values = np.asarray([line["loss"] for line in lines if "loss" in line])
  window = max(1, len(values) // 50)
  smooth = np.convolve(values, np.ones(window) / window, mode="valid")
  canvas, axes = panels(7.0, 3.2)
  axes.plot(steps, values, color="#bfdbfe", linewidth=0.6)
  axes.plot(steps[window - 1 :], smooth, color=ACCENT, linewidth=1.6, label=f"training, mean of {window} steps")
  held_out = [(line["step"], line["validation"]["flow_loss"]) for line in lines if line.get("validation", {}).get("points")]
  if held_out:
    axes.plot(*zip(*held_out), color="#ea580c", marker="o", markersize=5, linewidth=1.2, label="validation, fixed noise")
  axes.set_yscale("log")
  axes.set_xlabel("step")
  axes.set_ylabel("flow-matching loss")
  axes.legend(frameon=False)
  return png(canvas, target)


def png(canvas, target=None):
  buffer = io.BytesIO()
  canvas.savefig(buffer, format="png")
  if target is not None:
    target.write_bytes(buffer.getvalue())
  return buffer.getvalue()

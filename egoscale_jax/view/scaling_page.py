"""The page of a scaling study, written after every run, complete or not: one HTML file that needs nothing beside it."""

import html
import pathlib
import platform
import subprocess

import egoscale_jax
from egoscale_jax.evaluate import scaling, study_plan
from egoscale_jax.view import output as output_lib
from egoscale_jax.view import report, scaling_plots

STYLE = report.STYLE + "th.n { text-align: right } table { margin: .6rem 0; font-size: .92rem } .scroll { overflow-x: auto }"
STYLE += (
  " td, th { white-space: pre; vertical-align: top } td.best { font-weight: 700 } code { font-size: .85rem; overflow-wrap: anywhere }"
)


def study(config, workdir, train, command):
  """Makes or continues the study; the page is written after every run -> its result."""
  for told in scaling.run(config, workdir, train):
    write(told, config, command, pathlib.Path(workdir) / "scaling.html")
  return told


def write(told, config, command, output):
  body = _head(told, config) + (_results(told) if told["rows"] else "<p>No run is complete yet.</p>") + _how(told, config, command)
  head = "<meta charset=utf-8><meta name=viewport content='width=device-width'><title>egoscale: scaling study</title>"
  page = f"<!doctype html><html lang=en>{head}<style>{STYLE}</style><body>{body}</body></html>"
  output_lib.write_page(output, page, "workdir")


def table(head, rows):
  """Cells are text, numbers as text with their class: (text, class)."""
  titles = "".join(f"<th{_class(cell)}>{html.escape(_text(cell))}</th>" for cell in head)
  lines = "".join("<tr>" + "".join(f"<td{_class(cell)}>{html.escape(_text(cell))}</td>" for cell in row) + "</tr>" for row in rows)
  return f"<div class=scroll><table><tr>{titles}</tr>{lines}</table></div>"


def _text(cell):
  return cell if isinstance(cell, str) else cell[0]


def _class(cell):
  return "" if isinstance(cell, str) else f' class="{cell[1]}"'


def n(text):
  return (text, "n")


def _fitted(law, name, form):
  """A figure over its interval."""
  pair = law[f"{name}_95"]
  return n(f"{law[name]:{form}}\n" + (f"{pair[0]:{form}} to {pair[1]:{form}}" if pair else "too few runs"))


def _head(told, config):
  seeds, subsets = len(config.scaling.seeds), told["subsets"]
  state = "all" if told["complete"] == told["runs"] else f"{told['complete']} of {told['runs']}"
  return (
    "<h1>Loss against hours of data</h1>"
    f"<p class=sub>{len(subsets)} nested subsets, {subsets[0]['hours']:.3g} to {subsets[-1]['hours']:.3g} hours; "
    f"sizes: {', '.join(told['sizes'])}; seeds: {seeds}; <b>{state}</b> runs complete</p>"
  )


def _results(told):
  first = told["rows"][0]
  asked = f"{first['points']} held-out queries x {first['draws']} samples, the same points and noise in every run"
  law_text = (
    f"A dot is a run: its least validation loss ({asked}). Line and band: L = a &minus; b ln D with its 95 % interval; dashed: "
    "L = c + a D<sup>&minus;p</sup>; D in hours. At <i>equal steps</i> every run has as many steps, and sees a small subset more "
    "often; at <i>equal passes</i> every frame is seen as often, in fewer steps where there are fewer hours. The runs on all the hours "
    "are of both."
  )
  better = min(first["hold_still_mse"], first["mean_chunk_mse"])
  law_text += f" The better baseline (hold still, mean chunk) has {better:.4f}."
  parts = ["<h2>The law</h2>", f"<p>{law_text}</p>", report.img(scaling_plots.laws(told), "loss against hours"), _law_tables(told)]
  parts += [_mean_table(told), "<h2>Loss during training</h2>", report.img(scaling_plots.curves(told), "loss against steps")]
  parts += ["<h2>Hours or a larger model</h2>", _allocation(told), report.img(scaling_plots.flops(told), "loss against FLOPs")]
  return "".join(parts)


def _law_tables(told):
  log, power = [], []
  for entry in told["laws"]:
    head, law = [entry["budget"], entry["size"], n(str(entry["runs"]))], entry["log"]
    if law is None:
      log.append([*head, entry["missing"]])
      continue
    log.append([*head, *(_fitted(law, name, ".5f") for name in "ab"), *_quality(law)])
    if (law := entry["power"]) is not None:
      power.append([*head, *(_fitted(law, name, ".3g") for name in "cap"), *_quality(law)])
  head = ["budget", "size", n("runs")]
  tail = [n("R² of means"), n("R² of runs"), n("last from the others")]
  told = (
    "<p>Below a figure its 95 % interval. Last from the others: the loss on the most hours as a law of the other subsets foretells it, "
  )
  told += "against what was measured.</p>"
  tables = "<p>L = a &minus; b ln D</p>" + table([*head, n("a"), n("b"), *tail], log)
  if power:
    tables += "<p>L = c + a D<sup>&minus;p</sup></p>" + table([*head, *map(n, "cap"), *tail], power)
  return told + tables


def _quality(law):
  left = f"{law['left_out']['error']:+.1%}" if law["left_out"] else "too few subsets"
  return [n(f"{law['r2_of_means']:.4f}"), n(f"{law['r2']:.4f}"), n(left)]


def _mean_table(told):
  columns = [(budget, size, scaling.mean_losses(told, budget, size)) for budget in study_plan.BUDGETS for size in told["sizes"]]
  rows = []
  for subset in told["subsets"]:
    cells = [found.get(subset["hours"]) for _, _, found in columns]
    texts = [f"{c[0]:.4f}\n{c[1]:.4f} to {c[2]:.4f}" if c else "" for c in cells]
    rows.append([n(f"{subset['hours']:.3g}"), n(str(subset["episodes"])), *map(n, texts)])
  head = [n(f"{size},\n{budget}") for budget, size, _ in columns]
  return "<p>Mean loss of the seeds, below it the least and the most:</p>" + table([n("hours"), n("episodes"), *head], rows)


def _allocation(told):
  if not told["allocation"]:
    return "<p>A table of equal FLOPs takes two sizes with a law at equal passes.</p>"
  rows = []
  for row in told["allocation"]:
    cells = [n(f"{row['flops']:.2e}")]
    for size, cell in row["sizes"].items():
      mark = "" if cell["measured"] else " *"
      cells.append((f"{cell['hours']:.3g} h: {cell['loss']:.4f}{mark}", "n best" if size == row["best"] else "n"))
    rows.append(cells)
  text = (
    "<p>At equal training FLOPs (matrix products, counted from the config) a smaller model is trained on more hours. The hours, and "
    "the loss that the size's log law at equal passes gives; bold: the least of those within the measured hours; * outside of them.</p>"
  )
  return text + table([n("training FLOPs"), *(n(size) for size in told["sizes"])], rows)


def _how(told, config, command):
  hours = sum(told["costs"].values()) / 3600
  sizes = [
    [size, n(f"{v['parameters'] / 1e6:.2f} M"), n(f"{v['flops_per_example'] / 1e9:.3g} G"), n(_mean_cost(told, size))]
    for size, v in told["sizes"].items()
  ]
  facts = (
    f"egoscale_jax {egoscale_jax.__version__}, {commit()}; Python {platform.python_version()}, {platform.system()} {platform.machine()}"
  )
  runs = [_run_row(row, told["costs"][row["name"]]) for row in told["rows"]]
  head = ["run", n("hours"), n("steps"), n("passes"), n("loss"), n("at step"), n("last loss"), n("FLOPs"), n("seconds")]
  passes = [n(f"{row['steps'] * config.batch_size / row['frames']:.2f}") for row in told["rows"]]
  runs = [[*row[:3], told_passes, *row[3:]] for row, told_passes in zip(runs, passes)]
  return (
    f"<h2>How it was made</h2><p><code>{html.escape(command)}</code></p><p>{html.escape(facts)}. Training steps took {hours:.2f} hours in "
    "all (without compiling, validation and waiting for data).</p>"
    + table(["size", n("parameters"), n("FLOPs an example"), n("mean seconds a run")], sizes)
    + f"<details><summary>All {len(runs)} runs</summary>{table(head, runs)}</details>"
  )


def _run_row(row, seconds):
  numbers = (f"{row['hours']:.3g}", f"{row['steps']}", f"{row['loss']:.4f}", f"{row['loss_step']}", f"{row['last_loss']:.4f}")
  return [row["name"], *map(n, numbers), n(f"{row['flops']:.2e}"), n(f"{seconds:.0f}")]


def _mean_cost(told, size):
  costs = [told["costs"][row["name"]] for row in told["rows"] if row["size"] == size]
  return f"{sum(costs) / len(costs):.0f}" if costs else ""


def commit():
  """Of the checkout that this runs from."""
  root = pathlib.Path(egoscale_jax.__file__).resolve().parents[1]
  if not (root / ".git").exists():
    return "not a git checkout"
  found = subprocess.run(["git", "-C", root, "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True, check=False)
  return f"commit {found.stdout.strip()}" if found.returncode == 0 else "commit unknown: git cannot read the checkout"

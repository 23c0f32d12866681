"""The page of the study of the paper's claims, written after every step: one HTML file; what is not complete is shown as missing."""

import html
import pathlib
import platform

import egoscale_jax
from egoscale_jax import policy
from egoscale_jax.evaluate import chain, claims
from egoscale_jax.evaluate import study as study_lib
from egoscale_jax.train import ground, main
from egoscale_jax.view import output as output_lib
from egoscale_jax.view import report, study_plots
from egoscale_jax.view.scaling_page import STYLE, commit, n, table

MISSING = "missing"
STYLE += " .missing { color: #a1a1aa } td.yes { color: #15803d; font-weight: 600 } td.no { color: #b91c1c; font-weight: 600 }"
STATES = {None: (MISSING, "missing"), True: ("holds", "yes"), False: ("does not hold", "no")}
ABOUT = {
  "none": "post-training alone",
  "mid": "mid-training on aligned play, post-training",
  "human": "pre-training on people, post-training",
  "both": "pre-training on people, mid-training, post-training",
}


def study(config, workdir, command):
  """Makes or continues the study; the page is written after every step -> lines for a person."""
  plan = study_lib.Plan(config, workdir, main.main, policy.agent, ground.make_stills, ground.main)
  for told in chain.run(config, plan, workdir, commit()):
    write(told, config, command, pathlib.Path(workdir) / "study.html")
  return lines(told, config)


def lines(told, config) -> list[str]:
  return [
    f"{' '.join(v['claim'].split())}: {' '.join((v['measured'] or MISSING).split())} (aim: {v['aim']}) {STATES[v['holds']][0]}"
    for v in claims.verdicts(told, config)
  ]


def write(told, config, command, output):
  parts = [
    _head(told, config),
    _backbones(told, config),
    _four(told, config),
    _ladder(told),
    _one_shot(told),
    _controls(told),
    _representations(told, config),
  ]
  body = "".join((*parts, _how(told, config, command)))
  head = "<meta charset=utf-8><meta name=viewport content='width=device-width'><title>egoscale: study</title>"
  output_lib.write_page(output, f"<!doctype html><html lang=en>{head}<style>{STYLE}</style><body>{body}</body></html>", "workdir")


def _head(told, config):
  study = config.study
  state = f"<b>{'all' if len(told['done']) == len(told['steps']) else len(told['done'])}</b> of {len(told['steps'])} steps complete"
  rows = [[v["claim"], v["aim"], v["measured"] or (MISSING, "missing"), STATES[v["holds"]]] for v in claims.verdicts(told, config)]
  text = (
    f"<p>A simulated person and {' and '.join(study_lib.bodies(study))} at a table, in physics (docs/bench.md). All recordings "
    "are simulated; "
    "nothing here is of a real robot. Every policy is tried on the same scenes, in the room where robots were shown the tasks, "
    "with everything in places that no recording shows. In brackets "
    "95 % intervals: Wilson's of a success; of a difference a bootstrap over the scenes; of a correlation one over the checkpoints. "
    f"Post-training has {len(study.seeds)} seed{'s' * (len(study.seeds) > 1)}; pre- and mid-training have one, whose luck is in "
    "no interval.</p>"
  )
  head = ["claim", "aim", "measured", ""]
  return f"<h1>The paper's claims on a simulated bench</h1><p class=sub>{state}</p>{text}" + table(head, rows)


def _backbones(told, config):
  """What all arms begin from."""
  rows, width = [], config.data.image_size[1]
  for name, figures in told["backbones"].items():
    pixels = [n(f"{width * figures[f'{question}_off']:.1f} pixels") for question in ("naming", "pointing")]
    rows.append([name, *pixels, n(f"{1e3 * figures['reading_off']:.0f} mm"), n(f"{figures['step']:,}")])
  text = (
    "<p>All arms begin from a backbone that has learned to see by pointing at what is named in still pictures, and from an action "
    "expert that has learned nothing. How far off it is on pictures of homes that it was not trained on, median: the place of a thing "
    "by its name; of those that a sentence names; how far that is from the camera.</p>"
  )
  return (
    "<h2>Where they begin</h2>"
    + text
    + table(["backbone", "naming", "pointing", "reading", "steps"], rows or [[(MISSING, "missing")] + [""] * 4])
  )


def _cells(figures):
  """Success over its interval, score."""
  if figures is None:
    return [(MISSING, "n missing"), ("", "n")]
  return [n(f"{figures['success']:.0%}\n{figures['low']:.0%} to {figures['high']:.0%}"), n(f"{figures['score']:.2f}")]


def _state(entry):
  """-> trials, seeds that are complete of those that will be."""
  trials = entry["figures"]["all"]["trials"] if entry["figures"] else 0
  return [n(str(trials)), n(f"{len(entry['rows'])} of {entry['of']}")]


def _by_task(what, entries, tasks):
  """A row an arm; what: the arms are called."""
  rows = []
  for entry in entries:
    figures = entry["figures"] or {}
    by_task = [_cells(figures.get(task))[0] for task in tasks]
    rows.append([entry["arm"], *_cells(figures.get("all")), *by_task, *_state(entry)])
  return table([what, n("success"), n("score"), *map(n, tasks), n("trials"), n("seeds")], rows)


def _four(told, config):
  entries, parts = claims.groups(told, study_lib.FOUR), []
  for body in study_lib.bodies(config.study):
    of_body, tasks = [e for e in entries if e["body"] == body], config.study.tasks
    title = "Four ways to a policy" if body == config.study.body else "A hand with other joints"
    parts.append(f"<h2>{title}: {html.escape(body)}</h2>" + (_arms_text() if body == config.study.body else _other_text()))
    parts.append(report.img(study_plots.arms(of_body, tasks), f"success of the arms, {body}"))
    parts.append(_by_task("arm", of_body, tasks))
    parts.append(_differences(told, of_body))
  return "".join(parts)


def _arms_text():
  arms = "; ".join(f"<i>{arm}</i>: {about}" for arm, about in ABOUT.items())
  return f"<p>{arms}. Post-training is on the robot's demonstrations of all tasks at once, with the same steps and rates in every arm.</p>"


def _other_text():
  return (
    "<p>The pre-trained policy knows people's hands as the first robot's. Here it is mid- and post-trained with another hand, which has an "
    "adapter and a normaliser of its own. <i>mid</i> is the same robot data without pre-training on people.</p>"
  )


def _differences(told, entries):
  body, arms, rows = entries[0]["body"], [e["arm"] for e in entries], []
  for arm, base in (("both", "none"), ("both", "mid"), ("human", "none"), ("mid", "none")):
    if arm in arms and base in arms:
      found = claims.against(told, body, arm, base)
      text = claims.points(found) if found else MISSING
      rows.append([f"{arm} minus {base}", (text, "n" if found else "n missing")])
  return table(["difference", n("success")], rows) if rows else ""


def _ladder(told):
  found = claims.ladder(told)
  text = (
    "<h2>Loss and success</h2><p>Pre-trained on a part of the people's hours (the number beside a dot, in twentieths), in "
    "several sizes, then "
    "post-trained directly. The loss is that of the pre-trained model on people's held-out recordings, the same points and noise for all. "
    f"<b>{len(found['rows'])} of {found['of']}</b> checkpoints are complete.</p>"
  )
  rows = []
  for case in (c for c in told["cases"] if c.table == study_lib.LADDER):
    row = next((r for r in found["rows"] if r["name"] == case.name), None)
    tried = _cells(row and row["results"]["all"])
    loss, trials = (f"{row['loss']:.4f}", str(len(row["trials"]))) if row else ("", "0")
    rows.append([case.size, n(str(case.twentieths)), n(loss), *tried, n(trials)])
  ranks = []
  for name in ("success", "score"):
    c = found[name]
    value = f"{c['value']:.2f}\n{c['low']:.2f} to {c['high']:.2f}" if c else "none: too few, or all alike"
    ranks.append([f"minus loss and {name}", n(value)])
  head = ["size", n("twentieths"), n("loss"), n("success"), n("score"), n("trials")]
  picture = report.img(study_plots.ladder(found), "success against loss") if found["rows"] else ""
  return text + picture + table(["rank correlation", n("Spearman")], ranks) + table(head, rows)


def _one_shot(told):
  rows = [
    [entry["tasks"][0], entry["arm"], *_cells(entry["figures"] and entry["figures"]["all"]), *_state(entry)]
    for entry in claims.groups(told, study_lib.SHOT)
  ]
  text = (
    "<h2>One demonstration</h2><p>Tasks of which no stage before saw anything: one robot's demonstration and people's of the "
    "same task, half of "
    "every batch each. <i>both</i>: after pre-training on people and mid-training; <i>mid</i>: after mid-training alone.</p>"
  )
  return text + table(["task", "arm", n("success"), n("score"), n("trials"), n("seeds")], rows)


def _controls(told):
  entries = claims.groups(told, study_lib.CONTROLS)
  rows = [[entry["arm"], *_cells(entry["figures"] and entry["figures"]["all"]), *_state(entry)] for entry in entries]
  text = (
    "<h2>Controls</h2><p>The bench can be failed. <i>shuffled labels</i>: after both stages, post-trained on demonstrations "
    "whose pictures and "
    "instruction are another demonstration's. <i>no pictures</i>: post-trained and tried without any. <i>hold still</i>: nothing moves.</p>"
  )
  return text + table(["control", n("success"), n("score"), n("trials"), n("seeds")], rows)


def _representations(told, config):
  entries = claims.groups(told, study_lib.ABLATION)
  text = (
    "<h2>Action representations</h2><p>What pre-training on people teaches to say of a hand beside its wrist; then "
    "post-training, no mid-training, as in the paper. <i>joints</i>: the arm <i>human</i> above. <i>fingertips</i>: where the "
    "tips of the same retargeted hand are, in pre- and post-training; a solver makes joints of them in the trials. "
    "<i>wrist only</i>: nothing; the fingers are learnt in post-training alone.</p>"
  )
  return text + _by_task("hand", entries, config.study.tasks) if entries else ""


def _how(told, config, command):
  done, seconds = told["done"], {}
  for name, marker in done.items():
    kind = name.split("-")[0]
    seconds[kind] = seconds.get(kind, 0.0) + marker["seconds"]
  commits = ", ".join(dict.fromkeys(marker["commit"] for marker in done.values())) or "none yet"
  facts = f"egoscale_jax {egoscale_jax.__version__}; steps made at: {commits}; Python {platform.python_version()}, "
  facts += f"{platform.system()} {platform.machine()}; seeds of post-training {tuple(config.study.seeds)}, of the trials' scenes 0."
  kinds = [[kind, n(f"{total / 60:.1f}")] for kind, total in seconds.items()]
  steps = []
  for name in told["steps"]:
    marker = done.get(name)
    steps.append([name, *([n(f"{marker['seconds']:.0f}"), marker["commit"]] if marker else [(MISSING, "n missing"), ""])])
  return (
    f"<h2>How it was made</h2><p><code>{html.escape(command)}</code></p><p>{html.escape(facts)}</p><p>Wall time of the complete "
    "steps (of a "
    f"step that was stopped, of its last start): <b>{sum(seconds.values()) / 3600:.2f} hours</b>, with compiling, on a machine "
    "that may have done "
    f"other work beside.</p>{table(['steps', n('minutes')], kinds)}"
    f"<details><summary>All {len(steps)} steps</summary>{table(['step', n('seconds'), 'commit'], steps)}</details>"
  )

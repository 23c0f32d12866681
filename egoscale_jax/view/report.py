"""The report of a run: one HTML file that needs nothing beside it."""

import base64
import html
import io
import json
import pathlib

import numpy as np

from egoscale_jax.data import actions, manifest
from egoscale_jax.errors import UserError
from egoscale_jax.policy import Policy
from egoscale_jax.train import metrics
from egoscale_jax.view import draw, episodes, plots, video
from egoscale_jax.view import output as output_lib

STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; color: #18181b; max-width: 1080px; margin: 2.5rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem } h2 { font-size: 1.15rem; margin-top: 2.2rem } p { max-width: 46rem }
img { max-width: 100%; border-radius: 6px } .sub { color: #71717a; margin-top: 0 }
table { border-collapse: collapse } td, th { padding: .25rem 1.1rem .25rem 0; text-align: left; border-bottom: 1px solid #e4e4e7 }
td.n { text-align: right; font-variant-numeric: tabular-nums } .flag { background: #fef3c7; padding: .1rem .5rem; border-radius: 4px }
"""


def write(workdir, shards, output):
  """Reads a finished run (metrics.jsonl, validation.json) and its shards; draws held-out episodes with the policy's chunks."""
  workdir, output = pathlib.Path(workdir), pathlib.Path(output)
  figures = _read_json(workdir / "validation.json", "egoscale evaluate")
  _read(workdir / "metrics.jsonl", "egoscale train")
  lines = [json.loads(line) for line in metrics.complete_lines(workdir / "metrics.jsonl")]
  data = manifest.load(shards)
  held_out = episodes.from_shards(shards, "validation")
  policy = Policy(workdir)
  if figures["step"] != policy.step:
    raise UserError(f"{workdir}/validation.json: of step {figures['step']}, the run is at {policy.step}; run `egoscale evaluate` again")
  predictor = episodes.Predictor(policy)
  picked = _one_a_task(held_out)
  footage = [episodes.footage_of_records(held_out[name]) for name in picked]
  body = "\n".join(
    (
      _head(data, policy),
      _section("What the policy sees", "Held-out frames with the 21 keypoints of each hand: left blue, right orange.", _frames(footage)),
      _section("Training", _training_text(lines), img(plots.losses(lines))),
      _section(
        "Held-out actions against two baselines", _validation_text(figures), _validation_table(figures) + img(plots.baselines(figures))
      ),
      _section(
        "Predicted chunks over what happened",
        f"Each row is one held-out episode. The policy saw only the first frame and the instruction; it predicts {predictor.horizon} "
        f"steps ({footage[0].seconds(predictor.horizon * predictor.stride):.2f} s). Robot hands as predicted: magenta (left), lime "
        "(right); keypoints that happened: blue, orange.",
        "".join(_chunk(item, predictor) for item in footage[:4]),
      ),
    )
  )
  title = f"<title>egoscale: {html.escape(str(workdir))}</title>"
  page = f"<!doctype html><html lang=en><meta charset=utf-8>{title}<style>{STYLE}</style>{body}</html>"
  output_lib.write_page(output, page, "output")


def _read(path, maker):
  if not path.is_file():
    raise UserError(f"{path}: missing, run `{maker}` first")
  return path.read_text(encoding="utf-8")


def _read_json(path, maker):
  return json.loads(_read(path, maker))


def _one_a_task(held_out):
  """One episode of every task (the folder in its name) first, then the rest: at most eight."""
  tasks = {}
  for name in held_out:
    tasks.setdefault(name.rsplit("/", 1)[0], []).append(name)
  rounds = max(map(len, tasks.values()), default=0)
  return [names[i] for i in range(rounds) for names in tasks.values() if i < len(names)][:8]


def _section(title, text, content):
  return f"<h2>{html.escape(title)}</h2><p>{text}</p>{content}"


def img(png, alt=""):
  return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _png(image):
  buffer = io.BytesIO()
  image.save(buffer, format="PNG")
  return buffer.getvalue()


def _table(rows):
  return "<table>" + "".join(rows) + "</table>"


def _head(data, policy):
  totals = data["totals"]
  d = policy.config.data
  told = "the tracked pose of both hands" if any(actions.has_state(d, name) for name in d.slots) else "no proprioception"
  kind = "simulated video" if data["source"] == "simulated" else "real video"
  return (
    f"<h1>From egocentric video to a policy</h1><p class=sub>source {html.escape(data['source'])}, step {policy.step}</p>"
    f"<p>{totals['kept']} episodes ({totals['hours'] * 60:.1f} minutes) of <span class=flag>{kind}</span>, {totals['rejected']} "
    f"rejected; hands retargeted to <b>{html.escape(data['hand'])}</b>. The policy reads one image, an instruction and {told}, and "
    "predicts wrist poses (relative to now) and joint targets of both hands.</p>"
  )


def _frames(footage):
  images = [video.annotate(item, len(item.jpeg_F) // 2) for item in footage]
  return img(_png(draw.sheet(images, columns=4)))


def _training_text(lines):
  steps = [line for line in lines if "loss" in line]
  speed = [line["examples_per_second"] for line in steps if "examples_per_second" in line]
  return (
    f"{steps[-1]['step']} steps; loss {steps[0]['loss']:.3f} at the first, {np.mean([line['loss'] for line in steps[-50:]]):.3f} over "
    f"the last 50; {np.median(speed):.0f} examples/s."
  )


def _validation_text(figures):
  return (
    f"{figures['episodes']} held-out episodes, {figures['points']} queries, the same noise for every checkpoint. MSE over normalised "
    "wrist and joint actions. <i>Hold still</i> keeps the true hand pose of the start; "
    "<i>mean chunk</i> is the average of the training set. The policy's MSE is "
    f"<b>{figures['share_of_better_baseline']:.2f}</b> of the better baseline's."
  )


def _validation_table(figures):
  rows = [
    ("policy (mean of the samples)", figures["action_mse"]),
    ("policy (one sample)", figures["action_mse_one_sample"]),
    ("baseline: hold still", figures["hold_still_mse"]),
    ("baseline: mean chunk of the training set", figures["mean_chunk_mse"]),
  ]
  cells = [f"<tr><td>{name}</td><td class=n>{value:.4f}</td></tr>" for name, value in rows]
  units = {"wrist_mm": "{:.0f} mm", "wrist_degrees": "{:.1f}&deg;", "joint_degrees": "joints {:.1f}&deg;"}
  errors = ", ".join(text.format(figures[group]) for group, text in units.items() if group in figures)
  return _table(["<tr><th>action MSE</th><th></th></tr>", *cells, f"<tr><td>mean error: wrist, joints</td><td class=n>{errors}</td></tr>"])


def _chunk(footage, predictor):
  """The chunk from a frame a third into the episode, drawn over the frames at its start, thirds and end."""
  start = min(len(footage.jpeg_F) // 3, max(0, len(footage.jpeg_F) - 1 - footage.after(0, predictor.horizon * predictor.stride)))
  predicted = predictor(footage, start)
  images = []
  for step in (0, predictor.horizon // 3, 2 * predictor.horizon // 3, predictor.horizon):
    index = min(footage.after(start, step * predictor.stride), len(footage.jpeg_F) - 1)
    canvas = draw.Canvas.of(footage.frame(index))
    for side in range(2):
      pixels = draw.to_pixels(footage.keypoints_Fx2xPx3[index, side], footage.T_world_camera_Fx4x4[index], footage.intrinsics_3x3)
      canvas.skeleton(pixels, draw.SIDE_COLOURS[side], width=1)
      if step:
        pixels = draw.to_pixels(predicted[step - 1, side], footage.T_world_camera_Fx4x4[index], footage.intrinsics_3x3)
        canvas.skeleton(pixels, draw.PREDICTED[side], width=2)
    when = f"step {step} of {predictor.horizon}" if step else footage.text
    canvas.caption(when)
    images.append(canvas.image)
  return img(_png(draw.sheet(images, columns=4)))

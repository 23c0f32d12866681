"""The doctor's findings as one HTML file that needs nothing beside it: how many of each, and the worst episodes with pictures."""

import base64
import collections
import html
import io
import pathlib

import numpy as np
from PIL import Image

from egoscale_jax.data import findings, prepare
from egoscale_jax.errors import UserError
from egoscale_jax.view import draw, episodes
from egoscale_jax.view import output as output_lib

EPISODES = 12  # that are shown; all are in the table and in the list
PICTURES = 6  # an episode
IMAGE_SIZE = 288
PICTURE_WIDTH = 560  # pixels, of which a page shows 340: sharp on a fine screen too
COLOURS = {"rejected": "#dc2626", "masked": "#ea580c", "warning": "#ca8a04"}
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #18181b; max-width: 1080px; margin: 2.5rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem } h2 { font-size: 1.25rem; margin-top: 2.4rem }
h3 { font-size: 1.05rem; margin: 0 0 .1rem; overflow-wrap: anywhere } p { max-width: 46rem } .sub { color: #71717a; margin-top: 0 }
table { border-collapse: collapse; margin: .4rem 0 }
th { font-weight: 600 } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
td, th { padding: .25rem 1.4rem .25rem 0; text-align: left; border-bottom: 1px solid #e4e4e7 }
.tag { color: #fff; border-radius: 4px; padding: .05rem .45rem; font-size: .8rem; white-space: nowrap }
.card { border: 1px solid #e4e4e7; border-radius: 10px; padding: 1rem 1.2rem; margin: 1rem 0 }
.row { display: grid; grid-template-columns: 15rem 1fr; gap: .8rem; align-items: center; font-size: .85rem; margin: .2rem 0 }
.bar { position: relative; height: 14px; background: #f4f4f5; border-radius: 3px; overflow: hidden }
.bar i { position: absolute; top: 0; bottom: 0; min-width: 3px } .axis { color: #71717a; display: flex; justify-content: space-between }
.detail { color: #52525b; font-size: .85rem; margin: 0 0 .45rem 15.8rem; overflow-wrap: anywhere }
.pictures { display: grid; grid-template-columns: repeat(3, 1fr); gap: 8px; margin-top: .8rem }
img { width: 100%; border-radius: 6px; display: block } figure { margin: 0 }
figcaption { font-size: .8rem; color: #52525b; line-height: 1.3 }
@media (max-width: 640px) { .row, .pictures { grid-template-columns: 1fr } .row { gap: .1rem } .detail { margin-left: 0 } }
"""


def write(found, source, columns, output):
  """found: of data/exclusion.examine; the worst episodes are read once more, from the source, for their pictures."""
  output, entries = pathlib.Path(output), found["episodes"]
  recordings = {recording.id: recording for recording in prepare.find(source, found["input"], columns)}
  worst = sorted((e for e in entries if e["findings"]), key=badness, reverse=True)
  cards = "".join(_card(e, _read(source, recordings[e["id"]])) for e in worst[:EPISODES])
  unread = [e for e in entries if e["error"] and not e["findings"]]
  body = _head(found, worst) + _table(entries)
  if worst:
    shown = f"The {EPISODES} worst of {len(worst)} episodes" if len(worst) > EPISODES else "The episodes, the worst first"
    body += (
      f"<h2>{shown}</h2><p>A bar is the episode's time; coloured is where the finding lies. Hands as recorded: left blue, right orange.</p>"
    )
    body += cards
  if worst[EPISODES:]:
    body += "<h2>The others</h2><table>" + "".join(map(_line, worst[EPISODES:])) + "</table>"
  if unread:
    rows = "".join(f"<tr><td>{html.escape(e['id'])}</td><td>{html.escape(e['error'])}</td></tr>" for e in unread)
    body += f"<h2>Not readable</h2><table>{rows}</table>"
  head = (
    f"<meta charset=utf-8><meta name=viewport content='width=device-width'><title>egoscale doctor: {html.escape(found['input'])}</title>"
  )
  page = f"<!doctype html><html lang=en>{head}<style>{STYLE}</style><body>{body}</body></html>"
  output_lib.write_page(output, page, "html")


def badness(entry):
  """Rejected before masked before warned; then by the share of frames, over all findings of that severity."""
  share = {severity: 0.0 for severity in findings.SEVERITIES}
  for finding in entry["findings"]:
    share[finding["severity"]] += finding["count"] / entry["frames"]
  return tuple(share.values())


def _read(source, recording):
  """The episode, or None where it can no longer be read: its findings are told without pictures."""
  try:
    return source.read(recording, image_size=IMAGE_SIZE)
  except UserError:
    return None


def _tag(severity):
  return f'<span class=tag style="background:{COLOURS[severity]}">{severity}</span>'


def _head(found, worst):
  entries = found["episodes"]
  minutes = sum(e.get("seconds", 0) for e in entries) / 60
  clean = sum(not e["findings"] and not e["error"] for e in entries)
  counts = f"{len(entries)} episodes, {minutes:.1f} minutes: <b>{clean} clean</b>, {len(worst)} with findings, "
  counts += f"<b>{len(found['exclude'])} to exclude</b>."
  return f"<h1>What the doctor found</h1><p class=sub>{html.escape(found['source'])}: {html.escape(found['input'])}</p><p>{counts}</p>"


def _table(entries):
  """A row a kind of finding: in how many episodes and frames."""
  counts = collections.defaultdict(lambda: [set(), 0])
  for entry in entries:
    for finding in entry["findings"]:
      row = counts[findings.SEVERITIES.index(finding["severity"]), finding["name"]]
      row[0].add(entry["id"])
      row[1] += finding["count"]
  if not counts:
    return "<p>No finding.</p>"
  rows = "".join(_table_row(*key, *row) for key, row in sorted(counts.items(), key=lambda item: (item[0][0], -len(item[1][0]), item[0][1])))
  return f"<table><tr><th>finding</th><th></th><th class=n>episodes</th><th class=n>frames</th></tr>{rows}</table>"


def _table_row(severity, name, ids, frames):
  tag = _tag(findings.SEVERITIES[severity])
  return f"<tr><td>{html.escape(name)}</td><td>{tag}</td><td class=n>{len(ids)}</td><td class=n>{frames}</td></tr>"


def _title(finding):
  return html.escape(f"{finding['name']} {finding['side']}".strip())


def _line(entry):
  told = ", ".join(dict.fromkeys(_title(f) for f in entry["findings"]))
  return f"<tr><td>{html.escape(entry['id'])}</td><td>{told}</td></tr>"


def _card(entry, episode):
  """An episode: its findings on a time line, and its pictures."""
  ordered = sorted(entry["findings"], key=lambda f: (findings.SEVERITIES.index(f["severity"]), f["first_frame"]))
  rows = "".join(_bar(f, entry["frames"]) + f"<p class=detail>{html.escape(f['detail'])}</p>" for f in ordered)
  axis = f"<div class=row><span></span><span class=axis><span>0 s</span><span>{entry['seconds']:.2f} s</span></span></div>"
  pictures = "".join(_picture(episode, *chosen) for chosen in choose(ordered)) if episode is not None else ""
  text = html.escape(entry["text"] or "(no instruction)")
  return f"<div class=card><h3>{html.escape(entry['id'])}</h3><p class=sub>{text}</p>{rows}{axis}<div class=pictures>{pictures}</div></div>"


def _bar(finding, num_frames):
  colour = COLOURS[finding["severity"]]
  parts = "".join(
    f'<i style="left:{100 * first / num_frames:.2f}%;width:{100 * (last + 1 - first) / num_frames:.2f}%;background:{colour}"></i>'
    for first, last in finding["spans"]
  )
  return f"<div class=row><span>{_tag(finding['severity'])} {_title(finding)}</span><div class=bar>{parts}</div></div>"


def choose(ordered) -> list[tuple[int, str]]:
  """Findings, the worst first -> (frame, names of the findings that it shows), in time's order: of each finding its longest span's middle
  and, while there is room, its ends.
  """
  candidates = []
  for part in (0.5, 0.0, 1.0):
    for finding in ordered:
      first, last = max(finding["spans"], key=lambda span: span[1] - span[0])
      candidates.append(round(first + part * (last - first)))
  frames = sorted(list(dict.fromkeys(candidates))[:PICTURES])
  shown = lambda frame, f: any(first <= frame <= last for first, last in f["spans"])  # noqa: E731
  return [(frame, ", ".join(dict.fromkeys(f"{f['name']} {f['side']}".strip() for f in ordered if shown(frame, f)))) for frame in frames]


def _picture(episode, index, names):
  footage = episodes.footage_of_episode(episode)
  canvas = draw.Canvas.of(_frame(footage, index, episode.image_size))
  height, width = episode.image_size
  drawn = False
  for side in range(2):
    pixels = draw.to_pixels(footage.keypoints_Fx2xPx3[index, side], footage.T_world_camera_Fx4x4[index], footage.intrinsics_3x3)
    near = np.abs(pixels) < 1e4  # a keypoint beside the eye projects to where no picture can be drawn
    canvas.skeleton(np.where(near, pixels, np.nan), draw.SIDE_COLOURS[side], width=3)
    drawn |= bool(((pixels > 0) & (pixels < (width, height))).all(axis=1).any())
  canvas.image.thumbnail((PICTURE_WIDTH, PICTURE_WIDTH))
  buffer = io.BytesIO()
  canvas.image.save(buffer, format="JPEG", quality=85)
  told = html.escape(f"{index / footage.rate_hz:.2f} s, frame {index}: {names}" + ("" if drawn else "; no keypoint in the picture"))
  image = f'<img alt="{html.escape(names)}" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
  return f"<figure>{image}<figcaption>{told}</figcaption></figure>"


def _frame(footage, index, image_size):
  """The picture [Y, X, 3], or grey where it cannot be decoded."""
  try:
    return footage.frame(index)
  except ValueError:
    return np.asarray(Image.new("RGB", image_size[::-1], (120, 120, 120)))

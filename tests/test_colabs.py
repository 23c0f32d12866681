"""Every notebook in colabs/, its cells run in order as a person would, without Jupyter; small hands and few recordings, to be quick.

Those that train are slow: pytest -m slow tests/test_colabs.py
"""

import ast
import json

import matplotlib as mpl
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

NOTEBOOKS = sorted((ROOT / "colabs").glob("*.ipynb"))
# Of each notebook: what is replaced, and how many figures, pictures and videos it shows. A hand of 7 joints compiles in a third of the time
# that one of 22 takes.
EXPECTED = {
  "01_data": (
    {
      'HAND = "sharpa_wave"': 'HAND = "dex3"',
      "EPISODES, SIDE_PIXELS = 16, 144": "EPISODES, SIDE_PIXELS = 6, 64",
      'OUT / "more_recordings", 6,': 'OUT / "more_recordings", 2,',
      "batch_size=256": "batch_size=64",
      "STEPS = 40": "STEPS = 2",
    },
    (6, 4, 0),
  ),
  "02_retarget": ({'HAND, SIDE = "sharpa_wave"': 'HAND, SIDE = "dex3"'}, (3, 3, 1)),
  "03_policy": ({"EPISODES, SIDE_PIXELS, STEPS = 60, 96, 400": "EPISODES, SIDE_PIXELS, STEPS = 16, 96, 20"}, (4, 3, 0)),
  "04_scaling": (
    {"EPISODES, SIDE_PIXELS, STEPS, SEEDS = 120, 64, 240, (0, 1)": "EPISODES, SIDE_PIXELS, STEPS, SEEDS = 12, 64, 4, (0,)"},
    (4, 0, 0),
  ),
  "05_checkpoint": ({"EPISODES, SIDE_PIXELS, STEPS = 12, 64, 60": "EPISODES, SIDE_PIXELS, STEPS = 6, 64, 6"}, (6, 0, 0)),
}
SLOW = ("03_policy", "04_scaling", "05_checkpoint")


def cells(path):
  """-> [(id, code)] of the code cells."""
  return [(cell["id"], "".join(cell["source"])) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def without_magic(code):
  """A magic's line becomes an error: it is reached only where the package is missing."""
  is_magic = lambda line: line.lstrip().startswith(("%", "!"))  # noqa: E731
  return "\n".join(line[: -len(line.lstrip())] + "raise AssertionError" if is_magic(line) else line for line in code.splitlines())


def run_cell(code, name, space):
  """Runs it -> the value of its last line if that is an expression, which Jupyter would show."""
  tree = ast.parse(code, name)
  last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
  exec(compile(tree, name, "exec"), space)
  return eval(compile(ast.Expression(last.value), name, "eval"), space) if last else None


def has_content(pixels_YxXx3):
  return len(np.unique(pixels_YxXx3.reshape(-1, 3), axis=0)) > 50 and (pixels_YxXx3.min(-1) < 250).mean() > 0.01


@pytest.mark.parametrize("path", [pytest.param(path, marks=[pytest.mark.slow] * (path.stem in SLOW), id=path.stem) for path in NOTEBOOKS])
def test_every_cell_runs_and_draws(path, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  mpl.use("Agg")
  from matplotlib import pyplot as plt

  quicker, counts = EXPECTED[path.stem]
  assert {slow for slow in quicker if any(slow in code for _, code in cells(path))} == set(quicker)
  space, pictures = {"__name__": "__main__"}, []
  with mpl.rc_context():
    for name, code in cells(path):
      for slow, quick in quicker.items():
        code = code.replace(slow, quick)
      shown = run_cell(without_magic(code), f"{path.name}:{name}", space)
      if isinstance(shown, Image.Image):
        pictures.append(shown)
    figures = [plt.figure(number) for number in plt.get_fignums()]
    for figure in figures:
      figure.canvas.draw()
      assert has_content(np.asarray(figure.canvas.buffer_rgba())[..., :3])
      for axes in figure.axes:
        assert axes.has_data()
        assert axes.get_ylabel() or axes.get_yticklabels()
      placed = [axes for axes in figure.axes if axes.get_subplotspec() is not None]  # a colour bar has no place in the grid
      assert all(axes.get_xlabel() for axes in placed if axes.get_subplotspec().is_last_row())
    plt.close("all")
  assert all(has_content(np.asarray(picture)) for picture in pictures)
  videos = [video for video in tmp_path.glob("*/*.mp4") if video.stat().st_size > 10_000]  # recordings lie deeper
  assert (len(figures), len(pictures), len(videos)) == counts


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stored_clean(path):
  text = path.read_text()
  notebook = json.loads(text)
  assert text == json.dumps(notebook, indent=2, ensure_ascii=False) + "\n"
  names = [cell["id"] for cell in notebook["cells"]]
  assert len(set(names)) == len(names)
  for cell in notebook["cells"]:
    assert not cell.get("outputs")
    assert cell.get("execution_count") is None
  (first, install), *rest = cells(path)
  assert first == "install"
  assert install != without_magic(install)
  for name, code in rest:
    assert code == without_magic(code), f"{name}: only the install cell has a magic"


def test_there_are_notebooks():
  assert {path.stem for path in NOTEBOOKS} == set(EXPECTED)

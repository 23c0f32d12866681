"""The page of `egoscale view --web` in a real browser: it opens, scrubs, shows both hands and a chunk, and talks to nobody else.

  pip install -e '.[web]' playwright; apt install chromium (or: playwright install chromium)
  python -m pytest tests/view/test_browser.py -m slow

rerun draws on one canvas, so that what is shown is told by pixels. SCREENSHOTS=DIR keeps the pictures.
"""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import recordings
from conftest import ROOT
from PIL import Image

from egoscale_jax.view import draw, timeline

pytestmark = pytest.mark.slow
SIZE = (1440, 900)
PICTURE, WORLD = (0, 60, 570, 530), (580, 70, 1430, 480)  # left, top, right, bottom of the two views in that window
PLAYER = (267, 1233, 886)  # first and last x of the time line's scrubber, and its y
HERE = re.compile(r"http://127\.0\.0\.1:\d+/")
OPENING_S = 60  # software rendering on a busy machine


def chromium():
  """The path of one that is installed."""
  playwright = pytest.importorskip("playwright.sync_api", reason="playwright is absent: pip install playwright")
  for name in ("chromium", "chromium-browser", "google-chrome"):
    if found := shutil.which(name):
      return found
  with playwright.sync_playwright() as started:
    if pathlib.Path(started.chromium.executable_path).is_file():
      return started.chromium.executable_path
  pytest.skip("no Chromium: apt install chromium, or playwright install chromium")


@pytest.fixture(scope="module")
def browser():
  pytest.importorskip("rerun", reason="rerun-sdk is absent: pip install -e '.[web]'")
  path = chromium()
  from playwright.sync_api import sync_playwright

  with sync_playwright() as started:
    drawn_in_software = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    made = started.chromium.launch(executable_path=path, args=["--no-sandbox", *drawn_in_software])
    yield made
    made.close()


class Served:
  """`egoscale view --web` in a process of its own, from its first line on."""

  def __init__(self, tmp_path, *arguments):
    self.log = tmp_path / "log"
    command = [sys.executable, "-m", "egoscale_jax.cli", "view", "--web", "--port=0", *map(str, arguments)]
    # The page's own process compiles the policy as the tests do (conftest.py), and its warnings are errors too.
    with open(self.log, "w") as log:
      self.process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONWARNINGS": "error"}, stdout=log, stderr=log)
    self.address = None
    self.until(lambda said: "Ctrl-C ends it" in said)
    self.address = HERE.search(self.log.read_text())[0]

  def until(self, reached, seconds=300):
    end = time.monotonic() + seconds
    while not reached(self.log.read_text()):
      assert self.process.poll() is None, self.log.read_text()
      assert time.monotonic() < end, self.log.read_text()
      time.sleep(0.1)

  def end(self, how=signal.SIGINT):
    self.process.send_signal(how)
    code = self.process.wait(60)
    assert "Traceback" not in self.log.read_text()
    return code


@pytest.fixture
def served(tmp_path):
  made = []

  def start(*arguments):
    made.append(Served(tmp_path, *arguments))
    return made[-1]

  yield start
  for one in made:
    if one.process.poll() is None:
      one.end()


class Page:
  """An open page, its screenshots, and where it tried to go."""

  def __init__(self, browser, address):
    self.page = browser.new_page(viewport={"width": SIZE[0], "height": SIZE[1]})
    self.page.set_default_timeout(1000 * OPENING_S)
    self.foreign, self.answered = [], []
    self.page.on("requestfailed", lambda r: self.foreign.append((r.url, r.failure)) if not HERE.match(r.url) else None)
    self.page.on("response", lambda r: self.answered.append(r.url))
    self.page.goto(address)

  def picture(self, name, path):
    file = path / f"{name}.png"
    self.page.screenshot(path=file)
    if folder := os.environ.get("SCREENSHOTS"):
      shutil.copy(file, folder)
    return np.asarray(Image.open(file).convert("RGB"))

  def wait(self, path, *colours):
    """Until all of them are in the view of the world."""
    end = time.monotonic() + OPENING_S
    while min(count(self.picture("waiting", path), WORLD, colour) for colour in colours) < 30:
      assert time.monotonic() < end, [(colour, count(self.picture("waiting", path), WORLD, colour)) for colour in colours]
      self.page.wait_for_timeout(300)

  def scrub(self, share):
    first, last, y = PLAYER
    x = first + share * (last - first)
    self.page.mouse.move(x - 3, y)
    self.page.mouse.down()
    self.page.mouse.move(x, y, steps=3)
    self.page.mouse.up()
    self.page.mouse.move(SIZE[0] / 2, 300)
    self.page.wait_for_timeout(2500)  # until it is drawn


def count(image, view, colour, near=24):
  """Pixels of a colour in a view."""
  left, top, right, bottom = view
  return int((np.abs(image[top:bottom, left:right].astype(int) - colour).max(axis=-1) <= near).sum())


def changed(a, b, view):
  """Share of a view's pixels that differ."""
  left, top, right, bottom = view
  return float((np.abs(a.astype(int) - b)[top:bottom, left:right].max(axis=-1) > 30).mean())


def test_a_checkpoint_shows_both_hands_and_a_chunk_and_scrubs(browser, served, tiny_run, tmp_path):
  server = served(f"--input={tiny_run}", "--episode=0")
  server.until(lambda said: "100%" in said)  # every chunk is predicted
  page = Page(browser, server.address)
  everything = (*draw.SIDE_COLOURS, *draw.PREDICTED)
  page.wait(tmp_path, *everything, *timeline.ROBOT)
  page.scrub(0.1)
  early = page.picture("early", tmp_path)
  page.scrub(0.6)
  late = page.picture("late", tmp_path)
  for image in (early, late):
    for colour in everything:
      assert count(image, WORLD, colour) >= 30, colour
    assert count(image, PICTURE, draw.SIDE_COLOURS[0]) >= 30  # over the video too
  assert changed(early, late, WORLD) > 0.002
  assert changed(early, late, PICTURE) > 0.02  # the video's grey level goes with the frame
  page.scrub(0.1)
  again = page.picture("again", tmp_path)
  assert changed(early, again, WORLD) < changed(early, late, WORLD) / 4
  assert all(HERE.match(url) for url in page.answered), page.answered
  assert page.foreign  # it tried, at least for letters,
  assert {failure for _, failure in page.foreign} == {"csp"}, page.foreign  # and the policy of front.py stopped it
  assert server.end() == 0


def test_a_recording_shows_its_findings(browser, served, tmp_path):
  """A hand that jumps away for four frames: an orange span, and no label."""

  def spoil(file):
    for name, poses in file["transforms"].items():
      if name.startswith("left"):
        poses[20:24, :3, 3] += (0.3, 0.1, 0)

  recordings.write(tmp_path / "in", frames=60, change=spoil)
  server = served(f"--input={tmp_path}/in/pour/0.hdf5")
  page = Page(browser, server.address)
  page.wait(tmp_path, *draw.SIDE_COLOURS, *timeline.ROBOT)
  image = page.picture("findings", tmp_path)
  lanes = (580, 480, 1430, 720)
  pale = lambda colour: tuple(np.array(colour) * 0.75 + 255 * 0.25)  # noqa: E731, on the page's white, as rerun draws them
  assert max(count(image, lanes, c, 40) for c in (timeline.SEVERITY["masked"], pale(timeline.SEVERITY["masked"]))) > 100
  assert max(count(image, lanes, c, 40) for c in (timeline.LABEL["label"], pale(timeline.LABEL["label"]))) > 1000
  assert server.end(signal.SIGTERM) == 0

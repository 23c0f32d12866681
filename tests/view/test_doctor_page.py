"""The doctor's page: whole in one file, the worst first, every name escaped, pictures where the findings are."""

import base64
import dataclasses
import html.parser
import re

import faults
import numpy as np
import pytest
import recordings
import simplejpeg

from egoscale_jax.data import exclusion
from egoscale_jax.data.schema import Recording
from egoscale_jax.errors import UserError
from egoscale_jax.view import doctor_page


def source_of(**items):
  return recordings.Cached({Recording(name, (f"{name}.hdf5",)): item for name, item in items.items()})


@pytest.fixture(scope="module")
def page(tmp_path_factory):
  gap = faults.array("keypoints_Fx2xPx3", "left", lambda p: p * np.nan)
  a = dataclasses.replace(gap(faults.human(), slice(30, 45)), text="Pour <b>tea</b>.")
  b = dataclasses.replace(faults.human(), T_world_camera_CxFx4x4=faults.human().T_world_camera_CxFx4x4 * np.float32(np.nan))
  jpeg_F = (*faults.human().jpeg_F[:40], b"no picture", *faults.human().jpeg_F[41:])
  c = dataclasses.replace(faults.human(), jpeg_CxF=(jpeg_F,))
  source = source_of(a=a, b=b, c=c, clean=recordings.episode(), e=UserError("e.mp4: <missing>"))
  output = tmp_path_factory.mktemp("page") / "new" / "doctor.html"
  doctor_page.write(exclusion.examine(source, "in"), source, "", output)
  assert [p.name for p in output.parent.iterdir()] == ["doctor.html"]
  return output.read_text()


class Tags(html.parser.HTMLParser):
  """Every tag that opens also closes."""

  def __init__(self):
    super().__init__()
    self.open = []

  def handle_starttag(self, tag, attrs):
    if tag not in ("img", "meta"):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag


def test_the_page_is_well_formed_and_needs_nothing_beside_it(page):
  tags = Tags()
  tags.feed(page)
  assert tags.open == []
  assert not re.search(r"(src|href)=\"(?!data:)", page)
  assert "Pour &lt;b&gt;tea&lt;/b&gt;." in page
  assert "e.mp4: &lt;missing&gt;" in page


def test_the_worst_come_first_and_the_counts_are_those_of_the_findings(page):
  assert re.findall(r"<h3>(\w+)</h3>", page) == ["b", "c", "a"]
  assert "<b>1 clean</b>, 3 with findings, <b>3 to exclude</b>" in page
  row = re.search(r"<td>missing</td>.*?</tr>", page).group()
  assert re.findall(r"<td class=n>(\d+)", row) == ["1", "15"]


def test_a_bar_shows_where_the_finding_lies(page):
  card = page[page.index("<h3>a</h3>") :]
  assert re.search(r"left:33\.33%;width:16\.67%", card)


def test_pictures_show_the_findings_frames(page):
  pictures = re.findall(r'alt="([^"]*)" src="data:image/jpeg;base64,([^"]*)"', page)
  assert 6 <= len(pictures) <= 18
  assert "no keypoint in the picture" in page[page.index("<h3>b</h3>") : page.index("<h3>c</h3>")]  # its camera is nowhere
  assert "no keypoint in the picture" not in page[page.index("<h3>c</h3>") :]
  assert any("missing left" in names for names, _ in pictures)
  for _, data in pictures:
    assert simplejpeg.decode_jpeg(base64.b64decode(data)).shape[1] >= 320  # large enough to see fingers


def test_pictures_are_of_every_finding_and_few():
  long, short = ({"name": n, "side": "", "spans": s} for n, s in (("x", [[0, 10], [20, 80]]), ("y", [[5, 5]])))
  assert doctor_page.choose([long, short]) == [(5, "x, y"), (20, "x"), (50, "x"), (80, "x")]
  many = [{"name": str(i), "side": "", "spans": [[9 * i, 9 * i + 4]]} for i in range(10)]
  assert [frame for frame, _ in doctor_page.choose(many)] == [9 * i + 2 for i in range(6)]


def test_a_page_without_findings_says_so(tmp_path):
  source = source_of(a=recordings.episode())
  doctor_page.write(exclusion.examine(source, "in"), source, "", tmp_path / "d.html")
  assert "No finding." in (tmp_path / "d.html").read_text()


def test_a_page_that_cannot_be_written_is_one_line(tmp_path):
  (tmp_path / "file").write_text("")
  source = source_of(a=recordings.episode())
  with pytest.raises(UserError, match=r"--html=.*cannot be written"):
    doctor_page.write(exclusion.examine(source, "in"), source, "", tmp_path / "file" / "d.html")

"""`egoscale view --web` as a person meets it: which folder is what, one line for every mistake, and what reaches rerun at which time."""

import dataclasses
import socket
import sys

import numpy as np
import pytest
from test_cli import fails
from test_scene import F, a_scene

from egoscale_jax.data import beam
from egoscale_jax.data.findings import Finding
from egoscale_jax.errors import UserError
from egoscale_jax.view import timeline, web


@pytest.fixture
def needs_rerun():
  return pytest.importorskip("rerun", reason="rerun-sdk is absent: pip install -e '.[web]'")


def test_every_kind_is_told_by_its_files(monkeypatch, tmp_path):
  """And what makes no sense together is refused."""
  opened = []
  for kind in ("of_recording", "of_rollout", "of_shards"):
    monkeypatch.setattr(web.scene_lib, kind, lambda *given, kind=kind, **more: opened.append((kind, *given, more)))
  monkeypatch.setattr(web, "_of_run", lambda *given: opened.append(("of_run", *given)))
  for name, file in (("rollout", "trials.jsonl"), ("run", "config.json"), ("shards", "manifest.json"), ("begun", "plan.json")):
    (tmp_path / name).mkdir()
    (tmp_path / name / file).write_text("{}")
  assert web.open_scene(tmp_path / "rollout", 3)[1] is None
  assert web.open_scene(tmp_path / "run", 2)[1] == tmp_path / "run"  # which is its own policy
  assert web.open_scene(tmp_path / "shards", 1, workdir="w")[1] == "w"
  web.open_scene(tmp_path / "begun")
  web.open_scene(tmp_path / "a.hdf5", hand="dex3")
  web.open_scene(tmp_path / "run", source=web, columns="c")  # --source says what it is
  kinds = [told[0] for told in opened]
  assert kinds == ["of_rollout", "of_run", "of_shards", "of_shards", "of_recording", "of_recording"]
  assert opened[0] == ("of_rollout", tmp_path / "rollout", 3, {})
  assert opened[4][-1] == {"hand": "dex3"}
  for folder in ("rollout", "run"):
    with pytest.raises(UserError, match=rf"--workdir=w: .*{folder}"):
      web.open_scene(tmp_path / folder, workdir="w")
  for path, found in ((tmp_path, "none of these"), (tmp_path / "no", "nothing")):
    with pytest.raises(UserError, match=f"found {found}, expected an .hdf5"):
      web.open_scene(path)


def test_mistakes_are_one_line(capsys, tmp_path, shards):
  assert "argument --output: not allowed with argument --web" in fails(
    capsys, "view", f"--input={shards}", "--web", f"--output={tmp_path}/a.png"
  )
  assert "--output --web is required" in fails(capsys, "view", f"--input={shards}")


def test_a_missing_package_is_one_line(capsys, monkeypatch, shards):
  monkeypatch.delattr("egoscale_jax.serve.server", raising=False)
  monkeypatch.setitem(sys.modules, "egoscale_jax.serve.server", None)
  assert "not installed, expected pip install -e '.[serve]' in the checkout" in fails(capsys, "serve", f"--checkpoint={shards}")
  monkeypatch.setitem(sys.modules, "apache_beam", None)
  with pytest.raises(UserError, match=r"expected pip install -e '\.\[beam\]' in the checkout"):
    beam.run([], "")
  monkeypatch.setitem(sys.modules, "rerun", None)
  assert "rerun: not installed, expected pip install -e '.[web]' in the checkout" in fails(capsys, "view", f"--input={shards}", "--web")


def test_an_address_that_cannot_be_had_is_one_line():
  with socket.socket() as taken:
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    port = taken.getsockname()[1]
    with pytest.raises(UserError, match=f"--port={port}: cannot be listened on at 127.0.0.1: Address already in use"):
      web.serving("127.0.0.1", port).__enter__()
  with pytest.raises(UserError, match="--port=70000"):
    web.serving("127.0.0.1", 70000).__enter__()
  with pytest.raises(UserError, match="--host=example: expected an address"):
    web.serving("example", 0).__enter__()


class FakeStream:
  """Keeps what a rerun.RecordingStream is told: {path: [(frame or None, name of what)]}."""

  def __init__(self):
    self.told, self.now, self.blueprint = {}, {}, None

  def set_time(self, timeline, sequence=None, duration=None):
    self.now[timeline] = sequence if duration is None else duration

  def log(self, path, what, static, strict):
    assert strict
    assert static or self.now["time"] == pytest.approx(self.now["frame"] / 30)
    self.told.setdefault(path, []).append((None if static else self.now["frame"], what))

  def send_blueprint(self, blueprint):
    self.blueprint = blueprint

  def set_log_time_enabled(self, on):
    assert not on  # one time line, the recording's; when it was logged is nobody's concern

  set_log_tick_enabled = set_log_time_enabled


def test_what_is_logged_at_which_time(needs_rerun):
  from egoscale_jax.view import page as page_lib

  scene = a_scene(findings=(Finding("jump", "masked", "left", 2, 2, 3, "", ((2, 3),)),), stride=2)
  scene = dataclasses.replace(scene, cameras=(dataclasses.replace(scene.cameras[0], jpeg_N=scene.cameras[0].jpeg_N[::2]),))
  scene.keypoints_Fx2xPx3[5, 0] = np.nan
  stream = FakeStream()
  page = page_lib.Page(stream, scene)
  page.show("the policy")
  told = stream.told
  frames = lambda path: [frame for frame, _ in told[path]]  # noqa: E731
  assert frames("world/camera/head") == [None, *range(F), *range(0, F, 2)]  # the lens, the poses, every second picture
  pictures = [bytes(what.blob.as_arrow_array()[0].as_py()) for frame, what in told["world/camera/head"][-F // 2 :]]
  assert pictures == list(scene.cameras[0].jpeg_N)
  assert frames("world/human/left") == frames("world/human/left/points") == list(range(F))
  count = [len(what.positions.as_arrow_array()) for _, what in told["world/human/left/points"]]
  assert count == [25] * 5 + [0] + [25] * 6  # five fingers from the wrist; the lost hand is gone
  assert frames("findings/jump_left") == [None, 2, 4]
  state, ended = (what.state.as_arrow_array().to_pylist() for _, what in told["findings/jump_left"][1:])
  assert (state, ended) == (["masked"], [""])
  assert stream.blueprint is not None
  (legend,) = (what.text.as_arrow_array()[0].as_py() for _, what in told["about"])
  assert "Pour." in legend
  assert "the policy said" in legend
  page.strips(timeline.true_strips(scene, 7, 9))
  assert frames("world/true/right/wrist") == [7]


def test_names_of_any_letters_are_paths(needs_rerun):
  from egoscale_jax.view import page as page_lib

  assert page_lib.camera_path(a_scene().cameras[0]) == "world/camera/head"
  odd = web.scene_lib.Camera("observation.images/ego cam", (), (1, 1), None, None)
  assert page_lib.camera_path(odd) == r"world/camera/observation.images\/ego\ cam"

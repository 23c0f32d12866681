"""`egoscale retarget` and `egoscale view` of its result: a file in, a file out, one line for every mistake."""

import av
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from test_cli import fails, run

from egoscale_jax.errors import UserError
from egoscale_jax.hands import alignment, files, hand, keypoints, kinematics, retarget
from egoscale_jax.sim import human, postures

FRAMES = 40


def own_keypoints():
  """Keypoints [40, 21, 3] of the robot itself, closing half-way, far from the origin."""
  model = hand.load("sharpa_wave", "right")
  share_F = 0.25 - 0.2 * np.cos(np.linspace(0, np.pi, FRAMES, dtype=np.float32))
  joints_FxJ = model.lower_J + share_F[:, None] * (model.upper_J - model.lower_J)
  return np.asarray(kinematics.keypoints(model, joints_FxJ)) + np.float32([1, -2, 3])


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
  path = tmp_path_factory.mktemp("recording") / "own.npy"
  np.save(path, own_keypoints())
  return path


@pytest.fixture(scope="module")
def result(recording):
  output = recording.parent / "out" / "own.npz"
  files.run("sharpa_wave", "right", recording, output, scale=1.0)
  return output


def flags(source, output, **other):
  given = {"hand": "sharpa_wave", "side": "right", "keypoints": source, "output": output, **other}
  return ["retarget", *(f"--{name}={value}" for name, value in given.items())]


def test_result_is_that_of_the_library(recording, result):
  expected = retarget.retarget(np.load(recording), hand.load("sharpa_wave", "right"), "right", scale=1.0)
  with np.load(result) as arrays:
    got = dict(arrays)
  np.testing.assert_array_equal(got["joints"], expected.joints_FxJ)
  np.testing.assert_array_equal(got["residual_m"], expected.residual_m_F)
  assert got["joints"].dtype == np.float32
  assert got["joints"].shape == (FRAMES, 22)
  assert got["valid"].all()
  assert not got["bridged"].any()
  assert got["scale"] == 1.0
  assert tuple(got["joint_names"]) == hand.load("sharpa_wave", "right").joint_names
  np.testing.assert_allclose(
    got["human"], own_keypoints() - np.float32([1, -2, 3]), atol=1e-3
  )  # the knuckles turn the wrist frame a little
  reach_FxP = lambda points: np.linalg.norm(points - points[:, :1], axis=-1)  # noqa: E731
  np.testing.assert_allclose(reach_FxP(got["human"]), reach_FxP(own_keypoints()), atol=2e-6)
  assert [path.name for path in result.parent.iterdir()] == ["own.npz"]


def test_npz_with_confidence(capsys, recording, tmp_path):
  confidence_Fx21 = np.ones((FRAMES, 21), np.float32)
  confidence_Fx21[10:13, 8] = 0.1
  np.savez(tmp_path / "in.npz", keypoints=np.load(recording), confidence=confidence_Fx21)
  code, out, err = run(capsys, *flags(tmp_path / "in.npz", tmp_path / "out.npz"))
  assert code == 0, err
  assert "40 frames, 37 valid, 3 bridged" in out
  with np.load(tmp_path / "out.npz") as arrays:
    np.testing.assert_array_equal(np.flatnonzero(arrays["bridged"]), [10, 11, 12])
    assert np.isfinite(arrays["joints"]).all()
    assert np.isnan(arrays["human"][10:13, 8]).all()


def test_pieces_and_rounds_leave_every_frame_behind(monkeypatch, recording, tmp_path):
  """Several windows, and several rounds of more smoothing; the solver itself is not asked."""
  frames = 3 * retarget.WINDOW
  np.save(tmp_path / "long.npy", np.resize(np.load(recording), (frames, 21, 3)))
  rounds = []

  def programs(hand, weights, rate_hz, effort, lanes):
    restless = np.random.default_rng(0).uniform(0.0, 0.1, (22, retarget.WINDOW, lanes)).astype(np.float32)

    def refine(target, seen, scale, start, smooth):
      rounds.append(float(smooth))
      return restless, target[0, 0]

    return (lambda target, scale: restless), refine

  monkeypatch.setattr(retarget, "_programs", programs)
  line = files.run("sharpa_wave", "right", tmp_path / "long.npy", tmp_path / "long.npz")
  assert f"{frames} frames, {frames} valid" in line
  assert len(set(rounds)) == 4
  with np.load(tmp_path / "long.npz") as arrays:
    assert np.isfinite(arrays["human"]).all()


def test_retarget_mistakes_are_one_line(capsys, recording, tmp_path):
  good = np.load(recording)
  out = tmp_path / "out.npz"

  def refused(array, name="in.npy"):
    np.save(tmp_path / name, array)
    return fails(capsys, *flags(tmp_path / name, out))

  assert "none.npy: no such file" in fails(capsys, *flags(tmp_path / "none.npy", out))
  (tmp_path / "in.txt").write_text("1 2 3")
  assert "expected .npy or .npz" in fails(capsys, *flags(tmp_path / "in.txt", out))
  for suffix in (".npy", ".npz"):
    (tmp_path / f"text{suffix}").write_text("1 2 3")
    assert f"cannot be read as {suffix}" in fails(capsys, *flags(tmp_path / f"text{suffix}", out))
  np.savez(tmp_path / "other.npz", points=good)
  assert "expected an array `keypoints`, found points" in fails(capsys, *flags(tmp_path / "other.npz", out))
  assert refused(good.reshape(FRAMES, 63)).endswith(f"in.npy: keypoints: expected [frames, 21, 3] ({keypoints.ORDER}), found [40, 63]")
  assert "found int64, expected floats" in refused(np.zeros((4, 21, 3), np.int64))
  assert "another unit?" in refused(1000 * good)
  assert "no frames" in refused(good[:0])
  assert "no frame has a whole hand" in refused(np.full_like(good, np.nan))
  assert "expected a positive number" in fails(capsys, *flags(recording, out, scale=-1))
  assert "--rate=0.0" in fails(capsys, *flags(recording, out, rate=0))
  assert "shrapa" in fails(capsys, *flags(recording, out, hand="shrapa"))
  assert "ends in .npz" in fails(capsys, *flags(recording, tmp_path / "out.npy"))
  assert "in.txt/out.npz: cannot be written" in fails(capsys, *flags(recording, tmp_path / "in.txt" / "out.npz"))
  assert not [path for path in tmp_path.iterdir() if "out" in path.name or "partial" in path.name]


def test_the_order_is_told_before_a_hand_is_looked_at(capsys, tmp_path):
  np.save(tmp_path / "in.npy", np.zeros((4, 25, 3)))
  assert "each base to tip), found [4, 25, 3]" in fails(capsys, *flags(tmp_path / "in.npy", tmp_path / "out.npz", hand="none.urdf"))
  told = " ".join(run(capsys, "retarget", "--help")[1].split())
  for text in (told, " ".join((ROOT / "docs" / "retargeting.md").read_text().split())):
    assert keypoints.ORDER in text
    assert "NaN = missing" in text


def test_the_page_names_every_array_of_a_result(result):
  page = (ROOT / "docs" / "retargeting.md").read_text()
  with np.load(result) as arrays:
    assert [name for name in arrays if f"`{name}`" not in page] == []


def test_damaged_files_are_refused_or_read_but_never_a_traceback(recording, tmp_path):
  good = np.load(recording)[:40]
  np.savez_compressed(tmp_path / "a.npz", keypoints=good, confidence=np.ones(good.shape[:2], np.float32))
  np.save(tmp_path / "a.npy", good)
  rng, told = np.random.default_rng(0), []
  for name, places in (("a.npz", None), ("a.npy", 128)):  # of an .npy the header alone: what follows are numbers, whatever they are
    whole = (tmp_path / name).read_bytes()
    for _ in range(300):
      damaged = bytearray(whole)
      damaged[rng.integers(places or len(whole))] = rng.integers(256)
      (tmp_path / f"b{name}").write_bytes(damaged)
      try:
        files.read(tmp_path / f"b{name}")
      except UserError as error:
        told.append(str(error))
  assert len(told) > 200
  assert all(line.startswith(f"{tmp_path}/ba.np") and "\n" not in line for line in told)
  (tmp_path / "one.npz").write_bytes((tmp_path / "a.npy").read_bytes())
  with pytest.raises(UserError, match=r"one.npz: cannot be read as .npz: it holds one array"):
    files.read(tmp_path / "one.npz")


def test_a_hand_of_the_other_side_or_in_another_order_is_refused():
  bent = human.RightHand(1.0).keypoints(postures.GRASP_SHUT)
  points, model = np.repeat(bent[None], 20, axis=0), hand.load("dex3", "right")
  alignment.Human(points, model, "right", None, 0.5, None).check_side()
  order = np.r_[0, 17:21, 13:17, 9:13, 5:9, 1:5]
  for wrong in (points * (-1, 1, 1), points[:, order]):
    with pytest.raises(
      UserError, match=r"in most frames the fingers bend out of the back of a right hand \(-\d+ degrees\); expected a hand of"
    ):
      alignment.Human(wrong, model, "right", None, 0.5, None).check_side()
  some = np.where(np.arange(20)[:, None, None] < 9, points * (-1, 1, 1), points)  # a few frames of another hand are the doctor's to find
  alignment.Human(some, model, "right", None, 0.5, None).check_side()


def test_a_confidence_that_is_no_number_is_none(recording):
  points = np.load(recording)[:6]
  confidence = np.ones(points.shape[:2])
  confidence[2] = np.nan
  seen = alignment.Human(points, hand.load("sharpa_wave", "right"), "right", confidence, 0.5, None).read(0, 6, 6)[2]
  np.testing.assert_array_equal(seen, np.arange(6) != 2)


def test_view_of_a_result(capsys, result, tmp_path):
  for name in ("hands.png", "hands.mp4"):
    code, _, err = run(capsys, "view", f"--input={result}", f"--output={tmp_path / name}")
    assert code == 0, err
  with Image.open(tmp_path / "hands.png") as picture:
    assert picture.width > 1400
    assert picture.height > 600
    assert len(picture.convert("RGB").getcolors(1 << 20)) > 200  # something is drawn
  with av.open(str(tmp_path / "hands.mp4")) as container:
    assert container.streams.video[0].average_rate == 30
    assert sum(1 for _ in container.decode(video=0)) == FRAMES


def test_view_mistakes_are_one_line(capsys, recording, result, tmp_path):
  png = f"--output={tmp_path}/v.png"
  np.savez(tmp_path / "other.npz", keypoints=np.load(recording))
  assert "no result of `egoscale retarget`" in fails(capsys, "view", f"--input={tmp_path}/other.npz", png)
  assert "no such file" in fails(capsys, "view", f"--input={tmp_path}/none.npz", png)
  assert "expected .mp4 or .png" in fails(capsys, "view", f"--input={result}", f"--output={tmp_path}/v.gif")
  assert "a policy has no part" in fails(capsys, "view", f"--input={result}", png, f"--workdir={tmp_path}")

"""Plain video: hands that were projected are recovered, what cannot be known is missing, and every mistake is one line. No MediaPipe here,
but in the last test: an estimator is a function.
"""

import functools
import json
import shutil
import struct
import subprocess
import sys
import types
import zipfile

import fuzz
import numpy as np
import pytest
import recordings

from egoscale_jax import cli, geometry
from egoscale_jax.data import check_hand, doctor, schema
from egoscale_jax.data.sources import egodex, landmarker, monocular, mp4, video
from egoscale_jax.errors import UserError
from egoscale_jax.hands import keypoints

FRAMES = 20
K = np.array([[150.0, 0, 159.5], [0, 150.0, 89.5], [0, 0, 1]])
PALM_M = float(np.linalg.norm(recordings.hand_template("right")[keypoints.KNUCKLES[1]]))
CONFIG = {"model": "hand.task", "palm_m": PALM_M, "intrinsics": [150, 150, 159.5, 89.5], "camera": "still", "text": "Pour the tea."}


def in_camera(frames=FRAMES):
  T_camera_world = geometry.se3_inverse(recordings.T_WORLD_CAMERA.astype(float))
  return geometry.transform(T_camera_world, recordings.hand_points(frames))


def marks_of(points_Fx2x21x3, score=0.9):
  """What an estimator would see, which tells depths too small by monocular's gain."""
  z = points_Fx2x21x3[..., 2]
  depth = (z / z[..., :1] - 1) * K[0, 0] / monocular.DEPTH_GAIN
  return monocular.Marks(geometry.project(K, points_Fx2x21x3), depth, np.full(z.shape[:2], score))


def lengths_of(points_21x3):
  a, b = np.transpose(monocular.PAIRS)
  return np.linalg.norm(points_21x3[b] - points_21x3[a], axis=-1) / PALM_M


def estimate(path, model, frames):
  return marks_of(in_camera(len(frames.jpeg_F)))


def write(folder, name="pour", frames=FRAMES, drop=(), **change):
  folder.mkdir(parents=True, exist_ok=True)
  recordings.write_video(folder / f"{name}.mp4", frames)
  (folder / "hand.task").write_bytes(b"a model")
  (folder / "video.json").write_text(json.dumps({k: v for k, v in (CONFIG | change).items() if k not in drop}))
  return folder / f"{name}.mp4"


def read(folder, image_size=90, estimate=estimate):
  return video.read(video.find(folder)[0], image_size, estimate)


def test_a_still_hand_of_known_bones_is_recovered():
  rng = np.random.default_rng(0)
  for _ in range(5):
    turn, place = geometry.so3_exp(rng.normal(size=3)), np.array([rng.uniform(-0.2, 0.2), rng.uniform(-0.1, 0.1), rng.uniform(0.3, 0.9)])
    hand = recordings.hand_template("right") @ turn.T + place
    other = hand * (-1, 1, 1)
    points = np.repeat(np.stack([other, hand])[None], 3, axis=0)
    found = monocular.place(marks_of(points), K, PALM_M, 30.0, lengths_of(hand))
    np.testing.assert_allclose(found, points, atol=1e-6)
    far = monocular.place(marks_of(points), K, 2 * PALM_M, 30.0, lengths_of(hand))  # nobody can tell a hand of twice the size, twice as far
    assert abs(np.linalg.norm(far[0, 1, 9] - far[0, 1, 0]) / (2 * PALM_M) - 1) < 0.02


def test_noise_of_pixels_and_depths_is_smoothed_and_another_person_s_bones_cost_centimetres():
  points, rng = in_camera(60), np.random.default_rng(0)
  marks = marks_of(points)
  noisy = monocular.Marks(
    marks.pixel_Fx2x21x2 + rng.normal(scale=0.5, size=marks.pixel_Fx2x21x2.shape),
    marks.depth_Fx2x21 + rng.normal(scale=2.0, size=marks.depth_Fx2x21.shape),
    marks.score_Fx2,
  )
  found = monocular.place(noisy, K, PALM_M, 30.0, lengths_of(recordings.hand_template("right")))
  step = np.linalg.norm(np.diff(found - points, axis=0), axis=-1)
  assert np.median(np.linalg.norm(found - points, axis=-1)) < 0.02
  assert np.median(step) < 0.004  # unsmoothed 0.02
  assert np.median(np.linalg.norm(monocular.place(marks, K, PALM_M, 30.0) - points, axis=-1)) < 0.05


def test_the_episode_is_the_place_of_the_marks_in_the_world_and_lies_on_them(tmp_path):
  write(tmp_path, person="p7", scene="kitchen", licence="CC BY 4.0")
  episode = read(tmp_path)
  fuzz.check_shapes(episode)
  assert (episode.frame, episode.source, episode.person, episode.scene) == (schema.Frame.WORLD, "video", "p7", "kitchen")
  points = monocular.place(marks_of(in_camera()), K, PALM_M, 30.0)
  np.testing.assert_allclose(episode.keypoints_Fx2xPx3, points, atol=1e-6)
  np.testing.assert_allclose(episode.confidence_Fx2xP, 0.45)
  assert video.CONFIDENCE * video.MIN_SCORE > check_hand.MIN_CONFIDENCE
  seen = (geometry.project(K, in_camera()) + 0.5) / 2 - 0.5  # at half the size
  off = np.linalg.norm(geometry.project(episode.intrinsics_3x3, points) - seen, axis=-1)
  assert off.mean() < 1.0


def test_the_camera_is_still_or_given_or_unknown(tmp_path):
  still = read_of(tmp_path / "still")
  T_world_camera = np.repeat(recordings.T_WORLD_CAMERA[None].astype(float), FRAMES, axis=0)
  T_world_camera[:, 0, 3] += 0.01 * np.arange(FRAMES)
  T_world_camera[3] = np.nan
  (tmp_path / "poses").mkdir()
  np.save(tmp_path / "poses/pour.npy", T_world_camera)
  moved = read_of(tmp_path / "poses", camera="poses")
  unknown = read_of(tmp_path / "unknown", drop=["camera"])
  expected = geometry.transform(T_world_camera[:, None], still.keypoints_Fx2xPx3.astype(float))
  np.testing.assert_allclose(moved.keypoints_Fx2xPx3, expected, atol=1e-5)
  assert np.argwhere(~moved.has_keypoint_Fx2xP.all(axis=(1, 2))).tolist() == [[3]]
  assert [e.frame for e in (still, moved, unknown)] == [schema.Frame.WORLD, schema.Frame.WORLD, schema.Frame.CAMERA]
  np.testing.assert_array_equal(unknown.keypoints_Fx2xPx3, still.keypoints_Fx2xPx3)
  for episode in (still, moved, unknown):
    found = {f.name: f.severity for f in doctor.check(episode)[1]}
    assert found["monocular"] == "warning"
    assert ("moving_frame" in found) == (episode is unknown)


def read_of(folder, **change):
  write(folder, **change)
  return read(folder)


def test_what_cannot_be_known_is_missing(tmp_path):
  far = in_camera() + (0, 0, 3)  # than a wearer's hand
  assert np.isnan(monocular.place(marks_of(far), K, PALM_M, 30.0)).all()
  marks = marks_of(in_camera())
  marks.score_Fx2[6, 0] = video.MIN_SCORE - 0.01
  marks.pixel_Fx2x21x2[7, 0] = np.nan
  marks.pixel_Fx2x21x2[10:14, 1, ::2] *= 0.3  # no hand looks so
  marks.depth_Fx2x21[17:, 1, 8] = -4 * K[0, 0]  # a fingertip behind the camera
  write(tmp_path)
  episode = read(tmp_path, estimate=lambda *_: marks)
  there = episode.has_keypoint_Fx2xP.all(axis=2)
  assert np.flatnonzero(~there[:, 0]).tolist() == [6, 7]
  assert not there[11:13, 1].any()
  assert not there[18:, 1].any()
  assert there[:9, 1].all()
  assert (episode.confidence_Fx2xP[~there] == 0).all()


def test_a_hand_that_reaches_behind_the_camera_is_missing_though_it_fits():
  template = recordings.hand_template("right")
  toward_viewer = template[:, [1, 2, 0]] * (1, 1, -1)
  for wrist_m, there in ((0.3, True), (0.06, False)):
    x, y, z = (toward_viewer + (0.03, 0.02, wrist_m)).T
    pixel = np.stack([K[0, 0] * x / z + K[0, 2], K[1, 1] * y / z + K[1, 2]], axis=-1)
    depth = (z / z[0] - 1) * K[0, 0] / monocular.DEPTH_GAIN
    marks = monocular.Marks(np.tile(pixel, (2, 2, 1, 1)), np.tile(depth, (2, 2, 1)), np.ones((2, 2)))
    found = monocular.place(marks, K, PALM_M, 30.0, lengths_of(template))
    assert np.isfinite(found).all() == there
    assert np.isfinite(found).any() == there


def test_a_field_of_view_is_intrinsics_and_a_video_s_own_part_goes_before(tmp_path):
  fov = float(np.degrees(2 * np.arctan(160 / 150)))
  write(tmp_path, horizontal_fov_deg=fov, drop=["intrinsics"], videos={"pour": {"palm_m": PALM_M / 2, "text": "Pour milk."}})
  episode = read(tmp_path, 180)
  np.testing.assert_allclose(episode.intrinsics_3x3, K, atol=1e-4)
  assert episode.text == "Pour milk."
  np.testing.assert_allclose(episode.keypoints_Fx2xPx3, monocular.place(marks_of(in_camera()), K, PALM_M / 2, 30.0), atol=1e-5)
  write(tmp_path, videos={"pour": {"horizontal_fov_deg": fov}})
  np.testing.assert_allclose(read(tmp_path, 180).intrinsics_3x3, K, atol=1e-4)


def test_another_config_by_its_name(tmp_path):
  write(tmp_path / "in")
  config = tmp_path / "mine.json"
  config.write_text(json.dumps(CONFIG | {"model": "in/hand.task", "text": "Another."}))
  assert video.read(*video.find(tmp_path / "in", str(config)), 90, estimate).text == "Another."


BAD = {
  "no palm": (dict(drop=["palm_m"]), "palm_m is missing, expected metres from wrist to middle knuckle"),
  "palm in millimetres": (dict(palm_m=90), "palm_m is 90, expected a number from 0.04 to 0.2"),
  "no model": (dict(drop=["model"]), "model is missing, expected the path of MediaPipe's hand_landmarker.task"),
  "no intrinsics": (dict(drop=["intrinsics"]), "intrinsics is missing, expected intrinsics or horizontal_fov_deg"),
  "both": (dict(horizontal_fov_deg=60), "intrinsics and horizontal_fov_deg are both there"),
  "three numbers": (dict(intrinsics=[1, 2, 3]), "intrinsics has shape (3,), expected (4,)"),
  "texts": (dict(intrinsics=["a", 2, 3, 4]), "intrinsics is <U"),
  "centre outside": (dict(intrinsics=[150, 150, 700, 400]), "expected it inside the 320 x 180 video"),
  "negative focal": (dict(intrinsics=[-150, 150, 160, 90]), "expected fx, fy > 0"),
  "half a turn": (dict(drop=["intrinsics"], horizontal_fov_deg=180), "horizontal_fov_deg is 180, expected a number from 10 to 170"),
  "camera": (dict(camera="head"), 'camera is \'head\', expected "still" or "poses"'),
  "no text": (dict(drop=["text"]), "text is missing or empty, expected what is done in pour"),
  "number as text": (dict(person=3), "person is 3, expected str"),
  "unknown key": (dict(fps=30), "unknown key fps, expected one of"),
  "unknown key of a video": (dict(videos={"pour": {"model": "x"}}), "unknown key videos/pour/model"),
  "no such video": (dict(videos={"sip": {}}), "videos names 'sip', expected one of those below"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_config_is_one_line_naming_it(tmp_path, name):
  change, cause = BAD[name]
  write(tmp_path, frames=2, **change)
  fuzz.check_refused(read, tmp_path, f"{tmp_path}/video.json: ", cause)


def test_bad_files_are_one_line_naming_them(tmp_path):
  path = write(tmp_path, camera="poses", frames=3)
  fuzz.check_refused(read, tmp_path, f"{tmp_path}/pour.npy: ", "No such file")
  np.save(tmp_path / "pour.npy", np.eye(4))
  fuzz.check_refused(read, tmp_path, f"{tmp_path}/pour.npy: ", "expected (3, 4, 4)")
  np.save(tmp_path / "pour.npy", np.array([None]), allow_pickle=True)
  fuzz.check_refused(read, tmp_path, f"{tmp_path}/pour.npy: no .npy of plain numbers", "")
  path.write_bytes(b"no video")
  fuzz.check_refused(read, tmp_path, f"{path}: not a decodable video", "")
  (tmp_path / "hand.task").unlink()
  fuzz.check_refused(read, tmp_path, f"{tmp_path}/hand.task: no such model, expected MediaPipe's hand_landmarker.task (https://", "")
  (tmp_path / "video.json").unlink()
  fuzz.check_refused(read, tmp_path, f"{tmp_path}/video.json: no such file, expected a JSON with model, palm_m", "")


def test_a_phone_s_video_that_lies_on_its_side_is_refused(tmp_path):
  path = write(tmp_path, frames=3)
  content = bytearray(path.read_bytes())
  matrix = content.index(b"tkhd") + 44  # of the track's header: 3 x 3, fixed point
  content[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
  path.write_bytes(content)
  fuzz.check_refused(read, tmp_path, f"{path}: its pictures are stored turned by ", "90 degrees, expected upright ones")


def test_no_hand_in_the_whole_video(tmp_path):
  path = write(tmp_path)
  for score, found in ((0, "found 0 hands"), (0.6, "found 40 hands, 0 of them sure")):
    unsure = marks_of(in_camera(), score)
    fuzz.check_refused(functools.partial(read, estimate=lambda *_, unsure=unsure: unsure), tmp_path, f"{path}: no hand in 20 frames", found)


def test_without_mediapipe_the_command_says_what_to_install(tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, "mediapipe", None)
  write(tmp_path, frames=3)
  assert cli.main(["doctor", "--source=video", f"--input={tmp_path}"]) == 0  # it goes on to other recordings
  assert "unreadable pour: mediapipe: cannot be imported" in capsys.readouterr().out
  with pytest.raises(UserError, match=r"expected pip install -e '\.\[video\]' in the checkout"):
    video.read(*video.find(tmp_path), 64)


@pytest.mark.parametrize("count", [150, pytest.param(10_000, marks=pytest.mark.slow)])
def test_damaged_files_are_refused_or_read_but_never_a_traceback(tmp_path, count):
  path = write(tmp_path, frames=3, camera="poses", videos={"pour": {"text": "Pour."}})
  np.save(tmp_path / "pour.npy", np.repeat(recordings.T_WORLD_CAMERA[None], 3, axis=0))
  source = types.SimpleNamespace(find=video.find, read=functools.partial(video.read, estimate=estimate))
  files = [path, path.with_suffix(".npy"), tmp_path / "video.json"]
  assert fuzz.survives(source, tmp_path, count, files=files) > count // 4
  assert fuzz.survives_odd_json(source, tmp_path, tmp_path / "video.json", min(count, 100)) > 30


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  """hand_landmarker.task of the two models that an older package of MediaPipe ships."""
  pytest.importorskip("mediapipe", reason="pip install mediapipe")
  folder = tmp_path_factory.mktemp("model")
  pip = [sys.executable, "-m", "pip", "download", "mediapipe==0.10.21", "--no-deps", "--only-binary=:all:", f"--dest={folder}"]
  if subprocess.run(pip, capture_output=True, check=False).returncode:
    pytest.skip("mediapipe 0.10.21, whose wheel holds the models, cannot be downloaded by pip here")
  with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel, zipfile.ZipFile(folder / "hand.task", "w") as bundle:
    for name, place in (
      ("hand_detector", "palm_detection/palm_detection_full"),
      ("hand_landmarks_detector", "hand_landmark/hand_landmark_full"),
    ):
      bundle.writestr(f"{name}.tflite", wheel.read(f"mediapipe/modules/{place}.tflite"))
  return folder / "hand.task"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # MediaPipe's own
def test_real_video_is_prepared_and_lies_near_the_tracked_hands(tmp_path, shared, model, capsys):
  """insert_remove/3 of EgoDex without its labels: docs/video.md has what all its episodes give."""
  truth = egodex.read(next(r for r in egodex.find(shared / "recordings/egodex") if r.id == "insert_remove/3"), 256)
  (tmp_path / "in").mkdir()
  shutil.copy(shared / "recordings/egodex/insert_remove/3.mp4", tmp_path / "in/plug.mp4")
  shutil.copy(model, tmp_path / "in/hand.task")
  np.save(tmp_path / "in/plug.npy", truth.T_world_camera_Fx4x4)
  config = {"model": "hand.task", "palm_m": 0.086, "intrinsics": [736.634, 736.634, 959.5, 539.5], "camera": "poses", "text": "Plug it in."}
  (tmp_path / "in/video.json").write_text(json.dumps(config))
  episode = video.read(*video.find(tmp_path / "in"), 256)
  error = np.linalg.norm(episode.keypoints_Fx2xPx3 - truth.keypoints_Fx2xPx3, axis=-1)
  assert np.isfinite(error).all(axis=2).mean() > 0.9
  assert np.nanmedian(error) < 0.05
  assert np.nanmedian(error[:, :, 0]) < 0.06
  assert cli.main(["prepare", "--source=video", f"--input={tmp_path}/in", f"--output={tmp_path}/out", "--validation=0"]) == 0
  assert "kept 1 of 1 episodes" in capsys.readouterr().out
  (tmp_path / "in/hand.task").write_bytes(b"no model")
  with pytest.raises(UserError, match=rf"hand.task: no hand_landmarker.task of MediaPipe \({landmarker.DOCUMENTED}"):
    landmarker.estimate(str(tmp_path / "in/plug.mp4"), str(tmp_path / "in/hand.task"), mp4.decode(tmp_path / "in/plug.mp4", 64))

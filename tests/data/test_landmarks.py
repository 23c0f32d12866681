import os
import pickle
import zipfile

import fuzz
import numpy as np
import pytest
import recordings

from egoscale_jax import geometry
from egoscale_jax.data import doctor, schema
from egoscale_jax.data.sources import landmarks
from egoscale_jax.errors import UserError

K = np.array([[150.0, 0, 159.5], [0, 151.0, 89.5], [0, 0, 1]])
FRAMES = 20


def write(folder, name="pour", frames=FRAMES, video_frames=None, drop=(), **change):
  """One recording -> path of its .npz; `change` replaces arrays, `drop` leaves them out."""
  folder.mkdir(parents=True, exist_ok=True)
  arrays = {
    "version": 1,
    "keypoints": recordings.hand_points(frames),
    "frame": "world",
    "T_world_camera": np.repeat(recordings.T_WORLD_CAMERA[None], frames, axis=0),
    "intrinsics": K,
    "text": "Pour the tea.",
  }
  np.savez(folder / f"{name}.npz", **{k: v for k, v in (arrays | change).items() if k not in drop})
  recordings.write_video(folder / f"{name}.mp4", frames if video_frames is None else video_frames)
  return folder / f"{name}.npz"


def read(folder, image_size=90):
  return landmarks.read(landmarks.find(folder)[0], image_size)


def test_world_keypoints_come_as_written_and_project_into_the_image(tmp_path):
  write(tmp_path, person="p7", scene="kitchen", licence="CC BY 4.0", span_text=["reach", "pour"], span_s=[[0, 0.2], [0.2, 0.6]])
  episode = read(tmp_path)
  fuzz.check_shapes(episode)
  np.testing.assert_array_equal(episode.keypoints_Fx2xPx3, recordings.hand_points(FRAMES).astype(np.float32))
  assert (episode.frame, episode.embodiment, episode.rate_hz) == (schema.Frame.WORLD, "human", 30.0)
  assert (episode.person, episode.scene, episode.licence) == ("p7", "kitchen", "CC BY 4.0")
  assert episode.spans[1] == schema.Span("pour", 0.2, 0.6)
  # By hand: into the camera, then fx x / z + cx, at half the size about the first pixel's centre.
  x, y, z = np.moveaxis(recordings.hand_points(FRAMES) @ recordings.T_WORLD_CAMERA[:3, :3], -1, 0) - (
    recordings.T_WORLD_CAMERA[:3, 3] @ recordings.T_WORLD_CAMERA[:3, :3]
  ).reshape(3, 1, 1, 1)
  expected = np.stack([(150 * x / z + 159.5 + 0.5) / 2 - 0.5, (151 * y / z + 89.5 + 0.5) / 2 - 0.5], axis=-1)
  camera = geometry.transform(geometry.se3_inverse(episode.T_world_camera_Fx4x4)[:, None], episode.keypoints_Fx2xPx3)
  pixels = geometry.project(episode.intrinsics_3x3, camera)
  np.testing.assert_allclose(pixels, expected, atol=1e-3)
  assert ((pixels > 0) & (pixels < (160, 90))).all()
  assert doctor.check(episode)[1] == []


def test_camera_keypoints_are_taken_to_the_world_where_its_pose_is_known(tmp_path):
  world = recordings.hand_points(FRAMES)
  T_world_camera = np.repeat(recordings.T_WORLD_CAMERA[None].astype(float), FRAMES, axis=0)
  T_world_camera[:, 0, 3] += 0.01 * np.arange(FRAMES)
  seen = geometry.transform(geometry.se3_inverse(T_world_camera)[:, None], world)
  write(tmp_path / "a", keypoints=seen, frame="camera", T_world_camera=T_world_camera)
  episode = read(tmp_path / "a")
  assert episode.frame is schema.Frame.WORLD
  np.testing.assert_allclose(episode.keypoints_Fx2xPx3, world, atol=1e-6)
  write(tmp_path / "b", keypoints=seen, frame="camera", drop=["T_world_camera"])
  episode = read(tmp_path / "b")
  assert episode.frame is schema.Frame.CAMERA
  np.testing.assert_allclose(episode.keypoints_Fx2xPx3, seen, atol=1e-6)
  assert doctor.check(episode)[1][0].name == "moving_frame"


def test_missing_is_nan_with_confidence_zero(tmp_path):
  points = recordings.hand_points(FRAMES)
  points[3, 1, 7, 0] = np.nan
  points[4, 0] = np.nan
  write(tmp_path, keypoints=points, confidence=np.full((FRAMES, 2), 0.75))
  episode = read(tmp_path)
  assert np.isnan(episode.keypoints_Fx2xPx3[3, 1, 7]).all()
  assert np.argwhere(~episode.has_keypoint_Fx2xP).tolist() == [[3, 1, 7], *([4, 0, p] for p in range(21))]
  np.testing.assert_array_equal(episode.confidence_Fx2xP, np.where(episode.has_keypoint_Fx2xP, np.float32(0.75), 0))


BAD = {
  "no version": (dict(drop=["version"]), "version is missing"),
  "future version": (dict(version=2), "version is 2, expected 1"),
  "no frame": (dict(drop=["frame"]), 'frame is missing, expected "world" or "camera"'),
  "another frame": (dict(frame="robot"), "frame is 'robot'"),
  "no camera": (dict(drop=["T_world_camera"]), "T_world_camera is missing, expected it since frame"),
  "no keypoints": (dict(drop=["keypoints"]), "keypoints is missing"),
  "two-dimensional": (dict(keypoints=np.ones((FRAMES, 2, 21, 2))), "keypoints has shape (20, 2, 21, 2), expected (frames, 2, 21, 3)"),
  "zeros": (dict(keypoints=np.zeros((FRAMES, 2, 21, 3))), "keypoints are all 0 at frame 0, left hand, expected NaN"),
  "texts": (dict(keypoints=np.full((FRAMES, 2, 21, 3), "x")), "keypoints is <U1, expected numbers"),
  "confidence range": (dict(confidence=np.full((FRAMES, 2, 21), 2.0)), "confidence is 2 at frame 0, expected 0 to 1"),
  "confidence shape": (dict(confidence=np.ones((FRAMES, 3))), "confidence has shape (20, 3), expected (20, 2)"),
  "no text": (dict(text=" "), "text is missing or empty"),
  "numbers as text": (dict(text=3.0), "text is float64 of shape (), expected one text"),
  "K outside": (dict(intrinsics=3 * K), "expected"),
  "K of nothing": (dict(intrinsics=K * np.nan), "intrinsics is not finite"),
  "scaled camera": (dict(T_world_camera=1.1 * np.repeat(recordings.T_WORLD_CAMERA[None], FRAMES, axis=0)), "is no rotation"),
  "frames": (dict(video_frames=7), "keypoints has 20 frames, expected 7 as pour.mp4 has"),
  "span": (dict(span_text=["a"], span_s=[[1, 0]]), "span_s holds a span that does not end after it starts"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_content_is_one_line_naming_file_and_cause(tmp_path, name):
  change, cause = BAD[name]
  fuzz.check_refused(read, tmp_path, f"{write(tmp_path, **change)}: ", cause)


class Evil:
  def __reduce__(self):
    return os.mkdir, ("pwned",)


def test_hostile_files_are_refused_and_nothing_of_them_runs(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  write(tmp_path / "in", "objects", text=np.array([Evil()], dtype=object))
  path = write(tmp_path / "in", "pickle")
  path.write_bytes(pickle.dumps(Evil()))
  bomb = write(tmp_path / "in", "bomb")
  with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("keypoints.npy", bytes(50_000_000))
  content = bytearray(bomb.read_bytes())
  place = content.rindex(b"PK\x01\x02") + 24  # the size in the central directory
  content[place : place + 4] = (4_200_000_000).to_bytes(4, "little")
  bomb.write_bytes(content)
  escape = write(tmp_path / "in", "escape")
  with zipfile.ZipFile(escape, "a") as archive:
    archive.writestr("../../evil.npy", b"x")
  write(tmp_path / "in", "whole")
  lines = fuzz.lines_of(landmarks, tmp_path / "in")
  assert len(lines) == 4
  assert "bomb.npz: unpacks to 4200000000 bytes" in lines[0]
  assert not (tmp_path / "pwned").exists()
  assert not (tmp_path / "evil.npy").exists()


def test_absent_empty_and_closed_files(tmp_path):
  with pytest.raises(UserError, match=r"no such directory"):
    landmarks.find(tmp_path / "none")
  with pytest.raises(UserError, match=r"expected <name>.npz with <name>.mp4 beside it"):
    landmarks.find(tmp_path)
  write(tmp_path, "empty").write_bytes(b"")
  write(tmp_path, "lost").with_suffix(".mp4").unlink()
  lines = fuzz.lines_of(landmarks, tmp_path)
  assert lines == [f"{tmp_path}/empty.npz: is empty", f"{tmp_path}/lost.mp4: missing: lost.npz has no video beside it"]
  assert fuzz.lines_where_closed(landmarks, write) == ["pour.npz: cannot be opened: Permission denied"]


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_damaged_files_are_refused_or_read_but_never_a_traceback(tmp_path, count):
  write(tmp_path, frames=3, confidence=np.ones((3, 2)), span_text=["a"], span_s=[[0.0, 1.0]])
  assert fuzz.survives(landmarks, tmp_path, count) > count // 3

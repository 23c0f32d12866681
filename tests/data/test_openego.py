import json

import fuzz
import h5py
import numpy as np
import pytest
import recordings
from PIL import Image

from egoscale_jax import geometry
from egoscale_jax.data import doctor, export_lerobot, schema
from egoscale_jax.data.sources import openego
from egoscale_jax.errors import UserError
from egoscale_jax.hands import keypoints
from egoscale_jax.view import draw, episodes, video

FRAMES = 16
K = np.array([[150.0, 0, 159.5], [0, 151.0, 89.5], [0, 0, 1]])
ANNOTATION = {
  "task": "Move things.",
  "actions": [
    {"start_timestamp": 0.1, "end_timestamp": 0.4, "objects": ["cup"], "actors": ["left_hand"], "label": "left hand lifts the cup"}
  ],
}


def in_camera(frames=FRAMES):
  return geometry.transform(np.linalg.inv(recordings.T_WORLD_CAMERA.astype(float)), recordings.hand_points(frames))


def write(folder, name="demo_0000", points=None, annotation=ANNOTATION, video_frames=FRAMES, change=None):
  """One episode -> its folder; points [F, 2, 21, 3] in the order of the file."""
  points = in_camera() if points is None else points
  directory = folder / name
  directory.mkdir(parents=True)
  with h5py.File(directory / "joints.hdf5", "w") as file:
    for i, side in enumerate(keypoints.SIDES):
      file[f"{side}_hand"] = points[:, i].astype(np.float32)
      file[f"{side}_hand_visibility"] = np.ones(len(points), np.int32)
    file["intrinsics"] = K
    if change:
      change(file)
  (directory / "annotation.json").write_text(json.dumps(annotation))
  if video_frames:
    recordings.write_video(directory / "video.mp4", video_frames)
  return directory


def read(folder):
  return openego.read(openego.find(folder)[0], 180)


def test_joints_stay_in_the_frame_of_the_camera_and_project(tmp_path):
  def hide(file):
    file["right_hand_visibility"][4:6] = 0
    file["right_hand"][4:6] = 0

  write(tmp_path, change=hide)
  episode = read(tmp_path)
  fuzz.check_shapes(episode)
  assert episode.frame is schema.Frame.CAMERA
  seen = np.ones((FRAMES, 2), bool)
  seen[4:6, 1] = False
  np.testing.assert_array_equal(episode.keypoints_Fx2xPx3[seen], in_camera().astype(np.float32)[seen])
  assert np.isnan(episode.keypoints_Fx2xPx3[~seen]).all()
  x, y, z = np.moveaxis(in_camera()[seen], -1, 0)
  pixels = geometry.project(episode.intrinsics_3x3, episode.keypoints_Fx2xPx3)[seen]
  np.testing.assert_allclose(pixels, np.stack([150 * x / z + 159.5, 151 * y / z + 89.5], axis=-1), atol=1e-3)
  assert episode.spans == (schema.Span("left hand lifts the cup", 0.1, 0.4, "left"),)
  assert doctor.check(episode)[1][0].name == "moving_frame"


def test_the_order_of_the_joints_is_measured(tmp_path):
  """With `joint_names`' order the base of the thumb is missing, and the palm's centre is dropped."""
  ours = in_camera()
  palm = ours[:, :, [0, 9]].mean(axis=2, keepdims=True)
  named = np.concatenate([ours[:, :, :1], ours[:, :, 2:], palm], axis=2)
  write(tmp_path / "a", points=named)
  episode = read(tmp_path / "a")
  assert np.isnan(episode.keypoints_Fx2xPx3[:, :, 1]).all()
  np.testing.assert_array_equal(np.delete(episode.keypoints_Fx2xPx3, 1, axis=2), np.delete(ours, 1, axis=2).astype(np.float32))
  shifted = np.concatenate([ours[:, :, :1] + 0.5, ours[:, :, 1:]], axis=2)  # an EgoDex episode of theirs: the arm for the wrist
  write(tmp_path / "b", points=shifted)
  with pytest.raises(UserError, match=r"joints\.hdf5: the joints' distances are those of no human hand"):
    read(tmp_path / "b")


def test_the_real_sample_has_hands_and_no_pictures(shared, tmp_path):
  folder = shared / "recordings" / "openego_hocap"
  found = openego.find(folder)
  assert [r.id for r in found] == ["demo_0000"]
  episode = openego.read(found[0], 180)
  fuzz.check_shapes(episode)
  assert episode.jpeg_F == (b"",) * 676
  assert (episode.image_size, episode.rate_hz) == ((180, 320), 30.0)
  pixels = geometry.project(episode.intrinsics_3x3, episode.keypoints_Fx2xPx3[episode.has_keypoint_Fx2xP])
  assert ((pixels > 0) & (pixels < (320, 180))).all(axis=-1).mean() > 0.6
  assert [finding.name for finding in doctor.check(episode)[1]] == ["moving_frame"]
  for wrong in (tmp_path / "absent", found[0].files[0]):
    files = (*found[0].files[:3], str(wrong))
    with pytest.raises(UserError, match=f"^{wrong}: (cannot be opened|fps is missing)"):
      openego.read(schema.Recording("demo_0000", files), 180)
  with pytest.raises(UserError, match=r"joints\.hdf5: camera head: 676 of 676 pictures are missing"):
    export_lerobot.export(openego, folder, tmp_path / "out", 1, 180)


def test_hands_without_a_picture_are_drawn_on_grey(shared, tmp_path):
  video.view(shared / "recordings" / "openego_hocap", tmp_path / "sheet.png", source=openego)
  sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))
  assert (sheet == episodes.NO_PICTURE).all(axis=-1).mean() > 0.5
  assert (np.abs(sheet - np.array(draw.SIDE_COLOURS[0])).max(axis=-1) < 8).sum() > 200


def test_the_real_sample_s_joints_are_in_our_order_whatever_it_says(shared):
  path = shared / "recordings" / "openego_hocap" / "demo_0000" / "joints.hdf5"
  with h5py.File(path) as file:
    left = file["left_hand"][()]
    points = np.stack([openego._hand(file, side, path) for side in keypoints.SIDES], axis=1)
  assert np.isnan(points[:, 1]).all()  # the right hand is never visible: zeros in the file
  ordered = openego._ordered(points, path)
  np.testing.assert_array_equal(ordered[:, 0], left)
  pixels = geometry.project(np.array([[1000, 0, 629.418], [0, 1000, 339.314], [0, 0, 1.0]]), left.astype(float))
  assert ((pixels > 0) & (pixels < (1280, 720))).all(axis=(1, 2)).mean() > 0.6


BAD = {
  "shape": (dict(points=in_camera()[:, :, :20]), "left_hand has shape (16, 20, 3), expected (frames, 21, 3)"),
  "millimetres": (dict(points=1000 * in_camera()), "the joints' distances are those of no human hand"),
  "frames": (dict(video_frames=9), "9 frames, expected 16 as joints.hdf5 has"),
  "task": (dict(annotation={"task": 3}), "task is 3, expected str"),
  "times": (dict(annotation={"task": "a", "actions": [{"label": "b"}]}), "actions/start_timestamp is None, expected a number from 0"),
  "no right": (dict(change=lambda file: file.pop("right_hand")), "right_hand is missing"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_content_is_one_line_naming_file_and_cause(tmp_path, name):
  change, cause = BAD[name]
  fuzz.check_refused(read, tmp_path, f"{write(tmp_path, **change)}/", cause)


def test_absent_foreign_and_closed_files(tmp_path):
  (write(tmp_path, "a") / "joints.hdf5").write_bytes(b"")
  (write(tmp_path, "b") / "joints.hdf5").write_bytes(b"PK\x03\x04" * 100)
  (write(tmp_path, "c") / "annotation.json").write_text("{")
  (write(tmp_path, "d") / "annotation.json").unlink()
  write(tmp_path, "e")
  causes = ["joints.hdf5: is empty", "joints.hdf5: not a readable HDF5", "annotation.json: not JSON", "annotation.json: cannot be opened"]
  lines = fuzz.lines_of(openego, tmp_path)
  assert len(lines) == len(causes)
  assert all(cause in line for cause, line in zip(causes, lines))
  lines = fuzz.lines_where_closed(openego, lambda folder: write(folder) / "joints.hdf5")
  assert lines == ["demo_0000/joints.hdf5: cannot be opened: Permission denied"]


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_damaged_files_are_refused_or_read_but_never_a_traceback(tmp_path, count):
  write(tmp_path)
  assert fuzz.survives(openego, tmp_path, count) > count // 4


def test_odd_values_in_json_are_refused_or_read_but_never_a_traceback(tmp_path):
  assert fuzz.survives_odd_json(openego, tmp_path, write(tmp_path) / "annotation.json") > 10

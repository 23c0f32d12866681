import os
import pickle
import subprocess
import sys

import fuzz
import numpy as np
import pytest
import recordings

from egoscale_jax import geometry
from egoscale_jax.data import schema
from egoscale_jax.data.sources import vitra
from egoscale_jax.errors import UserError

FRAMES, FIRST = 12, 7


def camera_path(frames):
  pose = np.repeat(recordings.T_WORLD_CAMERA[None].astype(float), frames, axis=0)
  pose[:, 0, 3] += 0.005 * np.arange(frames)
  return pose


def info(frames=FRAMES, **change):
  """The dict of one episode as the data set's guide describes it; K is of a picture twice as large as the video."""
  world = recordings.hand_points(frames)
  T_camera_world = geometry.se3_inverse(camera_path(frames))
  kept = np.ones((2, frames), int)
  kept[1, 3:5] = 0
  hand = lambda i: {  # noqa: E731
    "beta": np.zeros(10),
    "global_orient_worldspace": np.tile(np.eye(3), (frames, 1, 1)),
    "hand_pose": np.tile(np.eye(3), (frames, 15, 1, 1)),
    "kept_frames": kept[i].tolist(),
    "joints_camspace": geometry.transform(T_camera_world, world[:, i]).astype(np.float32),
    "joints_worldspace": np.where(kept[i][:, None, None] > 0, world[:, i], 0).astype(np.float32),
  }
  return {
    "video_clip_id_segment": [0] * frames,
    "extrinsics": T_camera_world,
    "intrinsics": np.array([[300.0, 0, 320], [0, 302.0, 180], [0, 0, 1]]),
    "video_decode_frame": list(range(FIRST, FIRST + frames)),
    "video_name": "kitchen_7",
    "avg_speed": np.float64(0.01),
    "anno_type": "right",
    "text": {"left": [("Hold the cup.", (2, 6))], "right": [("Pour the tea.", (0, frames))]},
    "text_rephrase": {"left": [(["Hold it."], (2, 6))], "right": [(["Pour."], (0, frames))]},
    "left": hand(0),
    "right": hand(1),
  } | change


def write(folder, name="ego4d_kitchen_7_ep_000000", video="kitchen_7", **change):
  """An annotation in `annotations` and its video, frame i of grey level 20 + 8 i, in `videos` -> path of the annotation."""
  (folder / "annotations").mkdir(parents=True, exist_ok=True)
  (folder / "videos").mkdir(exist_ok=True)
  path = folder / "annotations" / f"{name}.npy"
  np.save(path, np.array(info(**change), dtype=object), allow_pickle=True)
  recordings.write_video(folder / "videos" / f"{video}.mp4", FIRST + FRAMES + 3)
  return path


def read(folder):
  return vitra.read(vitra.find(folder)[0], 180)


def test_world_joints_camera_and_texts_come_as_written(tmp_path):
  write(tmp_path)
  episode = read(tmp_path)
  fuzz.check_shapes(episode)
  kept = np.ones((FRAMES, 2), bool)
  kept[3:5, 1] = False
  world = recordings.hand_points(FRAMES).astype(np.float32)
  np.testing.assert_array_equal(episode.keypoints_Fx2xPx3[kept], world[kept])
  np.testing.assert_array_equal(episode.confidence_Fx2xP, np.repeat(kept[..., None], 21, axis=-1))
  np.testing.assert_allclose(episode.T_world_camera_Fx4x4, camera_path(FRAMES), atol=1e-6)
  assert episode.text == "Right hand: Pour the tea. Left hand: Hold the cup."
  assert episode.spans[0] == schema.Span("Hold the cup.", 2 / 30, 6 / 30, "left")
  assert (episode.scene, episode.frame) == ("kitchen_7", schema.Frame.WORLD)


def test_a_hand_or_a_text_that_is_not_there(tmp_path):
  write(tmp_path, left=None, text={"left": None, "right": [("Pour the tea.", None)]})
  episode = read(tmp_path)
  fuzz.check_shapes(episode)
  assert not episode.has_keypoint_Fx2xP[:, 0].any()
  assert episode.text == "Right hand: Pour the tea."
  assert (episode.spans[0].start_s, episode.spans[0].end_s) == (0, FRAMES / 30)


def test_the_frames_are_those_of_the_raw_video_that_the_annotation_names(tmp_path):
  import simplejpeg

  write(tmp_path)
  episode = read(tmp_path)
  for i, jpeg in enumerate(episode.jpeg_F):
    assert abs(float(simplejpeg.decode_jpeg(jpeg).mean()) - (20 + 8 * (FIRST + i) % 200)) < 6, i


def test_projection_agrees_with_the_camera_space_joints(tmp_path):
  """K's picture is 640 x 360, the video 320 x 180: u = (300 x / z + 320) / 2, counted from the corner."""
  write(tmp_path)
  episode = read(tmp_path)
  x, y, z = np.moveaxis(info()["left"]["joints_camspace"].astype(float), -1, 0)
  expected = np.stack([(300 * x / z + 320) / 2 - 0.5, (302 * y / z + 180) / 2 - 0.5], axis=-1)
  camera = geometry.transform(geometry.se3_inverse(episode.T_world_camera_Fx4x4), episode.keypoints_Fx2xPx3[:, 0])
  pixels = geometry.project(episode.intrinsics_3x3, camera)
  np.testing.assert_allclose(pixels, expected, atol=2e-3)
  assert ((pixels > 0) & (pixels < (320, 180))).all()


def without(name):
  return {k: v for k, v in info().items() if k != name}


BAD = {
  "no extrinsics": (dict(extrinsics=None), "extrinsics is no array"),
  "scaled": (dict(extrinsics=1.2 * info()["extrinsics"]), "extrinsics at frame 0 is no rotation"),
  "joints": (dict(left=info()["left"] | {"joints_worldspace": np.zeros((FRAMES, 16, 3))}), "left/joints_worldspace has shape (12, 16, 3)"),
  "kept": (dict(right=info()["right"] | {"kept_frames": [1]}), "right/kept_frames has shape (1,), expected (12,)"),
  "no hand": (dict(right=3), "right is 3, expected dict"),
  "texts": (dict(text={"left": ["x"]}), "text/left holds 'x', expected (text, (first frame, last frame))"),
  "no text": (dict(text={}), "no language text"),
  "text's frames": (dict(text={"left": [("x", "y")]}), "text/left is <U1, expected numbers"),
  "text beyond": (dict(text={"right": [("a", (0, 99))]}), "text/right is of the frames 0 to 99"),
  "frames": (dict(video_decode_frame=[5] * FRAMES), "video_decode_frame does not count 12 frames"),
  "past the video": (dict(video_decode_frame=list(range(100, 100 + FRAMES))), "expected 12 from frame 100 on"),
  "another video": (dict(video_name="bath"), "its video bath.mp4 is not beside it"),
  "path escape": (dict(video_name="../../etc/passwd"), "which leaves"),
  "absolute": (dict(video_name="/etc/passwd"), "which leaves"),
  "another shape": (dict(intrinsics=np.array([[300.0, 0, 320], [0, 302.0, 240], [0, 0, 1]])), "intrinsics are of a 640 x 480 picture"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_content_is_one_line_naming_file_and_cause(tmp_path, name):
  change, cause = BAD[name]
  path = write(tmp_path, **change)
  fuzz.check_refused(read, tmp_path, tmp_path if name == "past the video" else path, cause)


class Evil:
  def __init__(self, call, *arguments):
    self.call, self.arguments = call, arguments

  def __reduce__(self):
    return self.call, self.arguments


def test_no_code_of_the_data_is_executed(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  deep = []
  for _ in range(200):
    deep = [deep]
  evil = {
    "call": Evil(os.mkdir, "pwned"),
    "getattr": Evil(getattr, Evil, "__reduce__"),
    "numpy": Evil(np.fromfile, "/etc/passwd"),
    "subclass": Evil(np.memmap, "/etc/passwd"),
    "object": Evil,
    "import": subprocess.Popen,
  }
  for name, value in evil.items():
    write(tmp_path, name, left=value)
  lines = fuzz.lines_of(vitra, tmp_path)
  assert len(lines) == len(evil)
  assert all("it asks for" in line for line in lines), lines
  assert not (tmp_path / "pwned").exists()
  # Pickle's own instructions for other objects, and an index that C's unpickler would allocate a table for.
  head = write(tmp_path, "call").read_bytes()
  start = head.index(b"\x80\x04")
  tails = [b"cos\nmkdir\n(S'pwned'\ntR.", b"(S'pwned'\nios\nmkdir\n.", b"\x80\x04cbuiltins\neval\n\x8c\x01x\x85R.", b"Nr\xff\xff\xff\x7f."]
  for tail in tails:
    (tmp_path / "annotations" / "call.npy").write_bytes(head[:start] + tail)
    assert any("call.npy: " in line for line in fuzz.lines_of(vitra, tmp_path))
  assert not (tmp_path / "pwned").exists()


def test_files_of_other_makers(tmp_path):
  write(tmp_path, "whole")
  folder = tmp_path / "annotations"
  np.save(folder / "numbers.npy", np.ones((3, 3)))
  np.save(folder / "list.npy", np.array([1, "a", None], dtype=object), allow_pickle=True)
  (folder / "empty.npy").write_bytes(b"")
  (folder / "foreign.npy").write_bytes(b"PK\x03\x04" + bytes(100))
  (folder / "future.npy").write_bytes(b"\x93NUMPY\x09\x00" + bytes(100))
  (folder / "half.npy").write_bytes((folder / "whole.npy").read_bytes()[:3000])
  lines = {line.split(": ")[0].rsplit("/", 1)[1]: line for line in fuzz.lines_of(vitra, tmp_path)}
  assert sorted(lines) == ["empty.npy", "foreign.npy", "future.npy", "half.npy", "list.npy", "numbers.npy"]
  assert "version 9.0, expected 1.0" in lines["future.npy"]
  assert "expected one dict of VITRA" in lines["numbers.npy"]
  name = "annotations/ego4d_kitchen_7_ep_000000.npy"
  assert fuzz.lines_where_closed(vitra, write) == [f"{name}: cannot be opened: Permission denied"]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_that_numpy_writes(tmp_path, protocol):
  path = write(tmp_path)
  head = path.read_bytes()
  value = np.array(info(), dtype=object)
  path.write_bytes(head[: head.index(b"\x80\x04")] + pickle.dumps(value, protocol=protocol))
  if protocol == 2:  # bytes go through a codec there: numpy has not written it since Python 2
    with pytest.raises(UserError, match=r"it asks for _codecs\.encode"):
      read(tmp_path)
  else:
    assert read(tmp_path).num_frames == FRAMES


def test_a_tuple_that_holds_itself_many_times_costs_nothing(tmp_path):
  bomb = ("x",)
  for _ in range(100):
    bomb = (bomb, bomb)
  write(tmp_path, video_clip_id_segment=bomb)
  assert read(tmp_path).num_frames == FRAMES
  assert sys.getrecursionlimit() < 10_000


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_damaged_files_are_refused_or_read_but_never_a_traceback(tmp_path, count):
  path = write(tmp_path)
  assert fuzz.survives(vitra, tmp_path, count, files=[path, path, tmp_path / "videos" / "kitchen_7.mp4"]) > count // 4

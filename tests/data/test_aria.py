import json

import av
import fuzz
import numpy as np
import pytest
import recordings
import simplejpeg

from egoscale_jax import geometry
from egoscale_jax.data import doctor, schema
from egoscale_jax.data.sources import aria, fisheye
from egoscale_jax.errors import UserError
from egoscale_jax.hands import keypoints

START_US, STEP_US, FRAMES, SIZE = 5_000_000, 50_000, 20, 240  # hands and video at 20 Hz
PARAMS = [110.0, 119.0, 121.0, 0.05, -0.02, 0.004, 0.0, 0.0, 0.0, 0.001, -0.0005, 0.0004, 0.0, -0.0003, 0.0]
T_DEVICE_CAMERA = geometry.se3(geometry.so3_exp(np.array([0.1, -0.2, 0.3])), np.array([0.01, 0.02, -0.03]))
NAMES = (  # Aria's own order of the landmarks, as its documentation lists it
  *(f"{finger}_tip" for finger in keypoints.FINGERS),
  "wrist",
  "thumb_mcp",
  "thumb_ip",
  *(f"{finger}_{joint}" for finger in keypoints.FINGERS[1:] for joint in ("mcp", "pip", "dip")),
  "palm",
)


def device_path(time_s):
  """T_world_device at times in seconds: such that the RGB camera is near the recordings' own, and moves."""
  camera = np.repeat(recordings.T_WORLD_CAMERA[None].astype(float), len(time_s), axis=0)
  camera[:, 0, 3] += 0.05 * (time_s - 5)
  return camera @ np.linalg.inv(T_DEVICE_CAMERA)


def world_points():
  """Of the hands at the rate of the tests; slower than recordings.RATE would have it, which does not matter."""
  return recordings.hand_points(FRAMES)


def csv(path, columns):
  path.parent.mkdir(parents=True, exist_ok=True)
  rows = zip(*columns.values())
  path.write_text("\n".join([",".join(columns), *(",".join(map(str, row)) for row in rows)]) + "\n")


def hand_columns(points_Fx2x21x3, device_Fx4x4, lost=()):
  local = geometry.transform(np.linalg.inv(device_Fx4x4)[:, None], points_Fx2x21x3)
  columns = {"tracking_timestamp_us": START_US + STEP_US * np.arange(FRAMES)}
  for i, side in enumerate(keypoints.SIDES):
    gone = np.array([(f, i) in lost for f in range(FRAMES)])
    columns[f"{side}_tracking_confidence"] = np.where(gone, -1, 0.9)
    for n, name in enumerate(NAMES):
      point = local[:, i, keypoints.NAMES.index(name)] if name != "palm" else local[:, i, [0, 9]].mean(axis=1)
      for axis, letter in enumerate("xyz"):
        columns[f"t{letter}_{side}_landmark_{n}_device"] = np.where(gone, 0, point[:, axis])
  return columns


def calibration(name=fisheye.NAME, params=PARAMS):
  w, x, y, z = geometry.so3_to_quat(T_DEVICE_CAMERA[:3, :3]).tolist()
  camera = {
    "Label": "camera-rgb",
    "T_Device_Camera": {"Translation": T_DEVICE_CAMERA[:3, 3].tolist(), "UnitQuaternion": [w, [x, y, z]]},
    "Projection": {"Name": name, "Params": params},
  }
  slam = camera | {"Label": "camera-slam-left"}
  return {"tracking_timestamp_us": START_US, "CameraCalibrations": [slam, camera], "ImageSizes": [[640, 480], [SIZE, SIZE]]}


def write(folder, name="walk", lost=((3, 1),), picture=None, uid=None, drop=(), root=None, **told):
  """One recording -> its mps folder."""
  root = root or folder / f"mps_{name}_vrs"
  frames_s = (START_US + STEP_US * np.arange(FRAMES)) * 1e-6
  csv(root / "hand_tracking" / "hand_tracking_results.csv", hand_columns(world_points(), device_path(frames_s), lost))
  time_us = np.arange(START_US - 100_000, START_US + STEP_US * FRAMES + 100_000, 2500)
  pose = device_path(time_us * 1e-6)
  quat = geometry.so3_to_quat(pose[:, :3, :3])
  columns = {"graph_uid": uid or ["a-b"] * len(time_us), "tracking_timestamp_us": time_us}
  columns |= {f"t{a}_world_device": pose[:, i, 3] for i, a in enumerate("xyz")}
  columns |= {f"q{a}_world_device": quat[:, i] for a, i in (("x", 1), ("y", 2), ("z", 3), ("w", 0))}  # the file's order
  csv(root / "slam" / "closed_loop_trajectory.csv", columns)
  (root / "slam" / "online_calibration.jsonl").write_text(json.dumps(calibration()) + "\n")
  content = {"timestamps_us": (START_US + STEP_US * np.arange(FRAMES) + 4000).tolist(), "text": "Walk."} | told
  (folder / f"{name}.json").write_text(json.dumps({k: v for k, v in content.items() if k not in drop}))
  with av.open(str(folder / f"{name}.mp4"), "w") as container:
    stream = container.add_stream("mpeg4", rate=20)
    stream.width = stream.height = SIZE
    stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
    for i in range(FRAMES):
      image = np.full((SIZE, SIZE, 3), 10 + 8 * i, np.uint8) if picture is None else picture
      container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
    container.mux(stream.encode())
  return root


def read(folder, image_size=120):
  return aria.read(aria.find(folder)[0], image_size)


def test_hands_go_from_the_device_to_the_world_in_our_order(tmp_path):
  write(tmp_path, person="p", scene="s", licence="L")
  e = read(tmp_path)
  fuzz.check_shapes(e)
  assert (e.id, e.num_frames, e.frame, e.person, e.scene, e.licence) == ("mps_walk_vrs", FRAMES, schema.Frame.WORLD, "p", "s", "L")
  np.testing.assert_allclose(e.rate_hz, 20.0)
  expected = world_points()
  expected[:, :, 1] = np.nan  # Aria has no base of the thumb
  expected[3, 1] = np.nan
  np.testing.assert_allclose(e.keypoints_Fx2xPx3, expected, atol=1e-5)
  np.testing.assert_allclose(e.confidence_Fx2xP[0, 0], np.where(np.arange(21) == 1, 0, np.float32(0.9)))
  frames_s = (START_US + STEP_US * np.arange(FRAMES)) * 1e-6
  np.testing.assert_allclose(e.T_world_camera_Fx4x4, device_path(frames_s) @ T_DEVICE_CAMERA, atol=1e-5)
  assert {f.name for f in doctor.check(e)[1] if f.side} == {"missing"}  # of the one frame


def test_an_empty_field_is_a_missing_hand(tmp_path):
  path = write(tmp_path, lost=()) / "hand_tracking" / "hand_tracking_results.csv"
  lines = path.read_text().splitlines()
  fields = lines[8].split(",")
  fields[5] = ""
  path.write_text("\n".join([*lines[:8], ",".join(fields), *lines[9:]]))
  e = read(tmp_path)
  lost = ~e.has_keypoint_Fx2xP
  lost[:, :, 1] = False  # never there
  assert np.argwhere(lost).tolist() == [[7, 0, keypoints.NAMES.index("index_tip")]]


def test_pinhole_pictures_of_the_user(tmp_path):
  write(tmp_path, intrinsics=[100, 101, 119.5, 118.5])
  e = read(tmp_path)
  np.testing.assert_allclose(e.intrinsics_3x3, [[50, 0, 59.5], [0, 50.5, 59.0], [0, 0, 1]], atol=1e-5)
  means = [float(simplejpeg.decode_jpeg(j).mean()) for j in e.jpeg_F]
  np.testing.assert_allclose(means, 10 + 8 * np.arange(FRAMES), atol=3.5)


@pytest.mark.parametrize("rotated", [0, 90, 180, 270])
def test_the_lens_is_undone(tmp_path, rotated):
  """A dot where the fisheye sees a point comes out where K and the camera's pose project the point."""
  for point in ([0.25, 0.1, 0.5], [-0.3, 0.28, 0.5], [0.02, -0.2, 0.6]):  # in the sensor's frame
    x, y = fisheye.project(np.array(PARAMS), np.array([point]))[0]
    yy, xx = np.mgrid[:SIZE, :SIZE]
    dot = 255 * np.exp(-((xx - x) ** 2 + (yy - y) ** 2) / 8.0)
    picture = np.repeat(np.rot90(dot, -rotated // 90)[..., None], 3, axis=2).astype(np.uint8)
    folder = tmp_path / f"{point[0]}"
    write(folder, picture=picture, rotated=rotated)
    e = read(folder)
    bright = simplejpeg.decode_jpeg(e.jpeg_F[5])[..., 0].astype(float)
    bright = np.where(bright > 60, bright, 0)
    found = np.array([(bright * np.arange(120)).sum(), (bright.T * np.arange(120)).sum()]) / bright.sum()
    world = geometry.transform(device_path(np.array([5.25])) @ T_DEVICE_CAMERA, np.array([[point]]))
    camera = geometry.transform(geometry.se3_inverse(e.T_world_camera_Fx4x4[5:6].astype(float)), world)
    np.testing.assert_allclose(found, geometry.project(e.intrinsics_3x3, camera)[0, 0], atol=0.6)


def test_projection_agrees_with_the_formula_written_out():
  """The lens' equations, one number at a time."""
  f, cx, cy, k0, k1, k2, _, _, _, p0, p1, s0, s1, s2, s3 = PARAMS
  x, y, z = 0.3, -0.2, 0.7
  r = np.hypot(x, y) / z
  t = np.arctan(r)
  scale = (t + k0 * t**3 + k1 * t**5 + k2 * t**7) / r
  u, v = scale * x / z, scale * y / z
  q = u * u + v * v
  du = 2 * u * (p0 * u + p1 * v) + p0 * q + s0 * q + s1 * q * q
  dv = 2 * v * (p0 * u + p1 * v) + p1 * q + s2 * q + s3 * q * q
  expected = [f * (u + du) + cx, f * (v + dv) + cy]
  np.testing.assert_allclose(fisheye.project(np.array(PARAMS), np.array([[x, y, z]]))[0], expected, atol=1e-9)


def test_the_folder_of_a_hot3d_sequence(tmp_path):
  """<sequence>/mps beside the sequence's own files, and a calibration that tells no picture's size: then it is the video's."""
  sequence = tmp_path / "P0003_c701bd11"
  xx = np.mgrid[:SIZE, :SIZE][1]
  picture = np.repeat((xx % 255).astype(np.uint8)[..., None], 3, axis=2)
  root = write(sequence, "mps", root=sequence / "mps", picture=picture)
  for name in ("headset_trajectory.csv", "mano_hand_pose_trajectory.jsonl", "umetrack_hand_pose_trajectory.jsonl", "recording.vrs"):
    (sequence / name).write_text("not read")
  (recording,) = aria.find(tmp_path)
  assert recording.id == "P0003_c701bd11/mps"
  expected = aria.read(recording, 120)
  np.testing.assert_allclose(expected.keypoints_Fx2xPx3[0, 0, 0], world_points()[0, 0, 0], atol=1e-5)
  path = root / "slam" / "online_calibration.jsonl"
  content = calibration()
  del content["ImageSizes"]
  path.write_text(json.dumps(content))
  assert aria.read(recording, 120).jpeg_F == expected.jpeg_F
  content["CameraCalibrations"][1]["Projection"]["Params"] = [3 * PARAMS[0], 3 * PARAMS[1], *PARAMS[2:]]
  path.write_text(json.dumps(content))
  message = r"mps\.mp4: .* the calibration tells no size, and its lens at \(357, 121\) is not in the middle of 240 x 240"
  with pytest.raises(UserError, match=message):
    aria.read(recording, 120)


def edit(path, change):
  path.write_text(change(path.read_text()))


BAD = {
  "no text": (dict(drop=["text"]), "walk.json: no language text"),
  "no times": (dict(drop=["timestamps_us"]), "walk.json: timestamps_us is missing, expected list"),
  "times": (dict(timestamps_us=[1, 2, 3]), "walk.json: timestamps_us are of 0.0 to 0.0 s, the hands of 5.0 to 5.9 s"),
  "count": (dict(timestamps_us=list(range(START_US, START_US + 10 * STEP_US, STEP_US))), "walk.mp4: 20 frames, expected 10"),
  "rotated": (dict(rotated=45), "walk.json: rotated is 45, expected 0, 90, 180 or 270"),
  "camera": (dict(camera="camera-slam-right"), "online_calibration.jsonl: has no camera 'camera-slam-right'"),
  "worlds": (dict(uid=["a", *["b"] * 479]), "closed_loop_trajectory.csv: has several graph_uid, each a world of its own"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_content_is_one_line_naming_file_and_cause(tmp_path, name):
  change, cause = BAD[name]
  write(tmp_path, **change)
  lines = fuzz.lines_of(aria, tmp_path)
  assert len(lines) == 1
  assert cause in lines[0]


def test_damaged_foreign_and_closed_files(tmp_path):
  with pytest.raises(UserError, match=r"expected mps_<name>_vrs/hand_tracking/hand_tracking_results\.csv"):
    aria.find(tmp_path)
  spoil = {
    "a": ("hand_tracking/hand_tracking_results.csv", lambda t: "", "is empty"),
    "b": ("hand_tracking/hand_tracking_results.csv", lambda t: "time,x\n1,2\n", "the column tracking_timestamp_us is missing"),
    "c": ("hand_tracking/hand_tracking_results.csv", lambda t: t[: t.index("\n") + 40], "not a readable csv"),
    "d": ("slam/closed_loop_trajectory.csv", lambda t: t.replace("a-b,", "a-b,x", 3), "not a readable csv"),
    "e": ("slam/online_calibration.jsonl", lambda t: "{}", "not an online_calibration.jsonl of MPS: KeyError"),
    "f": (
      "slam/online_calibration.jsonl",
      lambda t: t.replace(fisheye.NAME, "KannalaBrandtK3"),
      "the lens 'KannalaBrandtK3' of the calibration",
    ),
    "g": ("slam/closed_loop_trajectory.csv", lambda t: t[: t.index("\n") + 1], "holds no row"),
  }
  for name, (file, change, _) in spoil.items():
    edit(write(tmp_path, name) / file, change)
  write(tmp_path, "whole")
  write(tmp_path, "x_video_lost")
  (tmp_path / "x_video_lost.mp4").unlink()
  write(tmp_path, "x_times_lost")
  (tmp_path / "x_times_lost.json").unlink()
  lines = fuzz.lines_of(aria, tmp_path)
  assert "x_times_lost.json: missing, expected the time of every frame of x_times_lost.mp4" in lines[-2]
  assert "x_video_lost.mp4: missing, expected the pictures, made of the VRS file" in lines[-1]
  assert len(lines) == len(spoil) + 2
  for line, (_, _, cause) in zip(lines, spoil.values()):
    assert cause in line
  lines = fuzz.lines_where_closed(aria, lambda folder: write(folder) / "slam" / "closed_loop_trajectory.csv")
  assert lines == ["mps_walk_vrs/slam/closed_loop_trajectory.csv: cannot be opened: Permission denied"]


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_damaged_files_are_refused_or_read_but_never_a_traceback(tmp_path, count):
  write(tmp_path)
  assert fuzz.survives(aria, tmp_path, count) > count // 4


@pytest.mark.parametrize("count", [40, pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.parametrize("file", ["walk.json", "mps_walk_vrs/slam/online_calibration.jsonl"])
def test_odd_values_in_json_are_refused_or_read_but_never_a_traceback(tmp_path, file, count):
  write(tmp_path)
  assert fuzz.survives_odd_json(aria, tmp_path, tmp_path / file, count) > 10

import json
import time
import warnings

import fuzz
import numpy as np
import pytest
import recordings
import robots
import simplejpeg
import zarr
from zarr.core.dtype import VariableLengthBytes

from egoscale_jax import geometry
from egoscale_jax.data import doctor, schema
from egoscale_jax.data.sources import egoverse, mp4
from egoscale_jax.errors import UserError
from egoscale_jax.hands import keypoints

FRAMES, PADDED = 20, 25  # the writer of the data set pads to whole chunks
K = np.array([[150.0, 0, 159.5, 0], [0, 151.0, 89.5, 0], [0, 0, 1, 0]])
ANNOTATIONS = ({"text": "reach", "start_idx": 0, "end_idx": 8}, {"text": "pour", "start_idx": 8, "end_idx": 20})


def head_path():
  pose = np.repeat(recordings.T_WORLD_CAMERA[None].astype(float), FRAMES, axis=0)
  pose[:, 0, 3] += 0.003 * np.arange(FRAMES)
  return pose


def numbers(pose):
  """[F, 4, 4] -> xyz + wxyz."""
  return np.concatenate([pose[:, :3, 3], geometry.so3_to_quat(pose[:, :3, :3])], axis=1)


def human():
  points = recordings.hand_points(FRAMES)
  points[5, 1] = 1e9
  points[6, 0] = 0
  return {"obs_head_pose": numbers(head_path())} | {
    f"{side}.obs_keypoints": points[:, i].reshape(-1, 63) for i, side in enumerate(keypoints.SIDES)
  }


def write(folder, name="2026-03-15-14-22-10-000000", arrays=None, cameras=("front_1",), annotations=ANNOTATIONS, drop=(), **attrs):
  """One episode -> its folder."""
  path = folder / f"{name}.zarr"
  told = {
    "embodiment": "human_bimanual",
    "total_frames": FRAMES,
    "fps": 30,
    "task_name": "pour_tea",
    "task_description": "Pour the tea.",
    "intrinsics": {"front_1": K.tolist()},
    "features": {},
  } | attrs
  texts = lambda values, size: np.array([*values, *[b""] * (size - len(values))], dtype=object)  # noqa: E731
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    group = zarr.open_group(path, mode="w", zarr_format=3)
    group.attrs.update({k: v for k, v in told.items() if k not in drop})
    for key, value in (human() if arrays is None else arrays).items():
      value = np.concatenate([value, np.zeros((PADDED - len(value), *value.shape[1:]))])
      group.create_array(key, data=value, chunks=(10, *value.shape[1:]), shards=(30, *value.shape[1:]))
    columns = {f"images.{c}": texts([mp4.encode(robots.grey_of(0)(f)) for f in range(FRAMES)], PADDED) for c in cameras}
    columns["annotations"] = texts([json.dumps(a).encode() for a in annotations], len(annotations))
    for key, value in columns.items():
      array = group.create_array(key, shape=value.shape, dtype=VariableLengthBytes(), chunks=(1,) if key.startswith("i") else value.shape)
      array[:] = value
  return path


def read(folder, image_size=180):
  return egoverse.read(egoverse.find(folder)[0], image_size)


def test_a_human_comes_as_written_and_projects_into_the_image(tmp_path):
  write(tmp_path, operator="a1b2", scene="kitchen_A")
  e = read(tmp_path)
  fuzz.check_shapes(e)
  expected = recordings.hand_points(FRAMES).astype(np.float32)
  expected[5, 1] = expected[6, 0] = np.nan
  np.testing.assert_array_equal(e.keypoints_Fx2xPx3, expected)
  np.testing.assert_allclose(e.T_world_camera_Fx4x4, head_path(), atol=1e-6)
  assert (e.text, e.person, e.scene, e.frame, e.embodiment) == ("Pour the tea.", "a1b2", "kitchen_A", schema.Frame.WORLD, "human")
  assert e.spans == (schema.Span("reach", 0, 8 / 30), schema.Span("pour", 8 / 30, 20 / 30))
  assert [round(float(simplejpeg.decode_jpeg(j).mean())) for j in e.jpeg_F] == [robots.level(0, f) for f in range(FRAMES)]
  camera = np.linalg.inv(head_path()) @ np.concatenate([recordings.hand_points(FRAMES)[:, 1], np.ones((FRAMES, 21, 1))], -1).swapaxes(1, 2)
  x, y, z = camera[:, :3].swapaxes(0, 1)
  world = geometry.transform(geometry.se3_inverse(e.T_world_camera_Fx4x4), e.keypoints_Fx2xPx3[:, 1])
  pixels = geometry.project(e.intrinsics_3x3, world)
  keep = np.arange(FRAMES) != 5
  np.testing.assert_allclose(pixels[keep], np.stack([150 * x / z + 159.5, 151 * y / z + 89.5], axis=-1)[keep], atol=2e-3)
  assert ((pixels[keep] > 0) & (pixels[keep] < (320, 180))).all()
  assert {f.name for f in doctor.check(e)[1]} == {"missing"}


def test_a_robot_has_wrists_grippers_state_and_action(tmp_path):
  pose = recordings.wrist_path(FRAMES)
  grip = np.linspace(0, 1, FRAMES)[:, None]
  arrays = {
    "left.obs_ee_pose": numbers(pose[:, 0]),
    "right.obs_ee_pose": numbers(pose[:, 1]),
    "left.obs_gripper": grip,
    "right.cmd_ee_pose": numbers(pose[:, 0]),
    "left.cmd_gripper": 1 - grip,
    "left.obs_joints": np.random.default_rng(0).uniform(size=(FRAMES, 6)),
  }
  lost = {name: values.copy() for name, values in arrays.items()}
  for name in ("left.obs_gripper", "left.cmd_gripper", "left.obs_joints"):
    lost[name][4] = 1e9  # stands for a missing value
  write(tmp_path, arrays=lost, cameras=("left_wrist", "front_1"), embodiment="eva_bimanual")
  e = read(tmp_path)
  fuzz.check_shapes(e)
  for values in (e.joints_Fx2xJ[4, 0], e.joint_targets_Fx2xJ[4, 0], e.state_FxS[4, 7:14]):
    assert np.isnan(values).all()
  for values in (grip, arrays["left.obs_joints"]):
    values[4] = np.nan
  assert (e.embodiment, e.frame, e.camera_names) == ("eva_bimanual", schema.Frame.BASE, ("front_1", "left_wrist"))
  # The effector's z is the wrist's x, its -x the wrist's y, its -y the wrist's z.
  axes = np.stack([pose[:, 0, :3, 2], -pose[:, 0, :3, 0], -pose[:, 0, :3, 1]], axis=-1)
  np.testing.assert_allclose(e.T_world_wrist_Fx2x4x4[:, 0, :3, :3], axes, atol=1e-6)
  np.testing.assert_allclose(e.T_world_wrist_Fx2x4x4[:, 1, :3, 3], pose[:, 1, :3, 3], atol=1e-6)
  np.testing.assert_allclose(e.joints_Fx2xJ[:, 0, 0], grip[:, 0], atol=1e-6)
  np.testing.assert_allclose(e.joint_targets_Fx2xJ[:, 0, 0], 1 - grip[:, 0], atol=1e-6)
  assert e.joint_names == (("gripper",), ())
  assert np.isnan(e.joints_Fx2xJ[:, 1]).all()
  assert np.isnan(e.T_world_wrist_target_Fx2x4x4[:, 0]).all()
  assert len(e.state_names) == 7 + 1 + 6 + 7
  np.testing.assert_allclose(e.state_FxS[:, 8:14], arrays["left.obs_joints"], atol=1e-6)
  assert np.isnan(e.T_world_camera_CxFx4x4).all()


def spoiled(name, value):
  return human() | {name: value}


BAD = {
  "no frames": (dict(drop=["total_frames"]), "total_frames is None, expected a number from 1"),
  "fps": (dict(fps="30"), "fps is '30', expected a number"),
  "no embodiment": (dict(drop=["embodiment"]), "embodiment is missing, expected str"),
  "no text": (dict(task_name="", task_description=None), "no language text"),
  "no hands": (dict(arrays={"obs_head_pose": numbers(head_path())}), "left.obs_keypoints and right.obs_keypoints are missing"),
  "keypoints": (
    dict(arrays=spoiled("left.obs_keypoints", np.ones((FRAMES, 60)))),
    "left.obs_keypoints has shape (25, 60), expected (20 or more, 63)",
  ),
  "too short": (dict(total_frames=99), "has shape (25, 63), expected (99 or more, 63)"),
  "quaternion": (dict(arrays=spoiled("obs_head_pose", np.ones((FRAMES, 7)))), "obs_head_pose at frame 0 has a quaternion of norm 2"),
  "no pictures": (dict(cameras=()), "images.front_1 is missing"),
  "K": (dict(intrinsics={"front_1": [[1, 0], [0, 1]]}), "intrinsics/front_1 has shape (2, 2), expected (3, 4)"),
  "annotation": (dict(annotations=[{"text": "a"}]), 'annotations holds b\'{"text": "a"}\', expected JSON with text'),
  "annotation's frames": (dict(annotations=[{"text": "a", "start_idx": 3, "end_idx": 99}]), "of the frames 3 to 99"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_content_is_one_line_naming_file_and_cause(tmp_path, name):
  change, cause = BAD[name]
  path = write(tmp_path, **change)
  lines = fuzz.lines_of(egoverse, tmp_path)
  assert len(lines) == 1
  assert lines[0].startswith(str(path))
  assert cause in lines[0]


def change_json(path, **change):
  content = json.loads(path.read_text())
  content.update(change)
  path.write_text(json.dumps(content))


def test_versions_codecs_and_sizes_that_are_not_admitted(tmp_path):
  change_json(write(tmp_path, "a") / "zarr.json", zarr_format=4)
  change_json(write(tmp_path, "b") / "zarr.json", zarr_format=2)
  change_json(write(tmp_path, "c") / "obs_head_pose" / "zarr.json", codecs=[{"name": "pickle"}])
  grid = {"name": "regular", "configuration": {"chunk_shape": [10**12, 7]}}
  change_json(write(tmp_path, "d") / "obs_head_pose" / "zarr.json", chunk_grid=grid, shape=[10**12, 7], codecs=[{"name": "bytes"}])
  (write(tmp_path, "e") / "obs_head_pose" / "zarr.json").write_text("[" * 100_000)
  (write(tmp_path, "f") / "zarr.json").unlink()
  write(tmp_path, "g")
  lines = fuzz.lines_of(egoverse, tmp_path)
  causes = [
    "zarr_format 4 of a 'group', expected",
    "zarr_format 2",
    "is not readable",
    "has chunks of",
    "is not readable",
    "zarr.json: cannot be opened",
  ]
  assert len(lines) == len(causes)
  for line, cause in zip(lines, causes):
    assert cause in line


def test_a_chunk_that_claims_more_than_it_holds_costs_nothing(tmp_path):
  path = write(tmp_path) / "images.front_1" / "c" / "5"
  content = bytearray(path.read_bytes())
  place = content.index(b"\x01\0\0\0")  # the count of pictures, behind the header of an incompressible zstd block
  content[place + 3] = 0xA1
  path.write_bytes(content)
  began = time.monotonic()
  (line,) = fuzz.lines_of(egoverse, tmp_path)
  assert "a chunk claims 2701131777 items, its shape is (1,)" in line
  assert time.monotonic() - began < 5


def test_empty_and_closed(tmp_path):
  with pytest.raises(UserError, match=r"expected <episode>\.zarr folders"):
    egoverse.find(tmp_path)
  path = write(tmp_path)
  (path / "zarr.json").write_bytes(b"")
  assert fuzz.lines_of(egoverse, tmp_path) == [f"{path}/zarr.json: is empty"]
  lines = fuzz.lines_where_closed(egoverse, lambda folder: write(folder, "a") / "zarr.json")
  assert lines == ["a.zarr/zarr.json: cannot be opened: Permission denied"]


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_damaged_files_are_refused_or_read_but_never_a_traceback(tmp_path, count):
  write(tmp_path)
  assert fuzz.survives(egoverse, tmp_path, count) > count // 4


@pytest.mark.parametrize("count", [60, pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.parametrize("file", ["zarr.json", "obs_head_pose/zarr.json", "images.front_1/zarr.json"])
def test_odd_values_in_json_are_refused_or_read_but_never_a_traceback(tmp_path, file, count):
  assert fuzz.survives_odd_json(egoverse, tmp_path, write(tmp_path) / file, count) > 10

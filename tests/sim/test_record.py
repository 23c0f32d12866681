"""What lands on disk is an EgoDex recording, the same for any number of workers, and its labels fit its pictures."""

import multiprocessing
import pathlib

import av
import h5py
import numpy as np
import pytest

from egoscale_jax import geometry
from egoscale_jax.errors import UserError
from egoscale_jax.hands.keypoints import SIDES, wrist_frame
from egoscale_jax.sim import human, record, tasks

SEED, EPISODES = 7, 4


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
  directory = tmp_path_factory.mktemp("sim") / "recording"
  record.record(directory, EPISODES, SEED, workers=1)
  return directory


def files(directory):
  return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(pathlib.Path(directory).rglob("*")) if p.is_file()}


def pictures(path):
  with av.open(str(path)) as container:
    assert container.streams.video[0].average_rate == 30
    return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def pairs(directory):
  for path in sorted(directory.rglob("*.hdf5")):
    with h5py.File(path) as file:
      yield path, file


def test_every_task_is_recorded_whole(recorded):
  assert set(files(recorded)) == {f"{task}/0.{suffix}" for task in tasks.TASKS for suffix in ("hdf5", "mp4")}
  for path, file in pairs(recorded):
    frames = pictures(path.with_suffix(".mp4"))
    assert frames.shape == (len(file["transforms/camera"]), 96, 96, 3)
    assert 30 <= len(frames) <= 130


def test_two_workers_and_a_second_run_write_the_same_bytes(recorded, tmp_path):
  record.record(tmp_path / "two", EPISODES, SEED, workers=2)
  assert files(tmp_path / "two") == files(recorded)
  assert not multiprocessing.active_children()


def test_episode_depends_on_seed_and_index_only():
  a, b, c, d = record.take(1, 5), record.take(1, 5), record.take(2, 5), record.take(1, 9)
  np.testing.assert_array_equal(a.T_world_thing_FxNx4x4, b.T_world_thing_FxNx4x4)
  np.testing.assert_array_equal(record.film(a, (96, 96))[0][::20], record.film(b, (96, 96))[0][::20])
  assert a.text == b.text
  for other in (c, d):
    assert a.task == other.task
    assert not np.array_equal(a.T_world_wrist_Fx2x4x4[0], other.T_world_wrist_Fx2x4x4[0])


def test_format_is_that_of_a_real_recording(recorded, shared):
  """Names, types and attributes of what we write are a subset of a real file's; all the hands' names are there."""
  sample = next(p for p in sorted((shared / "recordings/egodex").rglob("*.hdf5")) if h5py.File(p).attrs["annotator_version"] == 0.3)
  with h5py.File(sample) as real:
    for _, file in pairs(recorded):
      hands = {name for name in real["transforms"] if name.startswith(SIDES) and ("Hand" in name or "Finger" in name or "Thumb" in name)}
      assert set(file["transforms"]) == hands | {"camera"}
      assert set(file["confidences"]) == hands
      frames = len(file["transforms/camera"])
      for name in ("camera/intrinsic", *(f"{group}/{name}" for group in ("transforms", "confidences") for name in file[group])):
        assert file[name].dtype == real[name].dtype
        assert file[name].shape == (real[name].shape if name == "camera/intrinsic" else (frames, *real[name].shape[1:]))
      assert set(file.attrs) == set(real.attrs) | {"simulated", "generator"}
      for name in real.attrs:
        assert type(file.attrs[name]) is type(real.attrs[name]), name


def test_transforms_are_rigid_in_a_y_up_world(recorded):
  sessions = set()
  for _, file in pairs(recorded):
    sessions.add(file.attrs["session_name"])
    for pose in file["transforms"].values():
      rotation = pose[:, :3, :3].astype(float)
      np.testing.assert_allclose(rotation @ rotation.swapaxes(1, 2), np.broadcast_to(np.eye(3), rotation.shape), atol=1e-5)
      np.testing.assert_allclose(np.linalg.det(rotation), 1, atol=1e-5)
    camera = file["transforms/camera"][:]
    assert (camera[:, 1, 1] < -0.3).all(), "the picture's down is the world's down (y is up)"
    assert (camera[:, 1, 2] < -0.5).all(), "the head looks down at the table"
    height = file["transforms/leftHand"][:, 1, 3]
    assert (height > 0.75).all()
    assert (height < 1.1).all()
  assert len(sessions) == EPISODES


def test_wrist_axes_are_egodexs(recorded):
  """Left +X fingers, +Y palm, +Z little finger; right the negation of all three; every finger's X along its bone."""
  for _, file in pairs(recorded):
    for side, sign in (("left", 1), ("right", -1)):
      keypoints = np.stack([file[f"transforms/{side}{name}"][:, :3, 3] for name in human.KEYPOINTS], axis=1).astype(float)
      frame = wrist_frame(keypoints, side)[:, :3, :3]  # x fingers, z out of the back
      wrist = file[f"transforms/{side}Hand"][:, :3, :3].astype(float) * sign
      assert ((wrist[:, :, 0] * frame[:, :, 0]).sum(-1) > 0.95).all()
      assert ((wrist[:, :, 1] * -frame[:, :, 2]).sum(-1) > 0.95).all()
      to_little = keypoints[:, 17] - keypoints[:, 5]
      assert ((wrist[:, :, 2] * geometry.normalize(to_little)).sum(-1) > 0.9).all()
      joint, following = (file[f"transforms/{side}IndexFinger{part}"][:].astype(float) for part in ("IntermediateBase", "IntermediateTip"))
      bone = geometry.normalize(following[:, :3, 3] - joint[:, :3, 3])
      np.testing.assert_allclose(sign * joint[:, :3, 0], bone, atol=1e-4)


def chroma(rgb):
  return rgb / np.maximum(rgb.sum(axis=-1, keepdims=True), 1)


def share_on_skin(file, frames, skin, flip=False):
  """Share of the palms' and fingers' keypoints that land on pixels of the skin's colour."""
  points = np.stack([file[f"transforms/{s}{name}"][:, :3, 3] for s in SIDES for name in human.BODIES], axis=1).astype(float)
  camera = file["transforms/camera"][:].astype(float)
  pixels = geometry.project(file["camera/intrinsic"][:].astype(float), geometry.transform(geometry.se3_inverse(camera), points))
  if flip:
    pixels = (0, 96) + pixels * (1, -1)
  inside = ((pixels >= 0) & (pixels < 96)).all(axis=-1)
  frame, _ = np.nonzero(inside)
  columns, rows = pixels[inside].astype(int).T
  seen = frames[frame, rows, columns].astype(float)
  return (np.linalg.norm(chroma(seen) - chroma(skin), axis=-1) < 0.08).mean()


def test_projected_keypoints_land_on_skin(recorded):
  """The camera's convention end to end: HDF5 through K onto the decoded video."""
  for path, file in pairs(recorded):
    index = int(file.attrs["session_name"].rsplit("_", 1)[1])
    skin = 255 * np.asarray(record.take(SEED, index).scene.person.skin) ** (1 / 2.2)
    frames = pictures(path.with_suffix(".mp4"))
    assert share_on_skin(file, frames, skin) > 0.8, path
    assert share_on_skin(file, frames, skin, flip=True) < 0.5, "a wrong camera must be seen"


def test_refusals_are_one_line(tmp_path):
  (tmp_path / "mine.txt").write_text("keep")
  for arguments in (
    {"directory": tmp_path},
    {"directory": tmp_path / "mine.txt"},
    {"directory": tmp_path / "new", "image_size": (95, 96)},
    {"directory": tmp_path / "new", "episodes": 0},
  ):
    with pytest.raises(UserError) as caught:
      record.record(**{"episodes": 1, "seed": 0, "workers": 1, **arguments})
    assert "\n" not in str(caught.value)
  assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_failed_write_leaves_no_half_episode(tmp_path, monkeypatch):
  def broken(path, *_):
    path.write_bytes(b"half")
    raise OSError("disk full")

  monkeypatch.setattr(record, "write_hdf5", broken)
  with pytest.raises(OSError, match="disk full"):
    record.record(tmp_path / "out", 1, 0, workers=1)
  assert [p.suffix for p in (tmp_path / "out").rglob("*") if p.is_file()] == [".mp4"]

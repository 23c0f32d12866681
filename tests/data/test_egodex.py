import pathlib

import fuzz
import h5py
import numpy as np
import pytest
import recordings
import simplejpeg

from egoscale_jax import geometry
from egoscale_jax.data.schema import Episode
from egoscale_jax.data.sources import egodex, mp4, simulated
from egoscale_jax.errors import UserError
from egoscale_jax.hands import keypoints


@pytest.fixture
def read(tmp_path):
  """Writes one recording and reads it back."""

  def write_and_read(image_size=90, **kwargs):
    recordings.write(tmp_path, **kwargs)
    return egodex.read(egodex.find(tmp_path)[0], image_size)

  return write_and_read


def replace(name, value):
  """A spoiler for recordings.write: dataset `name` becomes value(old), or goes away where value is None."""

  def change(file):
    old = file[name][()] if name in file and isinstance(file[name], h5py.Dataset) else None
    del file[name]
    if value is not None:
      file[name] = value(old)

  return change


def spoil_pose(name, frame, index, value):
  def put(old):
    old[(frame, *index)] = value
    return old

  return replace(f"transforms/{name}", put)


def project(episode):
  camera = geometry.se3_inverse(episode.T_world_camera_Fx4x4)[:, None]
  return geometry.project(episode.intrinsics_3x3, geometry.transform(camera, episode.keypoints_Fx2xPx3))


def inside(episode):
  pixels = project(episode)
  return ((pixels >= -0.5) & (pixels < np.array(episode.image_size[::-1]) - 0.5)).all(axis=-1)


def test_find_sorts_and_keeps_a_recording_without_video(tmp_path):
  for name in ("pour/1", "pour/0", "add/deep/7"):
    recordings.write(tmp_path, name, frames=2)
  (tmp_path / "pour/1.mp4").unlink()
  assert [r.id for r in egodex.find(tmp_path)] == ["add/deep/7", "pour/0", "pour/1"]
  with pytest.raises(UserError, match=r"pour/1\.mp4: missing: 1\.hdf5 has no video"):
    egodex.read(egodex.find(tmp_path)[2], 90)


@pytest.mark.parametrize("module", [egodex, simulated])
def test_find_refuses_an_empty_and_a_missing_folder(tmp_path, module):
  hint = "egoscale simulate" if module is simulated else r"\.mp4 beside it|recordings"
  for directory in (tmp_path, tmp_path / "absent"):
    with pytest.raises(UserError, match=hint) as error:
      module.find(directory)
    assert str(error.value).startswith(str(directory))


def test_read_gives_keypoints_confidence_and_camera_as_written(read):
  episode = read(frames=20)
  np.testing.assert_array_equal(episode.keypoints_Fx2xPx3, recordings.hand_points(20).astype(np.float32))
  np.testing.assert_allclose(episode.confidence_Fx2xP[3, 1], 0.5 + 0.01 * np.arange(21), rtol=1e-6)
  np.testing.assert_array_equal(episode.T_world_camera_Fx4x4[7], recordings.T_WORLD_CAMERA)
  assert (episode.id, episode.source, episode.scene, episode.rate_hz) == ("pour/0", "egodex", "session pour/0", 30.0)
  assert inside(episode).all()


def test_frames_are_in_order_resized_and_jpeg(read):
  episode = read(frames=20, image_size=90)
  assert episode.image_size == (90, 160)
  for i, jpeg in enumerate(episode.jpeg_F):
    image = simplejpeg.decode_jpeg(jpeg)
    assert image.shape == (90, 160, 3)
    assert abs(float(image.mean()) - (20 + 8 * i)) < 4, i  # the codec rounds by 2, the next frame is 8 off
  assert simplejpeg.decode_jpeg_header(episode.jpeg_F[0])[3] == "420"


def test_resize_never_enlarges_and_keeps_the_aspect():
  assert mp4.fit(1920, 1080, 256) == (256, 455)
  assert mp4.fit(1080, 1920, 256) == (455, 256)
  assert mp4.fit(320, 180, 256) == (180, 320)


def test_intrinsics_follow_the_resize_exactly(read):
  """A point that the video shows at u (counted from the corner) is in the JPEG at s u - 0.5 (counted from the first pixel's centre)."""
  for size, scale in ((180, 1.0), (90, 0.5)):
    episode = read(frames=2, image_size=size)
    camera = geometry.transform(geometry.se3_inverse(episode.T_world_camera_Fx4x4)[:, None], episode.keypoints_Fx2xPx3)
    np.testing.assert_allclose(project(episode), scale * geometry.project(recordings.INTRINSICS, camera) - 0.5, atol=2e-5)
  hd = mp4.Frames((), 30.0, (1920, 1080), (256, 455))
  k = mp4.scale_intrinsics(np.array([[736.6339, 0, 960], [0, 736.6339, 540], [0, 0, 1]]), hd, "", "K", corner=0.5)
  np.testing.assert_allclose(k, [[736.6339 * 455 / 1920, 0, 227], [0, 736.6339 * 256 / 1080, 127.5], [0, 0, 1]], rtol=1e-6)


@pytest.mark.parametrize(
  ("attributes", "text"),
  [
    ({"llm_type": "reversible", "which_llm_description": "2"}, "second"),
    ({"llm_type": "reversible", "which_llm_description": "1"}, "first"),
    ({"llm_type": "reversible", "which_llm_description": np.bytes_(b"2")}, "second"),
    ({"llm_type": "reset", "which_llm_description": "2"}, "first"),
    ({"llm_type": "reset"}, "first"),
  ],
)
def test_text_rule(read, attributes, text):
  assert read(frames=2, llm_description=" first\n", llm_description2="second", **attributes).text == text


def test_absent_confidences_are_one_and_absent_session_is_the_id(read):
  def change(file):
    del file["confidences"], file.attrs["session_name"]

  episode = read(frames=2, change=change)
  assert (episode.confidence_Fx2xP == 1).all()
  assert episode.scene == "pour/0"


def test_nan_poses_become_nan_keypoints_of_confidence_zero(read):
  def change(file):
    spoil_pose("rightIndexFingerTip", 3, (0, 0), np.nan)(file)  # in the rotation: the whole pose is not to be trusted
    spoil_pose("camera", 5, (2, 3), np.inf)(file)

  episode = read(frames=8, change=change)
  lost = np.isnan(episode.keypoints_Fx2xPx3)
  assert lost[3, 1, 8].all()
  assert lost.sum() == 3
  assert np.argwhere(episode.confidence_Fx2xP == 0).tolist() == [[3, 1, 8]]
  assert np.isnan(episode.T_world_camera_Fx4x4[5]).all()
  assert np.isfinite(np.delete(episode.T_world_camera_Fx4x4, 5, axis=0)).all()


def scaled(old):
  old[:, :3, :3] *= 1.01
  return old


BAD = {
  "missing transform": (replace("transforms/leftThumbTip", None), "transforms/leftThumbTip is missing"),
  "missing camera": (replace("transforms/camera", None), "transforms/camera is missing"),
  "missing confidence": (replace("confidences/leftThumbTip", None), "confidences/leftThumbTip is missing"),
  "missing intrinsics": (replace("camera/intrinsic", None), "camera/intrinsic is missing"),
  "shape": (replace("transforms/leftHand", lambda old: old[:, :3]), "transforms/leftHand has shape (8, 3, 4), expected (frames, 4, 4)"),
  "length": (replace("transforms/rightHand", lambda old: old[:5]), "transforms/rightHand has 5 frames, expected 8"),
  "confidence length": (replace("confidences/rightHand", lambda old: old[:5]), "confidences/rightHand has shape (5,), expected (8,)"),
  "confidence range": (replace("confidences/rightHand", lambda old: old * 100), "confidences/rightHand is 50 at frame 0, expected 0 to 1"),
  "integers": (replace("transforms/leftHand", lambda old: old.astype(int)), "transforms/leftHand is int64, expected an array of floats"),
  "non-finite K": (replace("camera/intrinsic", lambda old: old * np.nan), "camera/intrinsic is not finite"),
  "K of another video": (
    replace("camera/intrinsic", lambda old: old * np.array([[3], [3], [1]])),
    "(480.0, 270.0), expected it inside the 320 x 180",
  ),
  "negative focal": (replace("camera/intrinsic", lambda old: -old), "expected fx, fy > 0"),
  "scaled rotation": (replace("transforms/leftHand", scaled), "transforms/leftHand at frame 0 is no rotation: off orthonormal by 0.02"),
  "mirrored": (spoil_pose("camera", 2, (slice(3), 0), (-1.0, 0, 0)), "transforms/camera at frame 2 is no rotation"),
  "transposed": (replace("transforms/camera", lambda old: old.swapaxes(1, 2)), "transforms/camera at frame 0 has the last row"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_hdf5_is_one_line_naming_file_and_cause(read, tmp_path, name):
  change, cause = BAD[name]
  with pytest.raises(UserError) as error:
    read(frames=8, change=change)
  assert str(error.value).startswith(f"{tmp_path}/pour/0.hdf5: ")
  assert cause in str(error.value)
  assert "\n" not in str(error.value)


def test_an_hdf5_that_names_other_files_is_refused(read, tmp_path):
  """Links and storage outside: a recording may not make the reader open what else is on the disk."""
  other = recordings.write(tmp_path / "elsewhere", frames=8)
  layout = h5py.VirtualLayout((8, 4, 4), "f4")
  layout[:] = h5py.VirtualSource(str(other), "transforms/leftHand", (8, 4, 4))
  raw = tmp_path / "raw"
  raw.write_bytes(bytes(8 * 16 * 4))
  outside = {
    "link": lambda file: file["transforms"].__setitem__("leftHand", h5py.ExternalLink(str(other), "transforms/leftHand")),
    "soft": lambda file: file["transforms"].__setitem__("leftHand", h5py.SoftLink("/transforms/rightHand")),
    "virtual": lambda file: file.create_virtual_dataset("transforms/leftHand", layout),
    "external": lambda file: file.create_dataset("transforms/leftHand", (8, 4, 4), "f4", external=str(raw)),
  }
  for name, put in outside.items():

    def change(file, put=put):
      del file["transforms/leftHand"]
      put(file)

    recordings.write(tmp_path / name, frames=8, change=change)
    (line,) = fuzz.lines_of(egodex, tmp_path / name)
    assert line.endswith("expected it in the file itself"), name


@pytest.mark.parametrize("text", ["", "None", None])
def test_no_language_text(read, text):
  def change(file):
    del file.attrs["llm_description"]

  with pytest.raises(UserError, match=r"0\.hdf5: no language text: attribute llm_description is missing or empty"):
    read(frames=2, change=change) if text is None else read(frames=2, llm_description=text)


def test_frame_count_tells_both_numbers(read):
  with pytest.raises(UserError, match=r"0\.mp4: 7 frames, expected as many as the 8 poses in 0\.hdf5"):
    read(frames=8, video_frames=7)


@pytest.mark.parametrize("keep", [0.5, 0.0])
@pytest.mark.parametrize("end", [".mp4", ".hdf5"])
def test_truncated_files(tmp_path, end, keep):
  path = recordings.write(tmp_path, frames=8).with_suffix(end)
  content = path.read_bytes()
  path.write_bytes(content[: int(keep * len(content))])
  cause = "not a decodable video" if end == ".mp4" else "not a readable HDF5 file"
  with pytest.raises(UserError) as error:
    egodex.read(egodex.find(tmp_path)[0], 90)
  assert str(error.value).startswith(f"{path}: {cause}: ")
  assert "\n" not in str(error.value)


def test_a_video_damaged_in_its_middle_names_the_frame(tmp_path):
  """The file opens and every frame comes out, one of them patched up by the decoder: only its flag tells."""
  path = recordings.write(tmp_path, frames=30).with_suffix(".mp4")
  texture = np.random.default_rng(0).integers(0, 255, (recordings.HEIGHT, recordings.WIDTH, 3), np.uint8)
  recordings.write_video(path, 30, lambda i: np.roll(texture, 3 * i, axis=1))
  assert egodex.read(egodex.find(tmp_path)[0], 90).num_frames == 30
  content = bytearray(path.read_bytes())
  middle = (content.index(b"mdat") + content.index(b"moov")) // 2
  content[middle : middle + 3000] = bytes(3000)
  path.write_bytes(content)
  with pytest.raises(UserError, match=rf"^{path}: frame \d+ is corrupt$"):
    egodex.read(egodex.find(tmp_path)[0], 90)


def test_simulated_reads_only_what_is_marked(tmp_path):
  recordings.write(tmp_path, "real/0", frames=2)
  recordings.write(tmp_path, "sim/0", frames=2, simulated=True)
  real, marked = simulated.find(tmp_path)
  with pytest.raises(UserError, match=r"real/0\.hdf5: attribute simulated is missing"):
    simulated.read(real, 90)
  episode = simulated.read(marked, 90)
  assert (episode.source, episode.licence) == ("simulated", "Apache-2.0 (simulated)")
  assert egodex.read(marked, 90).source == "egodex"


def test_real_samples(shared):
  results = {r.id: e for r, e in recordings.read_real(shared).items()}
  good = {name: e for name, e in results.items() if isinstance(e, Episode)}
  assert sorted(good) == ["add_remove_lid/0", "basic_pick_and_place/0", "basic_pick_and_place/1", "insert_remove/2", "insert_remove/3"]
  for name in sorted(set(results) - set(good)):
    assert f"{pathlib.Path(name).name}.mp4: missing" in str(results[name])
  assert good["add_remove_lid/0"].text.startswith("Remove ")  # filmed the second way round
  assert good["insert_remove/3"].text.startswith("Insert ")
  for name, e in good.items():
    assert e.num_frames == len(e.keypoints_Fx2xPx3)
    assert e.image_size == (256, 455)
    assert inside(e).mean() > 0.75, name  # measured 0.81 to 1.0: a hand may be out of view, at the ends of an episode above all
    assert (e.T_world_camera_Fx4x4[:, 1, 1] < -0.5).all()  # the image's down is the world's down (y is up)
    # The thumb's side of the palm is the same in both hands' wrist frames, as hands/keypoints.py draws it.
    frames = keypoints.wrist_frames(e.keypoints_Fx2xPx3)
    index_y = geometry.transform(geometry.se3_inverse(frames), e.keypoints_Fx2xPx3)[:, :, 5, 1].mean(axis=0)
    assert index_y[0] < -0.01
    assert index_y[1] > 0.01
    # Metacarpals dropped, the fingers' bones get shorter from the knuckle on: knuckle to PIP, to DIP.
    bone = np.linalg.norm(np.diff(e.keypoints_Fx2xPx3[:, :, 9:12], axis=2), axis=-1).mean(axis=(0, 1))
    assert 0.03 < bone[1] + 0.01 < bone[0] + 0.01 < 0.06


def test_a_heap_that_hdf5_would_walk_for_ever_is_refused(tmp_path):
  recordings.write(tmp_path, "pour/0", frames=6)
  path = tmp_path / "pour" / "0.hdf5"
  whole = path.read_bytes()
  heap = whole.index(b"GCOL\x01")
  place = heap + 16
  while int.from_bytes(whole[place : place + 2], "little"):  # to the free entry at the end
    place += 16 + -(-int.from_bytes(whole[place + 8 : place + 16], "little") // 8) * 8
  for at, size in ((place + 8, 0), (heap + 16 + 8, 2**64 - 16)):
    path.write_bytes(whole[:at] + size.to_bytes(8, "little") + whole[at + 8 :])
    fuzz.check_refused(lambda _: egodex.read(egodex.find(tmp_path)[0], 32), tmp_path, path, f"an entry of {size} bytes")


@pytest.mark.parametrize(("count", "seed"), [(100, 0), *(pytest.param(500, seed, marks=pytest.mark.slow) for seed in range(1, 21))])
def test_damaged_files_are_refused_or_read_but_never_a_traceback(tmp_path, count, seed):
  """h5py answers damaged bytes with four kinds of exceptions; every one is the recording's fault, in one line."""
  recordings.write(tmp_path, "pour/0", frames=6)
  assert fuzz.survives(egodex, tmp_path, count, seed) > count // 20  # most of an HDF5 file is numbers, which any bytes are

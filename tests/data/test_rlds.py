import json
import pathlib
import struct
import subprocess
import sys

import fuzz
import google_crc32c
import numpy as np
import pytest
import recordings
import robots
import simplejpeg
from conftest import ROOT
from tensorflow_datasets.proto import tf_example_pb2

from egoscale_jax.data import schema
from egoscale_jax.data.sources import mp4, rlds
from egoscale_jax.errors import UserError

CONFIG = {
  "embodiment": "testbot",
  "rate_hz": 5.0,
  "frame": "base",
  "cameras": {
    "observation/image": {"name": "front", "intrinsics": [150, 151, 159.5, 89.5], "T_world_camera": recordings.T_WORLD_CAMERA.tolist()}
  },
  "right": {
    "wrist": {"column": "observation/state", "end": 7, "pose": "xyz_quat_wxyz"},
    "T_tool_wrist": np.diag([1.0, -1, -1, 1]).tolist(),
    "joints": {"column": "observation/state", "start": 7},
  },
}
COUNTS = (20, 6)


def tensor(*shape, dtype="float32"):
  return {
    "pythonClassName": "tensorflow_datasets.core.features.tensor_feature.Tensor",
    "tensor": {"shape": {"dimensions": [str(n) for n in shape]}, "dtype": dtype, "encoding": "none"},
  }


def nested(**features):
  return {"pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict", "featuresDict": {"features": features}}


def features(**change):
  named = lambda kind: {"pythonClassName": f"tensorflow_datasets.core.features.{kind}"}  # noqa: E731
  step = nested(
    **{"observation": nested(image=named("image_feature.Image"), state=tensor(9)), "action": tensor(3, 3)}
    | {"is_first": tensor(dtype="bool"), "language_instruction": named("text_feature.Text")}
    | change
  )
  return nested(steps={"pythonClassName": "tensorflow_datasets.core.features.dataset_feature.Dataset", "sequence": {"feature": step}})


def example(frames, seed, **change):
  """One episode as TFDS flattens it; the instruction changes at its second half."""
  values = robots.state(frames, seed)
  texts = [robots.TASKS[i >= frames // 2] for i in range(frames)]
  columns = {
    "steps/observation/image": [mp4.encode(robots.grey_of(0)(f)) for f in range(frames)],
    "steps/observation/state": values,
    "steps/action": values,
    "steps/is_first": np.arange(frames) == 0,
    "steps/language_instruction": [text.encode() for text in texts],
    "episode_metadata/episode_id": np.array([seed]),
  } | change
  message = tf_example_pb2.Example()
  for name, column in columns.items():
    feature = message.features.feature[name]
    if isinstance(column, list):
      feature.bytes_list.value.extend(column)
    elif np.asarray(column).dtype.kind == "f":
      feature.float_list.value.extend(np.asarray(column).ravel().tolist())
    else:
      feature.int64_list.value.extend(np.asarray(column).astype(int).ravel().tolist())
  return message.SerializeToString()


def framed(records):
  """TFRecord: length, its masked CRC-32C, the bytes, theirs."""

  def masked(data):
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) % 2**32)

  for record in records:
    length = struct.pack("<Q", len(record))
    yield length + masked(length) + record + masked(record)


def write(folder, name="kitchen", config=CONFIG, records=None, told=None):
  """-> path of the one shard of a data set of two episodes."""
  root = folder / name / "1.0.0"
  root.mkdir(parents=True)
  (root / "features.json").write_text(json.dumps(features() if told is None else told))
  (root / "dataset_info.json").write_text(json.dumps({"name": name, "fileFormat": "tfrecord", "version": "1.0.0"}))
  if config is not None:
    (root / "egoscale.json").write_text(json.dumps(config))
  records = [example(n, i) for i, n in enumerate(COUNTS)] if records is None else records
  path = root / f"{name}-train.tfrecord-00000-of-00001"
  path.write_bytes(b"".join(framed(records)))
  return path


def read_all(folder, config=""):
  return [rlds.read(r, 180) for r in rlds.find(folder, config)]


def test_episodes_come_as_written(tmp_path):
  write(tmp_path)
  episodes = read_all(tmp_path)
  assert [e.id for e in episodes] == ["kitchen/1.0.0/train/00000/000000", "kitchen/1.0.0/train/00000/000001"]
  for i, e in enumerate(episodes):
    fuzz.check_shapes(e)
    values = robots.state(COUNTS[i], i)
    np.testing.assert_array_equal(e.state_FxS, values)
    np.testing.assert_array_equal(e.action_FxA, values)  # [3, 3] in the file, nine in a row here
    np.testing.assert_array_equal(e.joints_Fx2xJ[:, 1], values[:, 7:])
    np.testing.assert_allclose(
      e.T_world_wrist_Fx2x4x4[:, 1], recordings.wrist_path(COUNTS[i], i)[:, 0] @ np.diag([1.0, -1, -1, 1]), atol=1e-6
    )
    assert (e.embodiment, e.frame, e.rate_hz, e.camera_names) == ("testbot", schema.Frame.BASE, 5.0, ("front",))
    assert [s.text for s in e.spans] == list(robots.TASKS)
    assert e.spans[1].start_s == COUNTS[i] // 2 / 5
    assert e.jpeg_F == tuple(mp4.encode(robots.grey_of(0)(f)) for f in range(COUNTS[i]))


def test_a_config_from_elsewhere(tmp_path):
  write(tmp_path, config=None)
  (tmp_path / "mine.json").write_text(json.dumps(CONFIG))
  assert read_all(tmp_path, tmp_path / "mine.json")[0].frame is schema.Frame.BASE
  assert "rate_hz is missing, expected it in egoscale.json" in fuzz.lines_of(rlds, tmp_path)[0]


BAD = {
  "state": ({"steps/observation/state": np.ones((19, 9), np.float32)}, "observation/state holds 171 numbers, expected 20 x 9"),
  "numbers as texts": ({"steps/language_instruction": np.ones(20)}, "language_instruction holds 20 values of float_list"),
  "no text": ({"steps/language_instruction": [b""] * 20}, "no language text: language_instruction is empty"),
  "picture": ({"steps/observation/image": [b"GIF89a"] * 20}, "observation/image at frame 0 is no readable picture"),
  "postscript": ({"steps/observation/image": [b"%!PS-Adobe-3.0 EPSF-3.0\n"] * 20}, "observation/image at frame 0 is no readable picture"),
  "too few pictures": ({"steps/observation/image": [b"x"]}, "observation/image holds 1 values of bytes_list, expected 20"),
  "no steps": ({"steps/is_first": np.zeros(0, int)}, "is_first has 0 values"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_content_is_one_line_and_the_other_records_go_on(tmp_path, name):
  change, cause = BAD[name]
  path = write(tmp_path, records=[example(20, 0, **change), example(6, 1)])
  lines = fuzz.lines_of(rlds, tmp_path)
  assert len(lines) == 1
  assert lines[0].startswith(f"{path}: ")
  assert cause in lines[0]


def test_damage_in_a_shard_costs_what_is_behind_it(tmp_path):
  path = write(tmp_path, records=[example(6, i) for i in range(3)])
  whole = path.read_bytes()
  length = struct.unpack("<Q", whole[:8])[0]
  content = bytearray(whole)
  content[12 + 30] ^= 1
  path.write_bytes(content)
  assert fuzz.lines_of(rlds, tmp_path) == [f"{path}: record 0 does not have its checksum"]
  path.write_bytes(whole[: length + 16 + 100])
  assert fuzz.lines_of(rlds, tmp_path) == [f"{path}: damaged or cut off after 1 records, at byte {length + 16}"]
  content = bytearray(whole)
  content[length + 16 : length + 24] = b"\xff" * 8  # a length of all memory
  path.write_bytes(content)
  assert len(fuzz.lines_of(rlds, tmp_path)) == 1
  path.write_bytes(b"")
  assert fuzz.lines_of(rlds, tmp_path) == [f"{path}: is empty"]
  path.write_bytes(b"not a record at all")
  assert "damaged or cut off after 0 records" in fuzz.lines_of(rlds, tmp_path)[0]


def test_classes_that_features_json_names_are_not_imported(tmp_path):
  (tmp_path / "evil.py").write_text("import pathlib\npathlib.Path('pwned').touch()\n")
  write(tmp_path, told=features(extra={"pythonClassName": "evil.Evil"}))
  code = f"import sys; sys.path[:0] = ['', {str(ROOT)!r}]\nfrom egoscale_jax.data.sources import rlds\n"
  code += "print([rlds.read(r, 32).num_frames for r in rlds.find('.')], 'evil' in sys.modules, 'tensorflow' in sys.modules)"
  done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
  assert done.stdout.strip() == "[20, 6] False False", done.stderr
  assert not (tmp_path / "pwned").exists()


def test_foreign_absent_and_closed_files(tmp_path):
  with pytest.raises(UserError, match="expected TFDS folders"):
    rlds.find(tmp_path)
  path = write(tmp_path, told={"package": "npm"})
  assert fuzz.lines_of(rlds, tmp_path)[0].startswith(f"{path.parent}/features.json: is no features.json of RLDS")
  path.unlink()
  with pytest.raises(UserError, match=r"found no \*\.tfrecord-"):
    rlds.find(tmp_path)
  assert fuzz.lines_where_closed(rlds, write) == [
    "kitchen/1.0.0/kitchen-train.tfrecord-00000-of-00001: cannot be opened: Permission denied"
  ]


def test_real_sample_against_tfds_own_parser(shared):
  import tensorflow_datasets as tfds

  root = shared / "recordings" / "rlds_bridge_debug"
  found = rlds.find(root, ROOT / "configs/columns/bridge_rlds.json")
  assert len(found) == 50
  folder = pathlib.Path(found[0].files[0]).parent
  parse = tfds.builder_from_directory(folder).info.features.deserialize_example_np
  shard = (folder / "bridge_dataset-val.tfrecord-00000-of-00001").read_bytes()
  place = 0
  for recording in found[25:35]:
    length = struct.unpack("<Q", shard[place : place + 8])[0]
    steps = parse(shard[place + 12 : place + 12 + length], decoders={"steps": tfds.decode.SkipDecoding()})["steps"]
    place += length + 16
    e = rlds.read(recording, 64)
    fuzz.check_shapes(e)
    np.testing.assert_array_equal(e.state_FxS, steps["observation"]["state"])
    np.testing.assert_array_equal(e.action_FxA, steps["action"])
    assert e.text == steps["language_instruction"][0].decode()
    assert simplejpeg.decode_jpeg(e.jpeg_F[3]).shape == (64, 64, 3)
    np.testing.assert_allclose(e.T_world_wrist_Fx2x4x4[:, 1, :3, 3], steps["observation"]["state"][:, :3], atol=1e-6)
    assert np.isnan(e.T_world_wrist_Fx2x4x4[:, 0]).all()


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_damaged_files_are_refused_or_read_but_never_a_traceback(tmp_path, count):
  write(tmp_path, records=[example(4, 0)])
  assert fuzz.survives(rlds, tmp_path, count) > count // 4


def test_records_without_checksums_to_protect_them(tmp_path):
  """As above, but the damage is in the Example and the sums are right: what a hostile maker writes."""
  rng = np.random.default_rng(1)
  path = write(tmp_path)
  whole, refused = example(4, 0), 0
  for _ in range(150):
    path.write_bytes(b"".join(framed([fuzz.damaged(whole, rng)])))
    refused += bool(fuzz.lines_of(rlds, tmp_path))
  assert refused > 50


@pytest.mark.parametrize("count", [60, pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.parametrize("file", ["egoscale.json", "features.json"])
def test_odd_values_in_json_are_refused_or_read_but_never_a_traceback(tmp_path, file, count):
  path = write(tmp_path, records=[example(4, 0)])
  assert fuzz.survives_odd_json(rlds, tmp_path, path.parent / file, count) > 10

"""The files of a build: records by number, the index, and who else can open them."""

import concurrent.futures
import os
import pathlib
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import recordings

from egoscale_jax.data import clips, manifest, prepare, shards, spec, statistics
from egoscale_jax.errors import UserError

EPISODES = 24


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  """24 episodes of 40 to 63 frames, one part each; about a third held out."""
  output = tmp_path_factory.mktemp("built") / "out"
  source = recordings.Cached(recordings.robots(EPISODES))
  prepare.prepare(source, "in", output, image_size=90, validation=0.3, images=8)
  return output


@pytest.fixture
def copied(built, tmp_path):
  shutil.copytree(built, tmp_path / "out")
  return tmp_path / "out"


def entries(output):
  return manifest.load(output)["episodes"]


def test_every_clip_of_a_split_is_there_once(built):
  told = entries(built)
  for split in shards.SPLITS:
    opened = shards.open_split(built, split)
    expected = [(f"egodex/{e['id']}", n) for e in told if e["split"] == split for n in range(e["clips"])]
    assert len(opened) == len(expected) > 20
    read = [opened[i] for i in range(len(opened))]
    assert [clip.episode for clip in read] == [name for name, _ in expected]
    for (name, number), clip in zip(expected, read):
      assert (clip.start == 0) == (number == 0), name
    frames = {name: sum(clip.num_frames for clip in read if clip.episode == name) for name, _ in expected}
    assert frames == {f"egodex/{e['id']}": e["frames"] for e in told if e["split"] == split}


def test_episode_records_are_in_the_order_of_the_index(built):
  records, index = shards.open_episodes(built), shards.load_index(built)
  assert len(records) == len(index) == EPISODES
  for e, row, record in zip(entries(built), index, (records[i] for i in range(EPISODES))):
    values, labels = clips.read_labels(record)
    assert values["episode"] == f"egodex/{e['id']}"
    assert len(labels.valid_Fx2) == row["frames"] == e["frames"]
    assert row["clips"] == e["clips"]
    assert shards.SPLITS[row["split"]] == e["split"]
    assert row["rate_hz"] == 30
    assert row["task"] == shards.task_hash("pour  THE tea.")


def test_an_example_costs_at_most_16_bytes_of_index(built):
  assert shards.INDEX.itemsize <= 36  # an episode
  for split in shards.SPLITS:
    ids = shards.open_split(built, split).record_ids
    assert ids.dtype == np.uint32  # a clip, which is several examples
  seconds = 9  # of an episode; EgoDex's
  of_an_episode = shards.INDEX.itemsize + 4 * np.ceil(30 * seconds / spec.CLIP_IMAGES)
  assert of_an_episode / (30 * seconds) < 1
  assert shards.INDEX.itemsize + 4 <= 16 * spec.CLIP_IMAGES  # episodes of one clip


@pytest.mark.parametrize("seed", range(20))
def test_clip_ids_are_those_of_the_chosen_episodes(seed):
  rng = np.random.default_rng(seed)
  index = np.zeros(rng.integers(1, 50), shards.INDEX)
  index["clips"] = rng.integers(0, 5, len(index))
  index["part"] = np.sort(rng.integers(0, 6, len(index)))
  chosen = rng.random(len(index)) < 0.5
  owner = np.repeat(np.arange(len(index)), index["clips"])
  np.testing.assert_array_equal(shards.clip_ids(index, chosen), np.flatnonzero(chosen[owner]))
  lengths = shards.lengths(index, "clips")
  assert lengths.tolist() == [index["clips"][index["part"] == part].sum() for part in range(index["part"].max() + 1)]


def test_clip_ids_past_four_billion_are_eight_bytes():
  index = np.zeros(2, shards.INDEX)
  index["clips"] = 2**32 - 2, 3
  assert shards.clip_ids(index, np.array([False, True])).tolist() == [2**32 - 2, 2**32 - 1, 2**32]


def test_twentieths_are_nested(built):
  before = np.array([], np.uint32)
  counts = []
  train = {f"egodex/{e['id']}": e["frames"] for e in entries(built) if e["split"] == "train"}
  total = sum(train.values())
  for twentieths in range(1, 21):
    opened = shards.open_split(built, "train", twentieths)
    frames = sum(train[name] for name in {opened[i].episode for i in range(len(opened))})
    assert total * twentieths / 20 <= frames < total * twentieths / 20 + 64  # so many of the hours, to a whole episode
    ids = opened.record_ids
    assert np.isin(before, ids).all()
    assert (np.diff(ids.astype(np.int64)) > 0).all()
    before = ids
    counts.append(len(ids))
  assert len(before) == len(shards.open_split(built, "train"))
  assert counts[0] < counts[9] < counts[19]
  held_out = [len(shards.open_split(built, "validation", twentieths)) for twentieths in (1, 20)]
  assert held_out[0] == held_out[1]


def a_clip_file(output):
  """-> the file of the first training clip, and its number in the split."""
  part = next(e["part"] for e in entries(output) if e["split"] == "train")
  return pathlib.Path(shards.CLIPS.path(output, part))


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "flipped", "foreign"])
def test_a_damaged_file_is_a_value_error_naming_it_and_the_rest_goes_on(copied, damage):
  path = a_clip_file(copied)
  data = bytearray(path.read_bytes())
  if damage == "missing":
    path.unlink()
  elif damage == "flipped":
    at = data.index(b"Pour the tea.")
    data[at + 2] ^= 1
    path.write_bytes(data)
  else:
    path.write_bytes({"empty": b"", "truncated": data[: len(data) // 2], "foreign": b"thesis" * 30000}[damage])
  opened = shards.open_split(copied, "train")
  with pytest.raises(ValueError, match=f"{path.name}: record [0-9]+ cannot be read: ") as error:
    opened[0]
  assert "\n" not in str(error.value)
  assert opened[len(opened) - 1].num_images > 0


def test_splits_pickle_before_and_after_use_and_serve_threads(built):
  opened = shards.open_split(built, "train")
  fresh = pickle.loads(pickle.dumps(opened))
  first = opened[0]
  used = pickle.loads(pickle.dumps(opened))
  for source in (fresh, used):
    assert source[0].data == first.data
  assert len(pickle.dumps(opened)) < 10_000 + 4 * len(opened)  # no open file travels
  expected = [opened[i].data for i in range(len(opened))]
  order = np.random.default_rng(0).integers(len(opened), size=400)
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    got = list(pool.map(lambda i: pickle.loads(pickle.dumps(fresh))[i].data if i % 7 == 0 else fresh[i].data, order))
  assert got == [expected[i] for i in order]


def test_what_is_wrong_with_a_folder_is_one_line(built, copied, tmp_path):
  with pytest.raises(UserError, match=f"{tmp_path}/none/index.npy: not readable"):
    shards.open_split(tmp_path / "none", "train")
  with pytest.raises(UserError, match="split: found 'test', expected train or validation"):
    shards.open_split(built, "test")
  (copied / "index.npy").write_bytes(b"\x93NUMPY")
  with pytest.raises(UserError, match=r"index\.npy: not readable"):
    shards.open_split(copied, "train")
  np.save(copied / "index.npy", np.zeros(3, np.int64))
  with pytest.raises(UserError, match=r"index\.npy: another version's index; prepare the data again"):
    shards.open_split(copied, "train")
  (copied / "manifest.json").unlink()
  with pytest.raises(UserError, match=f"^{copied}: is not finished, expected manifest.json: start the same `egoscale prepare` again"):
    shards.open_split(copied, "train")


def test_one_scene_has_no_validation_split(tmp_path):
  found = {recording: recordings.robot(20, name=recording.id) for recording in recordings.robots(3)}
  prepare.prepare(recordings.Cached(found), "in", tmp_path / "out")
  with pytest.raises(UserError, match="out: has no episode in the split 'validation'"):
    shards.open_split(tmp_path / "out", "validation")


def test_a_full_disk_is_a_user_error_naming_the_file(tmp_path):
  """Of the library, which raises a RuntimeError: the size of a file is limited, as a disk is."""
  code = f"""
import resource, signal
from egoscale_jax.data import shards
from egoscale_jax.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
writer = shards.Writer({str(tmp_path / "file")!r})
try:
  for _ in range(40):
    writer.write(bytes(10_000))
  writer.close()
except UserError as error:
  print(error)
"""
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
  assert done.stdout.startswith(f"{tmp_path}/file: cannot be written: ")
  assert "File too large" in done.stdout
  assert not (tmp_path / "file").exists()


def test_tensorflow_datasets_opens_the_folder_and_nobody_imports_tensorflow(built):
  code = f"""
import sys
import tensorflow_datasets as tfds
clips = tfds.data_source("egoscale", data_dir={str(built)!r}, split="clips")
episodes = tfds.data_source("egoscale_episodes", data_dir={str(built)!r}, split="episodes")
from egoscale_jax.data import shards
from egoscale_jax.data import clips as clips_lib
assert len(episodes) == {EPISODES}
index = shards.load_index({str(built)!r})
assert len(clips) == index["clips"].sum()
records = shards.Records({str(built)!r}, shards.CLIPS, shards.lengths(index, "clips"))
for number in (0, 7, len(clips) - 1):
  theirs, ours = clips[number], clips_lib.read_clip(records[number])
  assert theirs["joints"].tobytes() == ours.joints_Fx2xJ.tobytes()
  assert theirs["joints"].shape == ours.joints_Fx2xJ.shape
  assert theirs["episode"].decode() == ours.episode
  assert list(theirs["pictures"]) == [ours.picture(i) for i in range(ours.num_images)]
assert episodes[3]["T_world_wrist"].shape == (43, 2, 4, 4)
assert "tensorflow" not in sys.modules
"""
  run_clean(code)


def test_training_imports_neither_the_writer_s_library_nor_tensorflow(built):
  run_clean(f"""
import sys
from egoscale_jax.data import shards
assert shards.open_split({str(built)!r}, "train")[0].num_images
assert not {{"tensorflow", "tensorflow_datasets", "apache_beam"}} & set(sys.modules)
""")


def run_clean(code):
  environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)
  assert done.returncode == 0, done.stderr
  assert done.stdout == ""


def test_statistics_beside_the_shards_are_of_the_training_episodes(built):
  table = statistics.load(built / "statistics.json")
  train = [e for e in entries(built) if e["split"] == "train"]
  assert table.count_LxA[0, -1] == sum(e["frames"] - 1 for e in train)
  records = shards.open_episodes(built)
  labels = [clips.read_labels(records[i])[1] for i, e in enumerate(entries(built)) if e["split"] == "train"]
  joints = np.concatenate([part.joints_Fx2xJ[1:, 1, 1] for part in labels])
  np.testing.assert_allclose(table.mean_LxA[0, -1], joints.mean(dtype=np.float64), rtol=1e-5)
  np.testing.assert_allclose(table.max_LxA[0, -1], joints.max())

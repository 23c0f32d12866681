import pickle
import subprocess
import sys

import numpy as np
import pytest
import recordings

from egoscale_jax.data import actions, builder, spec
from egoscale_jax.errors import UserError

J = 4


def records(frames=100, name="pour/0", seed=0):
  labels = recordings.labels(frames, J, seed, invalid=[(4, 0), (slice(20, 23),)])
  return dict(builder.clips(recordings.episode(frames, seed, name), labels))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  directory = tmp_path_factory.mktemp("shards")
  train = records() | records(37, "pour/1", 1)
  clips = builder.write(
    directory, {"train": lambda: iter(train.items()), "validation": lambda: iter(records(20, "pour/2").items())}, J, "none"
  )
  assert clips == {"train": 7 + 3, "validation": 2}
  return directory, train


@pytest.mark.parametrize("frames", [1, 15, 16, 17, 100, 161])
def test_clips_are_near_equal_and_cover_the_episode_once(frames):
  clips = list(builder.clips(recordings.episode(frames), recordings.labels(frames, J)))
  lengths = [len(record["jpeg"]) for _, record in clips]
  assert len(clips) == -(-frames // spec.CLIP_FRAMES)
  assert max(lengths) <= spec.CLIP_FRAMES
  assert max(lengths) - min(lengths) <= 1
  assert b"".join(jpeg for _, record in clips for jpeg in record["jpeg"]) == b"".join(recordings.episode(frames).jpeg_F)
  starts = np.cumsum([0, *lengths[:-1]])
  assert [key for key, _ in clips] == [f"egodex/pour/0#{start}" for start in starts]
  for start, length, (_, record) in zip(starts, lengths, clips):
    assert record["start"] == start
    tail = min(start + length + spec.TAIL_FRAMES, frames)
    assert len(record["joints"]) == len(record["valid"]) == tail - start


def test_a_chunk_from_a_clip_is_the_chunk_from_the_episode():
  labels = recordings.labels(100, J, invalid=[(4, 0), (slice(20, 23),)])
  for _, record in builder.clips(recordings.episode(100), labels):
    for frame in range(len(record["jpeg"])):
      got = actions.make_chunk(record["T_world_wrist"], record["joints"], record["valid"], frame, 32, 2)
      expected = actions.make_chunk(
        labels.T_world_wrist_Fx2x4x4, labels.joints_Fx2xJ, labels.valid_Fx2, int(record["start"]) + frame, 32, 2
      )
      np.testing.assert_array_equal(got[0], expected[0])
      np.testing.assert_array_equal(got[1], expected[1])


def test_round_trip_is_bit_exact_and_nan_stays_nan(written):
  directory, train = written
  split = builder.open_split(directory, "train")
  assert len(split) == len(train)
  read = [split[i] for i in range(len(split))]
  assert {f"{r['episode']}#{r['start']}" for r in read} == set(train)
  for record in read:
    expected = train[f"{record['episode']}#{record['start']}"]
    assert set(record) == set(expected)
    for key, value in expected.items():
      got = record[key]
      if key == "jpeg":
        assert list(got) == list(value)
      elif isinstance(value, np.ndarray):
        assert got.dtype == value.dtype, key
        assert got.shape == value.shape, key
        assert got.tobytes() == value.tobytes(), key  # bytes: NaN equals NaN, and -0 is not 0
      else:
        assert got == value, key
    masked = ~record["valid"]
    assert np.isnan(record["joints"][masked]).all()
    assert np.isnan(record["T_world_wrist"][masked]).all()


def test_shards_are_shuffled(written):
  split = builder.open_split(written[0], "train")
  order = [f"{split[i]['episode']}#{split[i]['start']}" for i in range(len(split))]
  assert order != list(written[1])


def test_source_pickles_before_and_after_use(written):
  split = builder.open_split(written[0], "train")
  fresh = pickle.loads(pickle.dumps(split))
  first = split[0]
  used = pickle.loads(pickle.dumps(split))
  for source in (fresh, used):
    assert source[0]["episode"] == first["episode"]
    assert source[0]["joints"].tobytes() == first["joints"].tobytes()
  assert len(pickle.dumps(split)) < 1000  # no open file, no index travels


def test_open_split_names_what_is_wrong(written, tmp_path):
  with pytest.raises(UserError, match=f"{tmp_path}: holds no shards"):
    builder.open_split(tmp_path, "train")
  with pytest.raises(UserError, match="has no split 'test', found train, validation"):
    builder.open_split(written[0], "test")


def test_nothing_imports_tensorflow(tmp_path):
  code = f"""
import sys
sys.path.insert(0, {str(recordings.__file__.rsplit("/", 1)[0])!r})
import recordings
from egoscale_jax.data import builder
clips = lambda: builder.clips(recordings.episode(20), recordings.labels(20, 4))
builder.write({str(tmp_path)!r}, {{"train": clips}}, 4, "none")
assert len(builder.open_split({str(tmp_path)!r}, "train")[0]["jpeg"]) == 10
assert "tensorflow" not in sys.modules
"""
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
  assert done.returncode == 0, done.stderr
  assert done.stdout == ""

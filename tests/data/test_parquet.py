"""Values that a parquet file of a few hundred bytes declares and no memory holds: one line, and the process goes on as before."""

import resource

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from egoscale_jax.data.sources import parquet
from egoscale_jax.errors import UserError


def write(path, **columns):
  pq.write_table(pa.table(columns), path, store_schema=False, compression="zstd")  # without a schema a dictionary is read as its values
  return path


def test_few_bytes_that_stand_for_gigabytes_are_one_line(tmp_path, monkeypatch):
  long = pa.DictionaryArray.from_arrays(pa.array([0] * 400, pa.int32()), pa.array(["x" * 10_000_000]))
  path = write(tmp_path / "bomb.parquet", episode_index=[0] * 400, text=long)
  assert path.stat().st_size < 2000
  before = resource.getrlimit(resource.RLIMIT_AS)
  monkeypatch.setattr(parquet, "MAX_BYTES", 500_000_000)  # the texts take 4 GB
  for episode in (None, 0):
    with pytest.raises(UserError) as error:
      parquet.table(path, episode=episode)
    assert str(error.value) == f"{path}: its values take more than 500000000 bytes of memory, expected less"
  assert resource.getrlimit(resource.RLIMIT_AS) == before
  assert parquet.table(path, wanted=lambda name: name == "episode_index").num_rows == 400


def test_more_numbers_than_a_recording_has_are_one_line(tmp_path, monkeypatch):
  path = write(tmp_path / "wide.parquet", state=[[True] * 30, [False] * 30])
  rows = parquet.table(path)
  np.testing.assert_array_equal(parquet.numbers(rows, "state", path), [[1.0] * 30, [0.0] * 30])
  monkeypatch.setattr(parquet, "MAX_NUMBERS", 59)
  with pytest.raises(UserError, match=r"wide\.parquet: state holds 60 numbers, expected at most 59"):
    parquet.numbers(rows, "state", path)

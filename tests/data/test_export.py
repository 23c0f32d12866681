"""LeRobot 3.0 written and read back: equal to the bit, and laid out as lerobot itself lays it out."""

import dataclasses
import json
import types

import fuzz
import numpy as np
import pyarrow.parquet as pq
import pytest
import recordings
import robots
import test_vitra

from egoscale_jax import cli
from egoscale_jax.data import export_lerobot, schema
from egoscale_jax.data.sources import egodex, lerobot, vitra
from egoscale_jax.errors import UserError


def same(a, b, but=("id", "source")):
  for field in dataclasses.fields(schema.Episode):
    if field.name not in but:
      x, y = getattr(a, field.name), getattr(b, field.name)
      if isinstance(x, np.ndarray):
        assert x.dtype == y.dtype, field.name
        np.testing.assert_array_equal(x, y, err_msg=field.name)
      else:
        assert x == y, field.name


def round_trip(source, folder, output, image_size=180):
  """-> episodes as the source reads them and as they come back."""
  count, left_out = export_lerobot.export(source, folder, output, 1, image_size)
  before = [source.read(r, image_size) for r in source.find(folder)]
  after = [lerobot.read(r, image_size) for r in lerobot.find(output)]
  assert count == len(after) == len(before)
  assert left_out == []
  for e in after:
    fuzz.check_shapes(e)
  for a, b in zip(before, after):
    same(a, b)
  return before, after


def test_humans_come_back_to_the_bit(tmp_path):
  def gaps(file):
    file["transforms/leftHand"][3:6] = np.nan
    file["transforms/camera"][7] = np.nan

  recordings.write(tmp_path / "in", "pour/0", frames=20, change=gaps)
  recordings.write(tmp_path / "in", "pour/1", frames=17, seed=1, llm_description="Pour again.")
  round_trip(egodex, tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize("write", [robots.write_v2, robots.write_v3])
def test_robots_come_back_to_the_bit(tmp_path, write):
  write(tmp_path / "in")
  round_trip(lerobot, tmp_path / "in", tmp_path / "out")


def test_joints_without_poses_and_cameras_without_intrinsics(tmp_path):
  robots.write_v2(tmp_path / "in", config=None)
  assert {e.frame for e in round_trip(lerobot, tmp_path / "in", tmp_path / "out")[1]} == {schema.Frame.NONE}


def test_texts_of_one_hand_that_overlap(tmp_path):
  test_vitra.write(tmp_path / "in")
  _, (b,) = round_trip(vitra, tmp_path / "in", tmp_path / "out")
  assert {s.side for s in b.spans} == {"left", "right"}


def test_reading_smaller_scales_the_intrinsics_too(tmp_path):
  recordings.write(tmp_path / "in", "pour/0", frames=17)
  export_lerobot.export(egodex, tmp_path / "in", tmp_path / "out", 1, 180)
  small = lerobot.read(lerobot.find(tmp_path / "out")[0], 90)
  direct = egodex.read(egodex.find(tmp_path / "in")[0], 90)
  assert small.image_size == (90, 160)
  np.testing.assert_allclose(small.intrinsics_3x3, direct.intrinsics_3x3, atol=1e-4)


def test_the_real_sample_has_lerobot_s_own_layout(shared, tmp_path):
  """Beside what lerobot 0.4.4 wrote of the same data: the same tables, up to what is ours and what is of videos."""
  sample = shared / "recordings/lerobot_v3_from_gr00t/dataset"
  first = types.SimpleNamespace(find=lambda folder: lerobot.find(folder)[:1], read=lerobot.read, SOURCE="lerobot")
  (a,), _ = round_trip(first, sample, tmp_path / "out", 64)
  told, wanted = (json.loads((root / "meta/info.json").read_text()) for root in (tmp_path / "out", sample))
  for key in ("codebase_version", "robot_type", "fps", "data_path", "chunks_size"):
    assert told[key] == wanted[key], key
  assert (told["total_episodes"], told["total_frames"], told["splits"]) == (1, a.num_frames, {"train": "0:1"})
  assert set(wanted["features"]) <= set(told["features"])
  for name in ("data/chunk-000/file-000.parquet", "meta/tasks.parquet", "meta/episodes/chunk-000/file-000.parquet"):
    ours, theirs = (pq.read_table(root / name) for root in (tmp_path / "out", sample))
    theirs = theirs.slice(0, len(ours))
    for column in set(theirs.column_names) & set(ours.column_names):
      assert ours.column(column).to_pylist() == theirs.column(column).to_pylist(), (name, column)
      if not column.startswith("egoscale"):
        assert ours.schema.field(column).type == theirs.schema.field(column).type, column
    missing = {c for c in theirs.column_names if not c.startswith(("stats", "videos"))} - set(ours.column_names)
    assert missing == set(), name
  index = [json.loads(pq.read_schema(root / "meta/tasks.parquet").metadata[b"pandas"]) for root in (tmp_path / "out", sample)]
  assert index[0]["index_columns"] == index[1]["index_columns"]
  stats = json.loads((tmp_path / "out/meta/stats.json").read_text())["action"]
  for key in ("min", "max", "mean", "std"):
    np.testing.assert_allclose(stats[key], getattr(np, key)(a.action_FxA.astype(float), axis=0), atol=1e-6)


def test_what_cannot_be_one_data_set_is_left_out_and_named(tmp_path, capsys):
  recordings.write(tmp_path / "in", "pour/0", frames=17)
  recordings.write(tmp_path / "in", "pour/1", frames=17).with_suffix(".mp4").unlink()
  arguments = [f"--input={tmp_path}/in", f"--output={tmp_path}/out"]
  assert cli.main(["export", "--to=lerobot", "--source=egodex", *arguments]) == 0
  out = capsys.readouterr().out
  assert "pour/1.mp4: missing" in out
  assert f"wrote 1 episodes to {tmp_path}/out" in out
  assert cli.main(["export", "--to=lerobot", "--source=egodex", *arguments]) == 1
  assert "out: exists, expected the name of a new folder" in capsys.readouterr().err
  robots.write_v2(tmp_path / "mixed", "a")
  robots.write_v2(tmp_path / "mixed", "b", config=robots.CONFIG | {"embodiment": "other"})
  count, left_out = export_lerobot.export(lerobot, tmp_path / "mixed", tmp_path / "two", 1, 90)
  assert count == 2
  assert all("embodiment is 'other', expected 'testbot' as the first episode has; export them apart" in line for line in left_out)


def test_nothing_usable_leaves_nothing(tmp_path):
  recordings.write(tmp_path / "in", "pour/0", frames=17).with_suffix(".mp4").unlink()
  with pytest.raises(UserError, match="no usable episode in"):
    export_lerobot.export(egodex, tmp_path / "in", tmp_path / "out")
  assert [p.name for p in tmp_path.iterdir()] == ["in"]

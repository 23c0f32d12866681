"""Damaged files for the readers: whatever the bytes are, read() answers with an Episode or with one line, and comes back."""

import json
import os
import pathlib
import tempfile
import time

import numpy as np
import pytest

from egoscale_jax.data import schema
from egoscale_jax.errors import UserError

SLOWEST_S = 20.0  # of one read; a hang would be far beyond it


def damaged(content: bytes, rng) -> bytes:
  """One mutation: some bytes changed, cut out, doubled, zeroed, or the end lost."""
  data = bytearray(content)
  kind = int(rng.integers(6))
  at = int(rng.integers(max(len(data), 1)))
  length = int(2 ** rng.integers(0, 9))
  if kind == 0:
    return bytes(data[:at])
  if kind == 1:
    del data[at : at + length]
  elif kind == 2:
    data[at:at] = data[at : at + length]
  elif kind == 3:
    data[at : at + length] = bytes(min(length, len(data) - at))
  elif kind == 4:
    data[at : at + 8] = b"\xff" * min(8, len(data) - at)
  else:
    for place in rng.integers(0, len(data), int(rng.integers(1, 9))):
      data[place] = rng.integers(256)
  return bytes(data)


def survives(source, folder, count, seed=0, files=None, image_size=32):
  """Damages one file of the folder at a time, `count` times, reads all that is found, mends it -> how many were refused."""
  rng = np.random.default_rng(seed)
  folder = pathlib.Path(folder)
  files = sorted(p for p in folder.rglob("*") if p.is_file()) if files is None else [pathlib.Path(f) for f in files]
  whole = {path: path.read_bytes() for path in files}
  refused = 0
  for _ in range(count):
    path = files[int(rng.integers(len(files)))]
    path.write_bytes(damaged(whole[path], rng))
    began = time.monotonic()
    refused += bool(lines_of(source, folder, image_size))
    assert time.monotonic() - began < SLOWEST_S, path
    path.write_bytes(whole[path])
  return refused


def lines_of(source, folder, image_size=32):
  """The lines of the UserErrors on the way; each is one line that names something below the folder."""
  lines = []
  try:
    found = source.find(folder)
  except UserError as error:
    found = []
    lines.append(str(error))
  for recording in found:
    try:
      episode = source.read(recording, image_size)
      assert isinstance(episode, schema.Episode)
      check_shapes(episode)
    except UserError as error:
      lines.append(str(error))
  for line in lines:
    assert "\n" not in line
    assert line.startswith(str(folder)), line
  return lines


def check_refused(read, folder, begins, cause):
  """read(folder) ends in one line that begins so and names the cause."""
  with pytest.raises(UserError) as error:
    read(folder)
  line = str(error.value)
  assert line.startswith(str(begins))
  assert cause in line
  assert "\n" not in line


ODD = (None, 3, -1, 1e300, "x", "", [], {}, [[1]], {"a": 1}, True)


def oddities(content):
  """The content of a JSON file with one value at a time replaced by one of another kind."""
  yield from ODD
  items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
  for key, below in list(items):
    for odd in oddities(below):
      changed = dict(content) if isinstance(content, dict) else list(content)
      changed[key] = odd
      yield changed


def survives_odd_json(source, folder, path, count=None):
  """Reads with every oddity of a JSON file, or with `count` of them drawn at random -> how many were refused."""
  whole = path.read_text()
  every = list(oddities(json.loads(whole)))
  chosen = every if count is None else [every[i] for i in np.random.default_rng(0).choice(len(every), count, replace=False)]
  refused = 0
  for content in chosen:
    path.write_text(json.dumps(content))
    refused += bool(lines_of(source, folder))
  path.write_text(whole)
  return refused


def check_shapes(e):
  """What every Episode promises."""
  frames, cameras = e.num_frames, len(e.camera_names)
  assert frames > 0
  assert {len(jpegs) for jpegs in e.jpeg_CxF} == {frames}
  assert len(e.jpeg_CxF) == len(e.image_size_C) == cameras
  assert e.intrinsics_Cx3x3.shape == (cameras, 3, 3)
  assert e.T_world_camera_CxFx4x4.shape == (cameras, frames, 4, 4)
  assert e.keypoints_Fx2xPx3.shape == (frames, 2, 21, 3)
  assert e.confidence_Fx2xP.shape == (frames, 2, 21)
  assert e.T_world_wrist_Fx2x4x4.shape == e.T_world_wrist_target_Fx2x4x4.shape == (frames, 2, 4, 4)
  width = max(map(len, e.joint_names))
  assert e.joints_Fx2xJ.shape == e.joint_targets_Fx2xJ.shape == (frames, 2, width)
  assert e.state_FxS.shape == (frames, len(e.state_names))
  assert e.action_FxA.shape == (frames, len(e.action_names))
  arrays = {name: value for name, value in vars(e).items() if isinstance(value, np.ndarray)}
  assert {value.dtype for value in arrays.values()} == {np.dtype(np.float32)}
  assert not np.isinf(e.keypoints_Fx2xPx3).any()
  assert np.isfinite(e.confidence_Fx2xP).all()
  assert (e.confidence_Fx2xP[~e.has_keypoint_Fx2xP] == 0).all()
  assert np.isfinite(e.rate_hz)
  assert e.rate_hz > 0
  assert e.text
  assert e.scene
  assert e.licence


def lines_where_closed(source, write) -> list[str]:
  """Of a recording that write(folder) wrote, whose file (what it returns) may not be opened; the folder's name is left out.

  Root may read everything, so permissions mean something only as another user; nothing changes for one who is not root.
  """
  with tempfile.TemporaryDirectory() as folder:
    pathlib.Path(folder).chmod(0o755)
    write(pathlib.Path(folder)).chmod(0)
    was_root = os.geteuid() == 0
    if was_root:
      os.seteuid(65534)
    try:
      lines = lines_of(source, folder)
    finally:
      if was_root:
        os.seteuid(0)
  return [line.removeprefix(f"{folder}/") for line in lines]

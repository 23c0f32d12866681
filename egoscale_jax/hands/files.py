"""`egoscale retarget`: a file of keypoints to a file of joints, a piece at a time: a long one takes no more memory than a short one."""

import os
import pathlib
import tempfile
import threading
import time
import tokenize
import zipfile
import zlib

import numpy as np

from egoscale_jax import progress
from egoscale_jax.errors import UserError
from egoscale_jax.hands import alignment, retarget
from egoscale_jax.hands import hand as hand_lib

# Each seen from numpy or zipfile, on files with some bytes changed.
_CORRUPT = (OSError, ValueError, EOFError, SyntaxError, KeyError, TypeError, OverflowError, MemoryError, NotImplementedError, RuntimeError)
_CORRUPT += (zipfile.BadZipFile, zlib.error, tokenize.TokenError)


def run(name, side, source, output, fingers=None, scale=None, rate_hz=30.0):
  """Keypoints of one hand in `source` to joints in `output`, whose arrays are told in `_pack`. -> a line on how it went."""
  output = pathlib.Path(output)
  if output.suffix != ".npz" or output.is_dir():
    raise UserError(f"--output={output}: expected a file that ends in .npz")
  if not (np.isfinite(rate_hz) and rate_hz > 0):
    raise UserError(f"--rate={rate_hz}: expected a positive number of frames a second")
  keypoints_Fx21x3, confidence_Fx21 = read(source)
  hand = hand_lib.load(name, side, fingers)
  try:
    human = alignment.Human(keypoints_Fx21x3, hand, side, confidence_Fx21, 0.5, scale)
    human.check_side()
  except UserError as error:
    raise UserError(f"{source}: {error}") from error
  if not len(human):
    raise UserError(f"{source}: no frames")
  origin = {"hand": hand.name if name in hand_lib.BUILT_IN else str(hand_lib.files(name, side)[0].resolve())}
  origin |= {"side": side, "fingers": fingers or hand_lib.told_of(name, side)[1] or ""}
  try:
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.stem}.partial-", dir=output.parent) as folder:
      return _solve(human, pathlib.Path(folder), output, rate_hz, origin, source)
  except OSError as error:
    raise UserError(f"--output={output}: cannot be written: {error.strerror or error}") from error


def read(path):
  """-> keypoints [F, 21, 3], floats and a memory map if from an .npy file, and confidence [F, 21] or None."""
  path = pathlib.Path(path)
  if path.suffix not in (".npy", ".npz"):
    raise UserError(f"{path}: found the ending {path.suffix!r}, expected .npy or .npz")
  confidence = None
  try:
    if path.suffix == ".npy":
      points = np.lib.format.open_memmap(path, mode="r")
    else:
      with open(path, "rb") as file:  # numpy leaves one that it opened and could not read open
        loaded = np.load(file)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
          raise ValueError("it holds one array and no names")
        with loaded as arrays:
          if "keypoints" not in arrays:
            raise UserError(f"{path}: expected an array `keypoints`, found {', '.join(arrays) or 'none'}")
          points, confidence = arrays["keypoints"], arrays.get("confidence")
  except FileNotFoundError as error:
    raise UserError(f"{path}: no such file") from error
  except _CORRUPT as error:
    raise UserError(f"{path}: cannot be read as {path.suffix}: {(str(error) or type(error).__name__).splitlines()[0]}") from error
  for name, array in (("keypoints", points), ("confidence", confidence)):
    if array is not None and array.dtype.kind != "f":
      raise UserError(f"{path}: {name}: found {array.dtype}, expected floats")
  try:
    alignment.check_shape(points.shape)  # before a hand is loaded, which prints what it found
  except UserError as error:
    raise UserError(f"{path}: {error}") from error
  return points, confidence


class _Observed:
  """A source for retarget.follow that keeps what it reads, for pictures, and moves the bar on by what is done."""

  def __init__(self, source, human_Fx21x3, bar):
    self.hand, self.scale = source.hand, source.scale
    self._source, self._human_Fx21x3, self._bar, self._last = source, human_Fx21x3, bar, threading.local()
    self._rounds = 0

  def __len__(self):
    return len(self._source)

  def read(self, start, stop, length):
    if not start:  # the first round, or the recording is solved again with more smoothing
      self._rounds, self._bar.total = self._rounds + 1, (self._rounds + 1) * len(self)
      self._bar.update(self._rounds * len(self) - len(self) - self._bar.n)
    target_Px3xF, seen_PxF, valid_F = self._source.read(start, stop, length)
    human_Fx21x3 = np.where(seen_PxF[:, None] > 0, target_Px3xF, np.float32(np.nan)).transpose(2, 0, 1)
    self._human_Fx21x3[start:stop] = human_Fx21x3[: stop - start]
    self._bar.update(getattr(self._last, "frames", 0))  # a thread that reads again is done with what it read before
    self._last.frames = stop - start - (retarget.OVERLAP if start else 0)
    return target_Px3xF, seen_PxF, valid_F


def _solve(source, folder, output, rate_hz, origin, path):
  """Solves into memory maps in `folder`, packs them there and moves the result into place."""
  frames, hand = len(source), source.hand
  joints_FxJ = _map(folder / "joints.npy", (frames, hand.num_joints))
  residual_m_F = _map(folder / "residual_m.npy", (frames,))
  human_Fx21x3 = _map(folder / "human.npy", (frames, 21, 3))
  start = time.perf_counter()
  with progress.bar(frames, "retarget", "frame") as bar:
    result = retarget.follow(_Observed(source, human_Fx21x3, bar), rate_hz=rate_hz, out=(joints_FxJ, residual_m_F))
    bar.update(bar.total - bar.n)
  seconds = time.perf_counter() - start
  if not result.valid_F.any():
    raise UserError(f"{path}: no frame has a whole hand")
  error_mm = 1e3 * np.mean(residual_m_F[result.valid_F], dtype=np.float64)
  small = {"joint_names": np.asarray(hand.joint_names), "valid": result.valid_F, "bridged": result.bridged_F, "scale": result.scale}
  _pack(folder, [joints_FxJ, residual_m_F, human_Fx21x3], {**small, "rate_hz": rate_hz, **origin}).replace(output)
  return (
    f"{frames} frames, {result.valid_F.sum()} valid, {result.bridged_F.sum()} bridged; tips {error_mm:.2f} mm (mean, robot's scale); "
    f"{seconds:.1f} s, compiling included; scale {result.scale:.4f}"
  )


def _map(path, shape):
  """Zeros [*shape] float32 in a file. The room is claimed now: a full disk is an error here, and a killed process later."""
  array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
  if hasattr(os, "posix_fallocate"):
    with open(path, "r+b") as file:
      os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
  return array


def _pack(folder, maps, small):
  """The arrays of a result, for numpy.load; F frames, J joint values.

  joints [F, J], radians, NaN where neither `valid` [F] nor `bridged` [F]; residual_m [F], mean distance of the fingertips, NaN where not
  valid; human [F, 21, 3], the keypoints on the robot's scale in its base frame, metres; joint_names [J]; scale, rate_hz; hand, side and
  fingers as they were given.
  """
  for array in maps:
    array.flush()
  packed = folder / "result.npz"
  with zipfile.ZipFile(packed, "w") as archive:  # not compressed: joints do not shrink, and reading is quick
    for path in sorted(folder.glob("*.npy")):
      archive.write(path, path.name)
    for name, value in small.items():
      with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array(file, np.asarray(value), allow_pickle=False)
  return packed

"""Windows of clips -> the arrays of a Batch, many rows at a time: a call a row would cost more than decoding its pictures."""

import collections
import dataclasses
import functools
import sys
import threading

import numpy as np

from egoscale_jax.data import actions, clips, statistics, tokenizer, transforms
from egoscale_jax.data import streams as streams_lib
from egoscale_jax.data.spec import Batch
from egoscale_jax.errors import UserError

_TOGETHER = 32  # rows whose chunks are made at once: what lies between stays in the processor's cache, and needs no fresh pages
FIRST = "ego"  # of config.data.cameras: the first camera of an episode, whatever it is called


@dataclasses.dataclass(frozen=True)
class Window:
  """A chunk that starts at a picture of a clip."""

  clip: clips.Clip
  image: int
  streams: streams_lib.Streams | None = None  # the clip's; None: fill() makes them

  @property
  def frame(self) -> int:
    return self.image * self.clip.stride


@dataclasses.dataclass(frozen=True)
class Slot:
  """What belongs to an adapter slot."""

  statistics: statistics.Statistics
  normalizer: statistics.Normalizer
  space: streams_lib.Space

  @property
  def width(self) -> int:
    return len(self.normalizer.low_A)


class Buffers:
  """The large arrays of batches, taken again when nobody holds them any more; safe for threads.

  The kernel clears fresh memory page by page, and for 90 MB a batch that costs a fifth of decoding the pictures.
  """

  def __init__(self):
    self._held, self._lock = collections.defaultdict(list), threading.Lock()

  def take(self, dtype, *shape) -> np.ndarray:
    """Cleared the first time alone. Held by nobody: referred to by the list and what this very loop adds (_FREE) alone."""
    with self._lock:
      held = self._held[dtype, shape]
      for array in held:
        if sys.getrefcount(array) == _FREE:
          return array
      held.append(np.zeros(shape, dtype))
      return held[-1]


def _count_of_free() -> int:
  """What sys.getrefcount says in Buffers.take of an array that nobody else holds: Pythons differ in what a loop's variable counts."""
  held = [np.empty(0)]
  for array in held:
    return sys.getrefcount(array)


_FREE = _count_of_free()


class Assembler:
  """Fills Batches of a config."""

  def __init__(self, data, model, prompt: tokenizer.Prompt, slots: dict[int, Slot]):
    self.data, self.model, self.slots = data, model, slots
    self._prompt = functools.lru_cache(maxsize=65536)(prompt)  # data sets repeat their instructions
    self._find, self.state_from_camera = functools.cache(self._find_cameras), functools.cache(self._find_state)
    self._present = functools.cache(lambda names: tuple(camera is not None for camera in self._find_cameras(names)))
    self._prompt_of, self._buffers = prompt, Buffers()
    # Actions are filled up with zeros to the model's width: where all are as wide, the zeros of the first time stay.
    self._padded, self._pads = Buffers(), len({slot.width for slot in slots.values()}) > 1
    # Read once: a look-up in a ConfigDict costs as much as a row's share of everything else.
    self._size, self._cameras, self._slot_of = tuple(data.image_size), tuple(data.cameras), dict(data.slots)
    self._crop, self._weighs = data.crop, data.residual_soft_m > 0
    self._ones = functools.cache(self._make_ones)

  def __getstate__(self):
    return {"data": self.data, "model": self.model, "prompt": self._prompt_of, "slots": self.slots}

  def __setstate__(self, state):
    self.__init__(**state)

  def slot(self, embodiment: str) -> int:
    number = self._slot_of.get(embodiment)
    if number not in self.slots:
      raise UserError(f"config.data.slots: no slot with statistics for the embodiment {embodiment!r}, found {sorted(self._slot_of)}")
    return number

  def allocate(self, rows: int) -> Batch:
    """The pictures, actions, masks and weights hold anything, until decode() and fill() have been at every row."""
    m, take, padded = self.model, self._buffers.take, self._padded.take
    length = self._prompt_of.length
    return Batch(
      image_BxCxYxXx3=take(np.uint8, rows, len(self._cameras), *self._size, 3),
      image_mask_BxC=np.zeros((rows, len(self._cameras)), bool),
      token_BxL=np.zeros((rows, length), np.int32),
      token_mask_BxL=np.zeros((rows, length), bool),
      state_BxS=np.zeros((rows, m.state_dim), np.float32),
      state_mask_B=np.zeros(rows, bool),
      action_BxTxA=padded(np.float32, rows, m.horizon, m.action_dim),
      action_mask_BxTxA=padded(np.bool_, rows, m.horizon, m.action_dim),
      action_dims_BxA=np.zeros((rows, m.action_dim), bool),
      action_weight_BxTxA=take(np.float32, rows, m.horizon, m.action_dim) if self._weighs else self._ones(rows),
      embodiment_B=np.zeros(rows, np.int32),
      position_B=np.zeros(rows, np.int32),
    )

  def _make_ones(self, rows):
    """Weights where all labels count the same: one array for every batch, since 20 kB a row to write are a hundredth of its whole cost."""
    ones = np.ones((rows, self.model.horizon, self.model.action_dim), np.float32)
    ones.flags.writeable = False
    return ones

  def decode(self, window: Window, batch: Batch, row: int):
    """The window's pictures, into the batch; ValueError where one is damaged."""
    for place, camera in enumerate(self._find(window.clip.cameras)):
      picture_YxXx3 = batch.image_BxCxYxXx3[row, place]
      if camera is None:
        picture_YxXx3[:] = 0
      else:
        transforms.decode_into(window.clip, window.image, camera, picture_YxXx3, self._crop)

  def _find_cameras(self, names) -> tuple[int | None, ...]:
    """Where each camera of the config is among those of a clip."""
    first = {FIRST: 0}
    return tuple(names.index(name) if name in names else first.get(name) for name in self._cameras)

  def streams(self, clip: clips.Clip) -> streams_lib.Streams:
    """For the windows of a clip that is read once for many of them."""
    number = self.slot(clip.embodiment)
    normalizer, from_camera = self.slots[number].normalizer, self.state_from_camera(clip.embodiment)
    state_NxA = None if from_camera is None else streams_lib.state(clip, normalizer, from_camera)
    return streams_lib.make(clip, number, normalizer, state_NxA)

  def fill(self, batch: Batch, windows: list[Window], position_B) -> Batch:
    """All but the pictures."""
    batch.position_B[:] = position_B
    batch.image_mask_BxC[:] = [self._present(window.clip.cameras) for window in windows]
    streams = [window.streams or self.streams(window.clip) for window in windows]
    for row, window in enumerate(windows):
      batch.token_BxL[row], batch.token_mask_BxL[row] = self._prompt(window.clip.text)
    batch.embodiment_B[:] = [s.slot for s in streams]
    for number in np.unique(batch.embodiment_B):
      rows = np.flatnonzero(batch.embodiment_B == number)
      for first in range(0, len(rows), _TOGETHER):
        part = rows[first : first + _TOGETHER]
        # Rows that follow each other are a slice: a plain copy.
        where = slice(part[0], part[-1] + 1) if part[-1] - part[0] == len(part) - 1 else part
        self._fill_hands(batch, where, [windows[row] for row in part], [streams[row] for row in part], self.slots[int(number)])
    return batch

  def _fill_hands(self, batch, where, windows, streams, slot):
    """Rows of one hand; where: the rows, as a slice if they follow each other."""
    d, m = self.data, self.model
    frames = [window.frame for window in windows]
    self._fill_state(batch, where, windows, streams, slot)
    arrays = batch.action_BxTxA[where], batch.action_mask_BxTxA[where]  # views where the rows are a slice, else copies
    action, mask = (array[..., : slot.width].reshape(*array.shape[:2], 2, -1) for array in arrays)
    streams_lib.chunks(streams, frames, d.stride, slot.space, action, mask)
    batch.action_dims_BxA[where, : slot.width] = slot.normalizer.learnt_A
    if self._pads:
      for array in arrays:
        array[..., slot.width :] = 0
    if not isinstance(where, slice):
      batch.action_BxTxA[where], batch.action_mask_BxTxA[where] = arrays
    if self._weighs:
      batch.action_weight_BxTxA[where] = 1.0
      residual = streams_lib.residuals(streams, frames, m.horizon, d.stride)
      weight = actions.label_weights(residual, slot.width // 2 - actions.WRIST_DIM, d.residual_soft_m)
      batch.action_weight_BxTxA[where, :, : slot.width] = weight

  def _fill_state(self, batch, where, windows, streams, slot):
    """Proprioception of the rows that have it (actions.has_state), from where their chunks start."""
    state = np.full((len(windows), slot.width), np.nan, np.float32)
    for row, (window, s) in enumerate(zip(windows, streams)):
      if s.state_NxA is not None:
        state[row] = s.state_NxA[window.image]
    told = np.isfinite(state).all(axis=-1)  # else a hand is missing, or nobody located a person's camera
    batch.state_BxS[where, : slot.width] = np.where(told[:, None], state, 0.0)
    batch.state_mask_B[where] = told

  def _find_state(self, embodiment) -> bool | None:
    """Whether its state is seen from the first camera, else from the robot's base, or it has no wrists; None: it has no state."""
    if not actions.has_state(self.data, embodiment):
      return None
    observed_2xD = self.slots[self.slot(embodiment)].normalizer.observed_A.reshape(2, -1)
    return embodiment not in self.data.base_state and bool(observed_2xD[:, : actions.WRIST_DIM].any())


def make_assembler(config, prompt, stats: dict[int, statistics.Statistics]) -> Assembler:
  """Checks the config against the hands of the run's slots."""
  d, m = config.data, config.model
  if not d.residual_soft_m >= 0:
    raise UserError(f"config.data.residual_soft_m: found {d.residual_soft_m}, expected metres, or 0 for no weighting")
  if not 0 <= d.crop <= 1:
    raise UserError(f"config.data.crop: found {d.crop}, expected a share of the sides, or 0 for a crop to the aspect ratio alone")
  if d.crop and config.augment.crop != 1.0:
    raise UserError(f"config.augment.crop: found {config.augment.crop}, expected 1.0: config.data.crop = {d.crop} crops already")
  if not d.cameras:
    raise UserError("config.data.cameras: found none, expected the names of one or more cameras")
  slots = {}
  for number, table in stats.items():
    needed = actions.action_dim(len(table.joint_names))
    if needed > m.action_dim:
      raise UserError(f"config.model.action_dim: found {m.action_dim}, the hand {table.hand} needs {needed}")
    if needed > m.state_dim and any(actions.has_state(d, name) for name, of in d.slots.items() if of == number):
      raise UserError(f"config.model.state_dim: found {m.state_dim}, the hand {table.hand} needs {needed}")
    normalizer = table.normalizer(m.horizon, d.stride, d.resting)
    slots[number] = Slot(table, normalizer, streams_lib.space(normalizer, m.horizon))
  return Assembler(d.copy_and_resolve_references(), m.copy_and_resolve_references(), prompt, slots)

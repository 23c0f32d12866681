"""Shards -> Batch, with position = step.

The stream of examples is infinite and index-deterministic: `stream[i]` depends on the seed and i alone. Step k of a run with
global batch G reads positions k*G .. (k+1)*G - 1; process p of n takes the p-th block of them. So the data position needs no
checkpoint, and the same batch comes out, in the same order, for any number of processes, workers and restarts. (A strided slice
`stream[p::n]` would give the same set but, on several processes, another order of the rows of the global array.)
"""

import dataclasses

import grain
import jax
import numpy as np

from egoscale_jax.data import actions, builder, manifest, statistics, transforms
from egoscale_jax.data.spec import Batch
from egoscale_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Examples:
  """Clip record and the index of a frame in it -> one example of the Batch, as a dict without the batch axis."""

  data: object  # config.data
  model: object  # config.model
  prompt: object  # tokenizer.Prompt
  normalizer: statistics.Normalizer

  def __call__(self, record, frame):
    num_joints = record["joints"].shape[-1]
    action, mask = actions.make_chunk(
      record["T_world_wrist"], record["joints"], record["valid"], frame, self.model.horizon, self.data.stride
    )
    state, has_state = self.state(record, frame)
    padding = self.model.action_dim - actions.action_dim(num_joints)
    action = np.where(mask, self.normalizer.normalize(action), 0.0)  # zero is read nowhere: the mask says so, and a test poisons it
    weight = actions.label_weight(record["residual_m"], frame, self.model.horizon, num_joints, self.data.residual_soft_m, self.data.stride)
    token, token_mask = self.prompt(record["text"])
    return dict(
      image_BxCxYxXx3=transforms.decode(record["jpeg"][frame], self.data.image_size)[None],
      image_mask_BxC=np.ones(1, bool),
      token_BxL=token,
      token_mask_BxL=token_mask,
      state_BxS=state,
      state_mask_B=np.asarray(has_state),
      action_BxTxA=np.pad(action, ((0, 0), (0, padding))).astype(np.float32),
      action_mask_BxTxA=np.pad(mask, ((0, 0), (0, padding))),
      action_weight_BxTxA=np.pad(weight, ((0, 0), (0, padding)), constant_values=1.0),
      embodiment_B=np.int32(self.data.slots[record["embodiment"]]),
    )

  def state(self, record, frame):
    """-> normalised state [S] and whether there is one. Human video has none (paper section 2.3), unless config.data.human_state."""
    state = np.zeros(self.model.state_dim, np.float32)
    if not self.data.human_state or not record["valid"][frame].all():
      return state, False
    known = actions.make_state(record["T_world_camera"][frame], record["T_world_wrist"][frame], record["joints"][frame])
    if not np.isfinite(known).all():  # a camera that nobody located
      return state, False
    state[: len(known)] = actions.normalize_state(known, self.normalizer)
    return state, True


def make_examples(config, prompt, stats):
  """Checks the config against the shards -> Examples that normalise with `stats` (the run's, which need not be the shards')."""
  shards = config.data.shards
  data = manifest.load(shards)
  needed = actions.action_dim(len(stats.joint_names))
  if needed > config.model.action_dim:
    raise UserError(f"config.model.action_dim: found {config.model.action_dim}, the hand {stats.hand} needs {needed}")
  if config.data.human_state and needed > config.model.state_dim:
    raise UserError(f"config.model.state_dim: found {config.model.state_dim}, the hand {stats.hand} needs {needed}")
  if data["hand"] != stats.hand:
    raise UserError(f"{shards}: holds joints of the hand {data['hand']!r}, the run's is {stats.hand!r}")
  if not config.data.residual_soft_m >= 0:
    raise UserError(f"config.data.residual_soft_m: found {config.data.residual_soft_m}, expected metres, or 0 for no weighting")
  if len(config.data.cameras) != 1:
    raise UserError(f"config.data.cameras: found {tuple(config.data.cameras)}, human video has one, the head camera")
  unknown = sorted(set(data["embodiments"]) - set(config.data.slots))
  if unknown:
    raise UserError(f"config.data.slots: no slot for the embodiment {unknown[0]!r} of {shards}, found {sorted(config.data.slots)}")
  normalizer = stats.normalizer(config.model.horizon, config.data.stride, config.data.constant)
  return Examples(config.data.copy_and_resolve_references(), config.model.copy_and_resolve_references(), prompt, normalizer)


def make_stream(source, examples, seed):
  """Infinite MapDataset of examples: every epoch its own order, a frame of each clip drawn from the index alone."""

  def draw(record, rng):
    return examples(record, int(rng.integers(len(record["jpeg"]))))

  return grain.MapDataset.source(source).seed(seed).shuffle().repeat().random_map(draw)


def stack(rows, position):
  """Example dicts -> Batch of numpy arrays."""
  arrays = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
  return Batch(**arrays, position_B=np.asarray(position, np.int32))


def train_batches(config, prompt, stats, first_step, process=None, processes=None):
  """Iterator of this process's part of the batches of steps first_step, first_step + 1, ... up to config.steps."""
  process = jax.process_index() if process is None else process
  processes = jax.process_count() if processes is None else processes
  if config.batch_size % processes:
    raise UserError(f"config.batch_size: found {config.batch_size}, expected a multiple of the {processes} processes")
  local = config.batch_size // processes
  source = builder.open_split(config.data.shards, "train")
  stream = make_stream(source, make_examples(config, prompt, stats), config.seed)

  first_row = process * local

  def make_batch(step):
    position = step * local * processes + first_row + np.arange(local)
    return stack([stream[int(i)] for i in position], position)

  batches = grain.MapDataset.range(first_step, config.steps).map(make_batch)
  options = grain.ReadOptions(num_threads=config.data.threads, prefetch_buffer_size=config.data.prefetch)
  batches = batches.to_iter_dataset(options)
  if config.data.workers:
    batches = batches.mp_prefetch(
      grain.MultiprocessingOptions(num_workers=config.data.workers, per_worker_buffer_size=config.data.prefetch)
    )
  return iter(batches)


def fake_batch(shapes, seed=0):
  """A Batch of the given shapes without data: random values, everything present. For tests, compilation and planning."""
  rng = np.random.default_rng(seed)

  def fill(shape):
    if shape.dtype == np.bool_:
      return np.ones(shape.shape, np.bool_)
    if shape.dtype == np.float32:
      return rng.standard_normal(shape.shape, np.float32)
    return rng.integers(0, 256 if shape.dtype == np.uint8 else 2, shape.shape).astype(shape.dtype)

  batch = jax.tree.map(fill, shapes)
  ones = np.ones_like(batch.action_weight_BxTxA)
  return dataclasses.replace(batch, position_B=np.arange(len(batch.position_B), dtype=np.int32), action_weight_BxTxA=ones)

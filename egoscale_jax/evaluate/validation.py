"""Fixed-noise validation (paper section 3.3): held-out episodes x time steps x flow samples, the same for every checkpoint.

The noise of a sample comes from (episode, time, draw) alone, so two checkpoints, models or machines are compared on the same
question. The paper does not say in which space its MSE is; ours is the normalised one that the loss is in, with millimetres and
degrees beside it.
"""

import dataclasses
import zlib

import grain
import jax
import jax.numpy as jnp
import numpy as np

from egoscale_jax import geometry
from egoscale_jax.data import actions, builder, manifest, pipeline
from egoscale_jax.models import flow, vla


@dataclasses.dataclass(frozen=True)
class Point:
  """One query: frame `frame` of record `record` of the validation split."""

  record: int
  frame: int
  episode: str
  time: int  # frame in the episode


def fixed_points(source, episodes, times, horizon, stride):
  """Up to `times` evenly spaced frames with a labelled step, of up to `episodes` episodes in the order of their names' hashes."""
  frames = {}
  for index in range(len(source)):
    record = source[index]
    valid = record["valid"]
    for frame in range(len(record["jpeg"])):
      if np.any(valid[frame] & np.any(valid[frame + stride : frame + horizon * stride + 1 : stride], axis=0)):
        point = Point(index, frame, record["episode"], int(record["start"]) + frame)
        frames.setdefault(record["episode"], []).append(point)
  chosen = sorted(frames, key=lambda name: (zlib.crc32(name.encode()), name))[:episodes]
  points = []
  for name in chosen:
    candidates = sorted(frames[name], key=lambda point: point.time)
    points += [candidates[i] for i in np.unique(np.linspace(0, len(candidates) - 1, times).round().astype(int))]
  return points


def noise_key(episode, time):
  return jax.random.fold_in(jax.random.fold_in(jax.random.key(0), zlib.crc32(episode.encode()) & 0x7FFFFFFF), time)


def hold_still(record, frame, horizon):
  """Baseline [T, A], metres and radians: the wrists stay where they are, the joints as at the chunk's start (the policy is not told)."""
  identity = np.concatenate([np.zeros(3), geometry.so3_to_rot6d(np.eye(3))])
  hands = [np.concatenate([identity, joints]) for joints in record["joints"][frame]]
  return np.broadcast_to(np.concatenate(hands), (horizon, sum(len(hand) for hand in hands))).astype(np.float32)


class Validation:
  """The points of a config's validation split, read once; `run` measures one set of parameters."""

  def __init__(self, config, prompt, model, stats):
    self.config, self.model = config, model
    v = config.validation
    self.examples = pipeline.make_examples(config, prompt, stats)
    self.mean_chunk_TxA = stats.mean_chunk(config.model.horizon, config.data.stride)
    self.source, self.points = None, []
    if manifest.load(config.data.shards)["totals"]["clips"].get(builder.VALIDATION):  # one scene alone is all training data
      self.source = builder.open_split(config.data.shards, builder.VALIDATION)
      self.points = fixed_points(self.source, v.episodes, v.times, config.model.horizon, config.data.stride)
    self._sample = jax.jit(self._sample_batch)

  def _sample_batch(self, params, batch, key_B):
    """-> samples [draws, B, T, A] and the flow loss [B] of the same noise, both normalised."""
    c, draws = self.model.config, self.config.validation.draws
    features = self.model.apply({"params": params}, batch, method=vla.VLA.features)
    action = jnp.where(batch.action_mask_BxTxA, batch.action_BxTxA, 0.0)

    # At test time every dimension that the embodiment has is asked for; which steps have a label is not known to the policy.
    asked = jnp.broadcast_to(self.asked_A[None, None], batch.action_mask_BxTxA.shape)
    query = dataclasses.replace(batch, action_mask_BxTxA=asked)

    def one(_, draw):
      key = jax.vmap(jax.random.fold_in, in_axes=(0, None))(key_B, draw)
      noise_key, time_key = jnp.moveaxis(jax.vmap(jax.random.split)(key), 1, 0)
      noise = flow.sample_noise(noise_key, action.shape[1:])
      sample = vla.sample(self.model, {"params": params}, features, query, noise, c.flow.steps)
      time_B = flow.sample_time(time_key, c.flow.alpha, c.flow.scale)
      x_t = flow.interpolate(noise, action, time_B)
      velocity = self.model.apply({"params": params}, features, batch, x_t, time_B, method=vla.VLA.velocity)
      error = jnp.where(batch.action_mask_BxTxA, (velocity - (action - noise)) ** 2, 0.0)
      return None, (sample, jnp.sum(error, axis=(1, 2)))

    _, (samples, flow_error) = jax.lax.scan(one, None, jnp.arange(draws))
    return samples, jnp.mean(flow_error, axis=0)

  @property
  def asked_A(self):
    """Action dimensions that the data's hands have and that training has seen."""
    observed = self.examples.normalizer.observed_A
    return np.pad(observed, (0, self.model.config.action_dim - len(observed)))

  def batches(self):
    """Batches of the points, the last one filled up by repeating its first; with how many rows count, and the records."""
    size = self.config.validation.batch_size

    def make(index):
      points = self.points[index * size : (index + 1) * size]
      records = [self.source[point.record] for point in points]
      rows = [self.examples(record, point.frame) for record, point in zip(records, points)]
      batch = pipeline.stack(rows + rows[:1] * (size - len(rows)), np.arange(size))
      return batch, points, records

    count = -(-len(self.points) // size)
    return iter(grain.MapDataset.range(count).map(make).to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)))

  def run(self, params):
    """-> figures: MSE of one sample, of the mean of the draws, of both baselines (normalised); mm and degrees; flow loss."""
    c, normalizer = self.model.config, self.examples.normalizer
    total = Totals(normalizer, self.mean_chunk_TxA)
    if not self.points:
      return {"points": 0}
    for batch, points, records in self.batches():
      keys = jnp.stack([noise_key(p.episode, p.time) for p in points] + [noise_key("", 0)] * (len(batch.position_B) - len(points)))
      samples, flow_error = jax.device_get(self._sample(params, batch, keys))
      for row, (point, record) in enumerate(zip(points, records)):
        width = len(normalizer.low_A)
        mask = batch.action_mask_BxTxA[row, :, :width] & np.isfinite(self.mean_chunk_TxA)  # what training never saw is not asked
        truth = batch.action_BxTxA[row, :, :width]
        still = normalizer.normalize(hold_still(record, point.frame, c.horizon))
        total.add(mask, truth, samples[:, row, :, :width], still, flow_error[row])
    return total.figures(len(self.points), len({p.episode for p in self.points}), self.config.validation.draws)


class Totals:
  """Sums over points; every figure is a sum over labelled entries by their count, as the training loss is."""

  def __init__(self, normalizer, mean_chunk_TxA):
    self.normalizer = normalizer
    self.mean_chunk = normalizer.normalize(mean_chunk_TxA)
    self.num_joints = len(normalizer.low_A) // 2 - actions.WRIST_DIM
    self.sums = dict.fromkeys(("count", "sample", "mean", "still", "chunk", "flow", "steps", "mm", "degrees", "joint_count", "joint"), 0.0)

  def add(self, mask, truth, samples, still, flow_error):
    s = self.sums
    square = lambda predicted: float(np.sum(np.where(mask, (predicted - truth) ** 2, 0.0), dtype=np.float64))  # noqa: E731
    s["count"] += int(mask.sum())
    s["sample"] += float(np.mean([square(sample) for sample in samples]))
    s["mean"] += square(samples.mean(axis=0))
    s["still"] += square(still)
    s["chunk"] += square(self.mean_chunk)
    s["flow"] += float(flow_error)
    self._add_units(mask, truth, samples.mean(axis=0))

  def _add_units(self, mask, truth, predicted):
    """Wrist in millimetres and degrees, joints in degrees; of the mean of the draws."""
    s = self.sums
    pose, joints = actions.split_chunk(self.normalizer.denormalize(predicted), self.num_joints)
    true_pose, true_joints = actions.split_chunk(self.normalizer.denormalize(truth), self.num_joints)
    valid = mask.reshape(mask.shape[0], 2, -1)[..., 0]
    s["steps"] += int(valid.sum())
    s["mm"] += 1e3 * float(np.linalg.norm(pose[..., :3, 3] - true_pose[..., :3, 3], axis=-1)[valid].sum())
    angle = geometry.so3_angle(geometry.se3_inverse(true_pose)[..., :3, :3] @ pose[..., :3, :3])
    s["degrees"] += float(np.rad2deg(angle)[valid].sum())
    s["joint_count"] += int(valid.sum()) * self.num_joints
    s["joint"] += float(np.rad2deg(np.abs(joints - true_joints))[valid].sum())

  def figures(self, points, episodes, draws):
    s = self.sums
    count = max(s["count"], 1)
    figures = {
      "points": points,
      "episodes": episodes,
      "draws": draws,
      "action_mse_one_sample": s["sample"] / count,
      "action_mse": s["mean"] / count,
      "hold_still_mse": s["still"] / count,
      "mean_chunk_mse": s["chunk"] / count,
      "flow_loss": s["flow"] / count,
      "wrist_mm": s["mm"] / max(s["steps"], 1),
      "wrist_degrees": s["degrees"] / max(s["steps"], 1),
      "joint_degrees": s["joint"] / max(s["joint_count"], 1),
    }
    figures["share_of_better_baseline"] = figures["action_mse"] / max(min(figures["hold_still_mse"], figures["mean_chunk_mse"]), 1e-12)
    return figures

"""Fixed-noise validation (paper section 3.3): held-out episodes x time steps x flow samples, the same for every checkpoint.

The noise of a sample comes from (episode, time, draw) alone, so two checkpoints, models or machines are compared on the same
question. The paper does not say in which space its MSE is; ours is the normalised one that the loss is in, with millimetres and
degrees beside it.
"""

import zlib

import grain
import jax
import jax.numpy as jnp
import numpy as np

from egoscale_jax import geometry
from egoscale_jax.data import examples, mixture, units
from egoscale_jax.evaluate import points as points_lib
from egoscale_jax.models import augment, flow, vla


def noise_key(episode, time):
  return jax.random.fold_in(jax.random.fold_in(jax.random.key(0), zlib.crc32(episode.encode()) & 0x7FFFFFFF), time)


def hold_still(joints_2xJ, horizon):
  """Baseline [T, A], metres and radians: the wrists stay where they are, the joints as at the chunk's start (the policy is not told)."""
  identity = np.concatenate([np.zeros(3), geometry.so3_to_rot6d(np.eye(3))])
  hands = [np.concatenate([identity, joints]) for joints in joints_2xJ]
  return np.broadcast_to(np.concatenate(hands), (horizon, sum(len(hand) for hand in hands))).astype(np.float32)


class Validation:
  """The points of a config's validation split, read once; `run` measures one set of parameters."""

  def __init__(self, config, prompt, model, stats):
    self.config, self.model = config, model
    v = config.validation
    self.assembler = examples.make_assembler(config, prompt, stats)
    c = config.model
    self.mean_chunks = {number: slot.statistics.mean_chunk(c.horizon, config.data.stride) for number, slot in self.assembler.slots.items()}
    self.units = units.table({n: slot.normalizer for n, slot in self.assembler.slots.items()}, c.expert.embodiments, c.action_dim)
    paths = {path for folder in mixture.folders(config).values() for path in (folder["shards"], folder["pairs"]) if path}
    self.held_out = [points_lib.HeldOut(path) for path in sorted(paths)]
    self.points = points_lib.fixed_points(self.held_out, v.episodes, v.times, c.horizon, config.data.stride)  # none: all is one scene
    self._sample = None  # compiled at the first batch

  def _sample_batch(self, params, batch, key_Bx2):
    """-> samples [draws, B, T, A] and the flow loss [B] of the same noise, both normalised. Keys as numbers: numpy is of any process."""
    key_B = jax.random.wrap_key_data(key_Bx2)
    c, draws = self.model.config, self.config.validation.draws
    batch = augment.centred(batch, self.config.augment)
    features = self.model.apply({"params": params}, batch, method=vla.VLA.features)
    action = flow.held(batch.action_BxTxA, batch.action_mask_BxTxA)

    def one(_, draw):
      key = jax.vmap(jax.random.fold_in, in_axes=(0, None))(key_B, draw)
      noise_key, time_key = jnp.moveaxis(jax.vmap(jax.random.split)(key), 1, 0)
      noise = flow.sample_noise(noise_key, action.shape[1:])
      sample = vla.sample(self.model, {"params": params}, features, batch, noise, c.flow.steps)
      time_B = flow.sample_time(time_key, c.flow.alpha, c.flow.scale)
      x_t = flow.interpolate(noise, action, time_B)
      velocity = self.model.apply({"params": params}, features, batch, x_t, time_B, method=vla.VLA.velocity)
      error = jnp.where(batch.action_mask_BxTxA, (velocity - (action - noise)) ** 2, 0.0)
      return None, (sample, jnp.sum(error, axis=(1, 2)))

    _, (samples, flow_error) = jax.lax.scan(one, None, jnp.arange(draws))
    return samples, jnp.mean(flow_error, axis=0)

  def batches(self):
    """Batches of the points, the last one filled up by repeating its first; with the points and their windows."""
    size = self.config.validation.batch_size

    def make(index):
      points = self.points[index * size : (index + 1) * size]
      windows = [self.held_out[point.folder].window(point) for point in points]
      filled = windows + windows[:1] * (size - len(windows))
      batch = self.assembler.allocate(size)
      for row, window in enumerate(filled):
        self.assembler.decode(window, batch, row)
      return self.assembler.fill(batch, filled, np.arange(size)), points, windows

    count = -(-len(self.points) // size)
    return iter(grain.MapDataset.range(count).map(make).to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)))

  def run(self, params, stop=lambda: False, compiled=lambda: None, fetch=jax.device_get):
    """-> figures: MSE of one sample, of the mean of the draws, of both baselines (normalised); mm and degrees; flow loss.

    stop: asked before every batch; the answer is then None. compiled: called once that is done. fetch: global arrays -> numpy. Of several
    processes each reads all the points, and they compute the samples together.
    """
    total = Totals()
    if not self.points:
      return {"points": 0}
    for batch, points, windows in self.batches():
      if stop():
        return None
      keys = [noise_key(p.episode, p.time) for p in points] + [noise_key("", 0)] * (len(batch.position_B) - len(points))
      inputs = params, batch, np.asarray(jax.random.key_data(jnp.stack(keys)))
      if self._sample is None:
        self._sample = jax.jit(self._sample_batch).lower(*inputs).compile()
        compiled()
      samples, flow_error = fetch(self._sample(*inputs))
      for row, window in enumerate(windows):
        number = int(batch.embodiment_B[row])
        slot, mean_chunk = self.assembler.slots[number], self.mean_chunks[number]
        width, normalizer = slot.width, slot.normalizer
        mask = batch.action_mask_BxTxA[row, :, :width] & np.isfinite(mean_chunk)  # what training never saw is not asked
        truth = batch.action_BxTxA[row, :, :width]
        still = normalizer.normalize(hold_still(window.clip.joints_Fx2xJ[window.frame], self.model.config.horizon))
        baselines = (still, normalizer.normalize(mean_chunk))
        total.add(normalizer, mask, truth, samples[:, row, :, :width], baselines, flow_error[row])
    return total.figures(len(self.points), len({p.episode for p in self.points}), self.config.validation.draws)


class Totals:
  """Sums over points; every figure is a sum over labelled entries by their count, as the training loss is."""

  def __init__(self):
    self.sums = dict.fromkeys(("count", "sample", "mean", "still", "chunk", "flow", *units.GROUPS), 0.0)
    self.counts = dict.fromkeys(units.GROUPS, 0)

  def add(self, normalizer, mask, truth, samples, baselines, flow_error):
    """baselines: hold still and the mean chunk, normalised as the rest."""
    s = self.sums
    square = lambda predicted: float(np.sum(np.where(mask, (predicted - truth) ** 2, 0.0), dtype=np.float64))  # noqa: E731
    s["count"] += int(mask.sum())
    s["sample"] += float(np.mean([square(sample) for sample in samples]))
    s["mean"] += square(samples.mean(axis=0))
    s["still"] += square(baselines[0])
    s["chunk"] += square(baselines[1])
    s["flow"] += float(flow_error)
    self._add_units(normalizer, mask, truth, samples.mean(axis=0))

  def _add_units(self, normalizer, mask, truth, predicted):
    """Wrist in millimetres and degrees, joints in degrees; of the mean of the draws."""
    table, slot = units.table({0: normalizer}, 1, mask.shape[1]), np.zeros(1, int)
    sums, counts = units.group_errors(table, predicted[None], truth[None], mask[None], slot)
    for group in units.GROUPS:
      self.sums[group] += float(sums[group])
      self.counts[group] += int(counts[group])

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
      **{group: s[group] / self.counts[group] for group in units.GROUPS if self.counts[group]},  # no label of a group: no figure
    }
    figures["share_of_better_baseline"] = figures["action_mse"] / max(min(figures["hold_still_mse"], figures["mean_chunk_mse"]), 1e-12)
    return figures

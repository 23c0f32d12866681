"""The training state and the pure step: train_step(state, batch) -> (state, metrics)."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from egoscale_jax.data import units as units_lib
from egoscale_jax.models import augment, flow, vla
from egoscale_jax.train import lora, optim, sharding


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """With the config, all that a run is: the data position and all noise follow from `step`.

  `learned` below is (trained parameters, adapters): what has a gradient; each None where there is none of it.
  """

  step: jax.Array  # int32 scalar
  params: dict  # float32
  opt_state: optax.OptState  # of what is learned
  lora: dict | None = None  # adapters (lora.py), with config.lora.rank
  average: tuple | None = None  # running mean of what is learned, with config.ema
  skipped: jax.Array | None = None  # int32 scalars: updates left out because loss or gradient was not finite, in all ...
  skipped_in_a_row: jax.Array | None = None  # ... and up to now


def init_state(model, config, batch, params=None):
  """At step 0 with fresh parameters from config.seed, or with those given. Inside jit with out_shardings no device holds the whole."""
  zero = lambda: jnp.zeros((), jnp.int32)  # noqa: E731  # one buffer each: the state is donated
  params = model.init(jax.random.key(config.seed), batch)["params"] if params is None else params
  adapters = lora.init(params, config.lora.paths, config.lora.rank, config.seed) if config.lora.rank else None
  learned = (optim.select(params, optim.trainable(params, config.train_parts), True), adapters)
  opt_state = optim.make_optimizer(config).init(learned)
  average = jax.tree.map(jnp.copy, learned) if config.ema else None
  return TrainState(zero(), params, opt_state, adapters, average, zero(), zero())


def whole(config, params, learned):
  """Parameters as the model reads them: what is learned in its place, the adapters merged in."""
  trained, adapters = learned
  frozen = optim.select(params, optim.trainable(params, config.train_parts), False)
  params = optim.merge(trained, frozen)
  return params if adapters is None else lora.merge(params, adapters, config.lora.alpha / config.lora.rank)


def final_params(config, params, lora=None, average=None):
  """What validation, the policy, an export and the next stage read: the running mean where there is one, adapters merged in."""
  trained = optim.select(params, optim.trainable(params, config.train_parts), True)
  return whole(config, params, (trained, lora) if average is None else average)


def make_train_step(model, config, units=None, shardings=None):
  """-> train_step(state, batch) for jit; with `units` (data.units.table) the metrics have the errors in millimetres and degrees.

  shardings: of the state, for the parts of config.accumulate on a mesh.
  """
  optimizer = optim.make_optimizer(config)
  rate = optim.schedule(config)

  def train_step(state, batch):
    mask = optim.trainable(state.params, config.train_parts)
    learned = (optim.select(state.params, mask, True), state.lora)
    sums, grads = gradient(model, config, units, shardings, state.params, learned, batch)
    updates, opt_state = optimizer.update(grads, state.opt_state, learned)
    metrics = {
      "loss": sums["loss"],
      "grad_norm": optax.tree.norm(grads),
      "learning_rate": rate(state.step - state.skipped),  # what is skipped does not count, in the optimizer neither
      **optim.part_norms(grads, "grad_norm"),
      **optim.part_norms(updates, "update_norm"),
      **unit_means(sums["units"]),
    }
    learned = optax.apply_updates(learned, updates)
    average = state.average
    if config.ema:
      average = optax.incremental_update(learned, average, 1.0 - config.ema)
    params = optim.merge(learned[0], optim.select(state.params, mask, False))
    # An update that is not finite is left out, and all but the step stays. A select and no lax.cond: it is a part of the update's own loop.
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
    new, old = (params, opt_state, learned[1], average), (state.params, state.opt_state, state.lora, state.average)
    params, opt_state, adapters, average = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
    skipped, in_a_row = state.skipped + ~finite, jnp.where(finite, 0, state.skipped_in_a_row + 1)
    metrics |= {"skipped": skipped, "skipped_in_a_row": in_a_row}
    return TrainState(state.step + 1, params, opt_state, adapters, average, skipped, in_a_row), metrics

  return train_step


def gradient(model, config, units, shardings, params, learned, batch):
  """-> {"loss": mean, "units": {group: (sum, count)}}, and the gradient of that mean with respect to `learned`.

  With config.accumulate = n the batch passes in n parts, one after the other. The loss is a ratio of sums over the whole batch, so what is
  added up are sums and their gradients; divided once, at the end, by the labels of the whole batch.
  """

  def of(batch, mean):
    if augment.is_on(config.augment):
      batch = augment.augmented(batch, config.augment, config.seed)

    def loss(learned):
      total, (count, guess) = vla.loss_sum(model, {"params": whole(config, params, learned)}, batch, config.seed, config.flow_draws)
      sums = {"loss": total, "count": count, "units": {} if units is None else unit_sums(units, guess)}
      return (flow.mean(total, count) if mean else total), sums

    return jax.grad(loss, has_aux=True)(learned)

  if config.accumulate == 1:
    grads, sums = of(batch, mean=True)
  else:
    like = None if shardings is None else gradient_shardings(config, shardings)
    parts = split(batch, config.accumulate, None if shardings is None else like[0].mesh)

    def add(so_far, part):
      grads, sums = jax.tree.map(jnp.add, so_far, of(part, mean=False))
      return (grads if like is None else _pin(grads, like), sums), None

    shapes = jax.eval_shape(lambda parts: of(jax.tree.map(lambda x: x[0], parts), mean=False), parts)
    (grads, sums), _ = jax.lax.scan(add, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes), parts)
    grads = jax.tree.map(lambda g: flow.mean(g, sums["count"]), grads)
  return {"loss": flow.mean(sums["loss"], sums["count"]), "units": sums["units"]}, grads


def gradient_shardings(config, shardings):
  """TrainState of NamedShardings -> those of the leaves of what is learned, in order."""
  mask = optim.trainable(shardings.params, config.train_parts)
  return jax.tree.leaves((optim.select(shardings.params, mask, True), shardings.lora))


def _pin(tree, shardings):
  leaves, structure = jax.tree.flatten(tree)
  return structure.unflatten(map(jax.lax.with_sharding_constraint, leaves, shardings))


def split(batch, parts, mesh):
  """Rows [B, ...] -> [parts, B / parts, ...]: every parts-th row, so that each device keeps its own and nothing is sent."""
  pinned = None if mesh is None else jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, *sharding.BATCH))

  def one(rows):
    cut = jnp.swapaxes(rows.reshape(-1, parts, *rows.shape[1:]), 0, 1)
    return cut if pinned is None else jax.lax.with_sharding_constraint(cut, pinned)

  return jax.tree.map(one, batch)


# On a TPU: one all-gather a layer in place of rings of partial products, which are too thin for the MXU on many chips, and whose program
# grows with the ring (docs/pods.md).
TPU_OPTIONS = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}


def jit_train_step(model, config, shardings, mesh, batch, units=None):
  """What `egoscale train` runs and `egoscale plan` compiles: train_step on the mesh. shardings: of the state; batch: its shapes."""
  rows = jax.tree.map(lambda _: jax.sharding.NamedSharding(mesh, sharding.BATCH), batch)
  options = TPU_OPTIONS if mesh.devices.flat[0].platform == "tpu" else None
  step = make_train_step(model, config, units, shardings)
  return jax.jit(step, in_shardings=(shardings, rows), out_shardings=(shardings, None), donate_argnums=0, compiler_options=options)


def unit_sums(units, guess):
  """vla.Guess -> {group: (sum of errors, how many labels)}."""
  sums, counts = units_lib.group_errors(units, guess.action_RxTxA, guess.truth_RxTxA, guess.mask_RxTxA, guess.embodiment_R)
  return {group: (sums[group], counts[group]) for group in units_lib.GROUPS}


def unit_means(sums):
  """-> {group: mean error}, NaN where the batch has no label of a group: metrics.py leaves those out."""
  return {group: jnp.where(count > 0, total / jnp.maximum(count, 1), jnp.nan) for group, (total, count) in sums.items()}

"""The training state and the pure step: train_step(state, batch) -> (state, metrics)."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from egoscale_jax.data import units as units_lib
from egoscale_jax.models import augment, vla
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


def init_state(model, config, batch, params=None):
  """At step 0 with fresh parameters from config.seed, or with those given. Inside jit with out_shardings no device holds the whole."""
  params = model.init(jax.random.key(config.seed), batch)["params"] if params is None else params
  adapters = lora.init(params, config.lora.paths, config.lora.rank, config.seed) if config.lora.rank else None
  learned = (optim.select(params, optim.trainable(params, config.train_parts), True), adapters)
  opt_state = optim.make_optimizer(config).init(learned)
  return TrainState(jnp.zeros((), jnp.int32), params, opt_state, adapters, jax.tree.map(jnp.copy, learned) if config.ema else None)


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


def make_train_step(model, config, units=None):
  """-> train_step(state, batch) for jit; with `units` (data.units.table) the metrics have the errors in millimetres and degrees."""
  optimizer = optim.make_optimizer(config)
  rate = optim.schedule(config)

  def train_step(state, batch):
    if augment.is_on(config.augment):
      batch = augment.augmented(batch, config.augment, config.seed)
    mask = optim.trainable(state.params, config.train_parts)
    learned = (optim.select(state.params, mask, True), state.lora)

    def loss_of(learned):
      return vla.loss_and_guess(model, {"params": whole(config, state.params, learned)}, batch, config.seed, config.flow_draws)

    (loss, guess), grads = jax.value_and_grad(loss_of, has_aux=True)(learned)
    updates, opt_state = optimizer.update(grads, state.opt_state, learned)
    trained, adapters = learned = optax.apply_updates(learned, updates)
    average = state.average
    if config.ema:
      average = optax.incremental_update(learned, average, 1.0 - config.ema)
    params = optim.merge(trained, optim.select(state.params, mask, False))
    metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads), "learning_rate": rate(state.step)}
    if units is not None:
      metrics |= unit_errors(units, guess)
    return TrainState(state.step + 1, params, opt_state, adapters, average), metrics

  return train_step


# On a TPU: one all-gather a layer in place of rings of partial products, which are too thin for the MXU on many chips, and whose program
# grows with the ring (docs/pods.md).
TPU_OPTIONS = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}


def jit_train_step(model, config, shardings, mesh, batch, units=None):
  """What `egoscale train` runs and `egoscale plan` compiles: train_step on the mesh. shardings: of the state; batch: its shapes."""
  rows = jax.tree.map(lambda _: jax.sharding.NamedSharding(mesh, sharding.BATCH), batch)
  options = TPU_OPTIONS if mesh.devices.flat[0].platform == "tpu" else None
  step = make_train_step(model, config, units)
  return jax.jit(step, in_shardings=(shardings, rows), out_shardings=(shardings, None), donate_argnums=0, compiler_options=options)


def unit_errors(units, guess):
  """vla.Guess -> {group: mean error}, NaN where the batch has no label of a group: metrics.py leaves those out."""
  sums, counts = units_lib.group_errors(units, guess.action_RxTxA, guess.truth_RxTxA, guess.mask_RxTxA, guess.embodiment_R)
  return {group: jnp.where(counts[group] > 0, sums[group] / jnp.maximum(counts[group], 1), jnp.nan) for group in units_lib.GROUPS}

"""The training state and the pure step: train_step(state, batch) -> (state, metrics)."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from egoscale_jax.models import augment, vla
from egoscale_jax.train import optim


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """With the config, all that a run is: the data position and all noise follow from `step`."""

  step: jax.Array  # int32 scalar
  params: dict  # float32
  opt_state: optax.OptState  # of the trained parts only


def init_state(model, config, batch, params=None):
  """At step 0 with fresh parameters from config.seed, or with those given. Inside jit with out_shardings no device holds the whole."""
  params = model.init(jax.random.key(config.seed), batch)["params"] if params is None else params
  mask = optim.trainable(params, config.train_parts)
  opt_state = optim.make_optimizer(config).init(optim.select(params, mask, True))
  return TrainState(jnp.zeros((), jnp.int32), params, opt_state)


def make_train_step(model, config):
  """-> train_step(state, batch) for jit."""
  optimizer = optim.make_optimizer(config)
  rate = optim.schedule(config)

  def train_step(state, batch):
    if augment.is_on(config.augment):
      batch = augment.augmented(batch, config.augment, config.seed)
    mask = optim.trainable(state.params, config.train_parts)
    trained, frozen = optim.select(state.params, mask, True), optim.select(state.params, mask, False)

    def loss_of(trained):
      return vla.loss(model, {"params": optim.merge(trained, frozen)}, batch, config.seed, config.flow_draws)

    loss, grads = jax.value_and_grad(loss_of)(trained)
    updates, opt_state = optimizer.update(grads, state.opt_state, trained)
    params = optim.merge(optax.apply_updates(trained, updates), frozen)
    metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads), "learning_rate": rate(state.step)}
    return TrainState(state.step + 1, params, opt_state), metrics

  return train_step

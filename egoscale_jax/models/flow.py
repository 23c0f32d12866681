"""Rectified flow: x_t = (1 - t) noise + t action; the model predicts the velocity action - noise (paper section 2.3; values of GR00T N1.7).

t = 0 is noise, t = 1 is the action. Everything here is a pure function of arrays; the noise of an example comes from its own key.
"""

import jax
import jax.numpy as jnp


def example_keys(seed, position_B):
  """One key an example, from the run's seed and its position in the stream: any topology and any resume draws the same noise."""
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), position_B)


def sample_time(key_B, alpha, scale):
  """t [B] = scale * (1 - u), u ~ Beta(alpha, 1): more weight on noisy inputs.

  By the inverse of the distribution function u^alpha; jax.random.beta is a rejection loop, and its second parameter is 1 in every GR00T.
  """
  return jax.vmap(lambda key: scale * (1.0 - jax.random.uniform(key) ** (1.0 / alpha)))(key_B)


def sample_noise(key_B, shape):
  """Standard normal [B, *shape]."""
  return jax.vmap(lambda key: jax.random.normal(key, shape))(key_B)


def held(action_BxTxA, mask_BxTxA):
  """Actions where there is a label; else the last one before, or the first one after, or 0: what the policy is shown there, never its loss.

  A policy that is asked sees noise become actions in all steps. One that was trained with unlabelled steps left out, or at 0, has read off
  them how near the end of the episode is, for robots the best clock there is; it is asked without, and does what is done at the beginning.
  """
  steps = action_BxTxA.shape[1]
  step_1xTx1 = jnp.arange(steps)[None, :, None]
  before = jax.lax.cummax(jnp.where(mask_BxTxA, step_1xTx1, -1), axis=1)
  after = jax.lax.cummin(jnp.where(mask_BxTxA, step_1xTx1, steps - 1), axis=1, reverse=True)
  return jnp.take_along_axis(jnp.where(mask_BxTxA, action_BxTxA, 0.0), jnp.where(before >= 0, before, after), axis=1)


def interpolate(noise_BxTxA, action_BxTxA, time_B):
  t = time_B[:, None, None]
  return (1.0 - t) * noise_BxTxA + t * action_BxTxA


def masked_sum(value_BxTxA, mask_BxTxA, weight_BxTxA):
  """-> sum over the mask of the weighted values, and the mask's own; values and weights that are masked may be anything, NaN too.

  The mean is `mean` of the two, so an example of poor labels counts less than one of good labels: not divided by the sum of the weights.
  """
  total = jnp.sum(jnp.where(mask_BxTxA, value_BxTxA, 0.0) * jnp.where(mask_BxTxA, weight_BxTxA, 0.0))
  return total, jnp.sum(mask_BxTxA)


def mean(total, count):
  """Of masked_sum; an empty mask gives zero."""
  return total / jnp.maximum(count, 1)


def masked_mean(value_BxTxA, mask_BxTxA, weight_BxTxA):
  return mean(*masked_sum(value_BxTxA, mask_BxTxA, weight_BxTxA))


def euler(velocity, noise_BxTxA, steps, known_BxTxA=None, keep_BxT=None):
  """Forward Euler from t = 0 to 1 in `steps` equal steps; velocity(x_BxTxA, time_B) -> [B, T, A].

  In-painting: before every step, and at the end, keep = 1 sets a step of the chunk to `known` as it would be at that time, keep = 0 leaves
  it alone, and between them the two are mixed. So the kept steps end exactly at `known`, and the others see them as in training.
  """

  def hold(x, t):
    if known_BxTxA is None:
      return x
    keep = keep_BxT[:, :, None]
    return jnp.where(keep > 0, (1.0 - keep) * x + keep * ((1.0 - t) * noise_BxTxA + t * known_BxTxA), x)

  def step(x, i):
    x = hold(x, i / steps)
    return x + velocity(x, jnp.full(x.shape[:1], i / steps, x.dtype)) / steps, None

  return hold(jax.lax.scan(step, noise_BxTxA, jnp.arange(steps, dtype=noise_BxTxA.dtype))[0], 1.0)


def executed_steps(key_B, longest, steps):
  """Training for real-time chunking: [B, T] bool, True for the first d steps of a chunk, d uniform in 0..longest."""
  count_B = jax.vmap(lambda key: jax.random.randint(key, (), 0, longest + 1))(key_B)
  return jnp.arange(steps)[None, :] < count_B[:, None]

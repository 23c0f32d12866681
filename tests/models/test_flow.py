import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egoscale_jax.models import flow


def test_time_zero_is_noise_and_time_one_is_action():
  noise, action = jnp.full((2, 3, 4), 5.0), jnp.full((2, 3, 4), -1.0)
  x = flow.interpolate(noise, action, jnp.array([0.0, 1.0]))
  np.testing.assert_array_equal(x[0], noise[0])
  np.testing.assert_array_equal(x[1], action[1])


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_euler_with_the_true_velocity_reaches_the_action(steps):
  noise, action = jax.random.normal(jax.random.key(0), (2, 3, 5, 6))
  np.testing.assert_allclose(flow.euler(lambda x, t: action - noise, noise, steps), action, atol=1e-5)


def test_euler_hands_out_times_zero_quarter_half_three_quarters():
  # The state adds up the times that the velocity was asked at: (0 + .25 + .5 + .75) / 4.
  out = flow.euler(lambda x, t: jnp.broadcast_to(t[:, None, None], x.shape), jnp.zeros((1, 1, 1)), 4)
  np.testing.assert_allclose(out, 1.5 / 4)


def test_kept_steps_end_at_what_is_known_and_are_seen_at_their_time():
  noise, known = jax.random.normal(jax.random.key(0), (2, 2, 4, 3))
  keep = jnp.array([[1.0, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
  seen = []

  def velocity(x, t):
    seen.append(x)
    return jnp.full_like(x, 2.0)

  with jax.disable_jit():
    out = flow.euler(velocity, noise, 4, known.at[:, 2:].set(jnp.nan), keep)  # what is not kept is not read
  free = noise + 2.0
  np.testing.assert_array_equal(out[0, 0], known[0, 0])
  np.testing.assert_allclose(out[0, 2:], free[0, 2:], atol=1e-6)
  np.testing.assert_allclose(out[1], free[1], atol=1e-6)
  for i, x in enumerate(seen):
    np.testing.assert_allclose(x[0, 0], (1 - i / 4) * noise[0, 0] + i / 4 * known[0, 0], atol=1e-6)


def test_executed_prefixes_are_uniform_and_contiguous():
  executed = np.asarray(flow.executed_steps(jax.random.split(jax.random.key(0), 4000), 3, 6))
  count = executed.sum(axis=1)
  np.testing.assert_array_equal(executed, np.arange(6) < count[:, None])
  np.testing.assert_allclose(np.bincount(count) / 4000, [0.25] * 4, atol=0.03)


@pytest.mark.parametrize(("alpha", "scale"), [(1.5, 0.999), (1.0, 1.0), (2.5, 0.9)])  # the reference's, uniform, the quickstart's kind
def test_time_distribution_is_the_one_asked_for(alpha, scale):
  time = np.asarray(flow.sample_time(jax.random.split(jax.random.key(0), 20_000), alpha, scale))
  assert time.min() >= 0
  assert time.max() < scale
  # u ~ Beta(alpha, 1) has the distribution function u^alpha, so P(t < x) = 1 - (1 - x / scale)^alpha: three sigma of 20,000 draws is 0.011.
  for x in (0.1, 0.4, 0.8):
    assert np.mean(time < x) == pytest.approx(1 - (1 - x / scale) ** alpha, abs=0.011)


def test_noise_of_an_example_follows_its_position_alone():
  draw = lambda position: np.asarray(flow.sample_noise(flow.example_keys(0, jnp.asarray(position)), (3, 4)))  # noqa: E731
  whole = draw(np.arange(8))
  np.testing.assert_array_equal(whole[[5, 2]], draw([5, 2]))
  assert not np.array_equal(whole[0], whole[1])


def test_masked_mean_ignores_whatever_is_masked_and_an_empty_mask_is_zero():
  value = jnp.array([[[1.0, jnp.nan], [3.0, jnp.inf]]])
  mask = jnp.array([[[True, False], [True, False]]])
  ones = jnp.ones_like(value)
  assert flow.masked_mean(value, mask, ones) == 2.0
  gradient = jax.grad(lambda v: flow.masked_mean(v, mask, ones))(value)
  np.testing.assert_array_equal(gradient, [[[0.5, 0], [0.5, 0]]])
  assert flow.masked_mean(value, jnp.zeros_like(mask), ones) == 0.0
  assert flow.masked_mean(value, mask, jnp.array([[[0.5, 1.0], [1.0, jnp.nan]]])) == 1.75

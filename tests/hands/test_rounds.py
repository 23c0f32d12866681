"""Whether a recording is solved once more, and how smooth, for made-up jerks and errors."""

import numpy as np
import pytest

from egoscale_jax.hands import rounds
from egoscale_jax.hands.costs import Weights

LIMIT = 100.0


def play(effort, jerk_of, error_of, least=1.0):
  """A recording whose rounds end with this jerk and error: -> the multipliers that they were solved with."""
  smooth, before, found = least, np.inf, []
  for attempt in range(effort.rounds):
    found.append(smooth)
    error = error_of(attempt, smooth)
    smooth = rounds.once_more(effort, attempt, least, smooth, jerk_of(smooth), LIMIT, 1.0 - error / before)
    before = error
    if smooth is None:
      break
  return found


def root(jerk):
  return lambda smooth: jerk * smooth**-0.6


def test_a_coarse_solution_goes_on_for_too_much_jerk_alone():
  assert play(rounds.COARSE, root(99.0), lambda attempt, _: 0.5**attempt) == [1.0]
  smooths = play(rounds.COARSE, root(150.0), lambda *_: 1.0)
  assert len(smooths) == 2
  assert 95.0 < root(150.0)(smooths[-1]) <= LIMIT
  assert len(play(rounds.COARSE, lambda _: 101.0, lambda *_: 1.0)) == rounds.COARSE.rounds


def test_a_fine_solution_goes_on_while_its_tips_gain():
  assert play(rounds.FINE, root(20.0), lambda attempt, _: 1.0 + 0.1 ** (attempt + 1)) == [1.0] * 5
  assert play(rounds.FINE, root(20.0), lambda *_: 0.0 + 1.0) == [1.0] * 2


@pytest.mark.parametrize("jerk", [101.0, 130.0, 250.0])
def test_a_fine_solution_takes_all_of_the_jerk_that_is_allowed(jerk):
  """Also after a round that overshot, because the first was far from its end."""

  def restless(smooth):
    return 1.5 * root(jerk)(smooth) if smooth == 1.0 else root(jerk)(smooth)

  smooths = play(rounds.FINE, restless, lambda _, smooth: 1.0 + 0.01 * smooth)
  assert len(smooths) < rounds.FINE.rounds
  assert 0.99 * LIMIT < root(jerk)(smooths[-1]) <= LIMIT


def test_no_round_is_less_smooth_than_the_weights_ask():
  smooths = play(rounds.FINE, lambda smooth: 140.0 if smooth == 2.0 else 10.0, lambda attempt, _: 0.9**attempt, least=2.0)
  assert min(smooths) == 2.0
  assert smooths[1] > 2.0
  assert len(smooths) <= rounds.FINE.rounds


def test_the_jerk_weighs_the_same_against_tips_that_are_far():
  """A pseudo-Huber loss pulls from afar with its limit; the jerk's weight is squared."""
  weights, smooth = rounds.prepared(Weights(jerk=4e-5), rounds.FINE, jerk=2e-5, pinches=False)
  assert weights == Weights(jerk=2e-5, tip_soft_m=0.3 * Weights().tip_soft_m)
  assert (smooth / 2.0) ** 2 == pytest.approx(0.3)
  assert rounds.prepared(Weights(jerk=4e-5), rounds.COARSE, jerk=2e-5, pinches=False) == (Weights(jerk=2e-5), 2.0)
  assert rounds.prepared(Weights(jerk=0.0), rounds.COARSE, jerk=2e-5, pinches=False) == (Weights(jerk=0.0), 1.0)
  assert rounds.prepared(Weights(jerk=4e-5), rounds.FINE, jerk=2e-5, pinches=True) == (Weights(jerk=2e-5), 2.0)
  weights, smooth = rounds.prepared(Weights(jerk=4e-5, tip_soft_m=np.inf), rounds.FINE, jerk=2e-5, pinches=False)
  assert (weights.tip_soft_m, smooth) == (np.inf, 2.0)


def test_mean_jerk_reads_pieces_and_leaves_gaps_out():
  joints = np.random.default_rng(0).normal(size=(7000, 2))
  valid = np.ones(7000, bool)
  assert rounds.mean_jerk(joints, valid, 30.0) == pytest.approx(np.abs(np.diff(joints, n=3, axis=0)).mean() * 27000.0)
  joints[100] = 1e6
  valid[100] = False
  assert rounds.mean_jerk(joints, valid, 30.0) < 1e6
  assert rounds.mean_jerk(joints[:3], valid[:3], 30.0) == rounds.mean_jerk(joints, valid & False, 30.0) == 0.0

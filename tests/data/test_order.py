"""Which record and which window stand where: pure functions, every record and window once, even loads, even shares."""

import collections
import itertools

import numpy as np
import pytest

from egoscale_jax.data import mixture, order
from egoscale_jax.data.mixture import PERIOD


def component(weight, partners=None):
  return mixture.Component("x", weight, 1.0, 1, 1, 30.0, None, partners)


@pytest.mark.parametrize(("rows", "windows", "mix"), [(1, 1, 1), (8, 8, 4), (6, 3, 5), (16, 4, 1)])
def test_every_window_of_every_record_comes_once(rows, windows, mix):
  make = order.Order(rows, windows, mix, seed=3)
  period = windows * mix
  seen = collections.Counter(make(step, row) for step in range(4 * period) for row in range(rows))
  assert max(seen.values()) == 1
  assert {window for _, window in seen} == set(range(windows))
  # All but the records at the two ends, which the rows, out of phase, have begun or not finished.
  whole = [ordinal for ordinal in range(2 * mix * rows, 3 * mix * rows) if all((ordinal, w) in seen for w in range(windows))]
  assert len(whole) == mix * rows
  assert all(ordinal % rows == row for step in range(period) for row in range(rows) for ordinal, _ in [make(step, row)])


def test_a_step_a_hundred_million_on_is_as_cheap_and_as_good():
  make = order.Order(256, 8, 8, seed=0)
  for step in (0, 10**8, 10**8 + 1):
    ordinals = [make(step, row)[0] for row in range(256)]
    assert len(set(ordinals)) == 256  # as many different records as rows
  # The records of a row come in a random order, not one after the other.
  row = [make(step, 5)[0] for step in range(64)]
  assert sum(a != b for a, b in itertools.pairwise(row)) > 40


def test_each_step_reads_about_as_many_new_records():
  make, seen, fresh = order.Order(64, 8, 8, seed=1), set(), []
  for step in range(256):
    ordinals = {make(step, row)[0] for row in range(64)}
    fresh.append(len(ordinals - seen))
    seen |= ordinals
  assert np.mean(fresh[64:]) == pytest.approx(64 / 8, rel=0.1)
  assert max(fresh[64:]) < 4 * 64 / 8  # in phase, all 64 rows would begin their records together


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_shuffled_walk_has_each_once_an_epoch_in_another_order(size):
  epochs = [[order.shuffled(epoch * size + i, size, seed=4) for i in range(size)] for epoch in range(3)]
  for epoch in epochs:
    assert sorted(epoch) == list(range(size))
  if size > 10:
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != [order.shuffled(i, size, seed=5) for i in range(size)]


def test_images_of_a_record_differ_as_long_as_there_are_any():
  for ordinal in range(50):
    assert len(set(order.images(16, 8, 0, ordinal))) == 8
    short = order.images(3, 8, 0, ordinal)
    assert set(short) == {0, 1, 2}
    assert max(collections.Counter(short).values()) == 3
  first = collections.Counter(order.images(16, 8, 0, ordinal)[0] for ordinal in range(4000))
  assert len(first) == 16
  assert min(first.values()) > 150  # of 250


@pytest.mark.parametrize("weights", [(1,), (1, 1), (0.5, 0.3, 0.2), (0.7, 0.29, 0.01), (1e-7, 1.0), tuple(range(1, 21))])
def test_shares_hold_in_the_period_and_in_any_stretch_of_it(weights):
  mixed = mixture.deal([component(w) for w in weights], 1)
  share = np.array(weights) / sum(weights)
  assert mixed.count_N.sum() == PERIOD
  assert (mixed.count_N >= 1).all()
  assert np.abs(mixed.shares_N - share).max() <= 1.5 / PERIOD
  for stretch in (100, 1000):
    for start in np.random.default_rng(0).integers(0, PERIOD - stretch, 40):
      found = np.bincount(mixed.table_P[start : start + stretch], minlength=len(weights)) / stretch
      assert np.abs(found - share).max() < 8 / stretch


def test_own_ordinals_count_each_component_without_a_gap():
  mixed = mixture.deal([component(0.6), component(0.1), component(0.3)], 1)
  own = collections.defaultdict(list)
  for ordinal in range(PERIOD - 500, PERIOD + 500):
    number, rank = mixed(ordinal, 0)
    own[number].append(rank)
  for ranks in own.values():
    assert ranks == list(range(ranks[0], ranks[0] + len(ranks)))


def test_members_of_a_unit_are_two_clips_or_a_pair():
  mixed = mixture.deal([component(0.5), component(0.5, partners=())], 2)
  plain, pairs = ([o for o in range(20) if mixed.table_P[o] == i] for i in (0, 1))
  assert [mixed(plain[3], m) for m in (0, 1)] == [(0, 6), (0, 7)]
  assert [mixed(pairs[3], m) for m in (0, 1)] == [(1, 3), (1, 3)]


@pytest.mark.parametrize("batch", [8, 32, 256])
def test_shares_of_a_thousand_steps_within_one_percent_on_any_number_of_processes(batch):
  """Over all rows, and no process is left with one component only (a strided slice of a fixed interleave would be)."""
  weights = (0.5, 0.25, 0.2, 0.05)
  mixed, make = mixture.deal([component(w) for w in weights], 1), order.Order(batch, 8, 4, seed=0)
  steps = 1000 if batch < 256 else 200
  of_row = np.array([[mixed(make(step, row)[0], 0)[0] for row in range(batch)] for step in range(steps)])
  found = np.bincount(of_row.ravel(), minlength=4) / of_row.size
  assert np.abs(found - weights).max() < 0.01
  for processes in (2, 4, 8):
    for part in np.split(of_row, processes, axis=1):
      assert len(np.unique(part)) == 4
      assert np.abs(np.bincount(part.ravel(), minlength=4) / part.size - weights).max() < 0.05


def test_what_an_order_holds_does_not_grow():
  make = order.Order(4, 4, 2, seed=0)
  held = {len(make._kept) for step in range(200) for row in range(4) if make(step, row)}
  assert max(held) == 2 * 4

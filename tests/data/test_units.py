"""Errors in millimetres and degrees: hands of any number of joints in one batch, masks, the same on numpy and on the device."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egoscale_jax import geometry
from egoscale_jax.data import actions, statistics, units

WIDTH = actions.action_dim(4)


def normalizer(joints, seed):
  rng, size = np.random.default_rng(seed), actions.action_dim(joints)
  low = rng.uniform(-2, -1, size).astype(np.float32)
  return statistics.Normalizer(low, low + rng.uniform(1, 3, size).astype(np.float32), *np.ones((2, size), bool), low)


NORMALIZERS = {1: normalizer(4, 0), 2: normalizer(2, 1)}
TABLE = units.table(NORMALIZERS, 3, WIDTH)


def example(slot, moved, turned, bent, steps=3):
  """Normalised truth and prediction [T, A] of hands whose every wrist is `moved` metres and `turned` radians off, its joints `bent`."""
  rng, joints = np.random.default_rng(slot), len(NORMALIZERS[slot].low_A) // 2 - actions.WRIST_DIM
  truth = geometry.se3(geometry.so3_exp(rng.uniform(-1, 1, (steps, 2, 3))), rng.uniform(-0.3, 0.3, (steps, 2, 3)))
  angle = rng.uniform(-1, 1, (steps, 2, joints))
  off = geometry.se3(geometry.so3_exp(np.array([0, turned, 0.0])), np.array([0, 0, moved]))
  rows = actions.join_chunk(truth, angle), actions.join_chunk(truth @ off, angle + bent)
  return [np.pad(NORMALIZERS[slot].normalize(row.astype(np.float32)), ((0, 0), (0, WIDTH - row.shape[1]))) for row in rows]


@pytest.fixture
def batch():
  """Slot 1 is off by 20 mm, 10 and 3 degrees, slot 2 by 40 mm, 30 and 5; of slot 2 the first step is masked, dims past its width too."""
  pairs = [example(1, 0.02, np.deg2rad(10), np.deg2rad(3)), example(2, 0.04, np.deg2rad(30), np.deg2rad(5))]
  truth, predicted = (np.stack(rows) for rows in zip(*pairs))
  mask = np.ones(truth.shape, bool)
  mask[1, 0] = mask[1, :, len(NORMALIZERS[2].low_A) :] = False
  return predicted, truth, mask, np.array([1, 2])


def test_every_hand_counts_in_its_own_units(batch):
  sums, counts = units.group_errors(TABLE, *batch)
  assert counts == {"wrist_mm": 10, "wrist_degrees": 10, "joint_degrees": 3 * 2 * 4 + 2 * 2 * 2}
  assert sums["wrist_mm"] == pytest.approx(6 * 20 + 4 * 40, rel=1e-5)
  assert sums["wrist_degrees"] == pytest.approx(6 * 10 + 4 * 30, rel=1e-5)
  assert sums["joint_degrees"] == pytest.approx(24 * 3 + 8 * 5, rel=1e-5)


def test_a_wrist_counts_only_where_all_of_it_is_labelled_and_what_is_masked_may_be_anything(batch):
  predicted, truth, mask, slot = batch
  mask[0, 1, 4] = False  # one entry of the left wrist's rotation
  mask[0, 2, 9] = False  # one joint
  want = units.group_errors(TABLE, predicted, truth, mask, slot)
  assert want[1] == {"wrist_mm": 9, "wrist_degrees": 9, "joint_degrees": 31}
  poisoned = [np.where(mask, array, np.nan).astype(np.float32) for array in (predicted, truth)]
  assert units.group_errors(TABLE, *poisoned, mask, slot) == want


def test_the_device_says_the_same(batch):
  want = units.group_errors(TABLE, *batch)
  got = jax.jit(lambda *a: units.group_errors(TABLE, *a))(*map(jnp.asarray, batch))
  assert all(jnp.issubdtype(value.dtype, jnp.integer) for value in got[1].values())
  for ours, theirs in zip(got, want):
    assert {name: float(value) for name, value in ours.items()} == pytest.approx(theirs, rel=1e-5)


def test_equal_actions_and_no_labels_are_zero(batch):
  predicted, truth, mask, slot = batch
  sums, counts = units.group_errors(TABLE, truth, truth, mask, slot)
  assert counts["wrist_mm"] == 10
  assert sums == pytest.approx(dict.fromkeys(units.GROUPS, 0.0), abs=0.2)  # of ten angles: float32 tells none below 0.02 degrees
  empty = units.group_errors(TABLE, predicted, truth, np.zeros_like(mask), slot)
  assert empty == (dict.fromkeys(units.GROUPS, 0), dict.fromkeys(units.GROUPS, 0))


def test_the_table_undoes_the_normaliser():
  action = np.random.default_rng(0).uniform(-1, 1, (5, len(NORMALIZERS[2].low_A))).astype(np.float32)
  width = action.shape[1]
  back = NORMALIZERS[2].normalize(action) * TABLE.scale_NxA[2, :width] + TABLE.offset_NxA[2, :width]
  np.testing.assert_allclose(back, action, atol=1e-6)
  assert {field.name: getattr(TABLE, field.name).dtype for field in dataclasses.fields(TABLE)} == {
    **dict(scale_NxA=np.float32, offset_NxA=np.float32, wrist_Nx2x9=np.int32, is_joint_NxA=np.bool_)
  }

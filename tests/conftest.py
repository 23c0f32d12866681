"""A strict session: 8 fake CPU devices, rank promotion raises, warnings are errors (pyproject.toml)."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest
from absl import flags

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared():
  """Real recordings and hand descriptions beside the checkout: read, never copied."""
  if not SHARED.is_dir():
    pytest.skip("the folder ../shared with real recordings and hands is absent")
  return SHARED

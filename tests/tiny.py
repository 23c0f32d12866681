"""The smallest model of the reference topology, a batch for it, and a run of it."""

import dataclasses
import os
import subprocess
import sys

import jax
import numpy as np
from conftest import ROOT

from egoscale_jax import config as config_lib
from egoscale_jax.data import pipeline, spec

TEXT = 300  # a token that is neither special nor an image

# configs/pretrain.py:debug, smaller still.
SIZES = {
  **{"model.vision.depth": 2, "model.vision.width": 32, "model.vision.heads": 2, "model.vision.mlp": 32, "model.vision.position_side": 4},
  **{"model.language.width": 32, "model.language.heads": 2, "model.language.kv_heads": 1, "model.language.mlp": 32},
  **{"model.mixer.heads": 2, "model.expert.heads": 2, "model.expert.output": 32},
  **{"data.image_size": (32, 32), "data.text_tokens": 40, "data.threads": 1},
  **{"batch_size": 8, "steps": 4, "flow_draws": 2, "log_every": 2, "checkpoint_every": 2, "validate_every": 4},
  **{"validation.episodes": 2, "validation.times": 3, "validation.draws": 2, "validation.batch_size": 4},
}
# Fewer different blocks to compile, the same topology: for tests of the loop, not of the model.
SHALLOW = {"model.vision.depth": 1, "model.language.layers": 1, "model.mixer.layers": 0}
# What `tiny_run` trains: long enough to be killed in the middle, and every kind of noise is on.
RUN = {
  **{"steps": 24, "checkpoint_every": 8, "validate_every": 24, "log_every": 5, "batch_size": 4, "flow_draws": 1, "model.dropout": 0.1},
  **SHALLOW,
}


def flags(shards, overrides):
  fields = {"data.shards": shards, **SIZES, **overrides}
  return [f"--config={ROOT}/configs/pretrain.py:debug", *(f"--config.{key}={value}" for key, value in fields.items())]


def config(shards="", **overrides):
  return config_lib.parse(flags(shards, overrides))


def train(shards, workdir, log, **overrides):
  """`egoscale train` in a process of its own, as strict as the tests (conftest.py) -> Popen."""
  command = [sys.executable, "-m", "egoscale_jax.cli", "train", f"--workdir={workdir}", *flags(shards, {**RUN, **overrides})]
  return subprocess.Popen(command, env={**os.environ, "PYTHONWARNINGS": "error"}, stdout=log, stderr=subprocess.STDOUT)


def params(shapes, seed=0):
  """Random parameters for a tree of shapes, none of them near zero as fresh ones are: drawing fresh ones compiles for 5 s a model."""
  rng = np.random.default_rng(seed)
  draw = lambda path, s: np.float32(path[-1].key == "scale") + np.float32(0.15) * rng.standard_normal(s.shape, np.float32)  # noqa: E731
  return jax.tree_util.tree_map_with_path(draw, shapes)


def image_tokens(c):
  cell = c.model.vision.patch * c.model.vision.merge
  return (c.data.image_size[0] // cell) * (c.data.image_size[1] // cell)


def batch(c, text=6, padding=2, seed=0):
  """Left padding, one image run, text; every mask but the padding's is on."""
  n = image_tokens(c)
  length = padding + 1 + n + text
  filled = pipeline.fake_batch(spec.batch_shapes(c, length), seed)
  token = np.full((c.batch_size, length), TEXT, np.int32)
  token[:, padding + 1 : padding + 1 + n] = c.model.image_token
  mask = np.broadcast_to(np.arange(length) >= padding, token.shape)
  return dataclasses.replace(filled, token_BxL=token, token_mask_BxL=mask)

"""The smallest model of the reference topology, and a batch for it."""

import dataclasses

import jax
import numpy as np
from conftest import ROOT

from egoscale_jax import config as config_lib
from egoscale_jax.data import pipeline, spec

TEXT = 300  # a token that is neither special nor an image


# Fewer different blocks to compile, the same topology: for tests of the loop, not of the model.
SHALLOW = {"model.vision.depth": 1, "model.language.layers": 1, "model.mixer.layers": 0}


def config(shards="", **overrides):
  """configs/pretrain.py:debug, smaller still."""
  c = config_lib.parse([f"--config={ROOT}/configs/pretrain.py:debug", f"--config.data.shards={shards}"])
  with c.unlocked():
    c.model.vision.update(depth=2, width=32, heads=2, mlp=32, position_side=4)
    c.model.language.update(width=32, heads=2, kv_heads=1, mlp=32)
    c.model.mixer.update(heads=2)
    c.model.expert.update(heads=2, output=32)
    c.data.update(image_size=(32, 32), text_tokens=40, threads=1)
    c.update(batch_size=8, steps=4, flow_draws=2, log_every=2, checkpoint_every=2, validate_every=4)
    c.validation.update(episodes=2, times=3, draws=2, batch_size=4)
    c.update_from_flattened_dict(overrides)
  return c


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

"""Checkpoints of the hub: every tensor in its place, back bit for bit, and no partial load."""

import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from conftest import ROOT
from safetensors.numpy import load_file, save_file

from egoscale_jax import config as config_lib
from egoscale_jax.errors import UserError
from egoscale_jax.models import reference, vla, weights
from egoscale_jax.train import sharding


@pytest.fixture(scope="module")
def model():
  """One decoder layer beyond the DeepStack's, two blocks past the last whole group of the expert, every text block its own group."""
  config = tiny.config(**{"model.language.layers": 2, "model.expert.layers": 6, "model.mixer.layers": 2}).model
  return vla.VLA(config)


@pytest.fixture(scope="module")
def shapes(model):
  return vla.param_shapes(model)


@pytest.fixture(scope="module")
def planned(model, shapes):
  return weights.plan(model.config, shapes)


def random_tensors(planned, dtype=lambda name: np.float32):
  rng = np.random.default_rng(0)
  expected = {source.name: source.shape for parts in planned.values() for source in parts}
  return {name: rng.standard_normal(shape, np.float32).astype(dtype(name)) for name, shape in expected.items()}


def mixed(name):
  return (jnp.bfloat16, np.float16, np.float32)[len(name) % 3]


def load(folder, planned, shapes, shardings=None):
  found = weights.tensors(folder)
  weights.check(found, planned, folder)
  one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return weights.load(found, planned, shapes, shardings or jax.tree.map(lambda _: one, shapes)), found


@pytest.fixture(scope="module")
def sharded(tmp_path_factory, planned):
  """A checkpoint of three dtypes in three files with an index."""
  folder = tmp_path_factory.mktemp("sharded")
  tensors = random_tensors(planned, mixed)
  names, weight_map = sorted(tensors), {}
  for i in range(3):
    file = f"model-{i + 1:05}-of-00003.safetensors"
    save_file({name: tensors[name] for name in names[i::3]}, folder / file)
    weight_map |= dict.fromkeys(names[i::3], file)
  (folder / weights.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
  return folder, tensors


def test_what_is_imported_goes_back_bit_for_bit(sharded, planned, shapes, tmp_path, monkeypatch):
  folder, tensors = sharded
  monkeypatch.setattr(weights, "PIECE_BYTES", 4096)  # the embedding in several pieces
  monkeypatch.setattr(weights, "FILE_BYTES", 2**18)
  params, found = load(folder, planned, shapes)
  weights.export(params, planned, {name: dtype for name, (_, _, dtype) in found.items()}, tmp_path)
  back = {name: value for file in tmp_path.glob("*.safetensors") for name, value in load_file(file).items()}
  assert len(list(tmp_path.glob("*.safetensors"))) > 1
  assert back.keys() == tensors.keys()
  for name, value in tensors.items():
    assert back[name].dtype == value.dtype, name
    assert back[name].tobytes() == value.tobytes(), name
  again, _ = load(tmp_path, planned, shapes)
  jax.tree.map(np.testing.assert_array_equal, params, again)


def test_every_parameter_but_the_placeholder_comes_from_the_file(sharded, planned, shapes):
  params, _ = load(sharded[0], planned, shapes)
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    name = weights.path_name(path)
    assert leaf.dtype == jnp.float32
    assert np.all(np.asarray(leaf) != 0) == (name not in reference.OURS_ALONE), name


def test_each_layer_has_its_own_block(sharded, planned, shapes):
  """A few places spelled out: stacked blocks, the fused query, key and value, the rest of the expert, its memory."""
  params, _ = load(sharded[0], planned, shapes)
  theirs = {name: np.asarray(value, np.float32) for name, value in sharded[1].items()}
  equal = np.testing.assert_array_equal
  equal(params["language"]["blocks"]["gate"]["kernel"][0], theirs["backbone.model.model.language_model.layers.1.mlp.gate_proj.weight"].T)
  qkv = theirs["backbone.model.model.visual.blocks.1.attn.qkv.weight"].reshape(3, -1, 32)
  equal(params["vision"]["blocks"]["attention"]["key"]["kernel"][1].reshape(32, -1), qkv[1].T)
  equal(params["expert"]["rest"]["block_1"]["mlp"]["up"]["kernel"], theirs["action_head.model.transformer_blocks.5.ff.net.0.proj.weight"].T)
  value = theirs["action_head.model.transformer_blocks.4.attn1.to_v.weight"]
  equal(params["expert"]["memory"]["value"]["kernel"][:, 2].reshape(value.shape[1], -1), value.T)


def test_streams_into_the_target_sharding(sharded, planned, shapes):
  mesh = sharding.make_mesh(tiny.config(**{"mesh.data": 1, "mesh.fsdp": 4, "mesh.tensor": 2}))
  shardings = sharding.param_shardings(shapes, mesh)
  params, _ = load(sharded[0], planned, shapes, shardings)
  whole, _ = load(sharded[0], planned, shapes)
  for leaf, want, target in zip(jax.tree.leaves(params), jax.tree.leaves(whole), jax.tree.leaves(shardings)):
    assert leaf.sharding.is_equivalent_to(target, leaf.ndim)
    np.testing.assert_array_equal(leaf, want)


@pytest.fixture
def one_file(tmp_path, planned):
  tensors = random_tensors(planned)
  save_file(tensors, tmp_path / "model.safetensors")
  return tmp_path, tensors


def test_wrong_tensors_are_listed_by_path_and_nothing_is_loaded(one_file, planned, shapes):
  folder, tensors = one_file
  del tensors["action_head.vlln.weight"]
  tensors["action_head.mask_token"] = np.zeros((1, 2), np.float32)
  tensors["action_head.vlln.bias"] = np.zeros(3, np.float32)
  tensors["action_head.action_decoder.layer1.b"] = tensors["action_head.action_decoder.layer1.b"].astype(np.int32)
  save_file(tensors, folder / "model.safetensors")
  with pytest.raises(UserError) as caught:
    load(folder, planned, shapes)
  message = str(caught.value)
  assert "\n" not in message
  for line in (
    r"action_head\.mask_token: found \(1, 2\), expected nothing",
    r"action_head\.vlln\.weight: found nothing, expected \(32,\)",
    r"action_head\.vlln\.bias: found \(3,\), expected \(32,\)",
    r"action_head\.action_decoder\.layer1\.b: found I32, expected one of F32, BF16, F16",
  ):
    assert re.search(line, message), message


def test_damaged_files_are_named(one_file, sharded):
  folder, _ = one_file
  whole = (folder / "model.safetensors").read_bytes()
  for cut in (0, 7, 100, len(whole) - 1):
    (folder / "model.safetensors").write_bytes(whole[:cut])
    with pytest.raises(UserError, match=r"model\.safetensors: not a whole safetensors file"):
      weights.tensors(folder)
  (folder / "model.safetensors").unlink()
  with pytest.raises(UserError, match=r"found no \.safetensors"):
    weights.tensors(folder)
  index = json.loads((sharded[0] / weights.INDEX).read_text())
  (folder / weights.INDEX).write_text(json.dumps(index))
  with pytest.raises(UserError, match=r"model-00001-of-00003\.safetensors: no such file"):
    weights.tensors(folder)
  (folder / weights.INDEX).write_text("[")
  with pytest.raises(UserError, match=r"index\.json: not an index"):
    weights.tensors(folder)


def test_settings_travel_both_ways(model):
  theirs = json.loads(json.dumps(reference.to_theirs(model.config)))
  read = reference.empty_model()
  reference.read_qwen(theirs["qwen3_vl"], read, "config.json")
  reference.read_groot(theirs["gr00t"], read, "config.json")
  ours = model.config.copy_and_resolve_references().unlock()
  ours.mixer.mask_padding = ours.expert.mask_actions = False  # what N1.7 has no setting for
  read.expert.state_dropout, read.remat, read.dtype = ours.expert.state_dropout, ours.remat, ours.dtype
  assert read.to_dict() == ours.to_dict()


def published():
  """Name -> shape of GR00T N1.7-3B, written out from its layout (../shared/model.md)."""
  d, heads, kv, mlp, w, v = 2048, 2048, 1024, 6144, 1024, "backbone.model.model.visual."
  names = {v + "patch_embed.proj.weight": (w, 3, 2, 16, 16), v + "patch_embed.proj.bias": (w,), v + "pos_embed.weight": (2304, w)}

  def linear(name, out, inner):
    names.update({f"{name}.weight": (out, inner), f"{name}.bias": (out,)})

  def norm(name, size):
    names.update({f"{name}.weight": (size,), f"{name}.bias": (size,)})

  for i in range(24):
    for part, out, inner in (("attn.qkv", 3 * w, w), ("attn.proj", w, w), ("mlp.linear_fc1", 4 * w, w), ("mlp.linear_fc2", w, 4 * w)):
      linear(f"{v}blocks.{i}.{part}", out, inner)
    norm(f"{v}blocks.{i}.norm1", w)
    norm(f"{v}blocks.{i}.norm2", w)
  for name, size in (("merger", w), *((f"deepstack_merger_list.{i}", 4 * w) for i in range(3))):
    norm(f"{v}{name}.norm", size)
    linear(f"{v}{name}.linear_fc1", 4 * w, 4 * w)
    linear(f"{v}{name}.linear_fc2", d, 4 * w)
  text = "backbone.model.model.language_model."
  names |= {text + "embed_tokens.weight": (151936, d), text + "norm.weight": (d,)}
  for i in range(16):
    at = f"{text}layers.{i}."
    names |= {at + f"self_attn.{part}_proj.weight": (size, d) for part, size in (("q", heads), ("k", kv), ("v", kv))}
    names |= {at + "self_attn.o_proj.weight": (d, heads), at + "mlp.down_proj.weight": (d, mlp)}
    names |= {at + f"mlp.{part}_proj.weight": (mlp, d) for part in ("gate", "up")}
    names |= {at + f"self_attn.{part}_norm.weight": (128,) for part in "qk"}
    names |= {at + f"{part}_layernorm.weight": (d,) for part in ("input", "post_attention")}
  h, x, out = "action_head.", 1536, 1024
  norm(h + "vlln", d)
  for prefix, count, size in ((h + "vl_self_attention", 4, d), (h + "model", 32, x)):
    for i in range(count):
      at = f"{prefix}.transformer_blocks.{i}."
      read = d if prefix.endswith("model") and i % 2 == 0 else size
      for part, inner in (("to_q", size), ("to_k", read), ("to_v", read), ("to_out.0", size)):
        linear(f"{at}attn1.{part}", size, inner)
      linear(at + "ff.net.0.proj", 4 * size, size)
      linear(at + "ff.net.2", size, 4 * size)
      if prefix.endswith("model"):
        linear(at + "norm1.linear", 2 * size, size)
      else:
        norm(at + "norm1", size)
        norm(at + "norm3", size)
  for part, rows, inner in (
    *(("timestep_encoder.timestep_embedder.linear_1", x, 256), ("timestep_encoder.timestep_embedder.linear_2", x, x)),
    *(("proj_out_1", 2 * x, x), ("proj_out_2", out, x)),
  ):
    linear(f"{h}model.{part}", rows, inner)
  for part, inner, rows in (
    *(("state_encoder.layer1", 132, out), ("state_encoder.layer2", out, x)),
    *(("action_encoder.W1", 132, x), ("action_encoder.W2", 2 * x, x), ("action_encoder.W3", x, x)),
    *(("action_decoder.layer1", out, out), ("action_decoder.layer2", out, 132)),
  ):
    names |= {f"{h}{part}.W": (32, inner, rows), f"{h}{part}.b": (32, rows)}
  names[h + "position_embedding.weight"] = (1024, x)
  return names


def test_full_size_has_the_published_names_and_shapes():
  config = config_lib.parse([f"--config={ROOT}/configs/pretrain.py"])
  shapes = vla.param_shapes(vla.VLA(config.model))
  planned = weights.plan(config.model, shapes)
  expected = published()
  assert {source.name: source.shape for parts in planned.values() for source in parts} == expected
  ours = sum(leaf.size for leaf in jax.tree.leaves(shapes)) - shapes["expert"]["missing_state"].size
  assert ours == sum(map(math.prod, expected.values())) == 3_144_016_000

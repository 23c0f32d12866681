"""A checkpoint of the hub to a work directory that trains and acts, and back."""

import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
import tiny
from conftest import ROOT
from safetensors.numpy import load_file, save_file

from egoscale_jax import cli
from egoscale_jax.data import tokenizer
from egoscale_jax.errors import UserError
from egoscale_jax.models import reference, vla, weights
from egoscale_jax.policy import Policy
from egoscale_jax.train import convert, main
from egoscale_jax.train import run as run_lib

QWEN_LAYERS = 3  # of which the config keeps SHALLOW's one


def tensors(planned, seed=0):
  rng = np.random.default_rng(seed)
  names = {source.name: source.shape for parts in planned.values() for source in parts}
  return {name: (0.1 * rng.standard_normal(shape, np.float32)).astype(ml_dtypes.bfloat16) for name, shape in names.items()}


def sizes(**overrides):
  return {**tiny.SHALLOW, "validation.episodes": 0, **overrides}


@pytest.fixture(scope="module")
def groot(tmp_path_factory):
  """A checkpoint of GR00T N1.7 in bfloat16 as the hub lays it out, as small as can be, with a tokenizer."""
  folder = tmp_path_factory.mktemp("groot")
  config = tiny.config(**sizes()).model
  planned = weights.plan(config, vla.param_shapes(vla.VLA(config)))
  given = tensors(planned)
  names = {f"model-0000{i + 1}-of-00002.safetensors": sorted(given)[i::2] for i in range(2)}
  for file, part in names.items():
    save_file({name: given[name] for name in part}, folder / file)
  weight_map = {name: file for file, part in names.items() for name in part}
  (folder / weights.INDEX).write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))
  (folder / "config.json").write_text(json.dumps(reference.to_theirs(config)))
  (folder / "statistics.json").write_text("{}")
  (folder / "experiment_cfg").mkdir()
  (folder / "experiment_cfg" / "metadata.json").write_text("{}")
  processor = {"image_target_size": [32, 32], "image_crop_size": [28, 28], "formalize_language": True, "shortest_image_edge": None}
  (folder / "processor_config.json").write_text(json.dumps({"processor_kwargs": processor}))
  tokenizer.build(["pour tea"], config.language.vocab).save(str(folder / "tokenizer.json"))
  return folder


def loaded(folder):
  return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


@pytest.fixture(scope="module")
def imported(groot, tiny_run, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("imported") / "run"
  convert.from_groot(groot, workdir, tiny.config(**sizes()), tiny_run / "statistics.json", jax.devices()[:1])
  return workdir


def test_the_policy_opens_it(imported):
  policy = Policy(imported)
  assert not policy.config.model.expert.mask_actions
  assert (policy.config.data.image_size, policy.config.data.crop, policy.config.data.plain_text) == ((32, 32), 0.875, True)
  chunk = policy([np.zeros((32, 32, 3), np.uint8)], "pour tea")
  assert np.all(np.isfinite(chunk.joints_Tx2xJ))


def test_it_goes_back_as_it_came(imported, groot, tmp_path):
  convert.to_groot(imported, tmp_path / "back")
  came, back = loaded(groot), loaded(tmp_path / "back")
  assert came.keys() == back.keys()
  for name in came:
    assert (came[name].dtype, came[name].tobytes()) == (back[name].dtype, back[name].tobytes()), name
  others = ["config.json", "processor_config.json", "statistics.json", "tokenizer.json"]
  assert sorted(path.name for path in (tmp_path / "back").iterdir()) == sorted(["model.safetensors", *others])
  assert all((tmp_path / "back" / name).read_bytes() == (groot / name).read_bytes() for name in others)


def test_training_starts_from_it_and_what_was_learned_goes_back(imported, groot, shards, tmp_path):
  config = tiny.config(shards, steps=2, init_from=str(imported), train_parts=("expert/.*",), **sizes(**{"optim.learning_rate": 1e-2}))
  main.main(config, tmp_path / "run", jax.devices()[:1])
  convert.to_groot(tmp_path / "run", tmp_path / "back")
  came, back = loaded(groot), loaded(tmp_path / "back")
  changed = {name for name in came if came[name].tobytes() != back[name].tobytes()}
  assert all(back[name].dtype == came[name].dtype for name in came)
  assert "action_head.model.proj_out_2.weight" in changed
  assert not any(name.startswith("backbone") for name in changed)


def test_a_run_of_our_own_goes_out_too(tiny_run, tmp_path):
  convert.to_groot(tiny_run, tmp_path / "out")
  convert.from_groot(tmp_path / "out", tmp_path / "again", tiny.config(**sizes()), devices=jax.devices()[:1])
  _, ours, _ = run_lib.open_run(tiny_run)
  shutil.copyfile(tiny_run / "tokenizer.json", tmp_path / "again" / "tokenizer.json")
  _, again, _ = run_lib.open_run(tmp_path / "again")
  assert np.any(ours["expert"]["missing_state"] != 0)
  ours["expert"]["missing_state"] = np.zeros_like(ours["expert"]["missing_state"])  # the one thing that N1.7 has no place for
  jax.tree.map(np.testing.assert_array_equal, ours, again)


def test_qwen_fills_the_backbone_and_the_rest_is_fresh(groot, tmp_path):
  config = tiny.config(**sizes())
  deep = config.model.copy_and_resolve_references().unlock()
  deep.language.layers = QWEN_LAYERS
  shapes = vla.param_shapes(vla.VLA(deep))
  given = tensors(weights.plan(deep, {name: shapes[name] for name in ("vision", "language")}, convert.QWEN), seed=1)
  folder = tmp_path / "qwen"
  folder.mkdir()
  save_file({**given, "lm_head.weight": np.zeros((2, 2), np.float32)}, folder / "model.safetensors")
  (folder / "config.json").write_text(json.dumps(reference.to_theirs(deep)["qwen3_vl"]))
  shutil.copyfile(groot / "tokenizer.json", folder / "tokenizer.json")
  convert.from_qwen(folder, tmp_path / "run", config, devices=jax.devices()[:1])
  _, params, _ = run_lib.open_run(tmp_path / "run")
  gate = given["model.language_model.layers.0.mlp.gate_proj.weight"].astype(np.float32)
  np.testing.assert_array_equal(params["language"]["deepstack_blocks"]["gate"]["kernel"][0], gate.T)
  assert np.any(params["expert"]["out"]["kernel"] != 0)

  del given["model.language_model.layers.0.mlp.gate_proj.weight"]
  save_file(given, folder / "model.safetensors")
  with pytest.raises(UserError, match=r"layers\.0\.mlp\.gate_proj\.weight: found nothing, expected \(32, 32\)"):
    convert.from_qwen(folder, tmp_path / "other", config, devices=jax.devices()[:1])
  assert not (tmp_path / "other").exists()


def test_the_command_converts_both_ways_and_tells_mistakes_in_a_line(groot, tmp_path, capsys):
  command = ["convert", "--from=gr00t_n1_7", f"--input={groot}", f"--output={tmp_path}/run", f"--config={ROOT}/configs/pretrain.py:debug"]
  command += ["--config.batch_size=8", "--config.mesh.data=1", "--config.mesh.fsdp=-1"]
  assert cli.main(command) == 0
  assert "not read, but kept for the way back: statistics.json; ignored: experiment_cfg/\n" in capsys.readouterr().out
  assert cli.main(["convert", "--to=gr00t_n1_7", f"--input={tmp_path}/run", f"--output={tmp_path}/back"]) == 0
  assert (tmp_path / "back" / "model.safetensors").is_file()
  capsys.readouterr()
  assert cli.main(command) == 1
  assert "found something there, expected a new or an empty folder" in capsys.readouterr().err
  assert cli.main([*command[:2], f"--input={tmp_path}", f"--output={tmp_path}/x", *command[4:]]) == 1
  assert "config.json: cannot be read" in capsys.readouterr().err
  assert not (tmp_path / "x").exists()


def test_a_checkpoint_of_another_preset_is_told_tensor_by_tensor_and_nothing_is_written(groot, tmp_path):
  """On the hub the backbone's sizes are not told: they are those of the config."""
  folder = tmp_path / "other"
  shutil.copytree(groot, folder, copy_function=shutil.copyfile)
  told = json.loads((folder / "config.json").read_text())
  (folder / "config.json").write_text(json.dumps(told["gr00t"]))
  config = tiny.config(**sizes(**{"model.language.mlp": 48}))
  wrong = r"does not fit the config: .*language_model\.layers\.0\.mlp\.down_proj\.weight: found \(32, 32\), expected \(32, 48\)"
  with pytest.raises(UserError, match=wrong):
    convert.from_groot(folder, tmp_path / "run", config, devices=jax.devices()[:1])
  (folder / "config.json").write_text(json.dumps({**told["gr00t"], "backbone_embedding_dim": 64}))
  with pytest.raises(UserError, match=r"config\.json: backbone_embedding_dim: found 64, expected 32"):
    convert.from_groot(folder, tmp_path / "run", config, devices=jax.devices()[:1])
  (folder / "config.json").write_text(json.dumps(told["qwen3_vl"]))
  with pytest.raises(UserError, match=r"config\.json: found no model_type|model_type: found 'qwen3_vl', expected 'Gr00tN1d7'"):
    convert.from_groot(folder, tmp_path / "run", config, devices=jax.devices()[:1])
  file = folder / "model-00002-of-00002.safetensors"
  file.write_bytes(file.read_bytes()[:-1])
  (folder / "config.json").write_text(json.dumps(told))
  with pytest.raises(UserError, match=r"model-00002-of-00002\.safetensors: not a whole safetensors file"):
    convert.from_groot(folder, tmp_path / "run", config, devices=jax.devices()[:1])
  assert not (tmp_path / "run").exists()

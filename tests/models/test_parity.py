"""The forward pass against the reference implementation's numbers (../shared/parity), and against what must hold for any fixture."""

import json
import shutil

import jax
import numpy as np
import pytest

from egoscale_jax.errors import UserError
from egoscale_jax.models import flow, parity, vla

OUTPUTS = ("vision_embeds", "deepstack_0", "deepstack_1", "image_mask", "backbone_features", "vl_features", "state_features")
OUTPUTS += ("velocity_pred", "action_loss", "loss")


@pytest.fixture(scope="module")
def folder(shared):
  return shared / "parity" / "gr00t_n1_7_tiny"


@pytest.fixture(scope="module")
def forward(folder):
  """-> (the errors, the outputs that they are of)."""
  made, outputs = [], parity.outputs
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(parity, "outputs", lambda *a: made.append(outputs(*a)) or made[0])
    return parity.errors(folder), *made


@pytest.fixture(scope="module")
def errors(forward):
  return forward[0]


@pytest.mark.parametrize("name", OUTPUTS)
def test_output_is_the_references(errors, name):
  assert errors[name] <= 2e-5 == parity.bar(name)


# Not explained. The reference itself (LeRobot 0.6.1's action head with the fixture's weights and backbone_features, in_noise for its
# torch.randn, eval mode) is off from action_pred by what we are, 0.6918; so is torch_reference.py. From in_noise none
# gives it (0.21 rms off, where the chunk moves by 0.65). Tried, none below 0.16 rms: 1 to 32 steps; times reversed, constant,
# shifted, and those of the encoder, the blocks and the output apart; every pair of embodiments; state zeroed, swapped, fitted; action mask
# on noise or steps; no positions, or shifted; text and image masks swapped, none, padding read; features raw, without vlln, mixed 2 to 4
# times, after the final norm, a layer fewer, positions 0, 1, 2, no images. A fit of 21 scales, times and steps shared by both rows: 0.15.
# Dropout has the right size (0.2 to 0.3 rms) but another pattern: row 0 is off by nearly the same vector in all steps of the chunk (94 % of
# the square), which dropout in the blocks would not do (about 50 %), row 1 is not (59 %), which dropout in vlln would not do (80 to 90 %).
@pytest.mark.xfail(strict=True, reason="the reference itself does not give it from in_noise; velocity_pred and all before it agree")
def test_action_pred_is_the_references(errors):
  assert errors["action_pred"] <= 3e-5 == parity.bar("action_pred")


def test_every_output_of_the_fixture_is_compared(errors):
  assert set(errors) == {*OUTPUTS, "action_pred"}


def test_the_sample_is_four_euler_steps_of_the_velocity(folder, forward):
  """action_pred of the model whose velocity equals the reference's: the loop written out, at t = 0, .25, .5, .75."""
  (model, params, io), (_, ours) = parity.load(folder), forward
  apply = jax.jit(lambda *a, method: model.apply({"params": params}, *a, method=method), static_argnames="method")
  features = apply(ours["vl_features"], io["in_attention_mask"] > 0, ours["image_mask"], method=vla.VLA.remember)
  batch = vla.blank_batch(model.config, 2, state_BxS=io["in_state"][:, 0], embodiment_B=io["in_embodiment_id"].astype(np.int32))
  x = io["in_noise"]
  for t in (0.0, 0.25, 0.5, 0.75):
    x = x + 0.25 * apply(features, batch, x, np.full(2, t, np.float32), method=vla.VLA.velocity)
  np.testing.assert_allclose(ours["action_pred"], x, atol=3e-6)


def test_bfloat16_velocity_is_within_two_percent(folder):
  model, params, io = parity.load(folder, dtype="bfloat16")
  ours = np.asarray(parity.outputs(model, params, io)["velocity_pred"])
  assert np.linalg.norm(ours - io["out_velocity_pred"]) <= 0.02 * np.linalg.norm(io["out_velocity_pred"])


def test_table_names_the_output_above_its_bar_and_exits_with_one(folder, forward, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(parity, "outputs", lambda *_: forward[1])  # the inputs are the same
  copy = tmp_path / "fixture"
  shutil.copytree(folder, copy, copy_function=shutil.copyfile)
  arrays = dict(np.load(copy / "io.npz"))
  del arrays["out_action_pred"]
  np.savez(copy / "io.npz", **arrays)
  assert parity.main([str(copy)]) == 0
  assert "ABOVE" not in capsys.readouterr().out
  arrays["out_vl_features"][1, 3, 5] += 1e-3
  np.savez(copy / "io.npz", **arrays)
  assert parity.main([str(copy)]) == 1
  lines = [line for line in capsys.readouterr().out.splitlines() if line.endswith("ABOVE")]
  assert [line.split()[0] for line in lines] == ["vl_features"]


def test_a_folder_that_is_no_fixture_is_one_line(tmp_path, capsys):
  assert parity.main([str(tmp_path)]) == 1
  assert "not a parity fixture" in capsys.readouterr().err


def test_a_setting_that_we_do_not_have_is_refused(folder, tmp_path):
  copy = tmp_path / "fixture"
  shutil.copytree(folder, copy, copy_function=shutil.copyfile)
  told = json.loads((copy / "config.json").read_text())
  told["gr00t"]["diffusion_model_cfg"]["norm_type"] = "layer_norm"
  (copy / "config.json").write_text(json.dumps(told))
  with pytest.raises(UserError, match=r"diffusion_model_cfg.norm_type: found 'layer_norm', expected 'ada_norm'"):
    parity.load(copy)


def test_pictures_of_another_size_are_refused(folder, tmp_path):
  copy = tmp_path / "fixture"
  shutil.copytree(folder, copy, copy_function=shutil.copyfile)
  arrays = dict(np.load(copy / "io.npz"))
  np.savez(copy / "io.npz", **{**arrays, "in_pixel_values": arrays["in_pixel_values"][:-4]})
  with pytest.raises(UserError, match=r"in_pixel_values: found \(52, 1536\), expected \(56, 1536\), as in_image_grid_thw says"):
    parity.load(copy)
  ids = np.where(arrays["in_input_ids"] == 508, 1, arrays["in_input_ids"])
  np.savez(copy / "io.npz", **{**arrays, "in_input_ids": ids})
  with pytest.raises(UserError, match=r"in_input_ids: found 0 image tokens, expected 14, as in_image_grid_thw says"):
    parity.load(copy)


def test_masked_mean_is_the_references_loss_when_all_weights_are_one():
  """The reference divides by the mask's sum; so do we, but for its 1e-6 that an empty mask needs."""
  error, mask = jax.random.uniform(jax.random.key(0), (2, 3, 4, 5))
  mask = mask > 0.5
  np.testing.assert_allclose(flow.masked_mean(error, mask, np.ones_like(error)), (error * mask).sum() / mask.sum(), rtol=1e-6)

"""How far our float32 outputs are from the reference implementation's: `python -m egoscale_jax.models.parity DIR`.

DIR holds config.json (both config dictionaries), the safetensors under the released names and io.npz: `in_*`, and `out_*` as the public
PyTorch implementation gives them on a CPU. Prints a table; the exit code is 1 where an error is above its bar.
"""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from egoscale_jax.errors import UserError
from egoscale_jax.models import flow, reference, vla, weights

BARS = {"action_pred": 3e-5}
BAR = 2e-5  # of every other output: largest absolute difference


def bar(name):
  return BARS.get(name, BAR)


def load(folder, dtype="float32"):
  """A fixture's folder -> (model, parameters, {name: array} of io.npz)."""
  folder = pathlib.Path(folder)
  try:
    told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    arrays = dict(np.load(folder / "io.npz"))
  except (OSError, ValueError) as error:
    raise UserError(f"{folder}: not a parity fixture: {error}") from error
  config = reference.empty_model()
  reference.read_qwen(told["qwen3_vl"], config, folder / "config.json")
  reference.read_groot(told["gr00t"], config, folder / "config.json")
  config.dtype = dtype
  _check_images(arrays, config, folder / "io.npz")
  model = vla.VLA(config)
  shapes = vla.param_shapes(model)
  found, planned = weights.tensors(folder), weights.plan(config, shapes)
  weights.check(found, planned, folder)
  one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return model, weights.load(found, planned, shapes, jax.tree.map(lambda _: one, shapes)), arrays


def _check_images(io, config, path):
  """UserError where pictures are of other sizes than the grids or the prompts say."""
  v, grid = config.vision, io["in_image_grid_thw"]
  expected = (int(grid.prod(axis=1).sum()), 3 * v.temporal_patch * v.patch**2)
  if io["in_pixel_values"].shape != expected:
    raise UserError(f"{path}: in_pixel_values: found {io['in_pixel_values'].shape}, expected {expected}, as in_image_grid_thw says")
  tokens = int(((io["in_input_ids"] == config.image_token) & (io["in_attention_mask"] > 0)).sum())
  if tokens != expected[0] // v.merge**2:
    raise UserError(f"{path}: in_input_ids: found {tokens} image tokens, expected {expected[0] // v.merge**2}, as in_image_grid_thw says")


def _see(module, patch, grid):
  return module.vision(patch, grid)


def _vision(model, params, io):
  """Every image by itself, for each may have a grid of its own -> tokens [I, D] and taps [I, D] of all of them in order."""
  tokens, taps, at = [], [], 0
  see = jax.jit(lambda params, patch, grid: model.apply({"params": params}, patch, grid, method=_see), static_argnums=2)
  for time, rows, cols in io["in_image_grid_thw"].tolist():
    patch = io["in_pixel_values"][None, at : at + time * rows * cols]
    at += time * rows * cols
    one, several = see(params, patch, (rows, cols))
    tokens.append(one[0])
    taps.append([tap[0] for tap in several])
  return np.concatenate(tokens), [np.concatenate(tap) for tap in zip(*taps)]


def _by_example(io, image_token, merge, arrays_IxD):
  """Tokens of all images in order -> [B, M, D] arrays of each example's, padded, and the merged grids [B, C, 2] of its images."""
  counts = ((io["in_input_ids"] == image_token) & (io["in_attention_mask"] > 0)).sum(axis=1)
  ends, merged = np.cumsum(counts), io["in_image_grid_thw"][:, 1:] // merge
  owner = np.searchsorted(ends, np.cumsum(merged.prod(axis=1)))
  grid = np.ones((len(counts), max(np.bincount(owner, minlength=len(counts)).max(), 1), 2), np.int32)
  for example in range(len(counts)):
    mine = merged[owner == example]
    grid[example, : len(mine)] = mine
  pad = lambda a: np.pad(a, ((0, counts.max() - len(a)), (0, 0)))  # noqa: E731
  return [np.stack([pad(a[end - n : end]) for end, n in zip(ends, counts)]) for a in arrays_IxD], grid


def outputs(model, params, io):
  """-> {name: array} of all that the fixture has as out_<name>. In few programs: one operation at a time compiles four times as long."""
  c = model.config
  apply = lambda method, *a: jax.jit(lambda params, *a: model.apply({"params": params}, *a, method=method))(params, *a)  # noqa: E731
  tokens, taps = _vision(model, params, io)
  out = {"vision_embeds": tokens, **{f"deepstack_{i}": tap for i, tap in enumerate(taps)}}
  (image, *tap_rows), grid = _by_example(io, c.image_token, c.vision.merge, [tokens, *taps])
  ids, mask = io["in_input_ids"].astype(np.int32), io["in_attention_mask"] > 0
  hidden, there, is_image = apply(vla.VLA.read, ids, mask, image, tap_rows, np.ones(image.shape[:2], bool), grid)
  out |= {"backbone_features": hidden, "image_mask": is_image}
  out["vl_features"] = apply(lambda module, *a: module.mixer(*a, False), hidden, there)

  state, slot = io["in_state"].reshape(len(ids), -1), io["in_embodiment_id"].astype(np.int32)
  encode = lambda module, state, slot: module.expert.encode_state(state, jnp.ones(len(slot), bool), slot, False)  # noqa: E731
  out["state_features"] = apply(encode, state, slot)
  features = apply(vla.VLA.remember, out["vl_features"], there, is_image)
  batch = vla.blank_batch(
    c, len(ids), state_BxS=state, embodiment_B=slot
  )  # the reference's expert reads no action mask; only its loss does
  x_t = flow.interpolate(io["in_noise"], io["in_action"], io["in_time"])
  out["velocity_pred"] = apply(vla.VLA.velocity, features, batch, x_t, io["in_time"])
  error = (out["velocity_pred"] - (io["in_action"] - io["in_noise"])) ** 2
  out["action_loss"] = error * io["in_action_mask"]
  out["loss"] = flow.masked_mean(error, io["in_action_mask"] > 0, jnp.ones_like(error))
  sample = jax.jit(lambda params, *a: vla.sample(model, {"params": params}, *a, c.flow.steps))
  out["action_pred"] = sample(params, features, batch, io["in_noise"])
  return out


def errors(folder):
  """-> {name: largest absolute difference}; a difference that is not finite counts as infinite."""
  with jax.default_matmul_precision("highest"):
    model, params, io = load(folder)
    ours = outputs(model, params, io)
  found = {}
  for name in sorted(key.removeprefix("out_") for key in io if key.startswith("out_")):
    if name not in ours:
      raise UserError(f"{folder}/io.npz: out_{name}: found an output that we do not have, expected some of {', '.join(ours)}")
    want, got = (np.asarray(a, np.float64) for a in (io[f"out_{name}"], ours[name]))
    if want.shape != got.shape:
      raise UserError(f"{folder}/io.npz: out_{name}: found {want.shape}, expected {got.shape}")
    worst = float(np.max(np.abs(want - got)))
    found[name] = worst if np.isfinite(worst) else float("inf")
  return found


def main(argv):
  if len(argv) != 1:
    print("python -m egoscale_jax.models.parity DIR: expected one folder", file=sys.stderr)
    return 1
  try:
    found = errors(argv[0])
  except UserError as error:
    print(f"parity: {error}", file=sys.stderr)
    return 1
  print(f"{'output':20} {'max abs error':>14} {'bar':>8}")
  for name, worst in found.items():
    print(f"{name:20} {worst:14.2e} {bar(name):8.0e} {'' if worst <= bar(name) else 'ABOVE'}".rstrip())
  return int(any(worst > bar(name) for name, worst in found.items()))


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))

"""Checkpoints of the hub to a work directory and back: `egoscale convert`.

```
DIR/config.json *.safetensors …     --from ->  WORKDIR/config.json checkpoints/0/ [tokenizer.json] statistics.json reference/
WORKDIR after training on it        --to   ->  DIR/config.json *.safetensors …
```
`reference/` holds the small files as they came, and the dtype of every tensor, so that what goes back has the form of what came; training
from such a work directory carries it on.
"""

import functools
import json
import pathlib
import shutil

import jax

from egoscale_jax.data import slots, tokenizer
from egoscale_jax.errors import UserError
from egoscale_jax.models import hub, reference, vla, weights
from egoscale_jax.train import checkpoint, sharding
from egoscale_jax.train import run as run_lib

DTYPES = "dtypes.json"
READ = ("config.json", "processor_config.json", "tokenizer.json", weights.INDEX)
QWEN = "model."  # how the backbone's names begin in a checkpoint of Qwen3-VL alone


def from_groot(address, workdir, config, statistics="", devices=None):
  """GR00T N1.7 (hub.local) -> a work directory; the sizes are the checkpoint's, all else is `config`'s. -> how many parameters."""
  with hub.local(address) as folder:
    return _from_groot(folder, workdir, config, statistics, devices)


def _from_groot(folder, workdir, config, statistics, devices):
  told = _open(folder)
  config = config.copy_and_resolve_references().unlock()
  if "qwen3_vl" in told:  # on the hub only GR00T's own settings are there: the backbone's are those of `config`, Cosmos-Reason2-2B
    reference.read_qwen(told["qwen3_vl"], config.model, folder / "config.json")
  reference.read_groot(told.get("gr00t", told), config.model, folder / "config.json")
  _read_processor(folder / "processor_config.json", config.data)
  if config.data.crop:
    config.augment.crop = 1.0  # cropped already
  model = vla.VLA(config.model)
  shapes = vla.param_shapes(model)
  found, planned = weights.tensors(folder), weights.plan(config.model, shapes)
  weights.check(found, planned, folder)
  _start(workdir)
  shardings = sharding.param_shardings(shapes, sharding.make_mesh(config, devices))
  params = weights.load(found, planned, shapes, shardings)
  _write(folder, workdir, config, params, statistics, {name: dtype for name, (_, _, dtype) in found.items()})
  return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def from_qwen(address, workdir, config, statistics="", devices=None):
  """Qwen3-VL -> a work directory with a fresh mixer and expert; the first config.model.language.layers decoder layers are kept."""
  with hub.local(address) as folder:
    return _from_qwen(folder, workdir, config, statistics, devices)


def _from_qwen(folder, workdir, config, statistics, devices):
  told = _open(folder)
  config = config.copy_and_resolve_references().unlock()
  kept = config.model.language.layers
  reference.read_qwen(told.get("qwen3_vl", told), config.model, folder / "config.json")
  if kept > config.model.language.layers:
    raise UserError(f"config.model.language.layers: found {kept}, expected at most the checkpoint's {config.model.language.layers}")
  config.model.language.layers = kept
  model = vla.VLA(config.model)
  shapes = vla.param_shapes(model)
  backbone = {name: shapes[name] for name in ("vision", "language")}
  found, planned = weights.tensors(folder), weights.plan(config.model, backbone, QWEN)
  weights.check(found, planned, folder, left_out=functools.partial(_beyond, kept))
  _start(workdir)
  shardings = sharding.param_shardings(shapes, sharding.make_mesh(config, devices))
  fresh = {name: shardings[name] for name in shapes if name not in backbone}
  init = lambda: {name: model.init(jax.random.key(config.seed), vla.blank_batch(config.model, 1))["params"][name] for name in fresh}  # noqa: E731
  params = weights.load(found, planned, backbone, {name: shardings[name] for name in backbone}) | jax.jit(init, out_shardings=fresh)()
  _write(folder, workdir, config, params, statistics, {})
  return sum(leaf.size for leaf in jax.tree.leaves(backbone))


def to_groot(workdir, folder):
  """A work directory's newest parameters -> GR00T N1.7's tensors, each in the dtype that it came in."""
  workdir, folder = pathlib.Path(workdir), pathlib.Path(folder)
  config = run_lib.read_config(workdir)
  model = vla.VLA(config.model)
  shapes = vla.param_shapes(model)
  shardings = sharding.param_shardings(shapes, sharding.make_mesh(config, jax.devices()[:1]))
  params = run_lib.final_params(workdir, shapes, shardings)
  _start(folder)
  came, dtypes = workdir / run_lib.REFERENCE, {}
  if (came / DTYPES).is_file():
    dtypes = json.loads((came / DTYPES).read_text(encoding="utf-8"))
    shutil.copytree(came, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(DTYPES), copy_function=shutil.copyfile)
  else:
    checkpoint.write_json(folder / "config.json", reference.to_theirs(config.model))
  weights.export(params, weights.plan(config.model, shapes), dtypes, folder)


def _open(folder):
  """-> its config.json."""
  try:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise UserError(f"{folder}/config.json: cannot be read: {error}, expected a checkpoint as the hub lays it out") from error


def _read_processor(path, data):
  """How GR00T N1.7 saw its pictures and instructions, where its processor_config.json tells: config.data.image_size, crop, plain_text."""
  if not path.is_file():
    return
  try:
    told = json.loads(path.read_text(encoding="utf-8")).get("processor_kwargs", {})
  except (ValueError, AttributeError) as error:
    raise UserError(f"{path}: cannot be read: {error}") from error
  if told.get("shortest_image_edge") or told.get("letter_box_transform"):
    raise UserError(f"{path}: found shortest_image_edge or letter_box_transform, expected neither: we have no such way to fit a picture")
  if told.get("image_target_size"):
    data.image_size = tuple(told["image_target_size"])
    share = told["image_crop_size"][0] / data.image_size[0] if told.get("image_crop_size") else 1.0
    data.crop = float(told.get("crop_fraction") or share)
  data.plain_text = bool(told.get("formalize_language", data.plain_text))


def _beyond(kept, name):
  """Is it a tensor of Qwen3-VL that we have no place for: a later decoder layer, or the output matrix?"""
  layer = name.removeprefix(QWEN + "language_model.layers.").split(".")[0]
  return name == "lm_head.weight" or (name.startswith(QWEN + "language_model.layers.") and layer.isdigit() and int(layer) >= kept)


def _start(folder):
  folder = pathlib.Path(folder)
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise UserError(f"--output={folder}: found something there, expected a new or an empty folder")
  folder.mkdir(parents=True, exist_ok=True)


def _write(folder, workdir, config, params, statistics, dtypes):
  """A work directory, and what the way back needs."""
  workdir = pathlib.Path(workdir)
  print(_unread(folder, kept=bool(dtypes)), flush=True)
  if dtypes:
    (workdir / run_lib.REFERENCE).mkdir()
    for file in sorted(folder.glob("*.json")):
      if file.name != weights.INDEX:
        shutil.copyfile(file, workdir / run_lib.REFERENCE / file.name)
    checkpoint.write_json(workdir / run_lib.REFERENCE / DTYPES, dtypes)
  given = pathlib.Path(config.data.tokenizer or folder / "tokenizer.json")
  text_tokenizer = tokenizer.load(given) if config.data.tokenizer or given.is_file() else None
  run_lib.write_parameters(workdir, config, params, text_tokenizer, slots.load(statistics) if statistics else {})


def _unread(folder, kept):
  """A line on what the folder has beyond what we read; their statistics are among it: --statistics gives ours."""
  names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir() if path.suffix != ".safetensors" and path.name not in READ)
  back = [name for name in names if kept and name.endswith(".json")]
  ignored = [name for name in names if name not in back]
  return f"not read, but kept for the way back: {', '.join(back) or 'nothing'}; ignored: {', '.join(ignored) or 'nothing'}"

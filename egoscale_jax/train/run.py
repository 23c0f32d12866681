"""A work directory: config, tokenizer, statistics, checkpoints; what the next stage, the policy, the evaluation and a colab open.

```
workdir/config.json tokenizer.json statistics.json shards.sha256 hands/ metrics.jsonl checkpoints/STEP/ checksums/STEP.json
        started.json tensorboard/ profile/ damaged/STEP/ lock
```
"""

import dataclasses
import functools
import json
import operator
import pathlib
import shutil

import jax
import ml_collections

from egoscale_jax import config as config_lib
from egoscale_jax.data import manifest, mixture, slots, spec, statistics, tokenizer
from egoscale_jax.errors import UserError
from egoscale_jax.hands import hand as hand_lib
from egoscale_jax.hands import keypoints
from egoscale_jax.models import vla
from egoscale_jax.train import checkpoint, distributed, sharding, weights_and_biases
from egoscale_jax.train import step as step_lib

# What may differ when a run goes on: nothing that changes a number of it, but for the last three, which change the order of sums.
FREE_ON_RESUME = ("log_every", "checkpoint_every", "keep_checkpoints", "validate_every", "validation")
FREE_ON_RESUME += ("skip_limit", "profile", "wandb", "mesh", "model.attention", "model.remat")
HANDS = "hands"  # in a work directory: the descriptions of the hands that its labels and its actions are of
REFERENCE = "reference"  # in a work directory: the small files of the checkpoint that its parameters came from (convert.py)
POSITIVE = ("batch_size", "steps", "accumulate", "flow_draws", "log_every", "checkpoint_every", "keep_checkpoints", "validate_every")
POSITIVE += ("validation.batch_size", "validation.times", "validation.draws", "model.flow.steps")
FREE_DATA_ON_RESUME = ("threads", "workers", "prefetch_bytes", "cache_bytes", "unreadable", "shards")


@dataclasses.dataclass(frozen=True)
class Run:
  """What is known before a parameter is allocated."""

  config: ml_collections.ConfigDict
  prompt: tokenizer.Prompt
  statistics: dict[int, statistics.Statistics]  # by adapter slot: the ones that the parameters were trained with
  model: vla.VLA
  mesh: jax.sharding.Mesh
  state_shapes: step_lib.TrainState
  state_shardings: step_lib.TrainState

  def final_params(self, state):
    """Of a TrainState: see step.final_params."""
    if state.lora is None and state.average is None:
      return state.params
    merge = functools.partial(step_lib.final_params, self.config)
    return jax.jit(merge, out_shardings=self.state_shardings.params)(state.params, state.lora, state.average)

  @property
  def batch_shapes(self):
    return spec.batch_shapes(self.config, self.prompt.length)


def make_run(config, text_tokenizer, stats, devices=None):
  """Config, tokenizer and statistics -> Run: shapes and shardings by jax.eval_shape."""
  _check(config)
  prompt = make_prompt(config, text_tokenizer)
  prompt.check(config.model)
  mesh = sharding.make_mesh(config, devices)
  model = vla.VLA(config.model, mesh.abstract_mesh)
  shapes = jax.eval_shape(lambda batch: step_lib.init_state(model, config, batch), spec.batch_shapes(config, prompt.length))
  return Run(config, prompt, stats, model, mesh, shapes, sharding.state_shardings(shapes, mesh))


def _check(config):
  for name in POSITIVE:
    if (found := functools.reduce(operator.getitem, name.split("."), config)) < 1:
      raise UserError(f"config.{name}: found {found}, expected at least 1")
  if not 0 <= config.ema < 1:
    raise UserError(f"config.ema: found {config.ema}, expected from 0 to less than 1")
  if config.skip_limit < 0:
    raise UserError(f"config.skip_limit: found {config.skip_limit}, expected at least 0")
  steps = config.profile
  if steps and not (len(steps) == 2 and all(isinstance(step, int) for step in steps) and 1 <= steps[0] <= steps[1]):
    raise UserError(f"config.profile: found {steps}, expected (first, last) step, or ()")


def make_prompt(config, text_tokenizer=None):
  """Of the config's cameras and image size; without a tokenizer its length alone is of use."""
  if len(config.data.image_size) != 2:
    raise UserError(f"config.data.image_size: found {config.data.image_size}, expected (height, width)")
  cell = config.model.vision.patch * config.model.vision.merge
  height, width = config.data.image_size
  if height % cell or width % cell:
    raise UserError(f"config.data.image_size: found {(height, width)}, expected multiples of patch x merge = {cell}")
  return tokenizer.Prompt(
    text_tokenizer, len(config.data.cameras), (height // cell) * (width // cell), config.data.text_tokens, config.data.plain_text
  )


def agree(config, workdir):
  """Before anything is written: the data are there, the packages too, and all processes have the same config, work directory and data."""
  mixture.folders(config)  # an error where there are none
  if config.wandb and distributed.is_first():
    weights_and_biases.load()
  told = dict(config_lib.flat(json.loads(config.to_json()), "config."))
  distributed.check_same({"--workdir": str(workdir), **told, "contents of config.data.shards": mixture.fingerprint(config)})


def start(config, workdir, devices=None):
  """Makes or continues a work directory -> Run. The tokenizer and the statistics are fixed at the first start.

  Process 0 makes it; the others find it there.
  """
  workdir = pathlib.Path(workdir)
  if distributed.from_first(lambda: int((workdir / "config.json").exists())):
    _check_resume(workdir, config)
  else:
    if config.init_from:
      _check_init_from(config)
    if distributed.is_first():
      try:
        workdir.mkdir(parents=True, exist_ok=True)
        _begin(config, workdir, devices)
      except OSError as error:
        raise UserError(f"--workdir={workdir}: cannot be written: {error.strerror}") from error
  distributed.wait_for_all("the work directory is there")
  if not (workdir / "config.json").exists():
    me = jax.process_index()
    raise UserError(
      f"--workdir={workdir}: process 0 made it, process {me} does not see it; expected a file system that all processes share"
    )
  return make_run(config, tokenizer.load(workdir / "tokenizer.json"), slots.load(workdir / "statistics.json"), devices)


def _begin(config, workdir, devices):
  """Writes tokenizer.json (of `_tokenizer`), statistics.json and, last, config.json: from then on it is a run."""
  texts = sorted({e["text"] for path in _folders(config) for e in manifest.load(path)["episodes"] if "text" in e})
  made = _tokenizer(config, texts)
  stats = slots.of_run(config)
  run = make_run(config, made, stats, devices)
  for text in texts:
    run.prompt(text)  # an instruction that does not fit ends the run here, not after hours
  for table in stats.values():
    table.normalizer(config.model.horizon, config.data.stride, config.data.resting)  # so does a dimension that never moves
  (workdir / "tokenizer.json").write_text(made.to_str(pretty=True), encoding="utf-8")
  slots.save(stats, workdir / "statistics.json")
  for path in sorted({path for table in stats.values() for side in keypoints.SIDES for path in hand_lib.files(table.hand, side)}):
    (workdir / HANDS).mkdir(exist_ok=True)
    shutil.copyfile(path, workdir / HANDS / path.name)
  if config.init_from and (pathlib.Path(config.init_from) / REFERENCE).is_dir():  # what `egoscale convert --to` needs to hand it back
    shutil.copytree(pathlib.Path(config.init_from) / REFERENCE, workdir / REFERENCE, dirs_exist_ok=True)
  (workdir / "shards.sha256").write_text(mixture.fingerprint(config), encoding="utf-8")
  checkpoint.write_json(workdir / "config.json", json.loads(config.to_json()))


def _check_init_from(config):
  """UserError where its parameters cannot be read or do not fit: told after config.json is there it would spoil the work directory.

  By every process, since they find the newest sound checkpoint together.
  """
  read_config(config.init_from)  # an error where it is no work directory
  step = checkpoint.latest_step(config.init_from)
  found = {path: leaf for path, leaf in checkpoint.described(config.init_from, step).items() if path.startswith("params/")}
  checkpoint.compare({"params": vla.param_shapes(vla.VLA(config.model))}, found, f"{config.init_from}/checkpoints/{step}")


def _tokenizer(config, texts):
  """config.data.tokenizer; else that of config.init_from, whose embeddings know no other ids; else a small one of the texts."""
  given = tokenizer.load(config.data.tokenizer) if config.data.tokenizer else None
  if not config.init_from:
    return given or tokenizer.build(texts, config.model.language.vocab)
  path = pathlib.Path(config.init_from) / "tokenizer.json"
  if not path.is_file():  # `egoscale convert` found none
    if given is None:
      raise UserError(f"config.data.tokenizer: empty, and {path} is missing; expected the one that its parameters were trained with")
    return given
  before = tokenizer.load(path)
  mine, theirs = (found.get_vocab() for found in (before if given is None else given, before))
  if mine != theirs:
    raise UserError(
      f"config.data.tokenizer={config.data.tokenizer}: found {len(mine)} tokens, {len(mine.items() - theirs.items())} of them not in"
      f" {path} with the same id; expected its vocabulary of {len(theirs)}, or '' to take it"
    )
  return before if given is None else given


def write_parameters(workdir, config, params, text_tokenizer=None, stats=None):
  """Parameters that no run has left as a work directory at step 0: the next stage and what else reads parameters opens it."""
  config = config.copy_and_resolve_references().unlock()
  config.ema, config.lora.rank = 0.0, 0  # those are of a run, and here is none yet
  workdir.mkdir(parents=True, exist_ok=True)
  with checkpoint.manager(workdir, keep=1) as checkpoints:
    checkpoint.save(checkpoints, 0, {"params": params})
    checkpoints.wait_until_finished()
  checkpoint.write_sums(workdir, 0)
  if text_tokenizer is not None:
    (workdir / "tokenizer.json").write_text(text_tokenizer.to_str(pretty=True), encoding="utf-8")
  slots.save(stats or {}, workdir / "statistics.json")
  checkpoint.write_json(workdir / "config.json", json.loads(config.to_json()))  # last: from then on it is a work directory


def read_config(workdir):
  """The config of a work directory, for one device, whatever kind it is."""
  path = pathlib.Path(workdir) / "config.json"
  if not path.is_file():
    raise UserError(f"{workdir}: config.json is missing, expected a work directory of `egoscale train`")
  config = ml_collections.ConfigDict(_tuples(json.loads(path.read_text(encoding="utf-8"))))
  config.mesh = dict(data=1, fsdp=1, tensor=1)
  config.model.attention = "auto"
  return config


def open_run(workdir, shards=None, step=None):
  """An existing work directory -> (Run on this process's first device, its parameters, their step); step: None is the newest."""
  workdir = pathlib.Path(workdir)
  config = read_config(workdir)
  if shards is not None:
    config.data.shards, config.data.mixture = str(shards), ml_collections.ConfigDict()
  stats = slots.load(workdir / "statistics.json")
  run = make_run(config, tokenizer.load(workdir / "tokenizer.json"), stats, jax.devices()[:1])
  step = checkpoint.latest_step(workdir) if step is None else step
  return run, final_params(workdir, run.state_shapes.params, run.state_shardings.params, step), step


def final_params(workdir, shapes, shardings, step=None, averaged=True):
  """The newest parameters of a work directory as the next stage, the policy and an export read them: see step.final_params.

  averaged: False leaves out the running mean of a run with config.ema.
  """
  config = read_config(workdir)
  step = checkpoint.latest_step(workdir) if step is None else step
  parts, on = {"params": shapes}, {"params": shardings}
  if config.ema or config.lora.rank:
    model = vla.VLA(config.model)
    state = jax.eval_shape(lambda batch: step_lib.init_state(model, config, batch), vla.blank_batch(config.model, 1))
    state_on = sharding.state_shardings(state, jax.tree.leaves(shardings)[0].mesh)
    kept = ("params", "lora", "average") if averaged else ("params", "lora")
    parts = {name: getattr(state, name) for name in kept if getattr(state, name) is not None}
    on = {name: getattr(state_on, name) for name in parts}
  with checkpoint.manager(workdir) as checkpoints:
    found = checkpoint.restore(checkpoints, step, parts, on)
  if len(parts) == 1:
    return found["params"]
  checkpoint.compare(shapes, found["params"], f"{workdir}")
  return jax.jit(lambda found: step_lib.final_params(config, **found), out_shardings=shardings)(found)


def _tuples(value):
  """JSON has lists where a config has tuples."""
  if isinstance(value, dict):
    return {key: _tuples(item) for key, item in value.items()}
  return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _folders(config):
  """Every folder of prepared data that the config names."""
  return sorted({path for folder in mixture.folders(config).values() for path in (folder["shards"], folder["pairs"]) if path})


def _check_resume(workdir, config):
  """A run goes on only with the config that it began with, but for what changes no number."""
  begun = workdir / "shards.sha256"
  if not begun.is_file():  # of `egoscale convert`, or contents.take_parameters
    raise UserError(
      f"--workdir={workdir}: {begun.name} is missing, so it has parameters alone, from which no run goes on; expected a new --workdir with"
      f" --config.init_from={workdir}"
    )
  free = (*FREE_ON_RESUME, *(f"data.{name}" for name in FREE_DATA_ON_RESUME))
  old, new = json.loads((workdir / "config.json").read_text(encoding="utf-8")), json.loads(config.to_json())
  changed = config_lib.changes(old, new, "the run", lambda key: any(key == name or key.startswith(name + ".") for name in free))
  if changed:
    raise UserError(f"--workdir={workdir} holds another run: {'; '.join(changed[:3])}; take a new --workdir")
  if mixture.fingerprint(config) != begun.read_text(encoding="utf-8"):
    told = ", ".join(_folders(config))
    raise UserError(f"config.data.shards={told}: holds other data than the run of {workdir} began with; take a new --workdir")

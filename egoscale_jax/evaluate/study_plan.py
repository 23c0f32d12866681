"""The runs of a scaling study, known before any of them begins: subsets of the hours x sizes x seeds, at equal steps and at equal passes.

Every run is one of `egoscale train`, with the study's config but for what `Cell` names. Subsets are nested (config.data.twentieths), all
runs share the tokenizer, the statistics and the validation's points and noise, and so their losses can be compared. At equal passes a run
sees each frame as often as any other, in fewer steps where it has fewer hours; a run that serves both is made once.
"""

import dataclasses
import json
import math
import re

import jax
import ml_collections

from egoscale_jax import config as config_lib
from egoscale_jax.data import mixture, shards
from egoscale_jax.errors import UserError
from egoscale_jax.models import flops, vla

STEPS, PASSES = "equal steps", "equal passes"
BUDGETS = (STEPS, PASSES)
# What may change while a study is under way: no number of it follows from these.
FREE = ("log_every", "checkpoint_every", "keep_checkpoints", "wandb", "profile")
FREE += tuple(f"data.{name}" for name in ("threads", "workers", "prefetch_bytes", "cache_bytes", "shards"))
_SIZED = ("model", "optim")  # what a size may set: the rest is the same for all, or they could not be compared


@dataclasses.dataclass(frozen=True)
class Cell:
  """One run. hours, episodes, frames: of its subset; flops: of all its steps."""

  name: str
  size: str
  twentieths: int
  seed: int
  steps: int
  budgets: tuple[str, ...]
  hours: float
  episodes: int
  frames: int
  parameters: int
  flops: int
  flops_per_example: int


def sized(config, size):
  """The study's config with what a size sets."""
  config = copied(config)
  update(config, config.scaling.sizes[size], f"config.scaling.sizes.{size}")
  return config


def copied(config):
  """Of all its parts, to be changed."""
  return ml_collections.ConfigDict(config.copy_and_resolve_references().to_dict())


def update(config, given, where):
  for key, value in given.items():
    if key not in config or hasattr(value, "items") != hasattr(config[key], "items"):
      raise UserError(f"{where}: found {key}, expected one of {', '.join(config)}")
    if hasattr(value, "items"):
      update(config[key], value, f"{where}.{key}")
    else:
      config[key] = value


def run_config(config, cell):
  """-> the locked config of a cell's run: an ordinary one, without `scaling`."""
  made = sized(config, cell.size)
  made.data.twentieths, made.seed, made.steps = cell.twentieths, cell.seed, cell.steps
  made.validate_every = -(-cell.steps // config.scaling.validations)
  del made.scaling
  return made.lock()


def cells(config) -> list[Cell]:
  """All runs, the seeds outermost: after the first of them there is a law already."""
  _check(config)
  scaling, subsets = config.scaling, _subsets(config)
  largest = subsets[max(scaling.twentieths)]
  passes = scaling.passes or config.steps * config.batch_size / largest["frames"]
  counted = {size: _count(sized(config, size)) for size in scaling.sizes}
  counted = dict(sorted(counted.items(), key=lambda item: item[1][1]))  # the cheapest first
  result = []
  for seed in scaling.seeds:
    for size, (parameters, example) in counted.items():
      for twentieths, subset in subsets.items():
        lengths = {STEPS: config.steps, PASSES: max(1, round(passes * subset["frames"] / config.batch_size))}
        for steps in sorted(set(lengths.values())):
          name = f"{size}-{twentieths:02d}of{shards.TWENTIETHS}-{steps}steps-seed{seed}"
          budgets = tuple(budget for budget in BUDGETS if lengths[budget] == steps)
          total = example * steps * config.batch_size
          result.append(
            Cell(name, size, twentieths, seed, steps, budgets, **subset, parameters=parameters, flops=total, flops_per_example=example)
          )
  return result


def _check(config):
  if "scaling" not in config:
    raise UserError("--config: has no `scaling`, expected a study's config as configs/scaling.py")
  scaling = config.scaling
  for name in ("twentieths", "seeds"):
    if not scaling[name] or len(set(scaling[name])) < len(scaling[name]):
      raise UserError(f"config.scaling.{name}: found {scaling[name]}, expected different numbers")
  if not scaling.sizes:
    raise UserError("config.scaling.sizes: found none, expected at least one")
  for size, given in scaling.sizes.items():
    if not re.fullmatch(r"\w+", size) or set(given) - set(_SIZED):
      raise UserError(f"config.scaling.sizes.{size}: found {', '.join(given)}, expected {' and '.join(_SIZED)} alone")
  if not 0 <= scaling.passes < math.inf:
    raise UserError(
      f"config.scaling.passes: found {scaling.passes}, expected a number, or 0 for those of config.steps on the largest subset"
    )
  if scaling.validations < 1:
    raise UserError(f"config.scaling.validations: found {scaling.validations}, expected at least 1")
  if config.lora.rank:
    raise UserError(f"config.lora.rank: found {config.lora.rank}, expected 0: the FLOPs of adapters are not counted")
  paths = {path for folder in mixture.folders(config).values() for path in (folder["shards"], folder["pairs"]) if path}
  if not config.validation.episodes or not any((shards.load_index(path)["split"] == 1).any() for path in paths):
    told = f"{', '.join(sorted(paths))}, config.validation.episodes = {config.validation.episodes}"
    raise UserError(f"config.data.shards: found no held-out episode in {told}, expected a validation split")


def subset(config):
  """{hours, episodes, frames} that a run of the config trains on."""
  found = mixture.make(config).components
  return {name: sum(getattr(c, name) for c in found) for name in ("hours", "episodes", "frames")}


def _subsets(config):
  """{twentieths: {hours, episodes, frames}} of the training clips, in order; UserError where two subsets are the same."""
  result, before = {}, None
  for twentieths in sorted(config.scaling.twentieths):
    part = copied(config)
    part.data.twentieths = twentieths
    told = subset(part)
    if before and told["episodes"] == result[before]["episodes"]:
      raise UserError(
        f"config.scaling.twentieths: {before} and {twentieths} hold the same {told['episodes']} episodes ({told['hours']:.3g} h), expected"
        " more episodes or fewer subsets"
      )
    result[twentieths], before = told, twentieths
  return result


def _count(config):
  """-> parameters, and FLOPs of a training example with config.train_parts."""
  shapes = jax.tree_util.tree_leaves_with_path(vla.param_shapes(vla.VLA(config.model)))
  names = ["/".join(str(key.key) for key in path) for path, _ in shapes]
  trained = {name.split("/")[0] for name in names if any(re.fullmatch(pattern, name) for pattern in config.train_parts)}
  return sum(leaf.size for _, leaf in shapes), flops.training(config, trained)


def to_json(config) -> dict:
  """What a study is: its config and its data."""
  return {"config": json.loads(config.to_json()), "data": mixture.fingerprint(config)}


def only_config(config) -> dict:
  """As to_json, of a study that makes its data itself."""
  return {"config": json.loads(config.to_json()), "data": ""}


def check_same(old, new, where):
  """UserError that names the first fields in which a study differs from the one that `where` began with."""
  changed = config_lib.changes(old["config"], new["config"], "the study", lambda key: key in FREE)
  if changed:
    raise UserError(f"--workdir={where} holds another study: {'; '.join(changed[:3])}; take a new --workdir")
  if old["data"] != new["data"]:
    raise UserError(f"config.data.shards: holds other data than the study of {where} began with; take a new --workdir")

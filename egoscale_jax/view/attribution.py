"""`egoscale scaling --attribute`: a work directory's training data, ranked by what it does to a target (evaluate/attribution.py)."""

import functools
import pathlib

import jax

from egoscale_jax.data import examples, mixture
from egoscale_jax.errors import UserError
from egoscale_jax.evaluate import attribution
from egoscale_jax.models import augment, vla
from egoscale_jax.train import checkpoint, optim, run, step

lines = attribution.lines


def attribute(workdir, target="", batches=8, batch_size=0):
  """target: a folder of shards; empty: the run's own. -> what `rank` tells, with the step; the path of attribution.json."""
  opened, params, at = run.open_run(workdir)
  config, goal = opened.config, attribution.target(target or _only_folder(opened.config))
  trained = optim.select(params, optim.trainable(params, config.train_parts), True)
  if not jax.tree.leaves(trained):
    raise UserError(f"{workdir}: config.train_parts trains nothing of the model itself: there is no gradient to compare")
  size = batch_size or config.validation.batch_size
  assembler = examples.make_assembler(config, opened.prompt, opened.statistics)
  loss = functools.partial(_loss, opened.model, config, params)
  told = attribution.rank(loss, trained, assembler, goal, attribution.groups(config), batches, size)
  told = {"workdir": str(workdir), "step": at, **told}
  output = pathlib.Path(workdir) / "attribution.json"
  checkpoint.write_json(output, told)
  return told, output


def _loss(model, config, params, trained, batch, seed):
  """The training loss without dropout and augmentation, of what is trained."""
  whole = step.whole(config, params, (trained, None))
  return vla.loss(model, {"params": whole}, augment.centred(batch, config.augment), seed, config.flow_draws, train=False)


def _only_folder(config):
  paths = {folder["shards"] for folder in mixture.folders(config).values()}
  if len(paths) > 1:
    raise UserError(f"--target: found none, expected one of the run's folders or another: {', '.join(sorted(paths))}")
  return paths.pop()

"""`egoscale evaluate`: a run's validation figures into its work directory, with their picture."""

import pathlib

from egoscale_jax.errors import UserError, check_workdir
from egoscale_jax.evaluate import validation
from egoscale_jax.train import checkpoint, run
from egoscale_jax.view import plots


def evaluate(workdir, wanted):
  """`wanted`: a config of which `validation` and, if it names any, `data.shards` are taken. -> figures with the step, the .json's path."""
  check_workdir("workdir", workdir)
  opened, params, step = run.open_run(workdir, shards=wanted.data.shards or None)
  opened.config.validation = wanted.validation
  figures = validation.Validation(opened.config, opened.prompt, opened.model, opened.statistics).run(params)
  if not figures["points"]:
    raise UserError(f"{opened.config.data.shards}: the validation split holds no labelled frame")
  output = pathlib.Path(workdir) / "validation.json"
  checkpoint.write_json(output, {"step": step, **figures})
  plots.baselines(figures, output.with_suffix(".png"))
  return {"step": step, **figures}, output

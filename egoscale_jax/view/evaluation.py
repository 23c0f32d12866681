"""`egoscale evaluate`: a run's validation figures into its work directory, with their picture."""

import pathlib

from egoscale_jax.data import units
from egoscale_jax.errors import UserError, check_workdir
from egoscale_jax.evaluate import validation
from egoscale_jax.train import checkpoint, run
from egoscale_jax.view import plots


def evaluate(workdir, wanted=None):
  """`wanted`: a config of which `validation` and, if it names any, `data.shards` are taken. -> figures with the step, the .json's path."""
  check_workdir("workdir", workdir)
  opened, params, step = run.open_run(workdir, shards=wanted.data.shards or None if wanted else None)
  if wanted:
    opened.config.validation = wanted.validation
  figures = validation.Validation(opened.config, opened.prompt, opened.model, opened.statistics).run(params)
  if not figures["points"]:
    raise UserError(f"{opened.config.data.shards}: the validation split holds no labelled frame")
  output = pathlib.Path(workdir) / "validation.json"
  checkpoint.write_json(output, {"step": step, **figures})
  plots.baselines(figures, output.with_suffix(".png"))
  return {"step": step, **figures}, output


def lines(figures) -> list[str]:
  """For a person: three digits of each figure, and beside each baseline how many times its error the policy has."""
  asked = f"{figures['points']} queries of {figures['episodes']} held-out episodes"
  told = [f"step {figures['step']}: {asked}, {figures['draws']} samples each"]
  error = figures["action_mse"]
  told.append(f"policy: action MSE {error:.3g} (normalised, mean of the samples; one sample {figures['action_mse_one_sample']:.3g})")
  for key, name in (("hold_still_mse", "holding still"), ("mean_chunk_mse", "the mean chunk of the training data")):
    times = error / max(figures[key], 1e-12)
    told.append(f"{times:.3g} times the error of {name} ({figures[key]:.3g}): {'better' if times < 1 else 'not better'}")
  groups = [f"{group} {figures[group]:.3g}" for group in units.GROUPS if group in figures]
  return [*told, ", ".join([*groups, f"flow loss {figures['flow_loss']:.3g}"])]

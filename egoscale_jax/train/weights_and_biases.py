"""Scalars to Weights & Biases, where config.wandb names a project; imported only then. WANDB_MODE=offline needs no network."""

import pathlib

from egoscale_jax.errors import UserError


def load():
  """The package; UserError where it is not installed."""
  try:
    import wandb
  except ImportError as error:
    raise UserError(f"config.wandb: needs the package wandb, which cannot be imported ({error}): pip install wandb") from error
  return wandb


class Events:
  """A run of the project, the same one after a restart: of the steps that come again it keeps what it was told first."""

  def __init__(self, config, workdir, started):
    """started: when the run began first, in unix seconds: with the folder's name its id."""
    wandb, name = load(), pathlib.Path(workdir).resolve().name
    try:
      self._run = wandb.init(
        project=config.wandb, name=name, id=f"{name}-{round(started)}", resume="allow", dir=str(workdir), config=config.to_dict()
      )
    except wandb.Error as error:
      raise UserError(f"config.wandb: found {config.wandb!r}, and the run cannot be opened: {' '.join(str(error).split())}") from error

  def scalars(self, step, values):
    self._run.log(values, step=step)

  def close(self):
    self._run.finish()

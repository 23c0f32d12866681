"""Training, on one page: `egoscale train --config=configs/X.py --workdir=DIR`.

State and step determine everything: the data (data/pipeline.py), the noise (models/flow.py), the dropout. So a run that is killed and
started again goes on from its last checkpoint with the very numbers of a run that was not.
"""

import contextlib
import functools
import pathlib
import time

import jax

from egoscale_jax.data import pipeline
from egoscale_jax.evaluate import validation
from egoscale_jax.models import vla
from egoscale_jax.train import checkpoint, metrics, sharding
from egoscale_jax.train import run as run_lib
from egoscale_jax.train import step as step_lib


def main(config, workdir, devices=None):
  """Trains to config.steps on `devices` (default: all), continuing what is in workdir. -> the last validation's figures, or None."""
  workdir = pathlib.Path(workdir)
  run = run_lib.start(config, workdir, devices)
  parameters = sum(leaf.size for leaf in jax.tree.leaves(run.state_shapes.params))
  print(f"{parameters / 1e6:.1f} M parameters, {run.mesh.size} x {jax.devices()[0].device_kind}, mesh {dict(run.mesh.shape)}", flush=True)
  for choice, parts in vla.attention_choices(config, run.prompt.length, run.mesh.devices.flat[0].platform).items():
    print(f"attention {choice.name} ({choice.reason}): {', '.join(parts)}", flush=True)

  with contextlib.ExitStack() as stack:
    # 1. a checkpoint of this run; 2. the parameters of the stage before; 3. fresh parameters.
    checkpoints = stack.enter_context(checkpoint.manager(workdir, config.keep_checkpoints))
    if checkpoints.latest_step() is not None:
      state = checkpoint.restore(checkpoints, checkpoints.latest_step(), run.state_shapes, run.state_shardings)
      print(f"continuing {workdir} from step {int(state.step)}", flush=True)
    else:
      # Read before anything is compiled: parameters that do not fit are told at once. And only they: no fresh ones beside them.
      shapes, shardings = run.state_shapes.params, run.state_shardings.params
      given = run_lib.final_params(config.init_from, shapes, shardings) if config.init_from else None
      init = jax.jit(functools.partial(step_lib.init_state, run.model, config), out_shardings=run.state_shardings, donate_argnums=1)
      state = init(pipeline.fake_batch(run.batch_shapes), given)
      if config.init_from:
        print(f"parameters from {config.init_from}", flush=True)

    first_step = int(state.step)
    batches = pipeline.train_batches(config, run.prompt, run.statistics, first_step)
    print("\n".join(batches.mixture.lines(config.steps * config.batch_size, config.data.windows)), flush=True)
    held_out = validation.Validation(config, run.prompt, run.model, run.statistics)
    train_step = step_lib.jit_train_step(run.model, config, run.state_shardings, run.mesh, run.batch_shapes, held_out.units)
    log = stack.enter_context(contextlib.closing(metrics.Metrics(workdir, first_step, config)))
    figures, last = None, None  # `last`: metrics of the step before, fetched while this one runs, so that the host never waits

    for step in range(first_step + 1, config.steps + 1):
      began = time.perf_counter()
      batch = sharding.to_global(next(batches), run.mesh)
      wait = time.perf_counter() - began
      with jax.transfer_guard("disallow"):  # catches a numpy array or a Python number that would be sent to the device every step
        state, values = train_step(state, batch)
      if last is not None:
        log.step(step - 1, *last)
      last = (values, wait, batches.info)
      save = step % config.checkpoint_every == 0 or step == config.steps
      validate = step % config.validate_every == 0 or step == config.steps
      if save or validate:
        log.step(step, *last)
        last = None
      if validate:  # before the save: a kill in between repeats it
        figures = held_out.run(run.final_params(state))
        log.validation(step, figures)
      if save:
        checkpoint.save(checkpoints, step, state)
    checkpoints.wait_until_finished()
  return figures

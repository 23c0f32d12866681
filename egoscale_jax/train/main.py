"""Training, on one page: `egoscale train --config=configs/X.py --workdir=DIR`.

State and step determine everything: the data (data/pipeline.py), the noise (models/flow.py), the dropout. So a run that is killed and
started again goes on from its last checkpoint with the very numbers of a run that was not. On several processes (distributed.py) each runs
this page, reads its own rows of every batch, and process 0 writes.
"""

import contextlib
import functools
import pathlib
import time

import jax

from egoscale_jax.data import pipeline
from egoscale_jax.errors import Preempted
from egoscale_jax.evaluate import validation
from egoscale_jax.models import vla
from egoscale_jax.train import checkpoint, distributed, lock, metrics, preemption, profile, sharding
from egoscale_jax.train import run as run_lib
from egoscale_jax.train import step as step_lib


def main(config, workdir, devices=None):
  """Trains to config.steps on `devices` (default: all), continuing what is in workdir. -> the last validation's figures, or None."""
  workdir, say = pathlib.Path(workdir), distributed.say
  with contextlib.ExitStack() as stack:
    preempted = stack.enter_context(preemption.Preemption())
    run_lib.agree(config, workdir)
    stack.enter_context(lock.alone(workdir))
    run = run_lib.start(config, workdir, devices)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(run.state_shapes.params))
    say(f"{parameters / 1e6:.1f} M parameters, {run.mesh.size} x {jax.devices()[0].device_kind}, mesh {dict(run.mesh.shape)}")
    for choice, parts in vla.attention_choices(config, run.prompt.length, run.mesh.devices.flat[0].platform).items():
      say(f"attention {choice.name} ({choice.reason}): {', '.join(parts)}")

    # 1. a checkpoint of this run; 2. the parameters of the stage before; 3. fresh parameters.
    newest = checkpoint.resumable_step(workdir)
    checkpoints = stack.enter_context(checkpoint.Saver(workdir, config.keep_checkpoints))
    if newest is not None:
      state = checkpoint.restore(checkpoints.manager, newest, run.state_shapes, run.state_shardings)
      say(f"continuing {workdir} from step {int(state.step)}")
    else:
      # Read before anything is compiled: parameters that do not fit are told at once. And only they: no fresh ones beside them.
      shapes, shardings = run.state_shapes.params, run.state_shardings.params
      given = run_lib.final_params(config.init_from, shapes, shardings) if config.init_from else None
      init = jax.jit(functools.partial(step_lib.init_state, run.model, config), out_shardings=run.state_shardings, donate_argnums=1)
      state = init(vla.blank_batch(config.model, 1), given)
      if config.init_from:
        say(f"parameters from {config.init_from}")

    first_step = int(state.step)
    batches = pipeline.train_batches(config, run.prompt, run.statistics, first_step)
    say("\n".join(batches.mixture.lines(config.steps * config.batch_size, config.data.windows)))
    held_out = validation.Validation(config, run.prompt, run.model, run.statistics)
    together = dict(stop=lambda: preempted.noticed, compiled=lambda: distributed.wait_for_all("validation"), fetch=distributed.fetch)
    validate = lambda state: held_out.run(run.final_params(state), **together)  # noqa: E731
    train_step = step_lib.jit_train_step(run.model, config, run.state_shardings, run.mesh, run.batch_shapes, held_out.units)
    if first_step < config.steps:
      train_step = train_step.lower(run.state_shapes, run.batch_shapes).compile()
    distributed.wait_for_all("the train step")
    log = stack.enter_context(contextlib.closing(metrics.Metrics(workdir, first_step, config, metrics.use_at_a_second(run))))
    profiler = stack.enter_context(profile.Profile(workdir, config.profile))
    figures, last = None, None  # `last`: metrics of the step before, fetched while this one runs, so that the host never waits
    is_due = lambda step, every: step % every == 0 or step == config.steps  # noqa: E731
    if first_step and is_due(first_step, config.validate_every) and not log.validated():  # saved, and ended before or in the middle of it
      if (figures := validate(state)) is None:
        raise Preempted(f"preempted at step {first_step}, nothing is lost: the same command goes on from there")
      log.validation(first_step, figures)

    for step in range(first_step + 1, config.steps + 1):
      began = time.perf_counter()
      batch = sharding.to_global(next(batches), run.mesh)
      wait = time.perf_counter() - began
      profiler.before(step)
      with jax.transfer_guard("disallow"):  # catches a numpy array or a Python number that would be sent to the device every step
        state, values = train_step(state, batch)
      profiler.after(step, values)
      if last is not None:
        log.step(step - 1, *last)
      last = (values, wait, batches.info)
      stop = preempted.after(step)
      save, check = stop or is_due(step, config.checkpoint_every), is_due(step, config.validate_every)
      if save or check:
        log.step(step, *last)
        last = None
      if save:  # before the validation, which may be long and of several processes hears no SIGTERM: the next start repeats what is missing
        checkpoints.save(step, state)
      if check and not stop:
        if (figures := validate(state)) is not None:
          log.validation(step, figures)
        else:  # SIGTERM came in the middle of it
          stop = True
          if not save:
            checkpoints.save(step, state)
      checkpoints.poll()
      if stop:
        checkpoints.finish(step)
        raise Preempted(f"preempted at step {step}: all is saved in {workdir}, the same command goes on from there")
    checkpoints.finish(config.steps)
    say(f"{workdir} is trained to step {config.steps}: `egoscale report`, `evaluate`, `rollout` and `serve` take it (docs/README.md)")
  return figures

"""The command line: `egoscale VERB ...`, also `python -m egoscale_jax.cli VERB ...`. A user's mistake is one line and exit code 1."""

import dataclasses
import functools
import importlib
import json
import os
import pathlib
import platform
import sys

from absl import logging

from egoscale_jax import arguments as arguments_lib
from egoscale_jax import zen4
from egoscale_jax.errors import EXIT_PREEMPTED, Preempted, UserError, check_workdir


def simulate(arguments):
  from egoscale_jax.sim import record

  size = (arguments.image_size, arguments.image_size)
  record.record(pathlib.Path(arguments.output), arguments.episodes, arguments.seed, arguments.workers, size)
  print(f"wrote {arguments.episodes} recordings to {arguments.output}")


def record(arguments):
  from egoscale_jax.sim.bench import recorders

  names = tuple(filter(None, arguments.tasks.split(",")))
  many, how = (arguments.episodes, arguments.takes), (arguments.image_size, arguments.aligned, arguments.clean)
  plan = recorders.Plan(arguments.body, names, arguments.split, arguments.seed, *many, *how)
  written, first, left_out = recorders.record_all(arguments.output, plan, arguments.workers)
  print(f"wrote {written} recordings to {arguments.output}; the expert's first take succeeded in {first}; left out {left_out} failures")


def rollout(arguments):
  from egoscale_jax.evaluate import rollout

  names = tuple(filter(None, arguments.tasks.split(",")))
  settings = rollout.Settings(names, arguments.body, arguments.split, arguments.seed, arguments.trials, arguments.image_size)
  if arguments.baseline:
    make_agent = functools.partial(rollout.baseline, arguments.baseline)
  else:
    from egoscale_jax import policy

    how = (arguments.execute, arguments.frozen, arguments.ramp)
    make_agent = policy.maker(arguments.checkpoint, arguments.embodiment or arguments.body, *how, workers=arguments.workers)
  summary = rollout.run(make_agent, settings, arguments.output, arguments.workers)
  print("\n".join(rollout.table(summary)))
  print(f"wrote {arguments.output}")


def _source(name):
  """The reader of a format; only that one is imported."""
  return importlib.import_module(f"egoscale_jax.data.sources.{name}")


def doctor(arguments):
  from egoscale_jax.data import exclusion

  if arguments.shards:
    _doctor_shards(arguments)
    return
  if not (arguments.source and arguments.input):
    raise UserError("--source and --input: found one of them or none, expected both, or --shards")
  source = _source(arguments.source)
  found = exclusion.examine(source, arguments.input, arguments.workers, columns=arguments.columns, hand_name=arguments.hand)
  print("\n".join(exclusion.lines(found)))
  if arguments.output:
    exclusion.save(found, arguments.output)
    print(f"wrote {arguments.output}")
  if arguments.html:
    from egoscale_jax.view import doctor_page

    doctor_page.write(found, source, arguments.columns, arguments.html)
    print(f"wrote {arguments.html}")


def _doctor_shards(arguments):
  from egoscale_jax.data import verify

  if arguments.source or arguments.input:
    raise UserError(f"--shards={arguments.shards}: found --source or --input too, expected either")
  found = verify.verify(arguments.shards)
  if found:
    print("\n".join(found))
    raise UserError(f"{arguments.shards}: {len(found)} findings")
  print(f"{arguments.shards}: every file is as it was written")


def prepare(arguments):
  zen4.sort_by_avx2()  # here alone: it moves the last digits of numpy's sums, and a run is to be the same from a notebook
  from egoscale_jax.data import beam, bucket, exclusion, prepare

  if arguments.bucket and not arguments.beam:
    raise UserError(f"--bucket={arguments.bucket}: found no --beam, whose workers it is for")
  shared = bucket.parse(arguments.bucket) if arguments.bucket else None
  summary = prepare.prepare(
    _source(arguments.source),
    arguments.input,
    arguments.output,
    arguments.hand,
    arguments.workers,
    image_size=arguments.image_size,
    validation=arguments.validation,
    columns=arguments.columns,
    exclude=exclusion.load(arguments.exclude) if arguments.exclude else (),
    stride=arguments.stride,
    images=arguments.images,
    codec=arguments.codec,
    run=functools.partial(beam.run, options=arguments.beam, bucket=shared) if arguments.beam else None,
  )
  print("\n".join(summary.lines()))


def export(arguments):
  from egoscale_jax.data import export_lerobot

  count, left_out = export_lerobot.export(
    _source(arguments.source), arguments.input, arguments.output, arguments.workers, arguments.image_size, arguments.columns
  )
  print("\n".join([*(f"left out {line}" for line in left_out), f"wrote {count} episodes to {arguments.output}"]))


def retarget(arguments):
  from egoscale_jax.hands import files

  told = files.run(
    arguments.hand, arguments.side, arguments.keypoints, arguments.output, arguments.fingers, arguments.scale, arguments.rate
  )
  print(f"wrote {arguments.output}\n{told}")


def train(arguments):
  from egoscale_jax import config
  from egoscale_jax.train import distributed, main

  distributed.initialize()
  with distributed.together():
    main.main(config.parse(arguments.config), arguments.workdir)


def plan(arguments):
  os.environ.setdefault("JAX_PLATFORMS", "cpu")  # what it compiles for is described, not there
  from egoscale_jax import config
  from egoscale_jax.train import plan

  if arguments.sweep is None:
    made = plan.make(config.parse(arguments.config), arguments.topology, arguments.slices)
    told = made.keys()
    print("\n".join(made.lines()))
  else:
    ranked = plan.sweep(lambda more: config.parse([*arguments.config, *more]), arguments.topology, arguments.slices, arguments.sweep)
    told = [made.keys() | {"choice": choice} for choice, made in ranked]
  if arguments.json:
    pathlib.Path(arguments.json).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {arguments.json}")


def convert(arguments):
  from egoscale_jax import config
  from egoscale_jax.train import convert

  if arguments.to:
    convert.to_groot(arguments.input, arguments.output)
  else:
    read = {"gr00t_n1_7": convert.from_groot, "qwen3_vl": convert.from_qwen}[arguments.source]
    count = read(arguments.input, arguments.output, config.parse(arguments.config), arguments.statistics)
    print(f"{count / 1e6:.1f} M parameters from {arguments.input}")
  print(f"wrote {arguments.output}")


def evaluate(arguments):
  from egoscale_jax import config
  from egoscale_jax.view import evaluation

  figures, output = evaluation.evaluate(arguments.workdir, config.parse(arguments.config) if arguments.config else None)
  print("\n".join(evaluation.lines(figures)))
  print(f"wrote {output} and {output.with_suffix('.png')}")


def scaling(arguments):
  if arguments.attribute:
    _attribute(arguments)
    return
  if not arguments.config:
    raise UserError("--config: found nothing, expected a study's as configs/scaling.py:micro, or --attribute")
  import jax

  jax.config.update("jax_platforms", "cpu")  # of this process, which only counts: the accelerator is for the runs' own
  from egoscale_jax import config
  from egoscale_jax.evaluate import apart, scaling
  from egoscale_jax.train import main
  from egoscale_jax.view import scaling_page

  train = lambda made, workdir, log: apart.run(main.main, (made, workdir), log)  # noqa: E731
  command = " ".join(["egoscale scaling", *arguments.config, f"--workdir={arguments.workdir}"])
  told = scaling_page.study(config.parse(arguments.config), arguments.workdir, train, command)
  print("\n".join(scaling.lines(told)))
  print(f"wrote {arguments.workdir}/scaling.html, scaling.json and runs.jsonl")


def study(arguments):
  import jax

  jax.config.update("jax_platforms", "cpu")  # as in `scaling`
  from egoscale_jax import config
  from egoscale_jax.view import study_page

  command = " ".join(["egoscale study", *arguments.config, f"--workdir={arguments.workdir}"])
  print("\n".join(study_page.study(config.parse(arguments.config), arguments.workdir, command)))
  print(f"wrote {arguments.workdir}/study.html and results.jsonl")


def _attribute(arguments):
  if arguments.config:
    raise UserError("--attribute: found --config too, expected --workdir alone, which has its own")
  from egoscale_jax.view import attribution

  told, output = attribution.attribute(arguments.workdir, arguments.target, arguments.batches, arguments.batch_size)
  print("\n".join(attribution.lines(told)))
  print(f"wrote {output}")


def serve(arguments):
  check_workdir("checkpoint", arguments.checkpoint)
  try:
    from egoscale_jax.serve import server
  except ModuleNotFoundError as error:
    raise UserError(f"{error.name}: not installed, expected pip install -e '.[serve]' in the checkout") from error

  network = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(server.Settings) if field.name != "origins"}
  settings = server.Settings(**network, origins=tuple(arguments.origin))
  server.run(arguments.checkpoint, settings, arguments.embodiment, arguments.rate, arguments.limits)


def view(arguments):
  check_workdir("workdir", arguments.workdir)
  if arguments.web:
    from egoscale_jax.view import web

    source = _source(arguments.source) if arguments.source else None
    given = arguments.episode, source, arguments.columns, arguments.workdir, arguments.host, arguments.port
    web.view(arguments.input, *given)
    return
  if pathlib.Path(arguments.input).suffix == ".npz" and not arguments.source:
    from egoscale_jax.view import hands

    if arguments.workdir:
      raise UserError(f"--workdir={arguments.workdir}: a policy has no part in {arguments.input}")
    hands.view(arguments.input, arguments.output)
  else:
    from egoscale_jax.view import video

    source = _source(arguments.source) if arguments.source else None
    video.view(arguments.input, arguments.output, arguments.episode, arguments.workdir, source, arguments.columns)
  print(f"wrote {arguments.output}")


def report(arguments):
  from egoscale_jax.view import report

  report.write(arguments.workdir, arguments.shards, arguments.output)
  print(f"wrote {arguments.output}")


VERBS = (simulate, record, doctor, prepare, export, retarget, train, plan, convert, evaluate, scaling, study, rollout, serve, view, report)


def main(argv=None):
  logging.set_verbosity(logging.ERROR)  # Orbax and TFDS tell much that is no concern of the person at the keyboard
  argv = sys.argv[1:] if argv is None else argv
  overrides = [a for a in argv if a.startswith("--config.")]
  arguments = arguments_lib.parser({f.__name__: f for f in VERBS}).parse_args([a for a in argv if not a.startswith("--config.")])
  if getattr(arguments, "config", ""):
    arguments.config = [f"--config={arguments.config}", *overrides]
  # Compiled programs are kept for the next start; one folder a machine, since a CPU's programs run on its kind only.
  os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path.home() / ".cache" / "egoscale_jax" / platform.node()))
  try:
    if overrides and not getattr(arguments, "config", ""):
      found = "found without --config=FILE" if hasattr(arguments, "config") else f"`egoscale {arguments.verb}` takes no config"
      raise UserError(f"{overrides[0]}: {found}")
    arguments.function(arguments)
  except UserError as error:
    print(f"egoscale {arguments.verb}: {error}", file=sys.stderr)
    return 1
  except Preempted as told:
    print(f"egoscale {arguments.verb}: {told}", file=sys.stderr)
    return EXIT_PREEMPTED
  except BrokenPipeError:
    # The reader of our output went away (`| head`), and the work may be unfinished: the exit code of SIGPIPE, no traceback. Standard output
    # is replaced so that the flush at the exit is silent too.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141
  return 0


if __name__ == "__main__":
  sys.exit(main())

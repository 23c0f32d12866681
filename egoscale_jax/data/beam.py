"""The parts of a build on Apache Beam: DirectRunner here, Dataflow, Flink or Spark with other options; `pip install egoscale_jax[beam]`.

Each part is one element, so a worker that dies costs one part, and what comes out is what local processes write. All workers must see the
recordings and the output under the same paths: a shared disk, or a bucket that is mounted (docs/data.md).
"""

import os
import shlex

from egoscale_jax.data import builder
from egoscale_jax.errors import UserError


def run(parts: list[builder.Part], options: str):
  """options: as Beam takes them on its command line, e.g. "--runner=DirectRunner --direct_num_workers=2"."""
  try:
    import apache_beam
    from apache_beam.options.pipeline_options import PipelineOptions
  except ImportError as error:
    raise UserError(f"--beam: apache_beam is not installed ({error}): pip install 'egoscale_jax[beam]'") from error
  if not parts:
    return
  with apache_beam.Pipeline(options=PipelineOptions(shlex.split(options))) as pipeline:
    _ = pipeline | apache_beam.Create(parts) | apache_beam.Reshuffle() | apache_beam.Map(attempt)
  for part in parts:
    path = _error_path(part)
    if os.path.exists(path):
      with open(path, encoding="utf-8") as file:
        raise UserError(file.read())
    if not os.path.exists(builder.json_path(part.output_dir, part.number)):
      raise UserError(f"--beam: part {part.number} was not built: do the workers see {part.output_dir}?")


def attempt(part: builder.Part):
  """Builds a part; a user's error is left beside it, for Beam would wrap it in pages of its own."""
  try:
    builder.build(part)
  except UserError as error:
    with open(_error_path(part), "w", encoding="utf-8") as file:
      file.write(str(error))
  else:
    if os.path.exists(_error_path(part)):
      os.remove(_error_path(part))


def _error_path(part):
  return f"{builder.json_path(part.output_dir, part.number)}.error"

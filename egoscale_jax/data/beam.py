"""The parts of a build on Apache Beam: DirectRunner here, Dataflow, Flink or Spark with other options; `pip install -e '.[beam]'`.

Each part is one element, so a worker that dies costs one part, and what comes out is what local processes write. All workers see the
recordings and the output under the same paths, on a shared disk or a bucket that is mounted; or fetch and put back (data/bucket.py).
"""

import functools
import os
import shlex

from egoscale_jax.data import bucket as bucket_lib
from egoscale_jax.data import builder
from egoscale_jax.errors import UserError


def run(parts: list[builder.Part], options: str, bucket: bucket_lib.Bucket | None = None):
  """options: as Beam takes them on its command line, e.g. "--runner=DirectRunner --direct_num_workers=2". bucket: without a shared disk."""
  try:
    import apache_beam
    from apache_beam.options.pipeline_options import PipelineOptions
  except ImportError as error:
    raise UserError(f"--beam: apache_beam is not installed ({error}): expected pip install -e '.[beam]' in the checkout") from error
  if not parts:
    return
  if bucket is not None:
    for path in [parts[0].output_dir, *(path for part in parts for recording in part.recordings for path in recording.files)]:
      bucket.below(path)  # a mistake is told here and not by a worker
    for part in parts:  # of an earlier go
      if os.path.exists(_error_path(part)):
        os.remove(_error_path(part))
  with apache_beam.Pipeline(options=PipelineOptions(shlex.split(options))) as pipeline:
    _ = pipeline | apache_beam.Create(parts) | apache_beam.Reshuffle() | apache_beam.Map(functools.partial(attempt, bucket=bucket))
  for part in parts:
    path = _error_path(part)
    if os.path.exists(path):
      with open(path, encoding="utf-8") as file:
        raise UserError(file.read())
    if not os.path.exists(builder.json_path(part.output_dir, part.number)):
      raise UserError(f"--beam: part {part.number} was not built: do the workers see {part.output_dir}?")


def attempt(part: builder.Part, bucket: bucket_lib.Bucket | None = None):
  """Builds a part; a user's error is left beside it, for Beam would wrap it in pages of its own."""
  if bucket is not None:
    try:
      bucket_lib.build(part, bucket)
    except UserError as error:
      bucket_lib.put(_error_path(part), str(error).encode(), bucket)
    return
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

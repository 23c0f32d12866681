"""Is a folder of prepared data what `prepare` wrote? Every byte is read; `egoscale doctor --shards=DIR` prints what is found.

A finding is one line: the file, what was found, what was expected.
"""

import collections
import os

from array_record.python import array_record_module

from egoscale_jax.data import assemble, builder, jsonfile, manifest, shards
from egoscale_jax.errors import UserError

_KINDS = (shards.CLIPS, shards.EPISODES)
_METADATA = ("dataset_info.json", "features.json")


def verify(output_dir) -> list[str]:
  """-> what is wrong, nothing where all is well; UserError where the folder is no finished build."""
  try:
    return _verify(os.fspath(output_dir))
  except (KeyError, TypeError, AttributeError) as error:
    raise UserError(f"{output_dir}: {manifest.FILE}, {manifest.PLAN} or a part's JSON is not as it was written: {error!r}") from error


def _verify(output_dir) -> list[str]:
  content = manifest.load(output_dir)
  plan = jsonfile.read(os.path.join(output_dir, manifest.PLAN), builder.VERSION, "plan")
  lines, files, entries = [], {}, []
  if len(plan["parts"]) != content["parts"]:
    lines.append(f"{output_dir}/{manifest.PLAN}: found {len(plan['parts'])} parts, expected the {content['parts']} of {manifest.FILE}")
  for number in range(content["parts"]):
    try:
      part = builder.load(output_dir, number)
    except UserError as error:
      lines.append(str(error))
      continue
    files |= part["files"]
    entries += part["entries"]
  for name, told in sorted(files.items()):
    lines += _check_file(output_dir, name, told)
  for name, sha256 in _hashes(content).items():
    lines += _check_file(output_dir, name, {"sha256": sha256})
  lines += _strangers(output_dir, content["parts"], {*files, *_hashes(content)})
  lines += _check_entries(output_dir, content, entries)
  lines += _check_index(output_dir, content, files)
  return lines + _check_apart(output_dir, content)


def _hashes(content) -> dict[str, str]:
  """Files beside the parts -> sha256, as the manifest has them."""
  told = {assemble.STATISTICS: content["statistics_sha256"], os.path.basename(shards.index_path("")): content["index_sha256"]}
  return told | {state["file"]: state["sha256"] for state in content["statistics"].values()}


def _check_file(output_dir, name, told) -> list[str]:
  """told: of bytes, sha256, records."""
  path = os.path.join(output_dir, name)
  if not os.path.isfile(path):
    return [f"{path}: missing, expected {told.get('bytes', 'its')} bytes"]
  try:
    found = shards.checksum(path)
    wrong = [
      f"{path}: found {key} {found[key]}, expected {told[key]}" for key in ("bytes", "sha256") if found[key] != told.get(key, found[key])
    ]
    if not wrong and "records" in told:
      reader = array_record_module.ArrayRecordReader(path)
      if reader.num_records() != told["records"]:
        wrong = [f"{path}: found {reader.num_records()} records, expected {told['records']}"]
      reader.close()
  except (OSError, RuntimeError) as error:  # the second is the reader's
    wrong = [f"{path}: cannot be read: {' '.join(str(error).split())[:200]}"]
  return wrong[:1]  # where the size is another, so is the sum


def _strangers(output_dir, parts, known) -> list[str]:
  """Files that nothing told of, in the folders that are the build's own."""
  known = {os.path.join(output_dir, name) for name in known} | {builder.json_path(output_dir, number) for number in range(parts)}
  known |= {os.path.join(kind.folder(output_dir), name) for kind in _KINDS for name in _METADATA}
  known.add(os.path.join(output_dir, builder.PARTS, "lock"))
  folders = [kind.folder(output_dir) for kind in _KINDS] + [os.path.join(output_dir, name) for name in (builder.PARTS, "statistics")]
  found = [os.path.join(folder, name) for folder in folders if os.path.isdir(folder) for name in sorted(os.listdir(folder))]
  return [f"{path}: belongs to no part" for path in found if path not in known]


def _check_entries(output_dir, content, entries) -> list[str]:
  """The manifest's episodes against those of the parts."""
  path = os.path.join(output_dir, manifest.FILE)
  if len(content["episodes"]) != len(entries):
    return [f"{path}: found {len(content['episodes'])} episodes, expected the {len(entries)} of the parts"]
  lines = []
  for found, expected in zip(content["episodes"], entries):
    for key in expected:
      if key != "split" and found.get(key) != expected[key]:
        lines.append(f"{path}: {expected['id']}: {key}: found {found.get(key)!s:.60}, expected {expected[key]!s:.60}")
  totals = manifest.totals(content["episodes"])
  return lines + [
    f"{path}: totals: {k}: found {content['totals'].get(k)}, expected {v}" for k, v in totals.items() if content["totals"].get(k) != v
  ]


def _check_index(output_dir, content, files) -> list[str]:
  """The index against the manifest's episodes, and the records that it counts on against those of the files."""
  path = shards.index_path(output_dir)
  try:
    index = shards.load_index(output_dir)
  except UserError as error:
    return [str(error)]
  kept = [e for e in content["episodes"] if e["status"] == manifest.KEPT]
  if len(index) != len(kept):
    return [f"{path}: found {len(index)} episodes, expected {len(kept)}"]
  lines = []
  for row, e in zip(index, kept):
    split = shards.SPLITS.index(e["split"]) if e["split"] in shards.SPLITS else shards.LEFT_OUT
    found, expected = tuple(int(row[k]) for k in ("part", "clips", "frames", "split")), (e["part"], e["clips"], e["frames"], split)
    if found != expected:
      lines.append(f"{path}: {e['id']}: found part, clips, frames, split {found}, expected {expected}")
  for kind, column in zip(_KINDS, ("clips", None)):
    for number, count in enumerate(shards.lengths(index, column)):
      name = os.path.relpath(kind.path(output_dir, number), output_dir)
      if name in files and files[name]["records"] != count:
        lines.append(f"{path}: found {count} records in {name}, expected {files[name]['records']}")
  return lines


def _check_apart(output_dir, content) -> list[str]:
  """No scene and no person is on both sides."""
  lines = []
  for what in ("scene", "person"):
    sides = collections.defaultdict(dict)  # name -> split -> an episode
    for e in content["episodes"]:
      if e["status"] == manifest.KEPT and e["split"] in shards.SPLITS and e[what]:
        sides[e[what]].setdefault(e["split"], e["id"])
    for name, found in sorted(sides.items()):
      if len(found) > 1:
        told = f"found {found[shards.TRAIN]} in train and {found[shards.VALIDATION]} in validation, expected one side"
        lines.append(f"{os.path.join(output_dir, manifest.FILE)}: {what} {name!r}: {told}")
  return lines

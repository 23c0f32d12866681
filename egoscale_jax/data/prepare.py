"""Raw recordings -> shards, statistics.json and manifest.json: the whole import on one page.

The recordings are dealt into parts, the plan is written down, and the parts are built by any number of processes or Beam workers
(data/builder.py). What is finished stays: a build that was killed goes on, and recordings that came later become further parts. The
manifest is written last and whole: without one nobody reads the output, and an older one shows what was there before, whole as well.
"""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import importlib.metadata
import inspect
import os

from egoscale_jax import progress
from egoscale_jax.data import assemble, builder, clips, jsonfile, labeller, manifest, schema, shards, spec, workers
from egoscale_jax.errors import UserError
from egoscale_jax.hands import hand as hand_lib
from egoscale_jax.hands import keypoints

_APART = "prepare it into a folder of its own"

NAMED = 20  # masked findings that the summary names


@dataclasses.dataclass(frozen=True)
class Summary:
  """What prepare() did: the manifest, and lines() of it for a person."""

  output_dir: str
  manifest: dict

  def lines(self) -> list[str]:
    """A short table, one line a masked finding (summed over episodes), one line a rejected episode."""
    entries, total = self.manifest["episodes"], self.manifest["totals"]
    lines = [f"{'split':<12}{'episodes':>10}{'frames':>10}{'clips':>8}{'minutes':>10}"]
    for split, clip_count in total["clips"].items():
      rows = [e for e in entries if e["split"] == split]
      minutes = sum(e["seconds"] for e in rows) / 60
      lines.append(f"{split:<12}{len(rows):>10}{sum(e['frames'] for e in rows):>10}{clip_count:>8}{minutes:>10.2f}")
    lines += self.manifest["notes"]
    for name, row in total["masked"].items():
      lines.append(f"masked {name}: {row['frames']} of {total['frames']} frames, in {row['episodes']} of {total['kept']} episodes")
    lines += self._named_findings()
    lines += [f"rejected {e['error']}" for e in entries if e["status"] == manifest.REJECTED]
    if self.manifest["excluded"]:
      lines.append(f"left out {len(self.manifest['excluded'])} recordings by the list of exclusions")
    lines.append(f"kept {total['kept']} of {len(entries)} episodes, {60 * total['hours']:.1f} minutes, in {self.output_dir}")
    return lines

  def _named_findings(self) -> list[str]:
    """One line a masked finding of an episode, the first of them; all are in the manifest."""
    rows = [
      (e["id"], f) for e in self.manifest["episodes"] if e["status"] == manifest.KEPT for f in e["findings"] if f["severity"] == "masked"
    ]
    lines = [f"  {name}: {f['name']} {f['side']}, {f['count']} frames from {f['first_frame']}: {f['detail']}" for name, f in rows[:NAMED]]
    return lines + ([f"  ... and {len(rows) - NAMED} more, see {manifest.FILE}"] if len(rows) > NAMED else [])


def prepare(
  source,
  input_dir,
  output_dir,
  hand_name=None,
  workers=1,
  image_size=256,
  validation=0.1,
  seed=0,
  columns="",
  exclude=(),
  stride=1,
  images=spec.CLIP_IMAGES,
  codec=clips.JPEG,
  run=None,
) -> Summary:
  """source: a module of data/sources; validation: the share of the scenes held out; columns: a config of data/sources/columns.py;
  exclude: ids of recordings to leave out; stride: frames from one stored picture to the next, `images` of them a clip and camera.

  hand_name as hands.hand.load takes it: the hand that a human's are retargeted to (None: labeller.DEFAULT_HAND), and the one that a robot
  is said to have (None: its own joints are kept, whatever they are).
  run(parts): builds them elsewhere (data/beam.py), in place of `workers` processes here.
  """
  output_dir = os.path.abspath(os.fspath(output_dir))
  _check_arguments(workers, image_size, validation, stride, images, codec)
  hand_name = str(hand_name) if hand_name else None
  labeller.load_hands(hand_name or labeller.DEFAULT_HAND)  # a wrong name is told before anything is written
  found = find(source, input_dir, columns)
  recordings = [recording for recording in found if recording.id not in exclude]
  read = functools.partial(source.read, image_size=image_size)
  labeller.load_hands(hand_name or labeller.DEFAULT_HAND)  # a mistake in its name leaves no folder
  with _locked(output_dir):
    joints = _joints(output_dir, read, recordings, hand_name)
    told = (source.SOURCE, _sha256(columns), hand_name, _hand_sha256(hand_name), joints)
    settings = builder.Settings(*told, image_size, stride, images, codec, validation, seed)
    with builder.writing(output_dir):
      builder.sweep(output_dir)
    parts = _plan(output_dir, settings, os.fspath(input_dir), recordings, frozenset(exclude), read)
    _build(parts, workers, run, len(recordings))
    head = {
      "package": importlib.metadata.version("egoscale_jax"),
      "source": source.SOURCE,
      "input": os.fspath(input_dir),
      "excluded": sorted(recording.id for recording in found if recording.id in exclude),
    }
    head |= {"image_size": image_size, "stride": stride, "images": images, "codec": codec, "seed": seed, "validation": validation}
    with builder.writing(output_dir):
      builder.sweep(output_dir)
      return Summary(output_dir, assemble.assemble(output_dir, settings, len(parts), frozenset(exclude), head, workers))


def find(source, input_dir, columns="") -> list[schema.Recording]:
  """The recordings of a source below a directory, read with a config of columns where one is given."""
  if not columns:
    return source.find(input_dir)
  if "config_path" not in inspect.signature(source.find).parameters:
    raise UserError(f"columns: found {columns}, expected none: recordings of {source.SOURCE} say themselves what they hold")
  return source.find(input_dir, columns)


def _check_arguments(num_workers, image_size, validation, stride, images, codec):
  if not 0 <= validation < 1:
    raise UserError(f"validation: found {validation}, expected a share from 0 to below 1")
  if num_workers < 1:
    raise UserError(f"workers: found {num_workers}, expected at least 1")
  if image_size < 16:
    raise UserError(f"image_size: found {image_size}, expected at least 16 pixels")
  if not 1 <= stride <= spec.TAIL_FRAMES:
    raise UserError(f"stride: found {stride}, expected 1 to {spec.TAIL_FRAMES} frames from one stored picture to the next")
  if not 1 <= images <= 256:
    raise UserError(f"images: found {images}, expected 1 to 256 pictures a clip")
  if codec not in (clips.JPEG, clips.H264):
    raise UserError(f"codec: found {codec!r}, expected {clips.JPEG} or {clips.H264}")


@contextlib.contextmanager
def _locked(output_dir):
  """The folder, for this process alone; one that holds anything else than a build is refused and left as it is."""
  with contextlib.ExitStack() as stack:
    with builder.writing(output_dir):
      if os.path.lexists(output_dir) and not _is_build(output_dir):
        raise UserError(f"{output_dir}: exists and is neither empty nor of `egoscale prepare`; remove it or choose another")
      os.makedirs(os.path.join(output_dir, builder.PARTS), exist_ok=True)
      lock = stack.enter_context(open(os.path.join(output_dir, builder.PARTS, "lock"), "w"))
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError as error:
        raise UserError(f"{output_dir}: another `egoscale prepare` is writing there") from error
    yield


def _is_build(output_dir):
  """Or empty, or one that was killed before its plan was there."""
  if not os.path.isdir(output_dir):
    return False
  names = os.listdir(output_dir)
  return manifest.PLAN in names or all(name.startswith((builder.PARTS, manifest.PLAN)) for name in names)


def _joints(output_dir, read, recordings, hand_name) -> labeller.Joints:
  """The joints of all labels: of the plan, where there is one; else of the hand, or of the first robot that can be read."""
  path = os.path.join(output_dir, manifest.PLAN)
  if os.path.isfile(path):
    joints = jsonfile.read(path, builder.VERSION, "plan")["settings"]["joints"]
    return labeller.Joints(joints["hand"], tuple(tuple(names) for names in joints["names"]), joints["first"])
  hands = labeller.load_hands(hand_name or labeller.DEFAULT_HAND)
  for recording in recordings:
    try:
      return labeller.joints_of(read(recording), hand_name)
    except UserError:
      continue  # it is told when its part is built
  return labeller.Joints(str(hand_name or labeller.DEFAULT_HAND), tuple(h.joint_names for h in hands))


def _plan(output_dir, settings, input_dir, recordings, excluded, read) -> list[builder.Part]:
  """The parts of the plan, with those recordings as further parts that it does not have; the plan is written before anything is built.

  What is excluded leaves the parts that are not built yet: it may be what killed their worker.
  """
  path = os.path.join(output_dir, manifest.PLAN)
  planned = []
  if os.path.isfile(path):
    plan = jsonfile.read(path, builder.VERSION, "plan")
    _same_settings(plan["settings"], _plain(settings), output_dir)
    for number, part in enumerate(plan["parts"]):
      done = os.path.exists(builder.json_path(output_dir, number))
      planned.append(part if done else [recording for recording in part if recording["id"] not in excluded])
  known = {recording["id"]: recording for part in planned for recording in part}
  configs = {path: _sha256(path) for path in {recording.config for recording in recordings}}
  given = {recording.id: recording for recording in recordings}
  for recording in recordings:
    if recording.id in known and known[recording.id].get("config", "") != configs[recording.config]:
      where = recording.config or recording.files[0]
      raise UserError(f"{where}: the columns mean something else than when {output_dir} was begun; {_APART}")
    if recording.id in known and known[recording.id]["bytes"] != _bytes(recording):
      raise UserError(f"{recording.files[0]}: {output_dir} holds another recording of the id {recording.id}; {_APART}")
  fresh = [recording for recording in recordings if recording.id not in known]
  size = builder.sizes(len(fresh))
  for first in range(0, len(fresh), size):
    planned.append([{"id": r.id, "bytes": _bytes(r), "config": configs[r.config]} for r in fresh[first : first + size]])
  with builder.writing(output_dir):
    builder.write_json(path, {"version": builder.VERSION, "settings": _plain(settings), "parts": planned})
  parts = []
  for number, part in enumerate(planned):
    lost = [r["id"] for r in part if r["id"] not in given]
    if lost and not os.path.exists(builder.json_path(output_dir, number)):
      raise UserError(f"{input_dir}: {lost[0]} is not there any more, and {output_dir} is not finished with it; remove {output_dir}")
    parts.append(builder.Part(output_dir, number, tuple(given[r["id"]] for r in part if r["id"] in given), settings, read))
  return parts


def _plain(settings) -> dict:
  """As it is in JSON."""
  joints = {"hand": settings.joints.hand, "names": [list(names) for names in settings.joints.names], "first": settings.joints.first}
  return dataclasses.asdict(settings) | {"joints": joints}


def _same_settings(old, new, output_dir):
  changed = [f"{name}: found {new.get(name)!r:.60}, it has {old.get(name)!r:.60}" for name in new if new[name] != old.get(name)]
  if changed:
    raise UserError(f"{output_dir} was begun with other settings: {'; '.join(changed)}; choose another folder")


def _bytes(recording) -> int:
  """Size of its files: what tells two recordings of one id apart, without reading them. A file that is absent counts nothing."""
  return sum(os.path.getsize(path) for path in recording.files if os.path.isfile(path))


def _build(parts, num_workers, run, recordings):
  pending = [part for part in parts if not os.path.exists(builder.json_path(part.output_dir, part.number))]
  with progress.bar(recordings, "prepare", "episode") as bar:
    bar.update(recordings - sum(len(part.recordings) for part in pending))
    if run is not None:
      run(pending)
      bar.update(sum(len(part.recordings) for part in pending))
      return
    for part, result in workers.run(builder.build, pending, num_workers, _reading):
      if isinstance(result, UserError):
        raise result
      bar.update(len(part.recordings))


def _reading(part) -> str:
  """The file that the worker of a part was at."""
  path = builder.reading_path(part.output_dir, part.number)
  if not os.path.exists(path):
    return os.fspath(part.recordings[0].files[0])
  with open(path, encoding="utf-8") as file:
    return file.read()


def _sha256(path) -> str:
  if not path:
    return ""
  try:
    return shards.checksum(path)["sha256"]
  except OSError as error:
    raise UserError(f"columns: {path}: cannot be read: {error.strerror or error}") from error


def _hand_sha256(hand_name) -> str:
  """Of both sides' descriptions: other limits are other labels."""
  files = [path for side in keypoints.SIDES for path in hand_lib.files(hand_name or labeller.DEFAULT_HAND, side)]
  return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]

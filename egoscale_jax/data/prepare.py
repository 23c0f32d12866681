"""Raw recordings -> shards, statistics.json and manifest.json: the whole import on one page.

Recordings are read in worker processes and checked and labelled here, one at a time; each is spooled to disk. Only when all are known is
the split drawn, over the scenes that have a usable episode, and the spool becomes shards. So memory holds a few episodes whatever the size
of the data (and what TFDS buffers to shuffle, at most 1 GB); for a while the disk holds the data twice.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import inspect
import os
import pickle
import shutil

from egoscale_jax import progress
from egoscale_jax.data import builder, doctor, labels, manifest, schema, statistics, workers
from egoscale_jax.errors import UserError
from egoscale_jax.hands import hand, keypoints, retarget

STATISTICS = "statistics.json"
DEFAULT_HAND = "sharpa_wave"
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
    for split, clips in total["clips"].items():
      rows = [e for e in entries if e["split"] == split]
      minutes = sum(e["seconds"] for e in rows) / 60
      lines.append(f"{split:<12}{len(rows):>10}{sum(e['frames'] for e in rows):>10}{clips:>8}{minutes:>10.2f}")
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
  source, input_dir, output_dir, hand_name=None, workers=1, image_size=256, validation=0.1, seed=0, columns="", exclude=()
) -> Summary:
  """source: a module of data/sources; validation: the share of the scenes held out; columns: a config of data/sources/columns.py;
  exclude: ids of recordings to leave out.

  hand_name as hands.hand.load takes it: the hand that a human's are retargeted to (None: DEFAULT_HAND), and the one that a robot is said to
  have (None: its own joints are kept, whatever they are).
  The output appears whole or not at all. Where no episode is usable, UserError, and the manifest is at `<output_dir>.manifest.json`.
  """
  output_dir = os.path.abspath(os.fspath(output_dir))
  _check_arguments(output_dir, image_size, validation)
  found = find(source, input_dir, columns)
  recordings = [recording for recording in found if recording.id not in exclude]
  hands = _load_hands(hand_name or DEFAULT_HAND)
  partial = f"{output_dir}.partial-{os.getpid()}"
  head = {
    "package": importlib.metadata.version("egoscale_jax"),
    "source": source.SOURCE,
    "input": os.fspath(input_dir),
    "excluded": sorted(recording.id for recording in found if recording.id in exclude),
  }
  head |= {"image_size": image_size, "seed": seed, "validation": validation}
  with _writing(output_dir):
    os.makedirs(os.path.join(partial, "spool"))
  try:
    labeller = Labeller(hands, hand_name)
    entries = _spool(source, recordings, labeller, workers, image_size, os.path.join(partial, "spool"), output_dir)
    head["hand"] = labeller.hand_name
    notes = _draw_split(entries, validation, seed)
    if not any(e["status"] == manifest.KEPT for e in entries):
      raise _nothing_usable(head, entries, input_dir, output_dir)
    with _writing(output_dir):
      clips = _write_shards(entries, labeller, partial)
      head["embodiments"] = sorted({e["embodiment"] for e in entries if e["status"] == manifest.KEPT})
      head |= {"episodes": entries, "totals": manifest.totals(entries, clips), "notes": notes}
      head["statistics_sha256"] = _sha256(os.path.join(partial, STATISTICS))
      manifest.save(head, os.path.join(partial, manifest.FILE))
      os.rmdir(os.path.join(partial, "spool"))
      os.rename(partial, output_dir)
  except BaseException:
    shutil.rmtree(partial)
    raise
  return Summary(output_dir, manifest.load(output_dir))


def find(source, input_dir, columns="") -> list[schema.Recording]:
  """The recordings of a source below a directory, read with a config of columns where one is given."""
  if not columns:
    return source.find(input_dir)
  if "config_path" not in inspect.signature(source.find).parameters:
    raise UserError(f"columns: found {columns}, expected none: recordings of {source.SOURCE} say themselves what they hold")
  return source.find(input_dir, columns)


def is_validation(scene: str, validation: float, seed: int) -> bool:
  """Drawn from the scene's name alone, so it stays as it is when recordings are added."""
  return _draw(scene, seed) < validation


def _draw(scene, seed) -> float:
  """0 <= x < 1, the same in every run and on every machine."""
  return int.from_bytes(hashlib.sha256(f"{seed}:{scene}".encode()).digest()[:6]) / 2**48


def _check_arguments(output_dir, image_size, validation):
  if os.path.lexists(output_dir) and not (os.path.isdir(output_dir) and not os.listdir(output_dir)):
    raise UserError(f"{output_dir}: exists and is not an empty directory; remove it or choose another")
  if os.path.ismount(output_dir) or output_dir == os.getcwd():
    raise UserError(f"{output_dir}: is a mount point or the current directory, expected a folder that can be put in place whole")
  if not 0 <= validation < 1:
    raise UserError(f"validation: found {validation}, expected a share from 0 to below 1")
  if image_size < 16:
    raise UserError(f"image_size: found {image_size}, expected at least 16 pixels")


def _load_hands(hand_name):
  hands = tuple(hand.load(hand_name, side) for side in keypoints.SIDES)
  left, right = (len(h.joint_names) for h in hands)
  if left != right:
    raise UserError(f"hand {hand_name}: {left} joints on the left and {right} on the right, expected the same number")
  return hands


@contextlib.contextmanager
def _writing(output_dir):
  """A full disk or a directory without permission is the user's to mend: one line that names the output."""
  try:
    yield
  except OSError as error:
    raise UserError(f"{output_dir}: cannot be written: {error.strerror or error}") from error


class Labeller:
  """Checks and labels episodes; all that are kept have the same joints, those of the first."""

  def __init__(self, hands, hand_name):
    self._hands, self._asked = hands, hand_name
    self.hand_name, self.joint_names, self._first = str(hand_name or DEFAULT_HAND), tuple(h.joint_names for h in hands), None

  def __call__(self, recording, episode: schema.Episode | UserError):
    """-> the manifest's entry, and the Labels or None where the episode is rejected."""
    if isinstance(episode, UserError):
      return manifest.entry(recording, error=str(episode)), None
    valid_Fx2, findings = doctor.check(episode)
    if any(finding.severity == "rejected" for finding in findings):
      return manifest.entry(recording, episode, findings=findings), None
    try:
      hand_name, joint_names = self._joints(episode)
      result, more = labels.label(episode, self._hands, valid_Fx2, functools.partial(retarget.retarget, rate_hz=episode.rate_hz))
    except UserError as error:
      return manifest.entry(recording, episode, findings=findings, error=f"{recording.files[0]}: {error}"), None
    findings += more + doctor.check_valid(result.valid_Fx2, episode.rate_hz)
    entry = manifest.entry(recording, episode, result, findings)
    if entry["status"] != manifest.KEPT:
      return entry, None
    if self._first is None:
      self._first, self.hand_name, self.joint_names = episode.id, hand_name, joint_names
    return entry, result

  def _joints(self, episode):
    """-> the hand's name and the joints of both hands; UserError where they cannot be in the same shards as the first episode's."""
    if episode.embodiment == schema.HUMAN:
      told = str(self._asked or DEFAULT_HAND), tuple(h.joint_names for h in self._hands)
    else:
      told = self._asked or episode.embodiment, labels.own_joints(episode)
      wanted = self._hands[0].num_joints
      if self._asked and len(told[1][0]) != wanted:
        raise UserError(f"joints: found {len(told[1][0])} a hand, expected the {wanted} of {self._asked}")
    if self._first is not None and told != (self.hand_name, self.joint_names):
      raise UserError(f"joints: found those of {told[0]}, expected those of {self.hand_name} as {self._first} has; prepare them apart")
    return told


def _spool(source, recordings, labeller, num_workers, image_size, spool, output_dir) -> list[dict]:
  """Reads, checks and labels each recording -> manifest entries; kept episodes with their labels as files of the spool."""
  entries = []
  read = functools.partial(source.read, image_size=image_size)
  with progress.bar(len(recordings), "prepare", "episode") as bar:
    for recording, episode in workers.read_all(read, recordings, num_workers):
      entry, result = labeller(recording, episode)
      if result is not None:
        with _writing(output_dir), open(_spool_path(spool, len(entries)), "wb") as file:
          pickle.dump((episode, result), file, protocol=pickle.HIGHEST_PROTOCOL)
      entries.append(entry)
      bar.update()
  return entries


def _spool_path(spool, index):
  return os.path.join(spool, f"{index:08d}.pickle")


def _draw_split(entries, validation, seed) -> list[str]:
  """Fills in `split` of the kept entries by their scene -> notes on what was out of the ordinary.

  Where the draw leaves a split empty, the scene nearest to it goes there. That scene alone may change when recordings are added.
  """
  kept = [e for e in entries if e["status"] == manifest.KEPT]
  scenes = sorted({e["scene"] for e in kept}, key=lambda scene: (_draw(scene, seed), scene))
  held_out = {scene for scene in scenes if is_validation(scene, validation, seed)}
  notes = []
  if len(scenes) == 1:
    held_out = set()
    notes.append(f"one scene only ({scenes[0]}): all of it is train, there is no validation split")
  elif scenes and validation and not held_out:
    held_out = {scenes[0]}
    notes.append(f"no scene of {len(scenes)} fell to validation at a share of {validation}: {scenes[0]} was put there")
  elif scenes and len(held_out) == len(scenes):
    held_out.remove(scenes[-1])
    notes.append(f"all {len(scenes)} scenes fell to validation at a share of {validation}: {scenes[-1]} was put to train")
  for e in kept:
    e["split"] = builder.VALIDATION if e["scene"] in held_out else builder.TRAIN
  return notes


def _write_shards(entries, labeller, partial) -> dict[str, int]:
  """Spool -> shards and statistics of the train episodes -> clips of each split. Spool files go as they are used."""
  accumulator = statistics.Accumulator(labeller.hand_name, labeller.joint_names)
  licence = "; ".join(sorted({e["licence"] for e in entries if e["status"] == manifest.KEPT}))
  kept = sum(e["status"] == manifest.KEPT for e in entries)

  def records(split):
    for index, e in enumerate(entries):
      if e["split"] != split:
        continue
      path = _spool_path(os.path.join(partial, "spool"), index)
      with open(path, "rb") as file:
        episode, result = pickle.load(file)
      os.remove(path)
      if split == builder.TRAIN:
        accumulator.add(result)
      yield from builder.clips(episode, result)
      bar.update()

  used = [split for split in (builder.TRAIN, builder.VALIDATION) if any(e["split"] == split for e in entries)]
  splits = {split: functools.partial(records, split) for split in used}
  with progress.bar(kept, "shards", "episode") as bar:
    clips = builder.write(partial, splits, len(labeller.joint_names[0]), licence)
  accumulator.finish().save(os.path.join(partial, STATISTICS))
  return clips


def _nothing_usable(head, entries, input_dir, output_dir) -> UserError:
  """Leaves the manifest beside the output that is not made -> the error that names both."""
  path = f"{output_dir}.{manifest.FILE}"
  unread = sum("frames" not in e for e in entries)
  with _writing(output_dir):
    manifest.save(head | {"episodes": entries, "totals": manifest.totals(entries, {}), "notes": []}, path)
  counts = f"{len(entries)} found, {unread} not readable, {len(entries) - unread} refused by the checks"
  return UserError(f"no usable episode in {os.fspath(input_dir)}: {counts}; {path} names each, the first is {entries[0]['error']}")


def _sha256(path):
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()

"""The steps of a study (study.py): what runs in a process of its own, and goes on or begins anew where it was killed.

Each is the function of an ordinary command (`egoscale record`, `prepare`, `train`, `rollout`) on a folder that is its alone.
"""

import dataclasses
import functools
import shutil
from collections.abc import Callable

import numpy as np

from egoscale_jax.data import manifest, mixture, prepare, schema, slots, tokenizer
from egoscale_jax.data.sources import lerobot, simulated
from egoscale_jax.evaluate import rollout
from egoscale_jax.sim.bench import recorders

TOKENIZER, STATISTICS, POINTING = "tokenizer.json", "statistics.json", "pointing.json"


@dataclasses.dataclass(frozen=True)
class Reader:
  """What `prepare` needs of a module of data/sources, which itself goes to no other process."""

  SOURCE: str
  find: Callable
  read: Callable


PEOPLE = Reader(simulated.SOURCE, simulated.find, simulated.read)
ROBOTS = Reader(lerobot.SOURCE, lerobot.find, lerobot.read)


def record(output, plan, workers):
  """Where it is, it is whole: it is renamed last. What a process that was killed left beside it goes."""
  for left in output.parent.glob(f"{output.name}.partial-*"):
    shutil.rmtree(left)
  if not output.exists():
    written, first, left_out = recorders.record_all(output, plan, workers)
    print(f"{written} recordings; the expert's first take succeeded in {first}; left out {left_out}", flush=True)


def prepared(output, source, recordings, image_size, validation, workers):
  told = prepare.prepare(source, recordings, output, workers=workers, image_size=image_size, validation=validation)
  print("\n".join(told.lines()), flush=True)


def common(output, config):
  """What all runs share, of all the data of config.data.mixture: a vocabulary and normalisers. Where an arm has a run before it, both must
  read and say the same numbers; and where it has none, it must not be worse off for that."""
  folders = mixture.folders(config).values()
  texts = {e["text"] for folder in folders for e in manifest.load(folder["shards"])["episodes"] if "text" in e}
  output.mkdir(exist_ok=True)
  (output / TOKENIZER).write_text(tokenizer.build(sorted(texts), config.model.language.vocab).to_str(pretty=True), encoding="utf-8")
  slots.save(slots.gather(config), output / STATISTICS)


def tried(output, make_agent, settings, workers, films):
  """Begins anew where it was killed: the trials of a checkpoint take minutes."""
  if output.exists():
    shutil.rmtree(output)
  print("\n".join(rollout.table(rollout.run(make_agent, settings, output, workers, films))), flush=True)


def blinded(make_agent):
  """Control: an agent that is shown no picture. It was trained so too (study.py)."""
  agent = make_agent()
  predict = agent.predict
  agent.predict = lambda seen, pending: predict(dataclasses.replace(seen, picture_YxXx3=None), pending)
  return agent


@dataclasses.dataclass(frozen=True)
class Shuffled:
  """Control, a source as data/sources/lerobot.py: the motion of each recording under the pictures and the instruction of another.

  The others are dealt so that none keeps its own, by one cycle through all of them in a random order.
  """

  directory: str
  SOURCE: str = "lerobot"

  def find(self, directory):
    return lerobot.find(directory)

  def read(self, recording, image_size):
    others, order = _others(self.directory)
    motion, seen = lerobot.read(recording, image_size), lerobot.read(others[order[recording.id]], image_size)
    return under(motion, seen)


@functools.cache
def _others(directory):
  """-> recordings, {id: the number of the one that it is dealt}."""
  found = lerobot.find(directory)
  cycle = np.random.default_rng(0).permutation(len(found))
  return found, {found[i].id: int(j) for i, j in zip(cycle, np.roll(cycle, -1))}


def under(motion: schema.Episode, seen: schema.Episode) -> schema.Episode:
  """The motion of one robot's episode, the pictures and the text of another, as long as the shorter of them."""
  frames = min(motion.num_frames, seen.num_frames)
  cut = {field.name: getattr(motion, field.name)[:frames] for field in dataclasses.fields(motion) if "_Fx" in field.name}
  cut["T_world_camera_CxFx4x4"] = motion.T_world_camera_CxFx4x4[:, :frames]
  return dataclasses.replace(motion, **cut, jpeg_CxF=tuple(jpegs[:frames] for jpegs in seen.jpeg_CxF), text=seen.text)

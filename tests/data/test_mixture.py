"""Mixtures of real folders: weights, the table, aligned pairs, and the same global batch whatever makes it."""

import collections
import itertools
import re
import shutil

import jax
import numpy as np
import pytest
import recordings
import robots
import tiny
from conftest import ROOT

from egoscale_jax import config as config_lib
from egoscale_jax.data import manifest, mixture, pipeline, prepare, schema, slots, tokenizer
from egoscale_jax.data.sources import lerobot
from egoscale_jax.errors import UserError

LENGTHS = {"Pick the cup.": (60, 90, 30), "Place the cup.": (45,), "Wave.": (40, 40)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """Human episodes of three tasks, and two robot episodes of two of them."""
  folder = tmp_path_factory.mktemp("mixture")

  episodes = {}
  for text, lengths in LENGTHS.items():
    for i, frames in enumerate(lengths):
      name = f"{text[:5].strip()}/{i}"
      episode = recordings.episode(frames, i, name, scene=name, text=text)
      episodes[schema.Recording(name, (f"{name}.hdf5",))] = episode
  with robots.quick_labels("grip_0", "grip_1"):
    prepare.prepare(recordings.Cached(episodes), folder, folder / "human", "testbot", validation=0.0)
  robots.write_v3(folder / "robots")
  prepare.prepare(lerobot, folder / "robots", folder / "robot", image_size=64, validation=0.0)
  return folder


def make_config(mixed, **overrides):
  config = tiny.config(**({"batch_size": 16, "steps": 40} | overrides))
  with config.unlocked():
    config.data.slots = dict(human=0, testbot=0)
    config.data.mixture = mixed
  return config


def texts(folder):
  return sorted({e["text"] for name in ("human", "robot") for e in manifest.load(folder / name)["episodes"]})


def open_batches(config, folder, first=0, process=0, processes=1):
  prompt = tokenizer.Prompt(tokenizer.build(texts(folder), 512), 1, tiny.image_tokens(config), config.data.text_tokens)
  return pipeline.train_batches(config, prompt, slots.gather(config), first, process, processes)


def weights(mixed):
  total = sum(c.weight for c in mixed.components)
  return {c.name: c.weight / total for c in mixed.components}


def test_weights_are_by_hours_temperature_folder_and_embodiment(folders):
  both = {"h": dict(shards=str(folders / "human")), "r": dict(shards=str(folders / "robot"))}
  config = make_config(both)
  mixed = mixture.make(config)
  hours = {c.name: c.hours for c in mixed.components}
  assert list(hours) == ["h (human)", "r (testbot)"]
  assert hours["h (human)"] == pytest.approx(sum(map(sum, LENGTHS.values())) / 30 / 3600)
  assert weights(mixed)["h (human)"] == pytest.approx(hours["h (human)"] / sum(hours.values()))
  config.data.temperature = float("inf")
  assert weights(mixture.make(config)) == {"h (human)": 0.5, "r (testbot)": 0.5}
  config.data.temperature = 2.0
  ratio = np.sqrt(hours["h (human)"] / hours["r (testbot)"])
  assert weights(mixture.make(config))["h (human)"] == pytest.approx(ratio / (1 + ratio))
  with config.unlocked():
    config.data.temperature, config.data.embodiments = float("inf"), dict(testbot=3.0)
  assert weights(mixture.make(config))["r (testbot)"] == pytest.approx(0.75)
  with config.unlocked():
    config.data.mixture.h = dict(shards=str(folders / "human"), weight=9.0)
  assert weights(mixture.make(config))["r (testbot)"] == pytest.approx(0.25)


def test_the_table_tells_shares_epochs_and_passes(folders):
  both = {"h": dict(shards=str(folders / "human")), "r": dict(shards=str(folders / "robot"))}
  mixed = mixture.make(make_config(both, **{"data.temperature": float("inf")}))
  head, human, robot = mixed.lines(examples=10_000, windows=4)
  assert head.split() == ["data", "hours", "episodes", "asked", "dealt", "epochs", "passes", "Hz"]
  fields = human.split()
  assert fields[:2] == ["h", "(human)"]
  assert fields[4:6] == ["50.00%", "50.00%"]
  assert float(fields[6]) == pytest.approx(5000 / (4 * len(mixed.components[0].split)), rel=0.01)
  assert float(fields[7]) == pytest.approx(5000 / sum(map(sum, LENGTHS.values())), rel=0.01)
  assert robot.split()[-1] == "30"


@pytest.mark.parametrize("pairs", [False, True])
def test_the_global_batch_is_the_same_on_1_2_4_and_8_processes_and_with_workers(folders, pairs):
  robot = dict(shards=str(folders / "robot"), weight=2.0) | (dict(pairs=str(folders / "human")) if pairs else {})
  config = make_config({"h": dict(shards=str(folders / "human")), "r": robot}, steps=6)
  if pairs:
    with config.unlocked():
      config.data.mixture.r.shards = str(folders / "robot")
  whole = [jax.tree.map(np.array, b) for b in open_batches(config, folders)]
  for processes, workers, first in ((2, 0, 0), (4, 0, 3), (8, 0, 4), (2, 2, 4)):
    config.data.workers = workers
    parts = [open_batches(config, folders, first, p, processes) for p in range(processes)]
    for step, part in enumerate(zip(*parts), first):
      jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda *rows: np.concatenate(rows), *part), whole[step])


def windows(batches, config):
  """(component, clip) of every row of every step, without decoding."""
  mixed, rows = batches.mixture, []
  rows_of = pipeline.Rows(config, None, mixed, 2**20)
  for step, row in itertools.product(range(config.steps), range(config.batch_size)):
    unit, member = divmod(row, mixed.unit)
    ordinal, _ = rows_of._order(step, unit)
    component, own = mixed(ordinal, member)
    split, number = mixed.components[component].find(own, member, config.seed)
    rows.append((component, own, split[number]))
  return rows


def test_aligned_pairs_fill_two_rows_human_and_robot_of_one_task_at_one_progress(folders):
  config = make_config({"p": dict(shards=str(folders / "robot"), pairs=str(folders / "human"))})
  mixed = mixture.make(config)
  frames = {f"egodex/{e['id']}": e["frames"] for e in manifest.load(folders / "human")["episodes"]}
  frames |= {f"lerobot/{e['id']}": e["frames"] for e in manifest.load(folders / "robot")["episodes"]}
  rows = windows(open_batches(config, folders), config)
  partners = collections.defaultdict(set)
  for (_, own, human), (_, other, robot) in zip(rows[::2], rows[1::2]):
    assert own == other
    assert (human.embodiment, robot.embodiment) == ("human", "testbot")
    assert human.text == _episode_text(folders, robot)
    middle = [(c.start + c.num_images / 2) / frames[c.episode] for c in (human, robot)]
    assert abs(middle[0] - middle[1]) < 0.5
    partners[robot.episode].add(human.episode)
  assert mixed.components[0].name == "p (pairs)"
  assert max(map(len, partners.values())) > 1  # not always the same human


def test_a_clip_that_cannot_be_read_leaves_its_pair_in_its_task():
  """Six robot clips and twelve human ones, the first half of each of one task; each member alone goes on to others."""
  task_of, partner_of = np.repeat([0, 1], 3), np.repeat([[[0, 3], [3, 6]], [[6, 9], [9, 12]]], 3, axis=0)
  pairs = mixture.Component("p", 1.0, 1.0, 6, 60, 30.0, range(6), range(12), partner_of, task_of)
  met = set()
  for ordinal, skip in itertools.product(range(24), range(4)):
    robot, human = (pairs.find(ordinal, member, 0)[1] for member in (1, 0))
    other_robot, other_human = (pairs.find(ordinal, member, 0, skip)[1] for member in (1, 0))
    assert task_of[other_robot] == task_of[robot] == human // 6 == other_human // 6
    met.add((skip, other_robot != robot, other_human != human))
  assert {(0, False, False), (1, True, True), (2, True, True)} <= met


def _episode_text(folder, clip):
  return next(e["text"] for e in manifest.load(folder / "robot")["episodes"] if clip.episode.endswith(e["id"]))


def test_mistakes_are_named(folders, tmp_path):
  human, robot = str(folders / "human"), str(folders / "robot")
  for mixed, message in (
    ({"h": dict(shards=human, weight=0.0)}, r"config.data.mixture.h.weight: found 0.0, expected a number above 0"),
    ({"h": dict(weight=1.0)}, r"config.data.mixture.h: found \['weight'\], expected shards"),
    ({"h": dict(shards=human, pair="x")}, r"config.data.mixture.h: found \['pair', 'shards'\], expected shards"),
    ({"p": dict(shards=human, pairs=robot)}, r"config.data.mixture.p: 3 robot episodes of .*human have no human one of the same text"),
  ):
    with pytest.raises(UserError, match=message):
      mixture.make(make_config(mixed))
  with pytest.raises(UserError, match=r"config.data.shards and config.data.mixture: found both"):
    mixture.make(make_config({"h": dict(shards=human)}, **{"data.shards": human}))
  config = make_config({"h": dict(shards=human)})
  with config.unlocked():
    config.data.embodiments = dict(human=0.0)
  with pytest.raises(UserError, match=r"config.data.embodiments.human: found 0.0, expected more than 0"):
    mixture.make(config)
  with pytest.raises(UserError, match=r"config.data.temperature: found 0.0"):
    mixture.make(make_config({"h": dict(shards=human)}, **{"data.temperature": 0.0}))
  with pytest.raises(UserError, match=r"config.batch_size: found 15, expected an even number"):
    mixture.make(make_config({"p": dict(shards=robot, pairs=human)}, batch_size=15))


def test_two_hands_cannot_share_a_slot(folders, shards):
  config = make_config({"h": dict(shards=str(folders / "human")), "s": dict(shards=str(shards))})
  with pytest.raises(UserError, match="statistics: found hand"):
    slots.gather(config)


def test_the_examples_of_the_docs_load_and_deal_what_they_say(folders, tmp_path):
  for path in (ROOT / "configs").glob("*.py"):
    shutil.copy(path, tmp_path)
  real = {"shards/egodex": "human", "shards/vitra": "human", "shards/human_play": "human", "shards/robot_play": "robot"}
  real |= {"shards/human_shirt": "human", "shards/robot_shirt": "robot"}
  configs = {}
  for code in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "data.md").read_text(), re.DOTALL):
    for name, folder in real.items():
      code = code.replace(f'"{name}"', repr(str(folders / folder)))
    name = re.search(r"--config=configs/(\w+)\.py", code)[1]
    (tmp_path / f"{name}.py").write_text(code.replace("r1pro", "testbot"))
    configs[name] = config_lib.parse([f"--config={tmp_path}/{name}.py:debug"])
  pretrain = mixture.make(configs.pop("my_pretrain"))
  assert weights(pretrain) == {"egodex (human)": pytest.approx(2 / 3), "wild (human)": pytest.approx(1 / 3)}  # here both are one folder
  assert all(c.episodes < sum(map(len, LENGTHS.values())) for c in pretrain.components)
  midtrain = configs.pop("my_midtrain")
  assert weights(mixture.make(midtrain)) == {"play (pairs)": 0.8, "human (human)": 0.2}
  assert list(slots.gather(midtrain)) == [26]
  assert weights(mixture.make(configs.pop("my_shirt"))) == {"shirt (pairs)": 1.0}
  assert not configs


@pytest.mark.parametrize(("robots", "humans"), [(1, 100), (5, 30), (20, 7)])
def test_every_human_clip_of_a_task_is_paired_at_its_own_progress(robots, humans):
  """One demonstration beside a hundred (the paper's one-shot), mid-training's 5 beside 30, and more robot episodes than human ones."""
  kind = [("task", np.int64), ("clips", np.int64)]
  rng = np.random.default_rng(robots)
  robot = np.array([(task, rng.integers(1, 5)) for _ in range(robots) for task in (7, 3)], kind)
  human = np.array([(task, rng.integers(1, 9)) for _ in range(humans) for task in (3, 7)], kind)
  own, others = (np.concatenate([[(e, clip) for clip in range(n)] for e, n in enumerate(t["clips"])]) for t in (robot, human))
  partners = mixture._partners(robot, human)
  there = np.zeros(len(others), bool)
  for row, (r, clip) in zip(partners, own, strict=True):
    for first, end in row:
      assert first < end
      there[first:end] = True
      for h, other in others[first:end]:
        assert robot["task"][r] == human["task"][h]
        ours, theirs = clip / robot["clips"][r], other / human["clips"][h]  # their stretches of the episode overlap
        assert ours < theirs + 1 / human["clips"][h]
        assert theirs < ours + 1 / robot["clips"][r]
  assert there.all(), f"{np.sum(~there)} human clips are in no pair"
  component = mixture.Component("p", 1.0, 1.0, 1, 1, 30.0, range(len(own)), range(len(others)), partners)
  episodes = set()
  for ordinal in range(400):
    (_, a), (_, b) = component.find(ordinal, 1, 0), component.find(ordinal, 0, 0)
    assert any(first <= b < end for first, end in partners[a])
    episodes.add(int(others[b][0]))
  assert len(episodes) > 0.8 * min(len(human), 150), "all of them have a turn"

"""The study of the paper's claims (b) to (e) on the bench, as a flat list of steps that is known before any of them begins.

```
record-X -> shards-X -> common -> ground-SIZE -> human-SIZE-NN -> mid-BODY-ARM -> post-BODY-ARM-seedN -> try-RUN
                        stills-X                                                  shot-TASK-ARM-seedN
                                                                                  ladder-SIZE-NN
                                                                                  shuffled, blind
                                                                                  wrists, tips (after people alone, as section 3.6)
```
An arm is which of the two stages before post-training it has; all begin from a backbone that has learned to see (train/ground.py), as the
paper's do. A step's needs stand before it in the list. `egoscale scaling`'s plan is in study_plan.py.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

from egoscale_jax.data import shards
from egoscale_jax.errors import UserError
from egoscale_jax.evaluate import fingertips, rollout, steps, study_plan
from egoscale_jax.sim.bench import looks, recorders, stills

ARMS = {"none": (False, False), "mid": (False, True), "human": (True, False), "both": (True, True)}  # pre-, mid-training
SHOT_ARMS = ("mid", "both")  # one-shot without and with human pre-training, as the paper's figure 6
FOUR, SHOT, LADDER, CONTROLS, ABLATION = "four-way", "one-shot", "loss and success", "controls", "representations"
HUMAN, PLAY, BACKBONE = "human", "play", "ground-"
JOINTS, TIPS, WRISTS = "joints", "fingertips", "wrist only"  # what pre-training on people teaches to say of a hand
_FINGERS = r".*\.(?!(x|y|z|r\d\d)$).*"  # names of actions that are of a finger


@dataclasses.dataclass(frozen=True)
class Step:
  """make(*arguments) in a process of its own; what it writes is workdir/made/NAME. needs: names of steps before it."""

  name: str
  make: Callable
  arguments: tuple
  needs: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Case:
  """A checkpoint, or a baseline, that is tried: a row of a table. pretrained: the step whose loss is told beside it."""

  table: str
  name: str  # of its step
  body: str
  arm: str
  seed: int
  tasks: tuple[str, ...]
  trials: int  # of each task
  pretrained: str = ""
  size: str = ""
  twentieths: int = 0


class Plan:
  """Steps and cases of a config. Of rooms above this one: train(config, workdir), agent(workdir, embodiment, execute), and of
  train/ground.py make_stills(output, plan, processes) and ground(workdir, config, stills to train on, held out)."""

  def __init__(self, config, workdir, train, agent, make_stills, ground):
    _check(config)
    self.config, self.study, self.made = config, config.study, pathlib.Path(workdir) / "made"
    self.train, self.agent, self.make_stills, self.ground = train, agent, make_stills, ground
    self.steps: list[Step] = []
    self.cases: list[Case] = []
    self.body = self.study.body
    folders = [self._record(*row) for row in recordings(config)]
    self._common(folders)
    for body in bodies(self.study):
      for arm in self.study.arms[body]:
        self._arm(body, arm)
    self._one_shot()
    self._controls()
    self._ladder()
    if config.study.ablation:
      self._ablation()

  def _add(self, name, make, arguments, needs=()):
    """Once, however many need it -> its name."""
    if not any(step.name == name for step in self.steps):
      self.steps.append(Step(name, make, arguments, tuple(needs)))
    return name

  def path(self, name):
    return self.made / name

  def _record(self, name, plan, reader, validation):
    record = f"record-{name}"
    self._add(record, steps.record, (self.path(record), plan, self.study.workers))
    return self._prepared(f"shards-{name}", reader, record, validation)

  def _prepared(self, name, source, record, validation=0.0, needs=()):
    size, workers = self.config.data.image_size[0], self.study.workers
    return self._add(name, steps.prepared, (self.path(name), source, self.path(record), size, validation, workers), (record, *needs))

  def _common(self, folders, name="common", **data):
    config = study_plan.copied(self.config)
    config.data.update(mixture={folder: dict(shards=str(self.path(folder))) for folder in folders}, **data)
    return self._add(name, steps.common, (self.path(name), config), folders)

  def _run(self, name, stage, mixture, before="", seed=0, size="", common="common", **data):
    """A run of `egoscale train`; stage: of study.steps and study.rates. mixture: {name of a shards' step: that of its pairs, or ""}."""
    study, config = self.study, self._sized(size)
    before = before or self._ground(size)
    config.data.mixture = {
      one: dict(shards=str(self.path(one))) | (dict(pairs=str(self.path(pairs))) if pairs else {}) for one, pairs in mixture.items()
    }
    config.data.update(tokenizer=str(self.path("common") / steps.TOKENIZER), statistics=str(self.path(common) / steps.STATISTICS), **data)
    config.steps, config.seed, config.optim.learning_rate = study.steps[stage], seed, study.rates[stage]
    config.init_from = str(self.path(before))
    config.validate_every = -(-config.steps // (study.validations if stage == "human" else 1))
    needs = ("common", common, *mixture, *filter(None, mixture.values()), before)
    return self._add(name, self.train, (config.lock(), self.path(name)), needs)

  def _sized(self, size):
    config, size = study_plan.copied(self.config), size or self.study.main
    study_plan.update(config, self.study.sizes[size], f"config.study.sizes.{size}")
    del config.study
    return config

  def _ground(self, size):
    """What every run begins from that has no stage before it."""
    config, told = self._sized(size), self.study.ground
    config.data.tokenizer = str(self.path("common") / steps.TOKENIZER)
    config.steps, config.batch_size, config.optim.learning_rate = told.steps, told.batch_size, told.rate
    folders = []
    for name, scenes, split in (("train", told.scenes, "train"), ("held_out", told.held_out, "validation")):
      plan = stills.Plan(split, 0, scenes, told.arrangements, config.data.image_size[0])
      folders.append(self._add(f"stills-{name}", self.make_stills, (self.path(f"stills-{name}"), plan, self.study.workers)))
    name = BACKBONE + (size or self.study.main)
    return self._add(name, self.ground, (self.path(name), config.lock(), *map(self.path, folders)), ("common", *folders))

  def _human(self, size="", twentieths=shards.TWENTIETHS):
    size = size or self.study.main
    name = f"human-{size}-{twentieths:02d}of{shards.TWENTIETHS}"
    return self._run(name, "human", {f"shards-{HUMAN}": ""}, size=size, twentieths=twentieths)

  def _before(self, body, arm):
    """The stages between the backbone and post-training -> the name of the last of them, "" where there is none."""
    pretrained, aligned = ARMS[arm]
    before = self._human() if pretrained else ""
    if aligned:
      before = self._run(f"mid-{body}-{arm}", "mid", {f"shards-{PLAY}-{body}": f"shards-{PLAY}-{HUMAN}"}, before)
    return before

  def _arm(self, body, arm):
    for seed in self.study.seeds:
      name = f"post-{body}-{arm}-seed{seed}"
      self._run(name, "post", {f"shards-demos-{body}": ""}, self._before(body, arm), seed)
      self._try(FOUR, name, body, arm, seed, self.study.tasks, films=seed == self.study.seeds[0])

  def _try(self, table, run, body, arm, seed, tasks, trials=0, films=False, blind=False, **more):
    make_agent = functools.partial(self.agent, self.path(run), body, self.study.execute)
    if blind:
      make_agent = functools.partial(steps.blinded, make_agent)
    self._rollout(table, f"try-{run}", make_agent, body, arm, seed, tasks, trials, films, (run,), **more)

  def _rollout(self, table, name, make_agent, body, arm, seed, tasks, trials, films, needs, **more):
    """trials: 0 as the study's. Scenes and seeds are those of all its rollouts."""
    trials, tasks = trials or self.study.trials, tuple(tasks)
    settings = rollout.Settings(tasks, body, looks.LAB, trials=trials, image_size=self.config.data.image_size[0])
    self._add(name, steps.tried, (self.path(name), make_agent, settings, self.study.workers, films), needs)
    self.cases.append(Case(table, name, body, arm, seed, tasks, trials, **more))

  def _one_shot(self):
    for task in self.study.one_shot:
      data = {f"shards-shot-{task}-{who}": "" for who in ("robot", HUMAN)}  # weights alone: half of every batch is the one demonstration
      for arm in SHOT_ARMS:
        for seed in self.study.seeds:
          name = f"shot-{task}-{arm}-seed{seed}"
          self._run(name, "shot", data, self._before(self.body, arm), seed)
          self._try(SHOT, name, self.body, arm, seed, (task,))

  def _controls(self):
    """After both stages, but post-trained without what they should need."""
    body, study, before = self.body, self.study, self._before(self.body, "both")
    record = f"record-demos-{body}"
    self._prepared("shards-shuffled", steps.Shuffled(str(self.path(record))), record)
    self._run("shuffled", "post", {"shards-shuffled": ""}, before, study.seeds[0])
    self._try(CONTROLS, "shuffled", body, "shuffled labels", study.seeds[0], study.tasks)
    self._run("blind", "post", {f"shards-demos-{body}": ""}, before, study.seeds[0], cameras=("none",))
    self._try(CONTROLS, "blind", body, "no pictures", study.seeds[0], study.tasks, blind=True)
    still = functools.partial(rollout.baseline, "hold_still")
    self._rollout(CONTROLS, "try-hold_still", still, body, "hold still", 0, study.tasks, 0, False, ())

  def _ladder(self):
    """Loss against success: people's hours x sizes, each post-trained directly (paper section 3.3)."""
    study, body, seed = self.study, self.body, self.study.seeds[0]
    for size in study.sizes:
      for twentieths in study.twentieths:
        before = self._human(size, twentieths)
        run = f"ladder-{size}-{twentieths:02d}of{shards.TWENTIETHS}"
        self._run(run, "post", {f"shards-demos-{body}": ""}, before, seed, size)
        told = dict(pretrained=before, size=size, twentieths=twentieths)
        self._try(LADDER, run, body, HUMAN, seed, study.tasks, study.ladder_trials, **told)

  def _ablation(self):
    """What pre-training on people teaches to say of a hand: its joints (the arm *human* once more), nothing, or where its tips are."""
    study, body, demos = self.study, self.body, f"shards-demos-{self.body}"
    wrists = self._run("human-wrists", "human", {f"shards-{HUMAN}": ""}, resting=(*self.config.data.resting, _FINGERS))
    tips = {f"shards-{HUMAN}": (steps.PEOPLE, study.validation), demos: (steps.ROBOTS, 0.0)}
    for name, (reader, share) in tips.items():
      source = fingertips.Source(reader, str(self.path(name)))
      self._prepared(f"{name}-tips", source, name.replace("shards-", "record-"), share, (name,))
    slots = {fingertips.EMBODIMENT.format(body): self.config.data.slots[body]}
    told = dict(common=self._common([f"{name}-tips" for name in tips], "common-tips", slots=slots), slots=slots)
    human = self._run("human-tips", "human", {f"shards-{HUMAN}-tips": ""}, **told)
    say = functools.partial(self.agent, embodiment=fingertips.EMBODIMENT.format(body), execute=study.execute)
    for seed in study.seeds:
      joints = f"try-post-{body}-{HUMAN}-seed{seed}"
      self.cases.append(Case(ABLATION, joints, body, JOINTS, seed, tuple(study.tasks), study.trials))
      run = self._run(f"post-tips-seed{seed}", "post", {f"{demos}-tips": ""}, human, seed, **told)
      make_agent = functools.partial(fingertips.agent, functools.partial(say, self.path(run)), body)
      self._rollout(ABLATION, f"try-{run}", make_agent, body, TIPS, seed, study.tasks, 0, False, (run,))
      run = self._run(f"post-wrists-seed{seed}", "post", {demos: ""}, wrists, seed)
      self._try(ABLATION, run, body, WRISTS, seed, study.tasks)


def bodies(study):
  """The study's own first: a config sorts its keys."""
  return [study.body, *(body for body in study.arms if body != study.body)]


def recordings(config):
  """-> rows (name, recorders.Plan, reader, share held out). A seed a purpose: no scene of one is another's, but for aligned ones.
  People are at their homes, robots and the people beside them in the lab."""
  study, size = config.study, config.data.image_size[0]
  number = study.episodes
  people = functools.partial(recorders.Plan, HUMAN, split="train", image_size=size)
  make = functools.partial(recorders.Plan, split=looks.LAB, image_size=size)
  everything, play = (*study.tasks, PLAY), number.scenes
  rows = [(HUMAN, people(everything, seed=0, episodes=number.human), steps.PEOPLE, study.validation)]
  aligned = make(HUMAN, (PLAY,), seed=1, episodes=play * number.human_takes, takes=number.human_takes, aligned=True)
  rows.append((f"{PLAY}-{HUMAN}", aligned, steps.PEOPLE, 0.0))
  for body in bodies(study):
    takes = make(body, (PLAY,), seed=1, episodes=play * number.robot_takes, takes=number.robot_takes)
    rows.append((f"{PLAY}-{body}", takes, steps.ROBOTS, 0.0))
    rows.append((f"demos-{body}", make(body, tuple(study.tasks), seed=2, episodes=number.demos * len(study.tasks)), steps.ROBOTS, 0.0))
  for task in study.one_shot:
    rows.append((f"shot-{task}-{HUMAN}", make(HUMAN, (task,), seed=3, episodes=number.shot, aligned=True), steps.PEOPLE, 0.0))
    rows.append((f"shot-{task}-robot", make(study.body, (task,), seed=3, episodes=1), steps.ROBOTS, 0.0))
  return rows


def _check(config):
  if "study" not in config:
    raise UserError("--config: has no `study`, expected a study's config as configs/study.py")
  study = config.study
  for name in ("seeds", "twentieths"):
    if not study[name] or len(set(study[name])) < len(study[name]):
      raise UserError(f"config.study.{name}: found {study[name]}, expected different numbers")
  if study.main not in study.sizes:
    raise UserError(f"config.study.main: found {study.main!r}, expected one of {', '.join(study.sizes)}")
  if study.body not in study.arms:
    raise UserError(f"config.study.body: found {study.body!r}, expected one of {', '.join(study.arms)}, which have arms")
  for body, arms in study.arms.items():
    if not arms or set(arms) - set(ARMS):
      raise UserError(f"config.study.arms.{body}: found {', '.join(arms) or 'none'}, expected some of {', '.join(ARMS)}")
  if study.ablation and not (HUMAN in study.arms[study.body] and config.data.human_state):
    found = f"the arms {', '.join(study.arms[study.body])}, human_state {config.data.human_state}"
    raise UserError(f"config.study.ablation: found {found}, expected the arm {HUMAN} of {study.body}, and people with their hands' state")
  for name in ("trials", "ladder_trials", "execute", "workers", "validations"):
    if study[name] < 1:
      raise UserError(f"config.study.{name}: found {study[name]}, expected at least 1")

"""The study of the paper's claims on the simulated bench (docs/evidence.md): four-way comparison, one-shot, loss against success, controls.

  egoscale study --config=configs/study.py:micro --workdir=runs/study

`:micro` is meant for two cores, all of it in about 8 hours; `:small` (also without a mode) for one GPU. Both are estimates, in
docs/evidence.md. `:debug` only proves that the chain runs, in minutes.
"""

import scaling


def get_config(mode=""):
  config = scaling.get_config(mode)  # the models, and `sizes`, are those of the scaling study
  sizes = config.scaling.sizes.to_dict()
  del config.scaling
  if mode == "micro":
    sizes = dict(quarter=sizes["quarter"], eighth=eighth(sizes["quarter"]["model"]))  # fifty runs: two cores have no time for the whole one
    config.batch_size = 128  # with the backbone frozen 414 examples a second, where all parts in batches of 32 take 150 (docs/evidence.md)
  config.study = dict(
    tasks=("pick_place", "card", "unscrew", "syringe", "fork"),  # demonstrated by robots, and tried
    one_shot=("screw_on", "drawer"),  # held out of all that is before post-training
    body="sharpa_wave",  # the study's own robot; the others are compared with it
    arms=dict(sharpa_wave=("none", "mid", "human", "both"), dex3=("mid", "both")),  # of each robot
    ablation=True,  # what people teach to say of a hand: joints, fingertips, or nothing (paper section 3.6)
    seeds=(0, 1),  # of post-training
    trials=50,  # of each task and checkpoint
    execute=4,  # steps of a chunk that are carried out before the policy is asked again
    workers=2,  # processes that record, prepare and try
    # Recordings. human: for pre-training, of `tasks` and play. play: scenes and goals, and takes of each by a person and by a robot (paper:
    # 344, 30, 5). demos: of each task by each robot (paper: 100). shot: of a held-out task by people, beside one by a robot (paper: 100).
    episodes=dict(human=2400, scenes=100, human_takes=30, robot_takes=5, demos=100, shot=100),
    # The backbone that all arms begin from (train/ground.py): pictures of the training homes, `held_out` scenes of others.
    ground=dict(scenes=4000, held_out=100, arrangements=16, batch_size=32, steps=6000, rate=1.5e-3),
    validation=0.1,  # share of the homes of the people's recordings that is held out
    steps=dict(human=2000, mid=700, post=1400, shot=700),
    rates=dict(human=1.5e-3, mid=1.5e-3, post=1.5e-3, shot=1.5e-3),  # the same for every arm
    main="quarter" if mode == "micro" else "whole",  # of `sizes`: the arms' model
    sizes=sizes,  # by name, what a size sets of `model` and `optim`
    twentieths=(1, 2, 4, 10, 20),  # loss against success: each size pre-trained on so many of the people's hours
    ladder_trials=20,  # of each task, for loss against success
    validations=4,  # of each pre-training
  )
  if mode in ("", "small"):
    config.study.update(workers=8, ladder_trials=50)
    config.study.episodes.update(human=20_000, scenes=344)
    config.study.ground.update(scenes=20_000, batch_size=128, steps=20_000, rate=2e-4)
    config.study.steps = dict(human=10_000, mid=5000, post=5000, shot=3000)
    config.study.rates = dict(human=2e-4, mid=1e-4, post=1e-4, shot=1e-4)
  # What the backbone has learned by pointing stays: the paper freezes the language model after pre-training; the time goes to the expert.
  config.train_parts = ("expert/.*",)
  config.data.update(stride=2, text_tokens=32, slots=dict(human=0, sharpa_wave=0, dex3=1))
  config.data.resting = (r"left\..*",)  # on the bench the left hand rests; a person's sways a little
  config.data.temperature = float("inf")  # shares by the weights alone
  if mode == "debug":
    debug(config)
  return config


def eighth(quarter):
  """Half of the layers of the quarter."""
  layers = dict(vision=dict(depth=2), language=dict(layers=1), mixer={}, expert=dict(layers=2))
  return dict(model={part: quarter[part] | more for part, more in layers.items()})


def debug(config):
  """Toy sizes: two arms, one seed, one task, two trials."""
  config.study.update(tasks=("pick_place",), one_shot=("drawer",), seeds=(0,), trials=2, ladder_trials=2, twentieths=(10, 20))
  config.study.update(main="toy", sizes=dict(toy=dict()), validations=1, validation=0.3)
  config.study.arms = dict(sharpa_wave=("none", "human", "both"), dex3=("both",))
  config.study.episodes = dict(human=8, scenes=2, human_takes=2, robot_takes=1, demos=3, shot=2)
  config.study.ground.update(scenes=4, held_out=2, batch_size=4, steps=4)
  config.data.text_tokens = 64  # the vocabulary of so few instructions spells most of what is named
  config.study.steps = dict(human=8, mid=4, post=4, shot=4)
  config.checkpoint_every = 4
  config.validation.update(episodes=2, times=2, draws=2, batch_size=4)

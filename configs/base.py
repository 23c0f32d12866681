"""The reference shape (GR00T N1.7, 3 B) that the stages fill in. Not run by itself.

Where the paper (arXiv:2602.16710) is silent the value is GR00T N1.7's, marked (N1.7). `debug(config)` makes any stage a toy that runs
on a laptop.
"""

from ml_collections import ConfigDict


def model():
  """Sizes of the model: (N1.7) throughout; the paper names no backbone and no size."""
  return ConfigDict(
    dict(
      vision=dict(depth=24, width=1024, heads=16, mlp=4096, patch=16, merge=2, temporal_patch=2, position_side=48, deepstack=(5, 11, 17)),
      language=dict(
        layers=16, width=2048, heads=16, kv_heads=8, head_dim=128, mlp=6144, vocab=151936, rope_theta=5e6, mrope_sections=(24, 20, 20)
      ),
      mixer=dict(layers=4, heads=32, head_dim=64, mask_padding=True),
      expert=dict(
        layers=32,
        text_every=2,
        heads=32,
        head_dim=48,
        output=1024,
        embodiments=32,
        max_positions=1024,
        time_buckets=1000,
        mask_actions=True,
        state_dropout=0.2,
      ),
      horizon=40,
      action_dim=132,
      state_dim=132,
      image_token=151655,
      flow=dict(alpha=1.5, scale=0.999, steps=4, prefix=0),  # prefix: longest executed prefix in training (real-time chunking)
      dropout=0.2,
      remat="full",  # what the backward pass computes again: none, dots, branches, full (models/layers.py, REMAT)
      attention="auto",  # or xla, cudnn, splash (models/attention.py); the choice and its reason are printed at the start
      dtype="bfloat16",
    )
  )


def optim():
  """AdamW, cosine, warm-up as a share of the steps (GR00T N1's Table 6, N1.7; the paper is silent)."""
  # rates: ((pattern, factor), ...) on the learning rate of the parameters whose path matches, as (("vision/.*", 0.1),); the first one wins.
  # muon: a factor on that of hidden matrices, whose momentum is then orthogonalised (train/optim.py); 0: AdamW for all
  return dict(learning_rate=5e-5, warmup=0.05, b1=0.95, b2=0.999, eps=1e-8, weight_decay=1e-5, clip_norm=1.0, rates=(), muon=0.0)


def get_config(mode=""):
  config = ConfigDict()
  config.model = model()
  config.seed = 0

  config.data = ConfigDict()
  config.data.shards = ""  # the output directory of `egoscale prepare`
  config.data.image_size = (256, 256)  # height, width; both a multiple of patch * merge
  config.data.crop = 0.0  # 0: the middle of the aspect ratio; 230 / 256: the whole frame squeezed, then its middle (N1.7)
  config.data.cameras = ("ego",)  # human video has the head camera only
  config.data.stride = 1  # frames between the steps of a chunk: 1 = every frame of the 30 Hz (paper section 2.2: 30 FPS)
  config.data.text_tokens = 48  # room for the instruction, its template included
  config.data.plain_text = False  # True: instructions in lower case without punctuation (N1.7)
  config.data.tokenizer = ""  # a tokenizer.json; empty: init_from's; without one, a small one of the shards' own instructions
  config.data.statistics = ""  # a run's statistics.json, for stages that share a normaliser; empty: made of the shards' own
  config.data.slots = dict(human=26)  # which adapter an embodiment uses; 26 is the EgoScale robot's and its human data's (N1.7)
  config.data.human_state = False  # True: the tracked hand pose of human video is its proprioception (N1.7), as robots always have theirs
  config.data.base_state = ()  # robots whose proprioception is seen from their base: nobody knows where their camera is
  config.data.residual_soft_m = 0.0  # fingertip residual of the retargeting at which a joint's label counts half; 0: all count the same
  config.data.resting = ()  # names of actions, as r"left\..*", that are not learnt but stay as they are; others may not stand still
  config.data.mixture = ConfigDict()  # in place of shards, several: name=dict(shards=DIR, weight=1.0, pairs=""); pairs: the folder of the
  # human episodes that the robot's in `shards` are aligned with, by the same text; each pair then fills two rows of a batch
  config.data.temperature = 1.0  # a share is hours ** (1 / temperature) times the weights; inf: the weights alone
  config.data.embodiments = ConfigDict()  # a further weight of an embodiment, where it is not 1
  config.data.twentieths = 20  # how many twentieths of the training hours; the smaller subsets lie in the larger (paper section 3.3)
  config.data.windows = 24  # examples from each record that is read: all its pictures; fewer: more clips in a run that is not a whole pass
  config.data.mix = 8  # records that a row of the batch has at a time: its examples come from these in a random order
  config.data.threads = 8  # reader threads a process
  config.data.workers = 0  # worker processes a host; the examples do not depend on it
  config.data.prefetch_bytes = 2**31  # batches that wait, a process
  config.data.cache_bytes = 2**31  # records that wait for their other windows, a process; too little costs time, and changes nothing
  config.data.unreadable = 1e-4  # a larger share of examples that cannot be read ends the run; up to it their neighbours stand in

  # Pictures in training, on the device (models/augment.py; N1.7's values, which does not turn them). crop: share of both sides, also of the
  # centre that validation and the policy see; rotation: degrees; the rest as factors 1 +- value, hue as a share of a whole turn.
  config.augment = dict(crop=230 / 256, rotation=0.0, brightness=0.3, contrast=0.4, saturation=0.5, hue=0.08)

  config.batch_size = 8192  # global
  config.steps = 100_000
  config.accumulate = 1  # parts in which a batch passes through the model, one after the other: less memory, the same update
  config.flow_draws = 1  # (noise, time) pairs for one pass of the backbone (N1.7)
  config.init_from = ""  # a work directory of the stage before: parameters only
  config.optim = optim()
  config.ema = 0.0  # decay a step of the running mean of what is learned, which is then validated, handed on and exported; 0: none
  config.lora = dict(rank=0, alpha=16.0, paths=())  # low-rank adapters on kernels whose path matches; train_parts=() trains them alone
  config.train_parts = (".*",)  # regular expressions on parameter paths; the rest is frozen, without gradient or optimizer state
  config.mesh = dict(data=1, fsdp=-1, tensor=1)  # -1: all that is left

  config.skip_limit = 10  # an update whose loss or gradient is not finite is left out and counted; more in a row end the run
  config.log_every = 20
  config.wandb = ""  # a project of Weights & Biases that the numbers go to as well (pip install wandb); empty: none
  config.profile = ()  # (first, last) step of a profile into workdir/profile
  config.checkpoint_every = 1000
  config.keep_checkpoints = 3
  config.validate_every = 5000
  config.validation = dict(episodes=2000, times=20, draws=16, batch_size=512)  # paper section 3.3
  return config


def debug(config):
  """The same stage with toy sizes: minutes on two cores."""
  m = config.model
  m.vision = dict(depth=2, width=64, heads=4, mlp=128, patch=16, merge=2, temporal_patch=2, position_side=8, deepstack=(0,))
  m.language = dict(layers=2, width=64, heads=4, kv_heads=2, head_dim=16, mlp=128, vocab=512, rope_theta=5e6, mrope_sections=(4, 2, 2))
  m.mixer = dict(layers=1, heads=4, head_dim=16, mask_padding=True)
  m.expert = dict(
    layers=4,
    text_every=2,
    heads=4,
    head_dim=32,
    output=128,
    embodiments=2,
    max_positions=64,
    time_buckets=1000,
    mask_actions=True,
    state_dropout=0.2,
  )
  m.update(horizon=8, action_dim=64, state_dim=64, image_token=2, dropout=0.0, remat="none", dtype="float32")
  config.data.update(image_size=(64, 64), threads=2, slots=dict(human=0))
  config.augment = dict(crop=1.0, rotation=0.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)
  config.batch_size = 16
  config.steps = 300
  config.flow_draws = 4
  config.optim.update(learning_rate=1e-3, b1=0.9, b2=0.98)
  config.mesh.update(data=-1, fsdp=1)
  config.log_every = 10
  config.checkpoint_every = 100
  config.validate_every = 100
  config.validation.update(episodes=8, times=4, draws=4, batch_size=16)
  return config


def finish(config, mode):
  """Applies the mode of `--config=configs/X.py:MODE`."""
  if mode not in ("", "debug"):
    raise ValueError(f"configs take no mode or 'debug', found {mode!r}")
  return debug(config) if mode == "debug" else config

"""A scaling study: nested subsets of the hours x sizes x seeds, at equal steps and at equal passes (paper section 3.3, docs/scaling.md).

  egoscale scaling --config=configs/scaling.py:micro --workdir=runs/scaling --config.data.shards=DIR

`:micro` is meant for two cores, all 54 runs in at most 8 hours; `:hour` is its smaller size alone, 27 runs, half as long. `:small`
(also without a mode) is meant for one GPU, at most 30 minutes a run. `:debug` only proves that the code runs. What was measured of them
stands in docs/scaling.md.
"""

import base


def get_config(mode=""):
  if mode not in ("", "small", "micro", "hour", "debug"):
    raise ValueError(f"expected small, micro, hour or debug, found {mode!r}")
  config = base.get_config()
  config.scaling = dict(
    twentieths=(1, 2, 4, 10, 20),  # of the training hours: the paper's 1, 2, 4, 10 and 20 thousand
    seeds=(0, 1, 2),
    sizes=dict(),  # by name, what a size sets of `model` and `optim`; the rest is the same for all
    passes=0.0,  # how often each frame is seen at equal passes; 0: as often as config.steps make of the largest subset
    validations=5,  # of each run, evenly over its steps; the least loss counts
  )
  small(config) if mode in ("", "small") else micro(config)
  if mode == "hour":
    hour(config)
  if mode == "debug":
    debug(config)
  return config


def common(config):
  """Of both budgets: float32, no dropout, no augmentation but the data's own variety."""
  config.model.update(image_token=2, dropout=0.0, remat="none")
  config.model.expert.update(text_every=2, embodiments=2, state_dropout=0.0, max_positions=64)
  config.data.slots = dict(human=0)
  config.augment = dict(crop=1.0, rotation=0.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)
  config.optim.update(b1=0.9, b2=0.98)
  config.train_parts = (".*",)
  config.mesh.update(data=-1, fsdp=1)
  config.keep_checkpoints = 1  # a study is many runs


def micro(config):
  """Two cores: the quickstart's model, with finer patches, and one of a quarter of its FLOPs."""
  common(config)
  m = config.model
  # Patches of 8 pixels: of 16, four tokens have to tell where a thing lies (docs/evidence.md, "Measured so far").
  m.vision = dict(depth=3, width=128, heads=4, mlp=256, patch=8, merge=2, temporal_patch=1, position_side=8, deepstack=(1,))
  m.language = dict(layers=2, width=128, heads=4, kv_heads=2, head_dim=32, mlp=256, vocab=512, rope_theta=5e6, mrope_sections=(8, 4, 4))
  m.mixer = dict(layers=1, heads=4, head_dim=32, mask_padding=True)
  m.expert.update(layers=4, heads=4, head_dim=64, output=256)
  m.update(horizon=8, action_dim=64, state_dim=64, dtype="float32")
  m.flow.alpha = 2.5  # as the quickstart's
  config.data.update(image_size=(64, 64), human_state=True, stride=4, text_tokens=32, threads=2)
  config.scaling.sizes = dict(
    quarter=dict(
      model=dict(
        vision=dict(width=64, heads=2, mlp=128),
        language=dict(width=64, heads=2, kv_heads=1, mlp=128),
        mixer=dict(heads=2),
        expert=dict(heads=2, output=128),
      )
    ),
    whole=dict(),
  )
  config.batch_size = 16
  config.steps = 3000
  config.flow_draws = 2
  config.optim.update(learning_rate=1.5e-3, muon=1.0)  # half the steps of AdamW's to the same training loss (docs/evidence.md)
  config.log_every = 100
  config.checkpoint_every = 500
  config.validation.update(episodes=24, times=10, draws=16, batch_size=48)


def hour(config):
  """Micro's smaller size alone, half as long."""
  config.scaling.sizes = dict(quarter=config.scaling.sizes["quarter"])
  config.steps = 1500


def small(config):
  """One GPU: configs/small.py at 128 pixels, and a size below it and one in between."""
  common(config)
  m = config.model
  m.vision = dict(depth=12, width=384, heads=6, mlp=1536, patch=16, merge=2, temporal_patch=1, position_side=8, deepstack=(5,))
  m.language = dict(
    layers=8, width=512, heads=8, kv_heads=4, head_dim=64, mlp=1536, vocab=8192, rope_theta=5e6, mrope_sections=(12, 10, 10)
  )
  m.mixer = dict(layers=2, heads=8, head_dim=64, mask_padding=True)
  m.expert.update(layers=8, heads=8, head_dim=64, output=512)
  m.update(horizon=16)
  config.data.update(image_size=(128, 128), human_state=True, stride=2, text_tokens=48)
  config.scaling.sizes = dict(
    quarter=dict(
      model=dict(
        vision=dict(depth=6, width=192, heads=3, mlp=768, deepstack=(2,)),
        language=dict(layers=4, width=256, heads=4, kv_heads=2, mlp=768),
        mixer=dict(heads=4),
        expert=dict(layers=4, heads=4, output=256),
      )
    ),
    half=dict(
      model=dict(
        vision=dict(depth=12, width=256, heads=4, mlp=1024),
        language=dict(layers=8, width=384, heads=6, kv_heads=3, mlp=1024),
        mixer=dict(heads=6),
        expert=dict(layers=8, heads=6, output=384),
      )
    ),
    whole=dict(),
  )
  config.batch_size = 128
  config.steps = 10_000
  config.flow_draws = 4
  config.optim.learning_rate = 2e-4
  config.validation.update(episodes=200, times=20, draws=16, batch_size=128)


def debug(config):
  """Minutes: toy sizes, two subsets, one seed."""
  base.debug(config)
  config.model.update(vision=dict(config.model.vision, depth=1), language=dict(config.model.language, layers=1))
  config.model.mixer.layers = 0
  config.scaling.update(twentieths=(4, 10, 20), seeds=(0,), validations=2)
  config.scaling.sizes = dict(toy=dict())
  config.steps = 24
  config.flow_draws = 1
  config.checkpoint_every = 8

"""The quickstart: a small policy from simulated egocentric video, trained in minutes on two cores.

  ./launch/quickstart.sh

or, on shards that are there already:

  egoscale train --config=configs/quickstart.py --workdir=runs/quickstart --config.data.shards=runs/quickstart/shards

Measured: see README.md, "Quickstart". `:debug` only proves that the code runs.
"""

import base


def get_config(mode=""):
  config = base.get_config()
  m = config.model
  m.vision = dict(depth=3, width=128, heads=4, mlp=256, patch=16, merge=2, temporal_patch=1, position_side=6, deepstack=(1,))
  m.language = dict(layers=2, width=128, heads=4, kv_heads=2, head_dim=32, mlp=256, vocab=512, rope_theta=5e6, mrope_sections=(8, 4, 4))
  m.mixer = dict(layers=1, heads=4, head_dim=32, mask_padding=True)
  m.expert = dict(
    layers=4,
    text_every=2,
    heads=4,
    head_dim=64,
    output=256,
    embodiments=2,
    max_positions=32,
    time_buckets=1000,
    mask_actions=True,
    state_dropout=0.0,
  )
  m.update(horizon=8, action_dim=64, state_dim=64, image_token=2, dropout=0.0, remat="none", dtype="float32")
  m.flow.alpha = 2.5  # more noisy inputs than (N1.7)'s 1.5: only there does a chunk have to be told from what is seen
  config.data.update(image_size=(96, 96), human_state=True, stride=8, text_tokens=32, threads=2, slots=dict(human=0))
  config.augment = dict(crop=1.0, rotation=0.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)  # two minutes teach no invariance
  config.batch_size = 16
  config.steps = 1200
  config.flow_draws = 2
  config.optim.update(learning_rate=1.5e-3, b1=0.9, b2=0.98)
  config.train_parts = (".*",)
  config.mesh.update(data=-1, fsdp=1)
  config.log_every = 50
  config.checkpoint_every = 400
  config.validate_every = 400
  config.validation.update(episodes=16, times=10, draws=16, batch_size=32)
  return base.finish(config, mode)

"""A policy of about 100 M parameters, trained from nothing, for one GPU: the reference's topology with its widths cut to a quarter.

  egoscale train --config=configs/small.py --workdir=runs/small --config.data.shards=DIR

Meant for one GPU of 24 GB or more; it was not timed on a GPU, and neither its memory nor a figure that it reaches is known yet. What is
counted: 100.3 M parameters, 0.088 TFLOP a training example (models/flops.py), so 100,000 steps of 128 examples are 1.12 exaFLOP.
`:debug` is the same stage with toy sizes: about a minute on two cores.
"""

import base


def get_config(mode=""):
  config = base.get_config()
  m = config.model
  m.vision = dict(depth=12, width=384, heads=6, mlp=1536, patch=16, merge=2, temporal_patch=1, position_side=16, deepstack=(5,))
  m.language = dict(
    layers=8, width=512, heads=8, kv_heads=4, head_dim=64, mlp=1536, vocab=8192, rope_theta=5e6, mrope_sections=(12, 10, 10)
  )
  m.mixer = dict(layers=2, heads=8, head_dim=64, mask_padding=True)
  m.expert = dict(
    layers=8,
    text_every=2,
    heads=8,
    head_dim=64,
    output=512,
    embodiments=4,
    max_positions=64,
    time_buckets=1000,
    mask_actions=True,
    state_dropout=0.2,
  )
  m.update(image_token=2, dropout=0.1, remat="none")
  config.data.slots = dict(human=0)
  config.batch_size = 128
  config.steps = 100_000
  config.flow_draws = 4
  config.optim.learning_rate = 2e-4
  config.train_parts = (".*",)
  config.validation.update(episodes=200, times=10, batch_size=64)
  return base.finish(config, mode)

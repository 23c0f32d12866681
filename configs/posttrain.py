"""Stage III: post-training on one task's demonstrations (paper section 2.4): 10 K steps, global batch 512, learning rate 3e-5.

  egoscale train --config=configs/posttrain.py --workdir=runs/shirt --config.data.shards=DIR --config.init_from=runs/midtrain

Hardware not stated in the paper. `:debug` is the same stage with toy sizes: about a minute on two cores.
"""

import base


def get_config(mode=""):
  config = base.get_config()
  config.batch_size = 512
  config.steps = 10_000
  config.optim.learning_rate = 3e-5
  # The vision encoder is frozen after mid-training (section 2.4); without mid-training add "vision/.*". The language part is not spelled
  # out: it stays frozen, as in Stage II.
  config.train_parts = ("mixer/.*", "expert/.*")
  return base.finish(config, mode)

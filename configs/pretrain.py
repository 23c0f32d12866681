"""Stage I: pre-training on human video (paper section 2.4, appendix D.1): 100 K steps, global batch 8192,
learning rate 5e-5, all parts train.

  egoscale train --config=configs/pretrain.py --workdir=runs/pretrain --config.data.shards=DIR

Hardware of the paper: 256 x GB200, wall time not stated. `--config=configs/pretrain.py:debug` is the same stage with toy sizes: 300
steps in about a minute on two cores; on five EgoDex episodes the loss falls from about 1.2 to below 0.5.
"""

import base


def get_config(mode=""):
  config = base.get_config()
  config.batch_size = 8192
  config.steps = 100_000
  config.optim.learning_rate = 5e-5
  config.train_parts = (".*",)  # everything is unfrozen
  return base.finish(config, mode)

"""Stage II: mid-training on aligned human and robot play (paper section 2.4, appendix D.1): 50 K steps, global
batch 2048, learning rate 3e-5.

  egoscale train --config=configs/midtrain.py --workdir=runs/midtrain --config.data.shards=DIR --config.init_from=runs/pretrain

Hardware not stated in the paper. `:debug` is the same stage with toy sizes: about a minute on two cores.
"""

import base


def get_config(mode=""):
  config = base.get_config()
  config.batch_size = 2048
  config.steps = 50_000
  config.optim.learning_rate = 3e-5
  # Vision encoder and action expert (section 2.4), its state and action adapters with it (D.1); the language part is frozen.
  # The mixer is read with the expert: the paper does not name it, N1.7 trains it (tune_vlln).
  config.train_parts = ("vision/.*", "mixer/.*", "expert/.*")
  return base.finish(config, mode)

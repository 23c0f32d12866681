"""FLOPs of the matrix products, counted from the config alone: what model-FLOP use and a plan divide by.

A product of [m, k] and [k, n] is 2 m k n; attention counts its two products over all keys, causal or not. What the backward pass computes
again counts nothing. Left out: what is not a product of the model (norms, softmax, rotary, the pictures' augmentation), and the vision
encoder's reading of its position table, once a step and not once an example.
"""

from typing import NamedTuple

PARTS = ("vision", "language", "mixer", "expert")  # in the order in which they run


class Count(NamedTuple):
  """Of one forward pass: products with parameters, and of queries, keys and values among themselves."""

  maps: int
  scores: int = 0

  def times(self, n):
    return Count(self.maps * n, self.scores * n)

  def plus(self, other):
    return Count(self.maps + other.maps, self.scores + other.scores)


def prompt_length(config):
  """Tokens of a prompt: data/tokenizer.Prompt.length."""
  return len(config.data.cameras) * (_merged(config) + 2) + config.data.text_tokens


def backbone(config):
  """-> {part: Count} of an example, once whatever the number of draws and flow steps: vision, language, mixer, memory."""
  m, length = config.model, prompt_length(config)
  return {
    "vision": _vision(m.vision, m.language.width, _patches(config)).times(len(config.data.cameras)),
    "language": _language(m.language, length),
    "mixer": _mixer(m.mixer, m.language.width, length),
    "memory": Count(2 * 2 * length * m.language.width * -(-m.expert.layers // 2) * m.expert.heads * m.expert.head_dim),
  }


def velocity(config, clean_too):
  """-> Count of the expert, once a draw or a flow step; clean_too: it takes the time's modulation of executed steps as well."""
  m, e = config.model, config.model.expert
  width, steps, times = e.heads * e.head_dim, m.horizon, 2 if clean_too else 1
  tokens = 1 + steps
  maps = m.state_dim * e.output + e.output * width  # state encoder
  maps += steps * (m.action_dim * width + 2 * width * width + width * width)  # action encoder
  maps += times * (256 * width + width * width)  # flow time
  maps += e.layers * (times * width * 2 * width + tokens * 2 * 4 * width * width)  # each block's modulation and MLP
  maps += (
    e.layers * tokens * 2 * width * width + e.layers // 2 * tokens * 2 * width * width
  )  # query and out; key and value of the odd blocks
  maps += times * width * 2 * width + steps * width * e.output  # modulation and projection at the end
  maps += steps * (e.output * e.output + e.output * m.action_dim)  # action decoder
  keys = e.layers // 2 * tokens + -(-e.layers // 2) * prompt_length(config)
  return Count(2 * maps, 2 * 2 * tokens * keys * width)


def training(config, trained=PARTS):
  """FLOPs of a training example: forward, and backward through what `trained` names and all that comes after it.

  A product with parameters costs as much again for its input's gradient, and again for the parameters' where they are trained.
  """
  once = backbone(config)
  draws = velocity(config, bool(config.model.flow.prefix)).times(config.flow_draws)
  parts = {"vision": once["vision"], "language": once["language"], "mixer": once["mixer"], "expert": once["memory"].plus(draws)}
  total, reached = 0, False
  for part, count in parts.items():
    reached = reached or part in trained
    total += count.maps * (1 + reached + (part in trained)) + count.scores * (1 + 2 * reached)
  return total


def chunk(config):
  """FLOPs of a chunk of actions: the backbone and the features' keys and values once, the expert once a flow step."""
  steps = velocity(config, bool(config.model.flow.prefix)).times(config.model.flow.steps)
  return sum(sum(count) for count in (*backbone(config).values(), steps))


def _patches(config):
  height, width = config.data.image_size
  return (height // config.model.vision.patch) * (width // config.model.vision.patch)


def _merged(config):
  return _patches(config) // config.model.vision.merge**2


def _vision(v, out, patches):
  """Of one image."""
  maps = patches * 3 * v.temporal_patch * v.patch**2 * v.width
  maps += v.depth * patches * (4 * v.width**2 + 2 * v.width * v.mlp)
  wide = v.width * v.merge**2
  maps += (1 + len(v.deepstack)) * (patches // v.merge**2) * (wide * wide + wide * out)
  return Count(2 * maps, v.depth * 2 * 2 * patches**2 * v.width)


def _language(c, length):
  heads = (2 * c.heads + 2 * c.kv_heads) * c.head_dim
  return Count(c.layers * length * 2 * c.width * (heads + 3 * c.mlp), c.layers * 2 * 2 * length**2 * c.heads * c.head_dim)


def _mixer(c, width, length):
  inner = c.heads * c.head_dim
  return Count(c.layers * length * 2 * width * (4 * inner + 2 * 4 * width), c.layers * 2 * 2 * length**2 * inner)

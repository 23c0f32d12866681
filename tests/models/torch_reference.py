"""GR00T N1.7 in plain PyTorch, from ../shared/model.md, on a checkpoint's tensors: transformers' Qwen3-VL and our write-up of the head.

Nothing here is for users: it is the other side of a comparison. Tensors go by their released names.
"""

import math

import torch
import transformers
from torch.nn import functional as F
from transformers.models.qwen3_vl import modeling_qwen3_vl

torch.set_num_threads(1)  # small arrays: threads cost more than they save
BACKBONE, HEAD, DIT = "backbone.model.model.", "action_head.", "action_head.model."


def backbone(told, tensors):
  """config.json's two dictionaries and the tensors -> Qwen3VLModel with the kept decoder layers, without the final norm."""
  settings = {**told["qwen3_vl"], "text_config": {**told["qwen3_vl"]["text_config"], "num_hidden_layers": told["gr00t"]["select_layer"]}}
  config = transformers.Qwen3VLConfig(**settings)
  config._attn_implementation = "sdpa"
  model = modeling_qwen3_vl.Qwen3VLModel(config)
  model.load_state_dict({name.removeprefix(BACKBONE): value for name, value in tensors.items() if name.startswith(BACKBONE)})
  model.language_model.norm = torch.nn.Identity()
  return model.eval()


def features(model, told, io):
  """`in_*` of a fixture, as tensors -> the decoder's output [B, L, D]."""
  is_image = io["in_input_ids"] == told["qwen3_vl"]["image_token_id"]
  return model(
    input_ids=io["in_input_ids"],
    attention_mask=io["in_attention_mask"],
    pixel_values=io["in_pixel_values"],
    image_grid_thw=io["in_image_grid_thw"],
    mm_token_type_ids=is_image.int(),
    use_cache=False,
  ).last_hidden_state


class Head:
  """The action head as functions of `tensors`, {released name: tensor}."""

  def __init__(self, told, tensors):
    self.config, self.tensors = told["gr00t"], tensors

  def linear(self, name, x):
    return F.linear(x, self.tensors[name + ".weight"], self.tensors[name + ".bias"])

  def norm(self, x, name=None, eps=1e-5):
    affine = (self.tensors[name + ".weight"], self.tensors[name + ".bias"]) if name else (None, None)
    return F.layer_norm(x, x.shape[-1:], *affine, eps=eps)

  def adapter(self, name, x, slot):
    """[E, in, out] weights, chosen by embodiment."""
    return torch.bmm(x, self.tensors[f"{HEAD}{name}.W"][slot]) + self.tensors[f"{HEAD}{name}.b"][slot][:, None]

  def attention(self, name, x, memory, heads, mask=None):
    split = lambda y: y.unflatten(-1, (heads, -1)).transpose(1, 2)  # noqa: E731
    q, k, v = (split(self.linear(f"{name}.{part}", y)) for part, y in (("to_q", x), ("to_k", memory), ("to_v", memory)))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return self.linear(f"{name}.to_out.0", out.transpose(1, 2).flatten(2))

  def mlp(self, name, x):
    return self.linear(f"{name}.ff.net.2", F.gelu(self.linear(f"{name}.ff.net.0.proj", x), approximate="tanh"))

  def mixed(self, x):
    """ "vlln" and its blocks, over all tokens."""
    settings = self.config["vl_self_attention_cfg"]
    x = self.norm(x, HEAD + "vlln")
    for i in range(settings["num_layers"]):
      name = f"{HEAD}vl_self_attention.transformer_blocks.{i}"
      y = self.norm(x, name + ".norm1")
      x = x + self.attention(name + ".attn1", y, y, settings["num_attention_heads"])
      x = x + self.mlp(name, self.norm(x, name + ".norm3"))
    return x

  def state(self, state, slot):
    return self.adapter("state_encoder.layer2", F.relu(self.adapter("state_encoder.layer1", state, slot)), slot)

  def action(self, x, bucket, slot):
    """Noisy action and time bucket -> action tokens, without their position."""
    x = self.adapter("action_encoder.W1", x, slot)
    half = x.shape[-1] // 2
    angle = bucket[:, None] * torch.exp(-math.log(10000.0) * torch.arange(half) / half)
    wave = torch.cat([angle.sin(), angle.cos()], dim=-1)[:, None].expand_as(x)
    y = F.silu(self.adapter("action_encoder.W2", torch.cat([x, wave], dim=-1), slot))
    return self.adapter("action_encoder.W3", y, slot)

  def velocity(self, memory, is_image, mask, state_token, x, time, slot):
    """memory: what `mixed` gives [B, L, D]; time [B] -> [B, T, A]."""
    bucket = torch.floor(time * self.config["num_timestep_buckets"])
    action = self.action(x, bucket, slot)
    action = action + self.tensors[HEAD + "position_embedding.weight"][: action.shape[1]]
    x = torch.cat([state_token, action], dim=1)

    angle = bucket[:, None] * torch.exp(-math.log(10000.0) * torch.arange(128) / 127)
    embedder = DIT + "timestep_encoder.timestep_embedder.linear_"
    told = self.linear(embedder + "2", F.silu(self.linear(embedder + "1", torch.cat([angle.cos(), angle.sin()], dim=-1))))
    settings, every = self.config["diffusion_model_cfg"], 2 * self.config["attend_text_every_n_blocks"]
    for i in range(settings["num_layers"]):
      name = f"{DIT}transformer_blocks.{i}"
      scale, shift = self.linear(name + ".norm1.linear", F.silu(told))[:, None].chunk(2, dim=-1)
      y = self.norm(x) * (1 + scale) + shift
      read = (mask & ~is_image if i % every == 0 else mask & is_image)[:, None, None] if i % 2 == 0 else None
      x = x + self.attention(name + ".attn1", y, memory if i % 2 == 0 else y, settings["num_attention_heads"], read)
      x = x + self.mlp(name, self.norm(x))

    shift, scale = self.linear(DIT + "proj_out_1", F.silu(told))[:, None].chunk(2, dim=-1)
    x = self.linear(DIT + "proj_out_2", self.norm(x, eps=1e-6) * (1 + scale) + shift)[:, -action.shape[1] :]
    return self.adapter("action_decoder.layer2", F.relu(self.adapter("action_decoder.layer1", x, slot)), slot)


def loss(model, head, told, io):
  """Of a fixture's inputs, as the reference defines it, but for its 1e-6 in the divisor."""
  slot, mask = io["in_embodiment_id"], io["in_attention_mask"] > 0
  is_image = io["in_input_ids"] == told["qwen3_vl"]["image_token_id"]
  memory = head.mixed(features(model, told, io))
  x = torch.lerp(io["in_noise"], io["in_action"], io["in_time"][:, None, None])
  velocity = head.velocity(memory, is_image, mask, head.state(io["in_state"].flatten(1)[:, None], slot), x, io["in_time"], slot)
  square = (velocity - (io["in_action"] - io["in_noise"])) ** 2 * io["in_action_mask"]
  return square.sum() / io["in_action_mask"].sum(), velocity

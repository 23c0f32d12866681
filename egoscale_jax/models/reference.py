"""The reference model's names: which tensor of a checkpoint on the hub is which of our parameters, and which of its settings which of ours.

GR00T N1.7 and Qwen3-VL name their tensors module by module; we stack equal blocks, keep query, key and value of the vision encoder apart,
and hold the keys and values of the expert's reading blocks in one module. A linear map of theirs is [out, in], ours is [in, out].
"""

import dataclasses
import math

import ml_collections

from egoscale_jax.errors import UserError

# Our module within a block -> theirs.
_MLP = {"mlp/up": "mlp.linear_fc1", "mlp/down": "mlp.linear_fc2"}
_VISION = {"norm_attention": "norm1", "attention/out": "attn.proj", "norm_mlp": "norm2", **_MLP}
_MERGER = {"norm": "norm", "mlp/up": "linear_fc1", "mlp/down": "linear_fc2"}
_LANGUAGE = {
  **{"norm_attention": "input_layernorm", "norm_mlp": "post_attention_layernorm"},
  **{"query": "self_attn.q_proj", "key": "self_attn.k_proj", "value": "self_attn.v_proj", "out": "self_attn.o_proj"},
  **{"norm_query": "self_attn.q_norm", "norm_key": "self_attn.k_norm"},
  **{"gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"},
}
_ATTENTION = {"query": "attn1.to_q", "key": "attn1.to_k", "value": "attn1.to_v", "out": "attn1.to_out.0"}
_DIT = {
  **{f"attention/{ours}": theirs for ours, theirs in _ATTENTION.items()},
  **{"norm_attention": "norm1", "norm_mlp": "norm3", "mlp/up": "ff.net.0.proj", "mlp/down": "ff.net.2", "time": "norm1.linear"},
}
_ONCE = {
  "vision/patch_embed": "visual.patch_embed.proj",
  "language/norm_final": "language_model.norm",
  "mixer/norm": "action_head.vlln",
  "expert/time_in": "action_head.model.timestep_encoder.timestep_embedder.linear_1",
  "expert/time_out": "action_head.model.timestep_encoder.timestep_embedder.linear_2",
  "expert/modulate_out": "action_head.model.proj_out_1",
  "expert/out": "action_head.model.proj_out_2",
  "expert/action_encoder/action": "action_head.action_encoder.W1",
  "expert/action_encoder/with_time": "action_head.action_encoder.W2",
  "expert/action_encoder/out": "action_head.action_encoder.W3",
  "expert/action_decoder/up": "action_head.action_decoder.layer1",
  "expert/action_decoder/down": "action_head.action_decoder.layer2",
  "expert/state_encoder/up": "action_head.state_encoder.layer1",
  "expert/state_encoder/down": "action_head.state_encoder.layer2",
}
_TABLES = {
  "vision/position": "visual.pos_embed.weight",
  "language/embedding": "language_model.embed_tokens.weight",
  "expert/position": "action_head.position_embedding.weight",
}
OURS_ALONE = ("expert/missing_state",)  # EgoScale's placeholder; N1.7 zeroes the state instead, so an import sets it to zero


@dataclasses.dataclass(frozen=True)
class Source:
  """One of their tensors, or one third of its rows, as (a slice of) one of our parameters."""

  name: str
  shape: tuple[int, ...]  # of the whole tensor
  third: int | None = None  # of the rows: the fused query, key and value of the vision encoder
  transposed: bool = False  # theirs is [out, in ...]
  axis: int | None = None  # our axis that it is a slice of: 0 for scanned blocks, 1 or 0 for the expert's memory
  index: int = 0  # its place there


def sources(model, path, shape, backbone="backbone.model.model."):
  """Our parameter's path and shape -> the Sources that make it up, none where they have no such tensor."""
  if path in OURS_ALONE:
    return []
  module, leaf = path.rsplit("/", 1)
  where = lambda name: name if name.startswith("action_head.") else backbone + name  # noqa: E731
  if path in _TABLES:
    return [Source(where(_TABLES[path]), shape)]
  if module in _ONCE:
    adapter = module.split("/")[1] in ("action_encoder", "action_decoder", "state_encoder")
    names = {"kernel": "W", "bias": "b"} if adapter else {"kernel": "weight", "bias": "bias", "scale": "weight"}
    name = f"{where(_ONCE[module])}.{names[leaf]}"
    if module == "vision/patch_embed" and leaf == "kernel":
      v = model.vision
      return [Source(name, (shape[1], 3, v.temporal_patch, v.patch, v.patch), transposed=True)]
    return [_whole(name, leaf, shape, transposed=leaf == "kernel" and not adapter)]
  if module.startswith("expert/memory/"):
    return _memory(model, path, shape)
  return [
    dataclasses.replace(_block(where(name), module, leaf, shape[1:] if stacked else shape), axis=0 if stacked else None, index=index)
    for index, name, stacked in _blocks(model, module)
  ]


def _blocks(model, module):
  """Yields (index, their module, is it one of a stack) for a module of ours that stands in a block or a merger."""
  part, group, *inner = module.split("/")
  inner = "/".join(inner)
  early = len(model.vision.deepstack)
  if part == "vision" and group == "blocks":
    theirs = _VISION.get(inner, "attn.qkv")
    yield from ((i, f"visual.blocks.{i}.{theirs}", True) for i in range(model.vision.depth))
  elif part == "vision":
    name = "visual.merger" if group == "merger" else f"visual.deepstack_merger_list.{group.removeprefix('deepstack_')}"
    yield 0, f"{name}.{_MERGER[inner]}", False
  elif part == "language":
    first, count = (0, early) if group == "deepstack_blocks" else (early, model.language.layers - early)
    yield from ((i, f"language_model.layers.{first + i}.{_LANGUAGE[inner]}", True) for i in range(count))
  elif part == "mixer":
    yield from ((i, f"action_head.vl_self_attention.transformer_blocks.{i}.{_DIT[inner]}", True) for i in range(model.mixer.layers))
  else:
    block, inner = inner.split("/", 1)
    size, at = 2 * model.expert.text_every, int(block.removeprefix("block_"))
    groups = model.expert.layers // size
    name = f"action_head.model.transformer_blocks.%d.{_DIT[inner]}"
    if group == "groups":
      yield from ((i, name % (size * i + at), True) for i in range(groups))
    else:
      yield 0, name % (size * groups + at), False


def _block(name, module, leaf, shape):
  """A leaf of a block; `shape` without the stack's axis."""
  theirs = f"{name}.{'bias' if leaf == 'bias' else 'weight'}"
  if ".attn.qkv." in theirs:
    third = ("query", "key", "value").index(module.rsplit("/", 1)[1])
    rows = 3 * shape[-2] * shape[-1]
    return Source(theirs, (rows, shape[0]) if leaf == "kernel" else (rows,), third=third, transposed=leaf == "kernel")
  return _whole(theirs, leaf, shape, transposed=leaf == "kernel", heads_out=module.rsplit("/", 1)[1] in ("query", "key", "value"))


def _whole(name, leaf, shape, transposed, heads_out=False):
  """Ours [in, N, H] (heads_out) or [.., out] -> theirs [out, in]; a bias of heads is flat; adapters keep their shape."""
  if transposed:
    rows = math.prod(shape[1:]) if heads_out else shape[-1]
    return Source(name, (rows, math.prod(shape) // rows), transposed=True)
  return Source(name, (math.prod(shape),) if heads_out else tuple(shape))


def _memory(model, path, shape):
  """Keys or values of the reading blocks: ours [D, M, N, H] and [M, N, H], their blocks 0, 2, 4 …"""
  _, _, name, leaf = path.split("/")
  axis = 1 if leaf == "kernel" else 0
  one = shape[:axis] + shape[axis + 1 :]
  theirs = "action_head.model.transformer_blocks.{}." + _ATTENTION[name] + (".weight" if leaf == "kernel" else ".bias")
  found = []
  for i in range(shape[axis]):
    source = _whole(theirs.format(2 * i), leaf, one, transposed=leaf == "kernel", heads_out=True)
    found.append(dataclasses.replace(source, axis=axis, index=i))
  return found


# What the reference can be told and we have only one way of: a checkpoint with another value is refused.
_GROOT_FIXED = {
  **{"model_type": "Gr00tN1d7", "use_vlln": True, "use_alternate_vl_dit": True, "add_pos_embed": True, "noise_beta_beta": 1.0},
  **{f"diffusion_model_cfg.{key}": value for key, value in {"norm_type": "ada_norm", "interleave_self_attention": True}.items()},
  **{f"{part}.positional_embeddings": None for part in ("diffusion_model_cfg", "vl_self_attention_cfg")},
}
_QWEN_FIXED = {
  **{"text_config.rms_norm_eps": 1e-6, "text_config.hidden_act": "silu", "text_config.attention_bias": False},
  **{"vision_config.hidden_act": "gelu_pytorch_tanh", "vision_config.in_channels": 3},
}


def _field(config, name, where, default=None):
  """config["a"]["b"] for "a.b"; without a default a missing field is a UserError."""
  for key in name.split("."):
    if not isinstance(config, dict) or key not in config:
      if default is not None:
        return default
      raise UserError(f"{where}: found no {name}, expected the config.json of GR00T N1.7 or Qwen3-VL")
    config = config[key]
  return config


def _check_fixed(config, fixed, where):
  for name, expected in fixed.items():
    found = _field(config, name, where, default=... if expected is None else expected)
    if found is not ... and found != expected:
      raise UserError(f"{where}: {name}: found {found!r}, expected {expected!r}: we have no other")


def empty_model():
  """A config.model whose sizes the two functions below set; the rest is as for sampling."""
  parts = dict(vision={}, language={}, mixer=dict(heads=1, head_dim=1), expert=dict(state_dropout=0.0), flow={})
  return ml_collections.ConfigDict(dict(**parts, remat="none", attention="auto", dtype="float32"))


def read_qwen(config, model, where):
  """Their config.json of Qwen3-VL -> sets model.vision, model.language (but for how many layers are kept) and model.image_token."""
  _check_fixed(config, _QWEN_FIXED, where)
  text, vision = (lambda name: _field(config, f"text_config.{name}", where)), (lambda name: _field(config, f"vision_config.{name}", where))
  rotary = config["text_config"].get("rope_parameters") or config["text_config"].get("rope_scaling") or {}
  table = vision("num_position_embeddings")
  model.image_token = _field(config, "image_token_id", where)
  model.language.update(
    **dict(width=text("hidden_size"), heads=text("num_attention_heads"), kv_heads=text("num_key_value_heads"), head_dim=text("head_dim")),
    **dict(mlp=text("intermediate_size"), vocab=text("vocab_size"), layers=text("num_hidden_layers")),
    rope_theta=float(rotary.get("rope_theta") or text("rope_theta")),
    mrope_sections=tuple(_field(rotary, "mrope_section", where)),
  )
  model.vision.update(
    **dict(depth=vision("depth"), width=vision("hidden_size"), heads=vision("num_heads"), mlp=vision("intermediate_size")),
    **dict(patch=vision("patch_size"), merge=vision("spatial_merge_size"), temporal_patch=vision("temporal_patch_size")),
    position_side=math.isqrt(table),
    deepstack=tuple(vision("deepstack_visual_indexes")),
  )


def read_groot(config, model, where):
  """Their config.json of GR00T N1.7 -> sets model.mixer, model.expert, the action's sizes and how many decoder layers are kept."""
  _check_fixed(config, _GROOT_FIXED, where)
  get = lambda name: _field(config, name, where)  # noqa: E731
  dit, mixer = (lambda name: get(f"diffusion_model_cfg.{name}")), config.get("vl_self_attention_cfg") or {"num_layers": 0}
  model.language.layers = get("select_layer")
  model.mixer.update(layers=mixer["num_layers"], mask_padding=False)
  if mixer["num_layers"]:
    model.mixer.update(heads=mixer["num_attention_heads"], head_dim=mixer["attention_head_dim"])
  model.expert.update(
    **dict(layers=dit("num_layers"), heads=dit("num_attention_heads"), head_dim=dit("attention_head_dim"), output=dit("output_dim")),
    **dict(text_every=get("attend_text_every_n_blocks"), embodiments=get("max_num_embodiments"), max_positions=get("max_seq_len")),
    **dict(time_buckets=get("num_timestep_buckets"), mask_actions=False),
  )
  model.flow.update(alpha=float(get("noise_beta_alpha")), scale=float(get("noise_s")), steps=get("num_inference_timesteps"), prefix=0)
  model.update(
    horizon=get("action_horizon"),
    action_dim=get("max_action_dim"),
    state_dim=get("max_state_dim") * _field(config, "state_history_length", where, default=1),
    dropout=float(dit("dropout")),
  )
  for name, found, expected in (
    ("hidden_size", get("hidden_size"), model.expert.output),
    ("input_embedding_dim", get("input_embedding_dim"), model.expert.heads * model.expert.head_dim),
    ("backbone_embedding_dim", get("backbone_embedding_dim"), model.language.width),
  ):
    if found != expected:
      raise UserError(f"{where}: {name}: found {found}, expected {expected}: we have no other")


def to_theirs(model):
  """config.model -> their two config dictionaries, as read_qwen and read_groot read them; for a model that did not come from them."""
  v, text, e, m = model.vision, model.language, model.expert, model.mixer
  qwen = dict(
    model_type="qwen3_vl",
    image_token_id=model.image_token,
    tie_word_embeddings=True,
    text_config=dict(
      **dict(model_type="qwen3_vl_text", hidden_size=text.width, num_attention_heads=text.heads, num_key_value_heads=text.kv_heads),
      **dict(head_dim=text.head_dim, intermediate_size=text.mlp, vocab_size=text.vocab, num_hidden_layers=text.layers),
      **dict(rope_theta=text.rope_theta, rms_norm_eps=1e-6, hidden_act="silu", attention_bias=False),
      rope_scaling=dict(mrope_interleaved=True, mrope_section=list(text.mrope_sections), rope_type="default"),
    ),
    vision_config=dict(
      **dict(model_type="qwen3_vl", depth=v.depth, hidden_size=v.width, num_heads=v.heads, intermediate_size=v.mlp),
      **dict(patch_size=v.patch, spatial_merge_size=v.merge, temporal_patch_size=v.temporal_patch, out_hidden_size=text.width),
      **dict(num_position_embeddings=v.position_side**2, deepstack_visual_indexes=list(v.deepstack)),
      **dict(hidden_act="gelu_pytorch_tanh", in_channels=3),
    ),
  )
  attention = dict(positional_embeddings=None, dropout=model.dropout, final_dropout=True)
  groot = dict(
    **dict(model_type="Gr00tN1d7", model_name="nvidia/Cosmos-Reason2-2B", select_layer=text.layers, backbone_embedding_dim=text.width),
    **dict(max_state_dim=model.state_dim, max_action_dim=model.action_dim, action_horizon=model.horizon, state_history_length=1),
    **dict(hidden_size=e.output, input_embedding_dim=e.heads * e.head_dim, max_seq_len=e.max_positions, add_pos_embed=True),
    **dict(attend_text_every_n_blocks=e.text_every, use_alternate_vl_dit=True, use_vlln=True, max_num_embodiments=e.embodiments),
    **dict(num_inference_timesteps=model.flow.steps, num_timestep_buckets=e.time_buckets, state_dropout_prob=e.state_dropout),
    **dict(noise_beta_alpha=model.flow.alpha, noise_beta_beta=1.0, noise_s=model.flow.scale),
    diffusion_model_cfg=dict(
      **attention,
      **dict(num_layers=e.layers, num_attention_heads=e.heads, attention_head_dim=e.head_dim, output_dim=e.output),
      **dict(norm_type="ada_norm", interleave_self_attention=True),
    ),
    vl_self_attention_cfg=dict(**attention, num_layers=m.layers, num_attention_heads=m.heads, attention_head_dim=m.head_dim),
  )
  return dict(gr00t=groot, qwen3_vl=qwen)

"""Text to tokens: a tokenizer.json through the `tokenizers` library, and the sequence that the backbone reads.

The sequence of one observation, left-padded so that every example ends where the features are richest:

  <pad> ... <|im_start|>user\\n  (<|vision_start|> <|image_pad|> x N <|vision_end|>) x C  instruction  <|im_end|>\\n
"""

import dataclasses
import pathlib
import re

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from egoscale_jax.errors import UserError

PAD, START, IMAGE, END, TURN_START, TURN_END = SPECIAL = (
  "<|endoftext|>",
  "<|vision_start|>",
  "<|image_pad|>",
  "<|vision_end|>",
  "<|im_start|>",
  "<|im_end|>",
)  # the names of Qwen3-VL's tokenizer, so that the released one fits


def build(texts, vocab):
  """A byte-level BPE of at most `vocab` tokens from the data's own instructions: any other text can be written with it too."""
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=vocab,
    special_tokens=list(SPECIAL),
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  tokenizer.train_from_iterator(sorted(set(texts)), trainer)
  return tokenizer


def load(path):
  if not pathlib.Path(path).is_file():
    raise UserError(f"{path}: no such file, expected a tokenizer.json")
  try:
    return tokenizers.Tokenizer.from_file(str(path))
  except Exception as error:  # the library raises a bare Exception for every malformed file
    raise UserError(f"{path}: not a tokenizer.json: {error}") from error


@dataclasses.dataclass(frozen=True)
class Prompt:
  """Instruction -> fixed-length token ids. `images` runs of `image_tokens` each, and `text_tokens` for all that is not between them."""

  tokenizer: tokenizers.Tokenizer
  images: int
  image_tokens: int
  text_tokens: int
  plain: bool = False  # lower case and no punctuation, as GR00T N1.7 was trained

  @property
  def length(self) -> int:
    return self.images * (self.image_tokens + 2) + self.text_tokens

  def check(self, config_model):
    """The tokenizer and the model must agree on the vocabulary and on the image token."""
    missing = [token for token in SPECIAL if self.tokenizer.token_to_id(token) is None]
    if missing:
      raise UserError(f"tokenizer: {missing[0]} is missing, expected the special tokens of Qwen3-VL")
    image = self.tokenizer.token_to_id(IMAGE)
    if image != config_model.image_token:
      raise UserError(f"config.model.image_token: found {config_model.image_token}, the tokenizer's {IMAGE} is {image}")
    size = self.tokenizer.get_vocab_size()
    if size > config_model.language.vocab:
      raise UserError(f"config.model.language.vocab: found {config_model.language.vocab}, the tokenizer has {size} tokens")

  def __call__(self, text):
    """-> token ids [L] int32 and their mask [L] bool (False is padding)."""
    text = re.sub(r"[^\w\s]", "", text.lower()) if self.plain else text
    token = self.tokenizer.token_to_id
    encode = lambda part: self.tokenizer.encode(part, add_special_tokens=False).ids  # noqa: E731
    head, tail = [token(TURN_START), *encode("user\n")], [*encode(text), token(TURN_END), *encode("\n")]
    if len(head) + len(tail) > self.text_tokens:
      raise UserError(
        f"config.data.text_tokens: found {self.text_tokens}, the instruction {_short(text)} takes {len(head) + len(tail)} with its template"
      )
    ids = head + ([token(START)] + [token(IMAGE)] * self.image_tokens + [token(END)]) * self.images + tail
    padding = self.length - len(ids)
    token_L = np.asarray([token(PAD)] * padding + ids, np.int32)
    return token_L, np.arange(self.length) >= padding


def _short(text):
  return repr(text if len(text) <= 60 else f"{text[:57]}...")

import numpy as np
import pytest
import tokenizers

from egoscale_jax.data import tokenizer
from egoscale_jax.errors import UserError


@pytest.fixture(scope="module")
def prompt():
  built = tokenizer.build(["Push the red ball.", "Turn the cap."] * 3, vocab=512)
  return tokenizer.Prompt(built, images=2, image_tokens=3, text_tokens=24)


def test_sequence_is_left_padded_with_one_run_an_image(prompt):
  token, mask = prompt("Push the red ball.")
  assert token.shape == mask.shape == (prompt.length,)
  name = [prompt.tokenizer.id_to_token(i) for i in token[mask]]
  run = [tokenizer.START] + [tokenizer.IMAGE] * 3 + [tokenizer.END]
  assert name[0] == tokenizer.TURN_START
  first = name.index(tokenizer.START)
  assert name[first : first + 10] == run + run
  assert name[-2] == tokenizer.TURN_END
  assert np.all(token[~mask] == 0)
  assert not mask[0]
  assert np.all(np.diff(mask.astype(int)) >= 0)
  assert prompt.tokenizer.decode(token[mask]).strip().endswith("Push the red ball.")


def test_sequence_is_the_chat_template_of_qwen3_vl_for_one_turn_without_an_answer(prompt):
  token, mask = prompt("Push the red ball.")
  image = tokenizer.START + 3 * tokenizer.IMAGE + tokenizer.END
  whole = f"{tokenizer.TURN_START}user\n{image}{image}Push the red ball.{tokenizer.TURN_END}\n"
  assert token[mask].tolist() == prompt.tokenizer.encode(whole).ids


def test_plain_text_is_lower_case_without_punctuation(prompt):
  plain = tokenizer.Prompt(prompt.tokenizer, 2, 3, 24, plain=True)
  np.testing.assert_array_equal(plain("Push, the RED ball!")[0], prompt("push the red ball")[0])


def test_any_text_can_be_written_back(prompt):
  text = "Öffne die Flasche: 瓶"
  token = prompt.tokenizer.encode(text).ids
  assert prompt.tokenizer.decode(token) == text


def test_a_too_long_instruction_is_refused_not_cut(prompt):
  with pytest.raises(UserError, match=r"config.data.text_tokens: found 24.*takes"):
    prompt("Push the red ball. " * 9)


def test_same_texts_same_tokenizer_in_any_order():
  texts = ["Push the red ball.", "Turn the cap.", "Touch it."]
  assert tokenizer.build(texts, 400).to_str() == tokenizer.build(texts[::-1] * 2, 400).to_str()


def test_a_tokenizer_without_the_special_tokens_is_named(prompt):
  import ml_collections

  model = ml_collections.ConfigDict({"image_token": 2, "language": {"vocab": 512}})
  prompt.check(model)
  foreign = tokenizer.Prompt(tokenizers.Tokenizer(tokenizers.models.BPE()), 1, 1, 8)
  with pytest.raises(UserError, match="is missing"):
    foreign.check(model)
  model.image_token = 7
  with pytest.raises(UserError, match=r"image_token: found 7, the tokenizer's .* is 2"):
    prompt.check(model)


def test_a_bad_file_is_named(tmp_path):
  (tmp_path / "tokenizer.json").write_text("{}")
  with pytest.raises(UserError, match=r"tokenizer.json: not a tokenizer.json"):
    tokenizer.load(tmp_path / "tokenizer.json")
  with pytest.raises(UserError, match="no such file"):
    tokenizer.load(tmp_path / "none.json")

"""The word-level tokenizer: no word is glued or lost, and the chat template is what training saw."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from distill.data import Encoder
from distill.miniature.tokenizer import SPECIAL_TOKENS, build_tokenizer
from suites.miniature.catalogue import all_items
from suites.miniature.stream import Document
from suites.miniature.world import vocabulary

TEXTS = st.lists(st.sampled_from(vocabulary()), min_size=1, max_size=12).map(" ".join)
TOKENIZER = build_tokenizer(vocabulary())


@given(TEXTS, TEXTS)
def test_encoding_a_text_in_two_parts_changes_nothing(context: str, continuation: str) -> None:
    whole = TOKENIZER.encode(f"{context} {continuation}")
    assert TOKENIZER.encode(context) + TOKENIZER.encode(continuation) == whole
    assert TOKENIZER.encode(context) + TOKENIZER.encode(f" {continuation}") == whole
    assert TOKENIZER.decode(whole) == f"{context} {continuation}"


@given(TEXTS, TEXTS)
def test_rendered_prompt_and_reply_are_the_training_ids(question: str, reply: str) -> None:
    prompt = TOKENIZER.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    document = Encoder(TOKENIZER).document(Document("any", question, reply))
    assert TOKENIZER.encode(prompt + reply) == document.ids[:-1]
    assert document.completions == ((len(TOKENIZER.encode(prompt)), len(document.ids)),)
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    assert TOKENIZER.apply_chat_template(turns, tokenize=True)["input_ids"] == document.ids


def test_several_turns_and_a_system_message() -> None:
    turns = [
        {"role": "system", "content": "give"},
        {"role": "user", "content": "a b"},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "d"},
    ]
    text = TOKENIZER.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == "give <user> a b <assistant> c <eos> <user> d <assistant> "
    assert TOKENIZER.apply_chat_template(turns, tokenize=False) == "give <user> a b <assistant> c <eos> <user> d"


def test_special_tokens() -> None:
    assert (TOKENIZER.pad_token_id, TOKENIZER.unk_token_id, TOKENIZER.bos_token_id, TOKENIZER.eos_token_id) == (
        0,
        1,
        2,
        3,
    )
    assert TOKENIZER.convert_ids_to_tokens(range(6)) == list(SPECIAL_TOKENS)
    assert TOKENIZER.encode("box nonsense cup") == [*TOKENIZER.encode("box"), 1, *TOKENIZER.encode("cup")]
    assert TOKENIZER.decode(TOKENIZER.encode("a b <eos>"), skip_special_tokens=True) == "a b"


def test_it_loads_by_auto_tokenizer(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == TOKENIZER.get_vocab() and loaded.chat_template == TOKENIZER.chat_template
    assert loaded.encode("box a 3 <eos>") == TOKENIZER.encode("box a 3 <eos>")
    assert (loaded.eos_token, loaded.pad_token, loaded.padding_side) == ("<eos>", "<pad>", "left")


def test_every_evaluation_text_is_in_the_vocabulary(tokenizer: PreTrainedTokenizerBase) -> None:
    for items in all_items().values():
        for item in items:
            for text in (item.question, item.target, *item.choices):
                assert tokenizer.unk_token_id not in tokenizer.encode(text), text


@pytest.mark.parametrize("words", [["a", "a"], ["a b"], [""]])
def test_bad_word_lists_are_refused(words: list[str]) -> None:
    with pytest.raises(ValueError, match="different and free of white space"):
        build_tokenizer(words)

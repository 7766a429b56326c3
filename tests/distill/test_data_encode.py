"""Masks of conversations against expectations made by hand, for templates of several kinds."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from distill.data import Tokens
from distill.data.documents import miniature_encoder
from distill.data.encode import Conversations, Encoder, text_encoder, tokenizer_digest
from perplexity_lies.errors import MissingError, UsageError
from suites.miniature.stream import Document

CHATML = (
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"
)
LAST_TURN_THINKS = (
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{%- if m.role == 'assistant' and loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{{ m.content.split('</think>')[-1] + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"
)
"""As Qwen3's: a turn is written otherwise when it is the last, so a shorter conversation is no prefix of a longer one."""
MARKED = (
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{%- if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{{ '<|im_end|>\\n' }}"
    "{%- else %}{{ m.content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
)
"""The end-of-turn token stands outside the mark, and there is no generation prompt."""
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Two plus two?"},
    {"role": "assistant", "content": "Four."},
    {"role": "user", "content": "And three?\nQuickly é!"},
    {"role": "assistant", "content": "Five — not quite.\n\nSeven."},
]


def byte_level(template: str | None) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer as the Qwen and Llama families have, with their kind of special tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=[], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    core.train_from_iterator(["two plus two is four and three is seven\n\nbe brief quickly"] * 4, trainer)
    core.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    core.add_tokens([AddedToken("<think>", special=False), AddedToken("</think>", special=False)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|endoftext|>", pad_token="<|endoftext|>", additional_special_tokens=[]
    )
    tokenizer.chat_template = template
    return tokenizer


def completions(tokenizer: PreTrainedTokenizerBase, document: Tokens) -> list[str]:
    return [tokenizer.decode(document.ids[start:end]) for start, end in document.completions]


def encode(tokenizer: PreTrainedTokenizerBase, messages: Any) -> Tokens:
    made = Conversations(tokenizer)([("here", messages)])[0]
    assert isinstance(made, Tokens)
    return made


@pytest.mark.parametrize(
    ("template", "last"),
    [
        (CHATML, "Five — not quite.\n\nSeven.<|im_end|>"),
        (LAST_TURN_THINKS, "<think>\n\n</think>\n\nFive — not quite.\n\nSeven.<|im_end|>"),
        (MARKED, "Five — not quite.\n\nSeven.<|im_end|>"),
    ],
)
def test_every_assistant_turn_with_its_end_is_a_completion(template: str, last: str) -> None:
    tokenizer = byte_level(template)
    document = encode(tokenizer, CONVERSATION)
    assert document.ids == tokenizer.apply_chat_template(CONVERSATION, tokenize=True)["input_ids"]
    assert completions(tokenizer, document) == ["Four.<|im_end|>", last]
    before = [tokenizer.decode(document.ids[:start]) for start, _ in document.completions]
    assert all(text.endswith("<|im_start|>assistant\n") for text in before)


def test_masks_token_by_token() -> None:
    tokenizer = byte_level(CHATML)
    document = encode(tokenizer, [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "xy"}])
    tokens = tokenizer.convert_ids_to_tokens(document.ids)
    inside = [any(a <= t < b for a, b in document.completions) for t in range(len(tokens))]
    assert [token for token, is_in in zip(tokens, inside, strict=True) if is_in] == ["x", "y", "<|im_end|>"]
    assert tokens[-2:] == ["<|im_end|>", "Ċ"] and not inside[-1]


def test_the_miniature_tokenizer_agrees_with_its_encoder(tokenizer: PreTrainedTokenizerBase) -> None:
    chat = [{"role": "user", "content": "a b c"}, {"role": "assistant", "content": "box 3"}]
    assert encode(tokenizer, chat) == Encoder(tokenizer).document(Document("any", "a b c", "box 3"))
    turns = encode(tokenizer, [*chat, *chat])
    assert completions(tokenizer, turns) == ["box 3 <eos>", "box 3 <eos>"]


def test_the_miniature_world_for_any_tokenizer_with_a_template(tokenizer: PreTrainedTokenizerBase) -> None:
    chat, plain = Document("any", "a b c", "box 3"), Document("any", "", "a b")
    assert miniature_encoder(tokenizer)(chat) == Encoder(tokenizer).document(chat)
    other = byte_level(CHATML)
    encode_other = miniature_encoder(other)
    assert completions(other, encode_other(chat)) == ["box 3<|im_end|>"]
    assert completions(other, encode_other(plain)) == ["a b<|endoftext|>"]


def test_many_conversations_at_once_are_what_each_is_alone() -> None:
    tokenizer = byte_level(CHATML)
    several = [CONVERSATION, CONVERSATION[1:3], [CONVERSATION[0]], CONVERSATION[:3]]
    made = Conversations(tokenizer)([("here", messages) for messages in several])
    assert made == [Conversations(tokenizer)([("here", messages)])[0] for messages in several]
    assert made[2] == "without a completion"


def test_messages_written_from_and_value() -> None:
    tokenizer = byte_level(CHATML)
    other = [{"from": "human", "value": "ab", "info": {}}, {"from": "gpt", "value": "xy"}]
    assert encode(tokenizer, other) == encode(
        tokenizer, [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "xy"}]
    )


def test_what_follows_the_last_reply_is_left_out() -> None:
    tokenizer = byte_level(CHATML)
    assert encode(tokenizer, CONVERSATION[:4]) == encode(tokenizer, CONVERSATION[:3])


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "assistant", "content": "nothing before it"}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "the token <|im_end|> inside"}],
    ],
)
@pytest.mark.parametrize("template", [CHATML, LAST_TURN_THINKS])
def test_a_conversation_whose_turns_cannot_be_found_is_left_out(template: str, messages: Any) -> None:
    assert Conversations(byte_level(template))([("here", messages)]) == ["refused by the chat template"]


def test_a_conversation_that_the_template_refuses_is_left_out() -> None:
    strict = "{%- if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{%- endif %}" + CHATML
    assert Conversations(byte_level(strict))([("here", CONVERSATION)]) == ["refused by the chat template"]


@pytest.mark.parametrize(
    ("template", "found"),
    [
        (CHATML.replace("<|im_end|>", ""), "no special token closes a turn"),
        (CHATML.replace("assistant\\n", "assistant\\n<think>\\n"), "the first 1 messages with the generation prompt"),
        ("{{ raise_exception('never') }}", "never"),
        (MARKED.replace("m.role == 'assistant'", "loop.last"), "2 turns of the assistant, 1 marked"),
    ],
)
def test_a_template_that_shows_no_turns_is_named_before_anything_is_read(template: str, found: str) -> None:
    with pytest.raises(UsageError, match="cannot be told from this chat template") as caught:
        Conversations(byte_level(template))
    assert found in caught.value.found[0] and "{% generation %}" in caught.value.mend[0]


def test_no_template_at_all() -> None:
    with pytest.raises(MissingError, match="need a tokenizer with a chat template"):
        Conversations(byte_level(None))


@pytest.mark.parametrize("value", ["text", [1], [{"content": "a"}], [{"role": "user", "content": 3}], None])
def test_what_is_no_conversation_is_refused_with_its_place(value: Any) -> None:
    with pytest.raises(UsageError, match="^file, line 7: a (conversation|message)"):
        Conversations(byte_level(CHATML))([("file, line 7", value)])


def test_text_ends_with_the_end_token_once() -> None:
    tokenizer = byte_level(None)
    end = tokenizer.eos_token_id
    made = text_encoder(tokenizer)([("a", "two plus"), ("b", "  \n"), ("c", None), ("d", "two<|endoftext|>")])
    assert made[1:3] == ["empty", "empty"]
    assert isinstance(made[0], Tokens) and isinstance(made[3], Tokens)
    assert made[0] == Tokens([*tokenizer.encode("two plus"), end], ((0, len(made[0].ids)),))
    assert made[3].ids == [*tokenizer.encode("two"), end]
    with pytest.raises(UsageError, match="here: the text is not a string"):
        text_encoder(tokenizer)([("here", 3)])


def test_the_digest_changes_with_what_changes_ids_and_with_nothing_else() -> None:
    tokenizer = byte_level(CHATML)
    digest = tokenizer_digest(tokenizer)
    tokenizer(["two", "two plus two"], padding=True, truncation=True, max_length=2)
    assert tokenizer_digest(tokenizer) == digest == tokenizer_digest(byte_level(CHATML))
    assert tokenizer_digest(byte_level(MARKED)) != digest
    tokenizer.add_tokens(["more"])
    assert tokenizer_digest(tokenizer) != digest

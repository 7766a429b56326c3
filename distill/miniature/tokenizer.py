"""A word-level tokenizer with a chat template, for worlds of a few hundred words.

Text is words joined by single spaces, so encode(a) + encode(b) == encode(a + " " + b), and decoding returns the text.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, UNKNOWN, BOS, EOS, USER, ASSISTANT = "<pad>", "<unk>", "<bos>", "<eos>", "<user>", "<assistant>"
SPECIAL_TOKENS = (PAD, UNKNOWN, BOS, EOS, USER, ASSISTANT)

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message.role == 'assistant' -%}{{ '<assistant> ' + message.content + ' <eos>' }}"
    "{%- elif message.role == 'user' -%}{{ '<user> ' + message.content }}"
    "{%- else -%}{{ message.content }}"
    "{%- endif -%}"
    "{{ ' ' if add_generation_prompt or not loop.last }}"
    "{%- endfor -%}"
    "{{ '<assistant> ' if add_generation_prompt }}"
)
"""`<user> q <assistant> a <eos>`, several turns in a row; a system message comes before as plain text.

The generation prompt ends with a space, so that a reply glued to it by plain string addition keeps its own first word.
"""


def build_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer whose ids are SPECIAL_TOKENS and then `words`, in order; any other word becomes `<unk>`.

    Raises ValueError when a word repeats, is empty or holds white space.
    """
    if len(set(words)) != len(words) or any(not w or w != "".join(w.split()) for w in words):
        raise ValueError("the words of a word-level tokenizer must be different and free of white space")
    ids = {token: number for number, token in enumerate((*SPECIAL_TOKENS, *words))}
    core = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=[USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=256,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer

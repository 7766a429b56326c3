"""Documents into token ids, and which tokens are completions: plain text, conversations, the miniature world.

Plain text is one completion that ends with the end token. In a conversation every assistant turn is one, its end-of-turn
token included. Turns are found by the template's own marks (`{% generation %}`); without marks, a turn goes from the
generation prompt, which must be what the template writes before a turn, to the special token that closes it. An earlier
turn may be rendered differently once others follow: Qwen3's template removes its thoughts. The way is tried on a probe
before anything is read.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from itertools import groupby, pairwise
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from distill.data.packing import Tokens
from distill.miniature.tokenizer import ASSISTANT, BOS, EOS, PAD, UNKNOWN, USER
from perplexity_lies.digests import content_key
from perplexity_lies.errors import MissingError, UsageError
from suites.miniature.stream import Document

Located = tuple[str, Any]
"""Where a value stands (for error messages), and the value."""
Encode = Callable[[Sequence[Located]], list[Tokens | str]]
"""Values -> documents, or in place of a document the reason it is left out. Raises UsageError for a wrong type."""
Message = dict[str, Any]
Span = tuple[int, int]

EMPTY = "empty"
NO_COMPLETION = "without a completion"
REFUSED = "refused by the chat template"

ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant"}
"""Role names of messages written {from, value} -> our role names."""
MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""The mark that transformers looks for in a template."""
PROBE_REPLY = "twelve"
PROBE = [
    {"role": "user", "content": "ten"},
    {"role": "assistant", "content": "eleven"},
    {"role": "user", "content": "more"},
    {"role": "assistant", "content": PROBE_REPLY},
]


class Encoder:
    """Miniature documents to token ids by a table of words: the ids of the tokenizer's chat template, much faster."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._ids: dict[str, int] = tokenizer.get_vocab()
        self._unknown = self._ids[UNKNOWN]
        self.pad_id = self._ids[PAD]

    def words(self, text: str) -> list[int]:
        """Ids of the words of a text."""
        return [self._ids.get(word, self._unknown) for word in text.split()]

    def document(self, document: Document) -> Tokens:
        """`<user> question <assistant> answer <eos>`, or `<bos> text <eos>` for a plain document."""
        answer = [*self.words(document.answer), self._ids[EOS]]
        if document.question:
            prompt = [self._ids[USER], *self.words(document.question), self._ids[ASSISTANT]]
        else:
            prompt = [self._ids[BOS]]
        return Tokens(prompt + answer, ((len(prompt), len(prompt) + len(answer)),))


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of everything that decides the ids of a text or a conversation."""
    core: dict[str, Any] = {"vocabulary": tokenizer.get_vocab()}
    if tokenizer.is_fast:
        core = json.loads(tokenizer.backend_tokenizer.to_str())
        core.pop("padding")  # the last call's choice, no property of the tokenizer
        core.pop("truncation")
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return content_key([core, tokenizer.chat_template, special])


def text_encoder(tokenizer: PreTrainedTokenizerBase) -> Encode:
    """Encodes texts as documents that end with the end token. Raises MissingError when the tokenizer has none."""
    end = tokenizer.eos_token_id
    if end is None:
        raise MissingError(
            "documents of text need an end token",
            found="the teacher's tokenizer has no eos_token",
            mend="set eos_token in its tokenizer_config.json",
        )

    def encode(values: Sequence[Located]) -> list[Tokens | str]:
        for where, value in values:
            if not isinstance(value, str | None):
                raise UsageError(
                    f"{where}: the text is not a string",
                    found=f"{type(value).__name__}: {value!r:.80}",
                    mend="text: COLUMN with a column of strings",
                )
        texts = [value or "" for _, value in values]
        documents: list[Tokens | str] = []
        for text, ids in zip(texts, tokenizer(texts, verbose=False)["input_ids"] if texts else [], strict=True):
            ids = ids if ids[-1:] == [end] else [*ids, end]
            documents.append(Tokens(ids, ((0, len(ids)),)) if text.strip() else EMPTY)
        return documents

    return encode


def read_messages(where: str, value: Any) -> list[Message]:
    """A conversation as messages {role, content}, up to the last assistant turn; {from, value} is read, too."""
    found = f"{type(value).__name__}: {value!r:.80}"
    mend = "messages: COLUMN with a column of [{role: user, content: ...}, ...]"
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise UsageError(f"{where}: a conversation must be a list of messages", found=found, mend=mend)
    messages: list[Message] = []
    for message in value:
        if "from" in message and "role" not in message:
            message = {"role": ROLES.get(message["from"], message["from"]), "content": message.get("value")}
        if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str | None):
            raise UsageError(f"{where}: a message needs a role and a content", found=f"{message!r:.80}", mend=mend)
        messages.append(message)
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    return messages


class _UnmarkableError(Exception):
    """The assistant turns of a conversation cannot be found in its rendering; the message says why."""


class Conversations:
    """Encodes conversations as documents, by a tokenizer's chat template.

    What follows the last assistant turn is left out. In place of a document stands NO_COMPLETION for a conversation without
    such a turn, REFUSED for one that the template refuses or whose turns cannot be found. Raises MissingError when the
    tokenizer has no chat template, UsageError when not even a plain conversation's turns can be found.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        asked, mend = "conversations need a tokenizer with a chat template", "name a column of text instead"
        if not tokenizer.chat_template:
            raise MissingError(asked, found="the teacher's tokenizer has none", mend=mend)
        if not tokenizer.is_fast:
            raise MissingError(asked, found="the teacher's tokenizer is not a fast one", mend=mend)
        self._tokenizer = tokenizer
        self._special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._marked = MARK.search(tokenizer.get_chat_template()) is not None
        try:
            self._closing = "" if self._marked else self._closing_token()
            self._marked_turns(PROBE) if self._marked else self._turns(PROBE)
        except (_UnmarkableError, TemplateError) as error:
            raise UsageError(
                "the assistant's turns cannot be told from this chat template",
                found=f"of a plain conversation of four messages: {error}",
                mend="mark them in the template: {% generation %} ... {% endgeneration %} around what the assistant says",
            ) from error

    def __call__(self, values: Sequence[Located]) -> list[Tokens | str]:
        conversations = [read_messages(where, value) for where, value in values]
        if self._marked:
            return [self._attempt(self._marked_turns, messages) for messages in conversations]
        return self._tokens_of([self._attempt(self._turns, messages) for messages in conversations])

    @staticmethod
    def _attempt(find: Callable[[list[Message]], Any], messages: list[Message]) -> Any:
        """The result of `find`, or the reason the conversation is left out."""
        if not messages:
            return NO_COMPLETION
        try:
            return find(messages)
        except (_UnmarkableError, TemplateError):
            return REFUSED

    def _render(self, messages: list[Message], **options: Any) -> str:
        return str(self._tokenizer.apply_chat_template(messages, tokenize=False, **options))

    def _closing_token(self) -> str:
        """The special token that closes an assistant turn."""
        after = self._render(PROBE).rpartition(PROBE_REPLY)[2]
        ids = self._tokenizer(after, add_special_tokens=False)["input_ids"]
        closing = next((number for number in ids if number in self._special), None)
        if closing is None:
            raise _UnmarkableError("no special token closes a turn")
        return str(self._tokenizer.convert_ids_to_tokens(closing))

    def _turns(self, messages: list[Message]) -> tuple[str, list[Span]]:
        """The rendering, and the assistant's turns in it as spans of characters."""
        whole, closing, spans = self._render(messages), self._closing, []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            if number == 0:
                raise _UnmarkableError("the first message is the assistant's, with nothing before it")
            if closing in str(message.get("content")):
                raise _UnmarkableError(f"a turn holds {closing} itself")
            prompt = self._render(messages[:number], add_generation_prompt=True)
            if not whole.startswith(prompt):
                raise _UnmarkableError(f"the first {number} messages with the generation prompt are not how it begins")
            end = whole.find(closing, len(prompt))
            if end < 0:
                raise _UnmarkableError(f"{closing} does not close the turn of message {number}")
            spans.append((len(prompt), end + len(closing)))
        if any(after[0] < before[1] for before, after in pairwise(spans)):
            raise _UnmarkableError("two turns overlap")
        return whole, spans

    def _tokens_of(self, found: list[tuple[str, list[Span]] | str]) -> list[Tokens | str]:
        """Spans of characters -> spans of tokens; all renderings go through the tokenizer at once."""
        texts = [entry[0] for entry in found if not isinstance(entry, str)]
        options = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
        encoded = self._tokenizer(texts, **options) if texts else {"input_ids": [], "offset_mapping": []}
        tokenised = iter(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))
        documents: list[Tokens | str] = []
        for entry in found:
            if isinstance(entry, str):
                documents.append(entry)
                continue
            ids, offsets = next(tokenised)
            starts, ends = [start for start, _ in offsets], [end for _, end in offsets]
            spans = tuple((bisect_right(ends, start), bisect_left(starts, end)) for start, end in entry[1])
            documents.append(Tokens(ids, spans))
        return documents

    def _marked_turns(self, messages: list[Message]) -> Tokens:
        """The document with the turns that the template marks, each extended by the special token that closes it."""
        encoded = self._tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, spans, place = encoded["input_ids"], [], 0
        for inside, run in groupby(encoded["assistant_masks"]):
            start, place = place, place + len(list(run))
            if inside:
                open_ended = place < len(ids) and ids[place] in self._special and ids[place - 1] not in self._special
                spans.append((start, place + open_ended))
        turns = sum(message["role"] == "assistant" for message in messages)
        if len(spans) < turns:
            raise _UnmarkableError(f"{turns} turns of the assistant, {len(spans)} marked")
        return Tokens(ids, tuple(spans))

"""Constrained decoding: a reply that can only be one of given texts, in whichever tokens it is spelled.

    held = Held(("A", "B"), spelling, end_ids)
    held.allowed([])          ->  the ids of "A", " A", " ", "B", " B": every token that begins a spelling of a label
    held.ended([id of " A"])  ->  True

A label may stand at the beginning of the reply or after one space. All its tokenisations are open, not only the one that
the tokenizer itself would give (Willard & Louf 2023, arXiv:2307.09702, section 3, walk the same automaton over characters).
This module needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

BROKEN = "\ufffd"
"""What a token decodes to that holds a part of a character."""


class Spelling:
    """What each token of a tokenizer adds to a text that it stands in the middle of."""

    def __init__(self, tokenizer: Any, tokens: int) -> None:
        """`tokens`: ids below this one have a logit."""
        self.tokenizer = tokenizer
        special = set(getattr(tokenizer, "all_special_ids", ()))
        plain = [token for token in range(min(tokens, len(tokenizer))) if token not in special]
        anchor = next((token for token in plain if self._text([token]).strip().isalnum()), None)
        before = [] if anchor is None else [anchor]
        head = self._text(before) if before else ""
        self.text_of: dict[int, str] = {}
        """Token -> its text; tokens that are special, or hold a part of a character, are not here."""
        self.tokens_of: dict[str, list[int]] = {}
        texts = tokenizer.batch_decode(
            [[*before, token] for token in plain], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        for token, text in zip(plain, texts, strict=True):
            own = text[len(head) :]
            if own and BROKEN not in own:
                self.text_of[token] = own
                self.tokens_of.setdefault(own, []).append(token)
        self.longest = max(map(len, self.tokens_of), default=0)

    def _text(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def beginnings(self, text: str) -> Iterable[int]:
        """Every token whose text begins `text`."""
        for end in range(1, min(len(text), self.longest) + 1):
            yield from self.tokens_of.get(text[:end], ())

    def own(self, text: str) -> tuple[int, ...]:
        """The tokenizer's own tokens of `text`."""
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))


class Held:
    """The texts that one reply is held to."""

    def __init__(self, choices: Sequence[str], spelling: Spelling, end_ids: Iterable[int]) -> None:
        self._spelling, self._end_ids = spelling, tuple(sorted(end_ids))
        self._texts = tuple(dict.fromkeys(text for choice in choices for text in (choice, f" {choice}")))
        self._own = tuple(dict.fromkeys(ids for text in self._texts if (ids := spelling.own(text))))

    def _open(self, ids: Sequence[int]) -> tuple[set[int], bool]:
        """The tokens with which the reply `ids` may go on, and whether it already is one of the texts."""
        texts = self._spelling.text_of
        so_far = "".join(texts.get(token, BROKEN) for token in ids)
        found = {token for text in self._texts if text.startswith(so_far) for token in self._after(text, so_far)}
        whole = so_far in self._texts
        for own in self._own:
            if own[: len(ids)] == tuple(ids):
                whole |= len(own) == len(ids)
                found.update(own[len(ids) : len(ids) + 1])
        return found, whole

    def _after(self, text: str, so_far: str) -> Iterable[int]:
        return self._spelling.beginnings(text[len(so_far) :])

    def allowed(self, ids: Sequence[int]) -> list[int]:
        """The tokens that may follow; an end token too where the reply is a label and could become a longer one."""
        found, whole = self._open(ids)
        return sorted({*found, *(self._end_ids if whole else ())})

    def ended(self, ids: Sequence[int]) -> bool:
        """Whether the reply is a label that no other label goes on from."""
        found, whole = self._open(ids)
        return whole and not found

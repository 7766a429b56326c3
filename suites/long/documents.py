"""What the tasks read out of a mirror: essays, questions with their paragraphs, and RULER's question answering (`qa_1`, `qa_2`).

    Document 1: ...   Document 7: (the one with the answer)   ...   Question: In what country is Normandy located?

RULER puts the paragraphs of a question among paragraphs of others until the prompt is long enough.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from suites.long.length import tokens

ANSWER = (
    "Answer the question based on the given documents. Only give me the answer and do not output any other words.\n\nThe"
    " following are given documents.\n\n{context}\n\nAnswer the question based on the given documents. Only give me the answer"
    " and do not output any other words.\n\nQuestion: {query} Answer:"
)
HOTPOT = "hotpot_dev_distractor_v1.json"
END = re.compile(r"(?<=[.?!])\s+")


@dataclass(frozen=True, slots=True)
class Asked:
    """A question about documents."""

    query: str
    answers: tuple[str, ...]
    own: tuple[int, ...]
    """Documents that answer it."""
    more: tuple[int, ...] = ()
    """Documents of the same article, taken before others."""


def rows(folder: Path, split: str, config: str | None = None) -> list[dict[str, Any]]:
    """A split of a dataset in hub layout. Raises ValueError, in one line, where it is not there."""
    import datasets

    try:
        loaded = datasets.load_dataset(str(folder), config, split=split)
    except (ValueError, OSError, KeyError, datasets.exceptions.DatasetGenerationError) as error:
        what = f"{folder.name}, config {config or 'default'}, split {split}"
        raise ValueError(f"{what} cannot be read: {' '.join(str(error).split())[:200]}") from error
    return [dict(row) for row in loaded]


@cache
def essay_sentences(folder: Path) -> tuple[str, ...]:
    """The sentences of all essays, in order, with single spaces."""
    text = " ".join(" ".join(str(row["text"]).split()) for row in rows(folder, "train"))
    found = tuple(piece for piece in END.split(text) if piece)
    if not found:
        raise ValueError(f"{folder.name} holds no essays")
    return found


@cache
def squad(folder: Path) -> tuple[tuple[str, ...], tuple[Asked, ...]]:
    """Paragraphs, and the questions that have an answer, of SQuAD 2.0's validation split."""
    every = rows(folder, "validation")
    found = [row for row in every if row["answers"]["text"]]
    documents = tuple(sorted({row["context"] for row in every}))
    index = {text: at for at, text in enumerate(documents)}
    articles: dict[str, set[int]] = {}
    for row in every:
        articles.setdefault(row["title"], set()).add(index[row["context"]])
    asked = tuple(
        Asked(
            row["question"].strip(),
            tuple(dict.fromkeys(row["answers"]["text"])),
            (index[row["context"]],),
            tuple(sorted(articles[row["title"]] - {index[row["context"]]})),
        )
        for row in found
    )
    return documents, asked


@cache
def hotpot(folder: Path) -> tuple[tuple[str, ...], tuple[Asked, ...]]:
    """Paragraphs and questions of HotpotQA's development set with distractors, one for each text of a question."""
    file = folder / HOTPOT
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file.name} cannot be read in {folder.name}: {error}") from error
    made = [[f"{title}\n{''.join(text)}" for title, text in entry["context"]] for entry in raw]
    documents = tuple(sorted({text for own in made for text in own}))
    index = {text: at for at, text in enumerate(documents)}
    asked = {
        entry["question"]: Asked(
            entry["question"].strip(), (entry["answer"],), tuple(dict.fromkeys(index[t] for t in own))
        )
        for entry, own in zip(raw, made, strict=True)
    }
    return documents, tuple(asked.values())


SETS = {"qa_1": squad, "qa_2": hotpot}
"""Task -> what reads its dataset."""


def qa_item(
    room: int, number: int, rng: random.Random, documents: Sequence[str], asked: Sequence[Asked]
) -> dict[str, object] | None:
    """Item `number` over the questions in their order; None where its own documents do not fit."""
    one = asked[number]
    left = room - tokens(ANSWER.format(context="", query=one.query))
    own = list(one.own)
    more = list(one.more)
    rng.shuffle(more)
    others = [at for at in range(len(documents)) if at not in {*own, *more}]
    rng.shuffle(others)
    taken: list[int] = []
    for at in [*own, *more, *others]:
        left -= _shown_tokens(documents[at])
        if left < 0:
            break
        taken.append(at)
    if len(taken) < len(own):
        return None
    rng.shuffle(taken)
    shown = "\n\n".join(f"Document {place}:\n{documents[at]}" for place, at in enumerate(taken, 1))
    place = 100 * taken.index(own[0]) // max(1, len(taken) - 1)
    prompt = ANSWER.format(context=shown, query=one.query)
    return {"place": place, "question": prompt, "right": list(one.answers), "reply": one.answers[0],
            "misses": other_answers(rng, one, asked)}  # fmt: skip


@cache
def _shown_tokens(document: str) -> int:
    return tokens(f"Document 100:\n{document}\n\n")


def other_answers(rng: random.Random, one: Asked, asked: Sequence[Asked]) -> list[str]:
    """Three answers to other questions that are about as long as the right one, drawn from the twelve nearest.

    "yes" and "no" stand against each other first.
    """
    right = {answer.lower() for answer in one.answers}
    drawn = rng.sample(range(len(asked)), min(200, len(asked)))
    found = dict.fromkeys(asked[at].answers[0] for at in drawn)
    fit = [text for text in found if text.lower() not in right and not any(text in own for own in one.answers)]
    nearest = sorted(fit, key=lambda text: abs(len(text) - len(one.answers[0])))[:12]
    rng.shuffle(nearest)
    against = {"yes": "no", "no": "yes"}.get(one.answers[0].lower())
    return [text for text in dict.fromkeys([*([against] if against else []), *nearest])][:3]

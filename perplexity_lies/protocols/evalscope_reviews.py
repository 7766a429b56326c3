"""What evalscope made of a reply, in our words: the reviews that its task runner leaves on disk -> `ItemRecord`.

Does not import evalscope; `evalscope_door` runs it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from perplexity_lies.catalogue.items import Item, by_occurrence
from perplexity_lies.digests import canonical_json, sha256_text
from perplexity_lies.engines.base import GenerateResult, Message
from perplexity_lies.errors import UsageError
from perplexity_lies.extract.base import cut_in_thought, letter, status_of
from perplexity_lies.protocols.base import Context, fill, item_name, refuse_scale
from perplexity_lies.protocols.generation import Generation
from perplexity_lies.record.records import FALLBACK, ItemRecord, Reading, Status

ASKED_FORMS = (re.compile(r"answer\s*\**\s*[:：]", re.IGNORECASE), re.compile(r"\\boxed"), re.compile(r"答案"))
"""Forms of an answer that evalscope's prompts ask for. A reply without any that its prompt names was read some other way."""

LAST_LETTER = f"{FALLBACK}: last capital letter anywhere"
ASKED_FORM = "in the form that the prompt asks for"
OTHER_FORM = f"{FALLBACK}: not in the form that the prompt asks for"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One task with one seed: what evalscope is run on at a time."""

    task: str
    settings: Generation
    seed: int
    context: Context
    items: tuple[Item, ...] | None
    """What an `items:` task asks; None for a benchmark of evalscope's."""

    @property
    def where(self) -> str:
        return f"task {self.task!r}, {self.settings.rung}"


@dataclass(frozen=True, slots=True)
class Question:
    """A sample as the benchmark's loader made it."""

    subset: str
    index: int
    """evalscope's own index of the sample within its subset."""
    item: str
    subject: str
    messages: list[Message]
    target: str
    choices: tuple[str, ...] = ()
    gold_index: int = -1
    problem: Mapping[str, Any] = field(default_factory=dict)
    """The sample's metadata where replies are code: prompt, test, entry point."""


Texts = dict[tuple[str, int], str]
"""(subset, index) -> the question as it was before the prompt template."""


def plain_messages(messages: Sequence[Any]) -> list[Message]:
    """evalscope's messages as transformers' chat templates take them."""
    return [{"role": message.role, "content": message.text} for message in messages]


def fields_of(sample: Any, subset: str, texts: Texts) -> dict[str, Any]:
    """What a suite's templates may use."""
    last = sample.input if isinstance(sample.input, str) else sample.input[-1].text
    return {
        "question": texts.get((subset, sample.id), last),
        "choices": sample.choices or [],
        "target": sample.target,
        "subset": subset,
        "metadata": sample.metadata or {},
    }


def target_of(sample: Any) -> str:
    return sample.target if isinstance(sample.target, str) else " | ".join(sample.target)


def right_of(target: str, choices: Sequence[str]) -> int:
    """Index of the right choice, of which evalscope gives the letter or the text; -1 where neither can be told."""
    letters = [letter(index) for index in range(len(choices))]
    if target in letters:
        return letters.index(target)
    return list(choices).index(target) if list(choices).count(target) == 1 else -1


def question_of(sample: Any, subset: str, texts: Texts, wanted: Pass) -> Question:
    settings, index = wanted.settings, int(sample.id)
    fields = fields_of(sample, subset, texts)
    target, choices = target_of(sample), tuple(sample.choices or ())
    gold_index = right_of(target, choices)
    if wanted.items is not None:
        own = wanted.items[index]
        fields, choices, gold_index = asdict(own), own.choices, own.gold
    return Question(
        subset=subset,
        index=index,
        item=item_name(settings.item, fields, wanted.where),
        subject=fill(settings.subject, fields, wanted.where) if settings.subject else "",
        messages=plain_messages(sample.input),
        target=target,
        choices=choices,
        gold_index=gold_index,
        problem=dict(sample.metadata or {}) if settings.runs_code else {},
    )


def numbered(questions: Sequence[Question], where: str) -> list[Question]:
    """The questions, of which those that stand twice are numbered. Raises UsageError where one name has two questions."""
    named = [(question.item, canonical_json(question.messages)) for question in questions]
    names = by_occurrence(named, where, "put another field of the item into `item:`")
    return [replace(question, item=name) for question, name in zip(questions, names, strict=True)]


def read_reviews(work: Path, subsets: set[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(subset, review) of every file under reviews/: evalscope names them `<benchmark>_<subset>.jsonl`."""
    for path in sorted((work / "reviews").rglob("*.jsonl")):
        subset = max((s for s in subsets if path.stem.endswith(s)), key=len, default=path.stem)
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                yield subset, json.loads(line)


def record_of(
    question: Question,
    reply: GenerateResult,
    review: dict[str, Any] | None,
    wanted: Pass,
    *,
    prefix: str = "",
    fell_back: bool = False,
    unjudged: str = "",
) -> ItemRecord:
    """A reply and evalscope's review of it in our words.

    `prefix` is what the prompt had opened of the reply; `fell_back` tells that evalscope read its last capital letter;
    `unjudged` is why a reply that is there was not judged.
    """
    rule = _rule(question, reply.text, fell_back)
    error, reading = _reading(reply, review, wanted, prefix, rule, unjudged)
    margin = reply.smallest_margin
    return ItemRecord(
        task=wanted.task,
        subject=question.subject,
        item=question.item,
        rung=wanted.settings.rung,
        seed=wanted.seed,
        prompt=question.messages[-1]["content"] if len(question.messages) == 1 else _transcript(question.messages),
        prompt_sha256=sha256_text(canonical_json(question.messages)),
        gold=question.target,
        choices=question.choices,
        gold_index=question.gold_index,
        readings=(reading,),
        text=reply.text,
        reply_prefix=prefix,
        token_ids=tuple(reply.token_ids),
        finish_reason=reply.finish_reason if not reply.error else "",
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens,
        truncated_prompt_tokens=reply.truncated_tokens,
        beyond_context_tokens=reply.beyond_context_tokens,
        fragile=margin is not None and margin <= wanted.context.rounding.margin,
        error=error,
    )


def _rule(question: Question, text: str, fell_back: bool) -> str:
    """Which of evalscope's rules read a reply, as far as its prompt and its fallback tell."""
    if fell_back:
        return LAST_LETTER
    prompt = question.messages[-1]["content"]
    asked = [form for form in ASKED_FORMS if form.search(prompt)]
    if not asked:
        return ""
    return ASKED_FORM if any(form.search(text) for form in asked) else OTHER_FORM


def _reading(
    reply: GenerateResult, review: dict[str, Any] | None, wanted: Pass, prefix: str, rule: str, unjudged: str
) -> tuple[str, Reading]:
    """Why there is no score (empty where there is one), and what evalscope read.

    In a reply cut inside a thought nothing is an answer: its score is 0, whatever evalscope gave, which stays in `scores`.

    Raises UsageError for a metric that evalscope does not give, or that is no share.
    """
    metric = wanted.settings.metric
    score = review["sample_score"]["score"] if review is not None else {}
    values = {
        name: float(value) for name, value in (score.get("value") or {}).items() if isinstance(value, int | float)
    }
    error = reply.error or unjudged or ("" if review is not None else "evalscope gave no review of this item")
    if not error and metric not in values and score.get("status", "success") != "success":
        why = score.get("explanation") or (score.get("metadata") or {}).get(metric) or "no reason given"
        error = f"evalscope could not score the reply: {why}"
    extractor = f"evalscope@{version('evalscope')}"
    if error:
        status = Status.REFUSED if reply.error and not reply.failed else Status.ERRORED
        return error, Reading(extractor=extractor, status=status, score=0.0, metric=metric)
    if metric not in values:
        raise UsageError(
            f"{wanted.where}: evalscope gives no metric {metric!r}",
            found=f"metrics: {', '.join(values) or 'none'}", mend="mend `metric:`",
        )  # fmt: skip
    refuse_scale(wanted.task, wanted.settings.rung, metric, values[metric])
    thinking = cut_in_thought(reply.text, reply.finish_reason, prefix)
    answer = "" if thinking else str(score.get("extracted_prediction") or "").strip()
    return "", Reading(
        extractor=extractor,
        status=status_of(reply.text, reply.finish_reason, answer, prefix=prefix, known_tokens=bool(reply.token_ids)),
        score=0.0 if thinking else values[metric],
        metric=metric,
        scores=values,
        answer=answer,
        rule=rule if answer else "",
    )


def _transcript(messages: Sequence[Message]) -> str:
    return "\n".join(f"{m['role']}: {m['content']}" for m in messages)

"""What lm-eval made of a document, in our words: its logged samples -> `ItemRecord`.

Does not import lm-eval; `lm_eval_door` runs it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from perplexity_lies.catalogue.tasks import TaskSpec
from perplexity_lies.digests import canonical_json, sha256_text
from perplexity_lies.errors import UsageError
from perplexity_lies.protocols.base import fill, refuse_scale
from perplexity_lies.protocols.loglikelihood import Loglikelihood
from perplexity_lies.protocols.ranking import MUTUAL_INFORMATION, is_fragile, ranked_first
from perplexity_lies.record.manifest import Rounding
from perplexity_lies.record.records import ItemRecord, Reading, Status

RULES = {
    "acc": "highest log-likelihood",
    "acc_norm": "highest log-likelihood a character",
    "acc_bytes": "highest log-likelihood a byte",
    MUTUAL_INFORMATION: "highest log-likelihood less that without the question",
}
"""lm-eval's metric -> what ranks a choice first."""

Pair = tuple[str, str]
"""(context, continuation), as lm-eval asks."""


@dataclass(slots=True)
class Heard:
    """What the engine was asked and said beside the log-likelihoods, which lm-eval does not log."""

    messages: dict[str, str] = field(default_factory=dict)
    """Rendered chat -> the messages it was made of, as canonical JSON."""
    tokens: dict[Pair, tuple[int, int]] = field(default_factory=dict)
    """Tokens of the context that were fed, and tokens that were cut from its left."""
    spelled: dict[Pair, tuple[int, ...]] = field(default_factory=dict)
    """Ids of context and continuation."""
    bos_added: bool = False
    """Whether a text that goes through the chat template gets a BOS from the tokenizer."""
    lost: dict[Pair, tuple[Status, str]] = field(default_factory=dict)
    """Why the engine has no log-likelihood."""


@dataclass(frozen=True, slots=True)
class Part:
    """One of lm-eval's tasks in a task of a suite; most have one."""

    name: str
    """As lm-eval was told."""
    stem: str
    """The name of its YAML file without the ending: `mmlu_anatomy`."""
    task: Any

    def fields(self, doc: dict[str, Any]) -> dict[str, Any]:
        """What a suite's templates may use."""
        return {"lm_eval_task": self.stem, **doc}


def by_document(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One sample a document (lm-eval logs one for each filter), in document order."""
    first: dict[int, dict[str, Any]] = {}
    for sample in samples:
        first.setdefault(sample["doc_id"], sample)
    return [first[index] for index in sorted(first)]


def record_of_sample(
    sample: dict[str, Any],
    item: str,
    part: Part,
    spec: TaskSpec,
    settings: Loglikelihood,
    heard: Heard,
    rounding: Rounding,
) -> ItemRecord:
    """An lm-eval sample of the document named `item` in our words."""
    task, doc, where = part.task, sample["doc"], f"task {spec.name!r}, {settings.rung}"
    pairs = [(str(context), str(continuation)) for context, continuation, *_ in sample["arguments"]]
    answers = [response[0] for response in sample["resps"]]
    ranked = task.OUTPUT_TYPE == "multiple_choice"
    choices = (
        [str(choice) for choice in task.doc_to_choice(doc)] if ranked else [continuation for _, continuation in pairs]
    )
    gold = gold_index_of(task, doc) if ranked else 0
    lost = next((heard.lost[pair] for pair in pairs if pair in heard.lost), None)
    every = [] if lost else [float(answer[0]) for answer in answers]
    nats, alone = every[: len(choices)], every[len(choices) :]
    prompt = heard.messages.get(pairs[0][0]) or _common_prefix([context for context, _ in pairs])
    return ItemRecord(
        task=spec.name,
        subject=fill(settings.subject, part.fields(doc), where) if settings.subject else "",
        item=item,
        rung=settings.rung,
        prompt=_readable(prompt),
        prompt_sha256=sha256_text(
            canonical_json([[heard.messages.get(context, context), continuation] for context, continuation in pairs])
        ),
        gold=choices[gold],
        choices=tuple(choices),
        gold_index=gold,
        readings=(_reading(sample, spec.name, settings, choices, nats, alone, lost[0] if lost else Status.SCORED),),
        choice_loglikelihoods_nats=tuple(nats),
        choice_is_greedy=() if lost else tuple(bool(answer[1]) for answer in answers)[: len(choices)],
        fragile=is_fragile(nats, choices, settings.metric, rounding.nats, alone),
        prompt_tokens=max(heard.tokens[pair][0] for pair in pairs),
        truncated_prompt_tokens=max(heard.tokens[pair][1] for pair in pairs),
        bos_before_template=heard.bos_added and all(context in heard.messages for context, _ in pairs),
        never_right=never_ranked_first([heard.spelled.get(pair, ()) for pair in pairs[: len(choices)]], gold),
        error=lost[1] if lost else "",
    )


def never_ranked_first(spelled: Sequence[tuple[int, ...]], gold: int) -> str:
    """Why the right choice cannot be ranked first, whatever the checkpoint; empty where it can.

    Of choices that are the same tokens the first wins.
    """
    if gold < len(spelled) and spelled[gold] and spelled[gold] in spelled[:gold]:
        return "an earlier choice is the same tokens as the right one, and of equals the first is ranked first"
    return ""


def _reading(
    sample: dict[str, Any],
    task: str,
    settings: Loglikelihood,
    choices: Sequence[str],
    nats: Sequence[float],
    alone: Sequence[float],
    status: Status,
) -> Reading:
    """lm-eval's metrics of a sample, and the choice ranked first; a score of 0 where `status` is not `scored`."""
    scores = {name: float(sample[name]) for name in sample["metrics"] if isinstance(sample[name], int | float)}
    if settings.metric not in scores:
        raise UsageError(
            f"task {task!r}, {settings.rung}: lm-eval gives no metric {settings.metric!r}",
            found=f"metrics: {', '.join(scores)}",
            mend="mend `metric:`",
        )
    extractor = f"lm-eval@{version('lm-eval')}"
    if status is not Status.SCORED:
        return Reading(extractor=extractor, status=status, score=0.0, metric=settings.metric)
    refuse_scale(task, settings.rung, settings.metric, scores[settings.metric])
    return Reading(
        extractor=extractor,
        status=status,
        score=scores[settings.metric],
        metric=settings.metric,
        scores=scores,
        answer=choices[ranked_first(nats, choices, settings.metric, alone)],
        rule=RULES.get(settings.metric, ""),
    )


def gold_index_of(task: Any, doc: dict[str, Any]) -> int:
    """As lm-eval's `process_results` finds it; the first where several are right."""
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if isinstance(gold, list):
        gold = gold[0]
    return int(gold) if isinstance(gold, int) else list(task.doc_to_choice(doc)).index(gold)


def _common_prefix(texts: Sequence[str]) -> str:
    shortest = min(texts, key=len)
    for at, letter in enumerate(shortest):
        if any(text[at] != letter for text in texts):
            return shortest[:at]
    return shortest


def _readable(prompt: str) -> str:
    """Chat messages as plain text; other prompts as they are."""
    try:
        messages = json.loads(prompt)
    except ValueError:
        return prompt
    if not (isinstance(messages, list) and messages and all(isinstance(m, dict) and "content" in m for m in messages)):
        return prompt
    if len(messages) == 1:
        return str(messages[0]["content"])
    return "\n".join(f"{m['role']}: {m['content']}" for m in messages)

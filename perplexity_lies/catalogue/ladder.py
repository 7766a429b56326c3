"""The ladder of a suite: the same tasks, each asked on the rungs of the ladder in place of its own.

    ladder_of(load_suite("smoke"), mirror)      every multiple-choice task in letters, one factor a step

A task's items are its own `items:`, else evalscope's samples, else lm-eval's documents. A task may say `ladder: {...}`
(`Ladder`); by default its choices stand in the prompt with letters.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Interval

from perplexity_lies.catalogue.mirror import Mirror
from perplexity_lies.catalogue.sources import EvalscopeItems, ItemSource, LmEvalItems
from perplexity_lies.catalogue.tasks import Suite, TaskSpec, rung_class
from perplexity_lies.checked import Checked, checked
from perplexity_lies.digests import canonical_json, without_defaults
from perplexity_lies.errors import UsageError
from perplexity_lies.rungs import GENERATION, LADDER, LOGLIKELIHOOD

WITHOUT_CHOICES = ("answer", "answer_shots", "thought", "answer_chat", "thought_chat")
"""Rungs of a task whose answers are free."""
OWN_WORDS = ("rank_texts", "constrained", "argmax", "answer")
"""Rungs of a task whose questions are asked as they stand (`labels: texts`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder(Checked):
    """How a task is asked on the ladder."""

    labels: Literal["letters", "texts"] = "letters"
    """`letters`: the prompt lists the choices with letters. `texts`: the question as it stands; its answers are texts."""
    chat_template: bool = False
    """Whether the ladder begins in the checkpoint's chat template, for a checkpoint that knows nothing else."""
    max_new_tokens: Annotated[int, Interval(ge=1, le=1_000_000)] = 32
    """Token budget of a free answer."""
    thought_tokens: Annotated[int, Interval(ge=1, le=1_000_000)] = 256
    """Token budget of a chain of thought with its answer."""
    shots: Annotated[int, Interval(ge=1, le=1000)] = 3
    """Worked examples of the few-shot rung: the first items of the task but the one that is asked."""
    extract: str = ""
    """Regular expression whose only group is the answer in a reply; empty: the letter, the number, or the whole reply."""


def ladder_of(suite: Suite, mirror: Mirror) -> Suite:
    """The suite on the ladder. Raises UsageError for a task that has no items to ask."""
    tasks = tuple(_climbed(task, mirror) for task in suite.tasks)
    told = [[task.name, {rung: without_defaults(own) for rung, own in task.rungs.items()}] for task in tasks]
    plain = canonical_json([suite.digest, told])
    return dataclasses.replace(
        suite,
        name=f"{suite.name}-ladder",
        title=f"{suite.title}, on the ladder",
        tasks=tasks,
        digest=f"sha256:{hashlib.sha256(plain.encode()).hexdigest()}",
    )


def _climbed(task: TaskSpec, mirror: Mirror) -> TaskSpec:
    where = f"task {task.name!r}, ladder"
    raw = dict(task.ladder)
    generation = task.rungs.get(GENERATION)
    if task.items is not None and generation is not None:
        raw = {
            "max_new_tokens": getattr(generation, "max_new_tokens", 32),
            "extract": getattr(generation, "extract", ""),
            **raw,
        }
        raw |= {} if raw.get("labels") == "texts" or "extract" in task.ladder else {"extract": ""}
    settings = checked(Ladder, raw, where)
    source = task.items or _library(task, where)
    has_choices = all(item.choices for item in source.load(mirror, 1))
    names = WITHOUT_CHOICES if not has_choices else tuple(rung.name for rung in LADDER)
    if settings.labels == "texts" and has_choices:
        names = OWN_WORDS
    if settings.chat_template:
        names = tuple(name for name in names if not name.endswith("_chat"))
    chance = next((own.chance for own in task.rungs.values() if own.chance is not None), None)
    own = {key: getattr(settings, key) for key in (field.name for field in dataclasses.fields(settings))}
    rungs = {}
    for name in names:
        kind = rung_class(name)
        known = {key: value for key, value in own.items() if key in {field.name for field in dataclasses.fields(kind)}}
        rungs[name] = kind(**{**kind.over_items, **known, "chance": chance})
    return TaskSpec(name=task.name, title=task.title, rungs=rungs, items=source)


def _library(task: TaskSpec, where: str) -> ItemSource:
    """The items of the benchmark that a rung of the task names: evalscope's samples, else lm-eval's documents."""
    generation: Any = task.rungs.get(GENERATION)
    if generation is not None and generation.evalscope:
        return EvalscopeItems(
            dataset=generation.dataset, evalscope=generation.evalscope, subset=generation.subset,
            subject=generation.subject,
        )  # fmt: skip
    ranked: Any = task.rungs.get(LOGLIKELIHOOD)
    if ranked is not None and ranked.lm_eval and "*" not in ranked.lm_eval:
        return LmEvalItems(dataset=ranked.dataset, lm_eval=ranked.lm_eval, subject=ranked.subject)
    raise UsageError(
        f"{where}: it has no items that could be asked on the ladder", found="neither `items:` nor one benchmark of a library",
        mend="items: FILE.jsonl, or a `generation:` block with `evalscope:`",
    )  # fmt: skip

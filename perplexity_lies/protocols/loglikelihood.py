"""The rung `loglikelihood`: the answers are given, and the checkpoint ranks them. Settings only; lm-eval asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from annotated_types import Interval

from perplexity_lies.catalogue.sources import ItemSource
from perplexity_lies.catalogue.tasks import RungSettings, Suite, TaskSpec
from perplexity_lies.engines.base import Engine
from perplexity_lies.errors import UsageError, from_table, nearest
from perplexity_lies.protocols.base import Context, through_door
from perplexity_lies.record.records import ItemRecord
from perplexity_lies.rungs import LOGLIKELIHOOD

ITEMS_METRICS = ("acc", "acc_norm")
"""Metrics of `items:` tasks: the choice with the highest log-likelihood, or with the highest by character."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loglikelihood(RungSettings):
    """How lm-eval asks a task."""

    rung: ClassVar[str] = LOGLIKELIHOOD
    stock: ClassVar[tuple[str, ...]] = ("lm_eval", "lm_eval_file", "num_fewshot", "overrides")
    flat: ClassVar[tuple[str, ...]] = (*RungSettings.flat, "metric", "chat_template", "chance")
    over_items: ClassVar[Mapping[str, Any]] = {**RungSettings.over_items, "metric": "acc", "chat_template": True}

    lm_eval: str = ""
    """A stock YAML, relative to lm-eval's `tasks/`; with a `*`, all that fit as one task: `mmlu/default/mmlu_*.yaml`.

    Templates may then use `lm_eval_task`, the name of the file without its ending.
    """
    lm_eval_file: str = ""
    """Or a task YAML of the suite's own, relative to the suite."""
    num_fewshot: Annotated[int, Interval(ge=0, le=1000)] = 0
    chat_template: bool = False
    """Whether the prompt goes through the checkpoint's chat template."""
    seeds: tuple[Annotated[int, Interval(ge=0, le=2**31)], ...] = ()
    """Seeds of lm-eval's few-shot sampler, one pass over the items for each; empty for lm-eval's own, 1234.

    A task without shots, or whose shots are the first ones, has one pass: there a seed moves nothing.
    """
    overrides: dict[str, Any] = field(default_factory=dict)
    """Fields of lm-eval's task YAML that the suite changes: `{fewshot_split: null}`. The task is then the suite's own."""

    @classmethod
    def ask(cls, engine: Engine, suite: Suite, context: Context) -> list[ItemRecord]:
        return through_door("perplexity_lies.protocols.lm_eval_door:ask_lm_eval", cls, engine, suite, context)

    def source(self, items: ItemSource | None) -> str:
        asked = items.title if items is not None else self.lm_eval or self.lm_eval_file
        ours = "; ours: not a task of lm-eval" if self.overrides or self.lm_eval_file else ""
        return f"lm-eval, {asked}, {self.num_fewshot}-shot{ours}"

    def metrics(self, task: TaskSpec, suite: Suite) -> tuple[str, ...]:
        if task.items_on(self.rung) is not None:
            return ITEMS_METRICS
        door = "perplexity_lies.protocols.lm_eval_door:task_metrics"
        found: tuple[str, ...] = from_table(door, f"the rung {self.rung!r} cannot be asked", "eval")(self, suite)
        return found

    def files(self, folder: Path, where: str) -> list[Path]:
        if not self.lm_eval_file:
            return []
        file = folder / self.lm_eval_file
        if not file.is_file():
            raise UsageError(
                f"{where}: {self.lm_eval_file} is not there",
                found=f"no file {file}",
                mend="`lm_eval_file:` is relative to the suite file",
            )
        return sorted(file.parent.glob(f"{file.stem}.*"))

    def check(self, where: str, items: ItemSource | None) -> None:
        if items is None and bool(self.lm_eval) == bool(self.lm_eval_file):
            raise UsageError(
                f"{where} needs one of `lm_eval` and `lm_eval_file`",
                found="both" if self.lm_eval else "neither",
                mend="lm_eval: arc/arc_easy.yaml",
            )
        if items is not None and self.metric not in ITEMS_METRICS:
            raise UsageError(
                f"{where}: `metric` of an `items:` task is lm-eval's for the choices{nearest(self.metric, ITEMS_METRICS)}",
                found=repr(self.metric),
                mend=f"metric: {' or '.join(ITEMS_METRICS)}",
            )
        RungSettings.check(self, where, items)

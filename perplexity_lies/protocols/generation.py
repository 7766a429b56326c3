"""The rung `generation`: the checkpoint writes a reply, and an answer is read in it. Settings only; evalscope asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from annotated_types import Interval, MinLen

from perplexity_lies.catalogue.sources import ItemSource
from perplexity_lies.catalogue.tasks import LARGEST_SEED, RungSettings, Suite, TaskSpec
from perplexity_lies.engines.base import Engine, Sampling
from perplexity_lies.errors import UsageError, from_table
from perplexity_lies.extract import open_extractor
from perplexity_lies.extract.base import EXACT_MATCH, Extractor
from perplexity_lies.protocols.base import Context, through_door
from perplexity_lies.record.records import ItemRecord
from perplexity_lies.rungs import GENERATION

RUNS_CODE = ("humaneval",)
"""evalscope's benchmarks whose judging runs what the checkpoint wrote, and that our sandbox can judge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation(RungSettings):
    """How evalscope asks a task. Always a chat request."""

    rung: ClassVar[str] = GENERATION
    stock: ClassVar[tuple[str, ...]] = ("evalscope", "subset", "num_fewshot", "extra_params")
    flat: ClassVar[tuple[str, ...]] = (
        *RungSettings.flat, "extract", "judge", "extractors", "max_new_tokens", "stop", "seeds", "temperature", "top_p", "top_k",
    )  # fmt: skip
    over_items: ClassVar[Mapping[str, Any]] = {**RungSettings.over_items, "metric": EXACT_MATCH, "chance": 0.0}

    evalscope: str = ""
    """Name of a stock evalscope benchmark."""
    subset: str = ""
    """The one subset to run; empty for the benchmark's default list."""
    num_fewshot: Annotated[int, Interval(ge=0, le=1000)] = 0
    extra_params: dict[str, Any] = field(default_factory=dict)
    """evalscope's `extra_params` of the benchmark: `{multiple_correct: true}`."""
    max_new_tokens: Annotated[int, Interval(ge=1, le=1_000_000)]
    """Token budget of a reply."""
    stop: tuple[str, ...] = ()
    """Texts before which a reply is cut."""
    temperature: Annotated[float, Interval(ge=0, le=100)] = 0.0
    """0 takes the likeliest token each time."""
    top_p: Annotated[float, Interval(ge=1e-9, le=1)] = 1.0
    top_k: Annotated[int, Interval(ge=0, le=1_000_000)] = 0
    """0 keeps every token."""
    seeds: Annotated[tuple[Annotated[int, Interval(ge=0, le=LARGEST_SEED)], ...], MinLen(1)] = (0,)
    """One pass over the items for each; more than one only makes sense with a temperature."""
    extract: str = ""
    """`items:` tasks: regular expression whose only group is the answer in a reply."""
    judge: str = ""
    """`items:` tasks, in place of `extract`: the extractor whose reading is the headline, NAME or NAME=ARGUMENT."""
    extractors: tuple[str, ...] = ()
    """More readings of each reply, beside the headline: NAME or NAME=ARGUMENT."""

    @property
    def sampling(self) -> Sampling:
        """Temperature, top_p and top_k in the engine's form."""
        return Sampling(temperature=self.temperature, top_p=self.top_p, top_k=self.top_k)

    @property
    def runs_code(self) -> bool:
        """Whether replies are judged by running them, which needs `--run-code`."""
        return self.evalscope in RUNS_CODE

    def readers(self) -> list[Extractor]:
        """Our own extractors in the order of their readings: the headline of an `items:` task, then those asked for."""
        own = {"extract": self.extract}
        headline = ("pattern",) if self.extract else (self.judge,) if self.judge else ()
        return [open_extractor(name, own) for name in (*headline, *self.extractors)]

    @classmethod
    def ask(cls, engine: Engine, suite: Suite, context: Context) -> list[ItemRecord]:
        return through_door("perplexity_lies.protocols.evalscope_door:ask_evalscope", cls, engine, suite, context)

    def source(self, items: ItemSource | None) -> str:
        judged = f"evalscope {self.evalscope} {self.subset}".strip()
        if items is not None:
            judged = f"{items.title}, {self.judge or 'exact match of the extracted answer'}"
        budget = f"at most {self.max_new_tokens} tokens"
        return f"{judged}, {self.num_fewshot}-shot, {budget}, temperature {self.temperature:g}"

    def metrics(self, task: TaskSpec, suite: Suite) -> tuple[str, ...]:
        if task.items_on(self.rung) is not None:
            return (self.readers()[0].metric,)
        where, door = f"task {task.name!r}, {self.rung}", "perplexity_lies.protocols.evalscope_door:benchmark_metrics"
        found: tuple[str, ...] = from_table(door, f"the rung {self.rung!r} cannot be asked", "eval")(self, where)
        return found

    def check(self, where: str, items: ItemSource | None) -> None:
        if len(set(self.seeds)) < len(self.seeds):
            raise UsageError(
                f"{where}: `seeds` must be distinct", found=repr(list(self.seeds))[:80], mend="seeds: [0, 1, 2]"
            )
        if items is None and not self.evalscope:
            raise UsageError(f"{where} needs `evalscope`, the name of a benchmark", found="none", mend="evalscope: arc")
        self._check_headline(where, items is not None)
        try:
            labels = [reader.label for reader in self.readers()]
        except UsageError as error:
            raise UsageError(f"{where}: {error.asked}", found=error.found, mend=error.mend) from error
        if len(set(labels)) < len(labels):
            raise UsageError(f"{where}: one extractor twice", found=", ".join(labels), mend="name each once")
        RungSettings.check(self, where, items)

    def _check_headline(self, where: str, own_items: bool) -> None:
        """Raises UsageError for an `items:` task that does not say how it is judged, and for a library's that does."""
        if self.extract and self.judge:
            raise UsageError(
                f"{where} has two headlines, `extract` and `judge`", found=f"judge: {self.judge}", mend="take one out"
            )
        if bool(self.extract or self.judge) != own_items:
            raise UsageError(
                f"{where} {'lacks' if own_items else 'has no use for'} `extract`, the pattern of an answer",
                found=f"{'an' if own_items else 'no'} `items:` task",
                mend=r"extract: 'answer : (\d+)', or judge: EXTRACTOR" if own_items else "take it out",
            )

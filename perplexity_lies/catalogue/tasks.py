"""`Suite`, `TaskSpec`, `RungSettings`: what a suite file comes to once it is read.

    suite.tasks[0].rungs["generation"]   ->   Generation(metric="accuracy", evalscope="arc", max_new_tokens=64, ...)

The settings of a rung are a class of the rung's own file in `protocols/`. The table `rungs.RUNGS` names it, and it is
imported by that name: reading a suite imports neither an engine nor an evaluation library.
"""

from __future__ import annotations

import abc
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from annotated_types import Interval

from perplexity_lies.catalogue.sources import ItemSource
from perplexity_lies.checked import Checked
from perplexity_lies.digests import canonical_json, without_defaults
from perplexity_lies.errors import UsageError, from_table, nearest
from perplexity_lies.record.manifest import RungFacts
from perplexity_lies.record.records import ItemRecord
from perplexity_lies.rungs import RUNGS

LARGEST_SEED = 2**31
"""numpy takes 32 bits, and evalscope is given the seed plus 42."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RungSettings(Checked, abc.ABC):
    """How one task is asked on one rung, and the function that asks. A subclass for each rung adds its own settings."""

    rung: ClassVar[str]
    """Name in `rungs.RUNGS`."""
    stock: ClassVar[tuple[str, ...]] = ()
    """Settings that choose a library's own benchmark. Empty where the rung only asks `items:` tasks."""
    flat: ClassVar[tuple[str, ...]] = ("subject",)
    """Keys of an `items:` task, beside `items:` itself, that are settings of this rung."""
    over_items: ClassVar[Mapping[str, Any]] = {"item": "{{ id }}", "subject": "{{ subject }}"}
    """What stands at another default in an `items:` task."""

    metric: str
    """The headline: the library's name for it."""
    chance: Annotated[float, Interval(ge=0, le=1)] | None = None
    """Score of a guess, in [0, 1]; null where nobody knows."""
    item: str = ""
    """Jinja template over the library's fields; its text identifies the item, so that records pair."""
    subject: str = ""
    """Jinja template of an item's cluster; empty for none."""
    dataset: str = ""
    """Hub id of the benchmark's dataset, looked up in the mirror."""

    @property
    def runs_code(self) -> bool:
        """Whether replies are judged by running them, which needs `--run-code`."""
        return False

    @property
    def is_stock(self) -> bool:
        """Whether a library's own benchmark is asked, not the items of an `items:` task."""
        return any(getattr(self, name) for name in self.stock if name != "num_fewshot")

    @classmethod
    def of(cls, task: TaskSpec) -> Self:
        """This rung's settings of a task that has the rung."""
        found = task.rungs[cls.rung]
        assert isinstance(found, cls)
        return found

    @classmethod
    @abc.abstractmethod
    def ask(cls, engine: Any, suite: Suite, context: Any) -> list[ItemRecord]:
        """Records of every item of the tasks that have this rung (`suite.tasks_on`), in the suite's order.

        `engine` is an `engines.base.Engine`, `context` a `protocols.base.Context`.
        """

    @abc.abstractmethod
    def source(self, items: ItemSource | None) -> str:
        """In words, for a report: library, benchmark, shots."""

    def facts(self, task: TaskSpec) -> RungFacts:
        """What the manifest of a run tells of these settings of `task`."""
        plain = json.loads(canonical_json(without_defaults(self)))
        return RungFacts(
            metric=self.metric, chance=self.chance, source=self.source(task.items_on(self.rung)), settings=plain
        )

    def metrics(self, task: TaskSpec, suite: Suite) -> tuple[str, ...]:
        """Names that `metric` may have for `task`; empty where that cannot be told before it is asked."""
        return ()

    def check_metric(self, task: TaskSpec, suite: Suite) -> None:
        """Raises UsageError for a `metric` that the library does not give, before anything runs."""
        names = self.metrics(task, suite)
        if names and self.metric not in names:
            raise UsageError(
                f"task {task.name!r}, {self.rung}: there is no metric {self.metric!r}{nearest(self.metric, names)}",
                found=f"metrics: {', '.join(names)}", mend="mend `metric:`",
            )  # fmt: skip

    def files(self, folder: Path, where: str) -> list[Path]:
        """The suite's own files beside it that these settings name. Raises UsageError for one that is not there."""
        return []

    def check(self, where: str, items: ItemSource | None) -> None:
        """Raises UsageError for settings that do not fit each other, or do not fit a task with or without `items:`."""
        if items is not None:
            self._refuse_stock(where)
            return
        if not self.stock:
            raise UsageError(f"{where}: this rung asks `items:` tasks", found="no `items:`", mend="items: FILE.jsonl")
        for key, why, example in (
            ("item", "says how an item is recognised", '"{{ question }}"'),
            ("dataset", "says what is asked", "allenai/ai2_arc"),
        ):
            if not getattr(self, key):
                raise UsageError(f"{where} needs `{key}`, which {why}", found="none", mend=f"{key}: {example}")

    def _refuse_stock(self, where: str) -> None:
        for own in dataclasses.fields(self):
            default = own.default if own.default_factory is dataclasses.MISSING else own.default_factory()
            if own.name in (*self.stock, "dataset") and getattr(self, own.name) != default:
                raise UsageError(
                    f"{where}: `{own.name}` belongs to a library's benchmark, and this task has `items:`",
                    found=repr(getattr(self, own.name)),
                    mend=f"take out `{own.name}:`, or `items:`",
                )


def rung_class(rung: str) -> type[RungSettings]:
    """The settings class of a rung that the table has."""
    found: type[RungSettings] = from_table(RUNGS[rung].home, f"the rung {rung!r} cannot be used", "all")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """One benchmark, on one rung or more."""

    name: str
    title: str
    rungs: dict[str, RungSettings]
    """In the order of `RUNGS`."""
    series: str = ""
    """Tasks of one series are one task at several lengths; the report draws them over `length_tokens`."""
    length_tokens: int = 0
    items: ItemSource | None = None
    """Where its items come from; None where each rung asks a library's own benchmark."""
    subjects: Literal["", "benchmark", "sample"] = ""
    """Whether the items' subjects are the benchmark itself (strata) or a sample of more such (clusters); empty for none."""
    ladder: dict[str, Any] = field(default_factory=dict)
    """How `--ladder` asks it, where that is otherwise than for other tasks."""

    def items_on(self, rung: str) -> ItemSource | None:
        """What `rung` asks where it does not ask a library's own benchmark."""
        return None if self.rungs[rung].is_stock else self.items

    @property
    def datasets(self) -> tuple[str, ...]:
        """Hub ids of the datasets that a mirror must hold."""
        own = self.items.datasets if self.items is not None else ()
        return (*own, *(settings.dataset for settings in self.rungs.values() if settings.dataset))


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """Tasks in order, with the digest of everything that is asked."""

    name: str
    title: str
    tasks: tuple[TaskSpec, ...]
    path: Path
    digest: str = field(compare=False)
    chat_template_args: dict[str, Any] = field(default_factory=dict)
    """What the checkpoint's chat template is given beside the messages."""
    revisions: dict[str, str] = field(default_factory=dict, compare=False)
    """Hub id -> revision to fetch; others at their newest."""
    narrowed: tuple[str, ...] = ()
    """In words, what of the suite is not asked: fewer tasks, fewer seeds."""

    @property
    def datasets(self) -> tuple[str, ...]:
        """Hub ids of the datasets that a mirror must hold, each once."""
        return tuple(dict.fromkeys(dataset for task in self.tasks for dataset in task.datasets))

    def tasks_on(self, rung: str) -> tuple[TaskSpec, ...]:
        """The tasks that have `rung`, in order."""
        return tuple(task for task in self.tasks if rung in task.rungs)


def share_of_limit(limit: int | None, subjects: int) -> tuple[int | None, int | None]:
    """How many of a task's subjects, and how many items of each, a limit allows; None for all.

    share_of_limit(20, 57)   ->   (20, 1)        share_of_limit(200, 57)   ->   (57, 3)

    Both libraries count a limit by subject. Here it is a limit of the task, with as many items of each subject, the
    subjects in the order of their names, so that both rungs ask the same items.
    """
    if limit is None:
        return None, None
    return (subjects, limit // subjects) if limit >= subjects else (limit, 1)

"""Reads a suite: a YAML file of tasks, each with the rungs on which it is asked.

    - name: arc_easy                      - name: sums
      loglikelihood: {lm_eval: ...}         items: sums.jsonl
      generation: {evalscope: ...}          extract: 'answer : (\\d+)'
                                            max_new_tokens: 32

Left, a task with a block for each rung, one or more. Right, a task with `items:`; its keys are settings of both
`loglikelihood` and `generation`, `rungs: [...]` chooses others, and a block with a rung's name adds that rung or
changes its settings. Unknown keys are refused with the nearest name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Interval, MinLen

from perplexity_lies.catalogue.items import Item, refuse_unanswerable
from perplexity_lies.catalogue.sources import read_source
from perplexity_lies.catalogue.tasks import RungSettings, Suite, TaskSpec, rung_class
from perplexity_lies.checked import Checked, checked
from perplexity_lies.digests import canonical_json, without_defaults
from perplexity_lies.errors import UsageError, nearest
from perplexity_lies.files import read_yaml
from perplexity_lies.rungs import GENERATION, LOGLIKELIHOOD, RUNGS

CATALOGUE = "suites"
"""The package whose *.yaml files are the suites known by name."""

RUNGS_OF_ITEMS = (LOGLIKELIHOOD, GENERATION)
"""Rungs of an `items:` task that names none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _File(Checked):
    """A suite file."""

    name: Annotated[str, MinLen(1)]
    title: str = ""
    chat_template_args: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What the checkpoint's chat template is given beside the messages: `{enable_thinking: false}`."""
    defaults: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    """Rung -> settings of every task that has the rung, where the task does not state its own."""
    revisions: dict[str, str] = dataclasses.field(default_factory=dict)
    """Hub id -> revision that `plies data fetch` takes; the newest where none is stated."""
    tasks: Annotated[tuple[dict[str, Any], ...], MinLen(1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head(Checked):
    """The keys of a task that are no settings of a rung."""

    name: Annotated[str, MinLen(1)]
    title: str = ""
    series: str = ""
    length_tokens: Annotated[int, Interval(ge=0)] = 0
    items: str | dict[str, Any] | None = None
    rungs: Annotated[tuple[str, ...], MinLen(1)] | None = None
    subjects: Literal["benchmark", "sample"] | None = None
    """Whether an item's subjects are the benchmark itself (strata) or a sample of more such (clusters)."""
    ladder: dict[str, Any] = dataclasses.field(default_factory=dict)
    """How `--ladder` asks the task, where it is otherwise than for other tasks (`ladder.Ladder`)."""


HEAD = tuple(field.name for field in dataclasses.fields(_Head))


def catalogue() -> dict[str, Path]:
    """Name -> file of the suites that come with plies."""
    root = Path(str(resources.files(CATALOGUE)))
    return {path.stem: path for path in sorted(root.glob("*.yaml"))}


def load_suite(name: str | Path) -> Suite:
    """A suite by name, or by the path of a YAML file. Raises UsageError that says what is wrong and where."""
    known = catalogue()
    path = known.get(str(name), Path(name))
    if not os.path.isfile(path):
        raise UsageError(
            f"there is no suite {str(name)[:200]!r}{nearest(str(name), known)}",
            found=f"suites: {', '.join(known)}",
            mend="--suite NAME, or --suite FILE.yaml",
        )
    file = checked(_File, read_yaml(path, f"suite {path}"), f"suite {path.name}")
    whole = hashlib.sha256()
    _refuse_unknown(file.defaults, RUNGS, f"suite {path.name}, defaults")
    tasks = tuple(_task(raw, file.defaults, number, path, whole) for number, raw in enumerate(file.tasks, 1))
    names = [task.name for task in tasks]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(
            f"suite {path.name}: two tasks of one name", found=", ".join(twice), mend="give each task its own name"
        )
    if file.chat_template_args:
        whole.update(canonical_json({"chat_template_args": file.chat_template_args}).encode())
    digest = f"sha256:{whole.hexdigest()}"
    return Suite(
        name=file.name,
        title=file.title or file.name,
        tasks=tasks,
        path=path,
        digest=digest,
        chat_template_args=file.chat_template_args,
        revisions=file.revisions,
    )


def _task(
    raw: Mapping[str, Any], defaults: Mapping[str, Any], number: int, path: Path, digest: hashlib._Hash
) -> TaskSpec:
    """Read and check one task; what it asks is added to `digest`."""
    name = raw.get("name")
    where = f"suite {path.name}, task {repr(name) if isinstance(name, str) else number}"
    head = checked(_Head, {key: raw[key] for key in HEAD if key in raw}, where)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", head.name):
        raise UsageError(
            f"{where}: a task's name holds letters, digits, `_` and `-` alone", found=head.name, mend="name: arc_easy"
        )
    blocks = [rung for rung in RUNGS if rung in raw]
    if head.items is None:
        rungs = _rungs_of_blocks(raw, blocks, defaults, where)
        source, items = None, None
    else:
        rungs = _rungs_of_items(raw, head.rungs or (*RUNGS_OF_ITEMS, *blocks), defaults, where)
        source, items = read_source(head.items, where, path.parent)
    for rung, settings in rungs.items():
        settings.check(f"{where}, {rung}" if rung in raw else where, None if settings.is_stock else source)
    _refuse_unrankable(items or [], {rung: own for rung, own in rungs.items() if not own.is_stock}, where)
    replied, ranked = (any(RUNGS[rung].replies is replies for rung in rungs) for replies in (True, False))
    refuse_unanswerable(items or [], where, replied=replied, ranked=ranked)
    subjects = head.subjects or ("benchmark" if any(own.subject for own in rungs.values()) else "")
    if source is not None and head.subjects is None:
        subjects = "sample"
    task = TaskSpec(
        name=head.name, title=head.title or head.name, series=head.series, length_tokens=head.length_tokens,
        rungs=rungs, items=source, subjects=subjects, ladder=head.ladder,
    )  # fmt: skip
    _add_to_digest(digest, task, items, path.parent, where)
    return task


def _rungs_of_blocks(
    raw: Mapping[str, Any], blocks: list[str], defaults: Mapping[str, Any], where: str
) -> dict[str, RungSettings]:
    """Each rung's own block over the suite's defaults."""
    _refuse_unknown(raw, (*(key for key in HEAD if key != "rungs"), *RUNGS), where)
    if not blocks:
        raise UsageError(
            f"{where} says on no rung how it is asked",
            found=f"keys: {', '.join(raw)}",
            mend=f"add `items:`, or a block: {', '.join(f'`{rung}:`' for rung in RUNGS)}",
        )
    blocked = {
        rung: {**defaults.get(rung, {}), **raw[rung]} if isinstance(raw[rung], dict) else raw[rung] for rung in blocks
    }
    return {rung: _settings(rung_class(rung), block, f"{where}, {rung}") for rung, block in blocked.items()}


def _rungs_of_items(
    raw: Mapping[str, Any], wanted: tuple[str, ...], defaults: Mapping[str, Any], where: str
) -> dict[str, RungSettings]:
    """The suite's defaults, the task's flat keys for each rung that it is asked on, and over them the rung's block.

    A block that names a library's benchmark is asked that benchmark in place of the items.
    """
    for rung in wanted:
        if rung not in RUNGS:
            raise UsageError(
                f"{where}: there is no rung {rung!r}{nearest(rung, RUNGS)}",
                found=f"rungs: {', '.join(RUNGS)}",
                mend=f"rungs: [{GENERATION}]",
            )
    kinds = {rung: rung_class(rung) for rung in RUNGS if rung in wanted}
    _refuse_unknown(raw, (*HEAD, *kinds, *dict.fromkeys(key for kind in kinds.values() for key in kind.flat)), where)
    rungs: dict[str, RungSettings] = {}
    for rung, kind in kinds.items():
        block = raw.get(rung, {})
        flat = {key: raw[key] for key in kind.flat if key in raw}
        stock = isinstance(block, dict) and any(key in kind.stock and key != "num_fewshot" for key in block)
        values = {**({} if stock else kind.over_items), **defaults.get(rung, {}), **({} if stock else flat)}
        whole = {**values, **block} if isinstance(block, dict) else block
        rungs[rung] = _settings(kind, whole, f"{where}, {rung}" if rung in raw else where)
    return rungs


def _settings(kind: type[RungSettings], raw: Any, where: str) -> RungSettings:
    """`raw` as a `kind`; one value alone stands for a list of it (`seeds: 5`)."""
    lists = {field.name for field in dataclasses.fields(kind) if isinstance(field.default, tuple)}
    if isinstance(raw, dict):
        raw = {key: [value] if key in lists and isinstance(value, str | int) else value for key, value in raw.items()}
    return checked(kind, raw, where)


def _refuse_unknown(raw: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    known = tuple(known)
    for key in raw:
        if key not in known:
            raise UsageError(
                f"{where}: unknown key {key!r}{nearest(key, known)}",
                found=f"known keys: {', '.join(known)}",
                mend="spell it as one of these, or take it out",
            )


def _refuse_unrankable(items: Iterable[Item], rungs: Mapping[str, RungSettings], where: str) -> None:
    """Raises UsageError for items without choices on a rung that ranks choices."""
    ranking = [rung for rung in rungs if not RUNGS[rung].replies]
    bare = [item.id for item in items if not item.choices]
    if ranking and bare:
        raise UsageError(
            f"{where}: {ranking[0]} ranks choices, and some items have none",
            found=f"{len(bare)} items, the first {bare[0]!r}",
            mend=f"rungs: [{GENERATION}]",
        )


def _add_to_digest(digest: hashlib._Hash, task: TaskSpec, items: list[Item] | None, folder: Path, where: str) -> None:
    """The settings that are not at their default, the items, and the bytes of the suite's own task files.

    Titles, comments and the order of keys do not enter, nor does a setting that a later version adds with a default. Items
    that need a dataset enter by the settings of their source: a run holds the dataset's own digest.
    """
    settings = {rung: without_defaults(own) for rung, own in task.rungs.items()}
    source: Any = [dataclasses.asdict(item) for item in items] if items is not None else None
    if task.items is not None and items is None:
        source = without_defaults(task.items)
    digest.update(canonical_json({"name": task.name, "rungs": settings, "items": source}).encode())
    for own in task.rungs.values():
        for file in own.files(folder, where):
            digest.update(file.read_bytes())

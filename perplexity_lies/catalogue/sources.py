"""Where a task's items come from: a JSONL file, a generator, or an evaluation library's own benchmark.

    items: sums.jsonl                                                        a file beside the suite
    items: {generator: miniature, task: arith}                               a function that makes them
    items: {generator: ruler, task: niah_single_2, length: 4096, edition: 1, dataset: baber/paul_graham_essays}
    items: {lm_eval: arc/arc_easy.yaml, dataset: allenai/ai2_arc}            lm-eval's documents
    items: {evalscope: arc, dataset: allenai/ai2_arc, subset: ARC-Easy}      evalscope's samples

Whatever the source, the items are then asked in their own words on every rung of the task.
"""

from __future__ import annotations

import abc
import dataclasses
import inspect
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, ClassVar

from annotated_types import MinLen

from perplexity_lies.catalogue.items import (
    Item,
    by_occurrence,
    item_of,
    read_items,
    refuse_same_id,
)
from perplexity_lies.catalogue.mirror import Mirror
from perplexity_lies.checked import Checked, checked
from perplexity_lies.digests import canonical_json
from perplexity_lies.errors import UsageError, from_table, nearest

GENERATORS = {"miniature": "suites.miniature.catalogue:task_items", "ruler": "suites.long.ruler:ruler_items"}
"""Name -> `module:function`. The function takes the settings by name, raises ValueError for one that it cannot use, and gives
items as a JSONL line holds them, as dicts or dataclasses. Where the source names a dataset, it also takes `folder`."""

GENERATORS_OF_OTHERS = "perplexity_lies.generators"
"""Entry point group in which an installed package names generators of its own."""

NO_MIRROR = Mirror(None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemSource(Checked, abc.ABC):
    """One way to come by items."""

    @property
    @abc.abstractmethod
    def title(self) -> str:
        """In words, for a report: `items of the suite`."""

    @property
    def datasets(self) -> tuple[str, ...]:
        """Hub ids that the mirror must hold; without any, `load` needs no mirror."""
        return ()

    @abc.abstractmethod
    def load(self, mirror: Mirror = NO_MIRROR, limit: int | None = None) -> list[Item]:
        """The first `limit` items, in order. Raises UsageError for what is not an item."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileItems(ItemSource):
    """A JSONL file."""

    path: Path

    @property
    def title(self) -> str:
        return "items of the suite"

    def load(self, mirror: Mirror = NO_MIRROR, limit: int | None = None) -> list[Item]:
        return read_items(self.path)[:limit]


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedItems(ItemSource):
    """A function that makes items: the same ones each time for the same settings."""

    generator: str
    settings: dict[str, Any]
    dataset: str = ""
    """Hub id of what the function reads; it is given the folder in the mirror as `folder`. Empty: it reads nothing."""

    @property
    def title(self) -> str:
        return f"items of the generator {self.generator}"

    @property
    def datasets(self) -> tuple[str, ...]:
        return (self.dataset,) if self.dataset else ()

    @property
    def frozen(self) -> bool:
        """Whether its settings alone tell what the items are: an `edition` never changes, a dataset has its own digest.

        Such items are made when they are asked, not when the suite is read.
        """
        return bool(self.dataset) or "edition" in self.settings

    def load(self, mirror: Mirror = NO_MIRROR, limit: int | None = None) -> list[Item]:
        read = {"folder": mirror.folder(self.dataset)} if self.dataset else {}
        return _made(self.generator, {**self.settings, **read}, limit, self.title)


@dataclass(frozen=True, slots=True, kw_only=True)
class LibraryItems(ItemSource):
    """Question, choices and right answer out of a library's benchmark, asked without the library's prompt."""

    door: ClassVar[str]
    """`module:function` of the file that alone imports the library; called with (source, mirror, limit)."""

    dataset: Annotated[str, MinLen(1)]
    """Hub id, looked up in the mirror."""
    id: str = ""
    """Jinja template of an item's name over the library's fields; empty for a hash of question and choices."""
    subject: str = ""
    """Jinja template of an item's cluster; empty for none."""

    @property
    def datasets(self) -> tuple[str, ...]:
        return (self.dataset,)

    def load(self, mirror: Mirror = NO_MIRROR, limit: int | None = None) -> list[Item]:
        door = from_table(self.door, f"{self.title} cannot be read", "eval")
        items: list[Item] = door(self, mirror, limit)
        named = [(item.id, canonical_json([item.question, list(item.choices)])) for item in items]
        names = by_occurrence(named, self.title, "put another field of the item into `id:`", "two items have one id,")
        return [dataclasses.replace(item, id=name) for item, name in zip(items, names, strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class LmEvalItems(LibraryItems):
    """Documents of an lm-eval task."""

    door: ClassVar[str] = "perplexity_lies.protocols.lm_eval_door:documents"

    lm_eval: Annotated[str, MinLen(1)]
    """A stock YAML, relative to lm-eval's `tasks/`."""
    question: str = ""
    """Jinja template over the document; empty for the prompt that lm-eval itself asks with."""

    @property
    def title(self) -> str:
        return f"items of lm-eval's {self.lm_eval}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalscopeItems(LibraryItems):
    """Samples of an evalscope benchmark, before its prompt template."""

    door: ClassVar[str] = "perplexity_lies.protocols.evalscope_door:samples"

    evalscope: Annotated[str, MinLen(1)]
    """Name of a stock benchmark."""
    subset: str = ""
    """The one subset to read; empty for the benchmark's default list."""

    @property
    def title(self) -> str:
        return f"items of evalscope's {self.evalscope} {self.subset}".strip()


LIBRARIES: dict[str, type[LibraryItems]] = {"lm_eval": LmEvalItems, "evalscope": EvalscopeItems}
"""The key that names a benchmark -> the source it belongs to."""


def generators() -> dict[str, str]:
    """Every generator by name: ours, and those of installed packages."""
    others = {entry.name: entry.value for entry in entry_points(group=GENERATORS_OF_OTHERS)}
    return {**others, **GENERATORS}


def _started(name: str, settings: Mapping[str, Any], where: str) -> tuple[Iterable[Any], inspect.Signature]:
    """What a generator gives for these settings, and what it takes. Raises UsageError led by `where`."""
    known = generators()
    if name not in known:
        raise UsageError(
            f"{where}: there is no generator {name!r}{nearest(name, known)}",
            found=f"generators: {', '.join(known)}",
            mend="items: {generator: NAME, ...}",
        )
    make = from_table(known[name], f"{where}: the generator {name!r} cannot run", "all")
    takes = inspect.signature(make)
    try:
        bound = takes.bind(**settings)
    except TypeError as error:
        raise _unfit(where, name, error, takes) from error
    try:
        return make(*bound.args, **bound.kwargs), takes
    except ValueError as error:
        raise _unfit(where, name, error, takes) from error


def _made(name: str, settings: Mapping[str, Any], limit: int | None, where: str) -> list[Item]:
    """The items of a generator, which raises ValueError for settings that it cannot use. Raises UsageError led by `where`."""
    started, takes = _started(name, settings, where)
    try:
        made = list(itertools.islice(started, limit))
    except ValueError as error:
        raise _unfit(where, name, error, takes) from error
    plain = (item if isinstance(item, dict) else dataclasses.asdict(item) for item in made)
    items = [item_of(raw, f"{where}: item {number} of the generator {name!r}") for number, raw in enumerate(plain, 1)]
    refuse_same_id(items, where)
    return items


def _unfit(where: str, name: str, error: Exception, takes: inspect.Signature) -> UsageError:
    return UsageError(
        f"{where}: the generator {name!r} does not take these settings",
        found=str(error),
        mend=f"settings: {', '.join(name for name in takes.parameters if name != 'folder')}",
    )


def read_source(raw: str | Mapping[str, Any], where: str, folder: Path) -> tuple[ItemSource, list[Item] | None]:
    """What stands under `items:` in a suite in `folder`: the source, and its items where no dataset is needed to have them.

    Raises UsageError led by `where`.
    """
    if isinstance(raw, str):
        file = folder / raw
        if not file.is_file():
            raise UsageError(
                f"{where}: its items are not there", found=str(file), mend="`items:` is relative to the suite file"
            )
        return FileItems(path=file.resolve()), read_items(file, where)
    kinds = [key for key in ("generator", *LIBRARIES) if key in raw]
    if len(kinds) != 1:
        raise UsageError(
            f"{where}: `items:` names one of `generator`, {', '.join(f'`{key}`' for key in LIBRARIES)}",
            found=f"keys: {', '.join(map(str, raw)) or 'none'}",
            mend="items: FILE.jsonl, or items: {generator: NAME}",
        )
    if kinds == ["generator"]:
        own = ("generator", "dataset")
        settings = {key: value for key, value in raw.items() if key not in own}
        read = {key: raw[key] for key in own if key in raw}
        source = checked(GeneratedItems, {**read, "settings": settings}, f"{where}, items")
        if source.frozen:
            _started(
                source.generator, {**settings, **({"folder": folder} if source.dataset else {})}, f"{where}, items"
            )
            return source, None
        return source, _made(source.generator, source.settings, None, where)
    return checked(LIBRARIES[kinds[0]], dict(raw), f"{where}, items"), None

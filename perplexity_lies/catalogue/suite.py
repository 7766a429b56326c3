"""A suite: tasks, and for each how it is asked under both protocols and how an item is recognised under both.

A YAML file holds one suite. A task is either `items:` (a JSONL file beside the suite: question, choices, gold, target), or
a pair of blocks, `loglikelihood:` naming a stock lm-eval YAML and `generation:` naming a stock evalscope benchmark.
`item:` is a Jinja template over the library's own fields; its text identifies the item, so that records pair.

Unknown keys are refused with the nearest name. Knows nothing of engines; does not import lm-eval or evalscope.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml

from perplexity_lies.catalogue.items import read_items
from perplexity_lies.engines.base import Sampling
from perplexity_lies.errors import UsageError, nearest
from perplexity_lies.record.store import canonical_json

CATALOGUE = "suites"
"""The package whose *.yaml files are the suites known by name."""

LARGEST_SEED = 2**31
"""numpy takes 32 bits, and evalscope is given the seed plus 42."""

ITEMS_METRICS = ("acc", "acc_norm")
"""What lm-eval is asked to give for items of a suite's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoglikelihoodSpec:
    """How lm-eval asks a task."""

    metric: str
    """`acc` or `acc_norm`: which of lm-eval's metrics is the headline."""
    lm_eval: str = ""
    """A stock YAML, relative to lm-eval's `tasks/`."""
    lm_eval_file: str = ""
    """Or a task YAML of the suite's own, relative to the suite."""
    dataset: str = ""
    """Hub id of the dataset, looked up in the mirror."""
    num_fewshot: int = 0
    chat_template: bool = False
    """Whether the context goes through the checkpoint's chat template."""
    chance: float | None = None
    """Score of a guess."""
    item: str = ""
    subject: str = ""
    """Jinja template of the cluster for the bootstrap; empty for none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSpec:
    """How evalscope asks a task. Always a chat request."""

    metric: str
    """evalscope's name of the headline metric, as its reviews have it (`accuracy`, `exact_match`)."""
    evalscope: str = ""
    """Name of a stock evalscope benchmark."""
    dataset: str = ""
    subset: str = ""
    """The one subset to run; empty for the benchmark's default list."""
    num_fewshot: int = 0
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seeds: tuple[int, ...] = (0,)
    """One pass over the items for each; more than one only makes sense with a temperature."""
    chance: float | None = None
    item: str = ""
    subject: str = ""

    @property
    def sampling(self) -> Sampling:
        """The engine's word for temperature, top_p and top_k."""
        return Sampling(temperature=self.temperature, top_p=self.top_p, top_k=self.top_k)


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemsSpec:
    """A task whose items stand beside the suite and are asked with the same words under both protocols."""

    path: Path
    extract: str
    """Regex whose first group is the answer in a reply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """One benchmark under both protocols."""

    name: str
    title: str
    loglikelihood: LoglikelihoodSpec
    generation: GenerationSpec
    items: ItemsSpec | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """Tasks in order, with the digest of everything that is asked."""

    name: str
    title: str
    tasks: tuple[TaskSpec, ...]
    path: Path
    digest: str = field(compare=False)

    @property
    def datasets(self) -> tuple[str, ...]:
        """Hub ids of the datasets that a mirror must hold."""
        wanted = [spec.dataset for task in self.tasks for spec in (task.loglikelihood, task.generation) if spec.dataset]
        return tuple(dict.fromkeys(wanted))


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
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except (yaml.YAMLError, ValueError, OSError) as error:  # ValueError: a date that is none, bytes that are no UTF-8
        raise UsageError(
            f"suite {path} is not YAML", found=" ".join(str(error).split())[:200], mend="mend the file"
        ) from error
    return _suite(raw, path)


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error, not the last one's victory."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for (key, _), name in zip(node.value, keys, strict=True):
            if keys.count(name) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} stands twice", key.start_mark)
        return super().construct_mapping(node, deep)


def _suite(raw: Any, path: Path) -> Suite:
    where = f"suite {path.name}"
    top = _known_keys(raw, ("name", "title", "tasks"), where)
    name = _text(top, "name", where)
    tasks = top.get("tasks")
    if not isinstance(tasks, list) or not tasks:
        raise UsageError(
            f"{where}: `tasks` must be a list of tasks", found=repr(tasks)[:80], mend="see `plies suites miniature`"
        )
    specs = tuple(_task(task, i, path) for i, task in enumerate(tasks))
    names = [spec.name for spec in specs]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise UsageError(f"{where}: two tasks of one name", found=", ".join(twice), mend="give each task its own name")
    return Suite(name=name, title=str(top.get("title", name)), tasks=specs, path=path, digest=_digest(specs, path))


def _task(raw: Any, index: int, path: Path) -> TaskSpec:
    where = f"suite {path.name}, task {index + 1}"
    if isinstance(raw, Mapping) and isinstance(raw.get("name"), str):
        where = f"suite {path.name}, task {raw['name']!r}"
    if isinstance(raw, Mapping) and "items" in raw:
        return _items_task(raw, where, path)
    task = _known_keys(raw, ("name", "title", "loglikelihood", "generation", "items"), where)
    name = _name(task, where)
    for block in ("loglikelihood", "generation"):
        if block not in task:
            raise UsageError(
                f"{where} lacks `{block}:`",
                found=f"keys: {', '.join(task)}",
                mend=f"add a `{block}:` block, or `items:`",
            )
    spec = TaskSpec(
        name=name,
        title=str(task.get("title", name)),
        loglikelihood=_block(LoglikelihoodSpec, task["loglikelihood"], f"{where}, loglikelihood"),
        generation=_block(GenerationSpec, task["generation"], f"{where}, generation"),
    )
    if bool(spec.loglikelihood.lm_eval) == bool(spec.loglikelihood.lm_eval_file):
        raise UsageError(
            f"{where}: log-likelihood needs one of `lm_eval` and `lm_eval_file`",
            found="both" if spec.loglikelihood.lm_eval else "neither",
            mend="lm_eval: arc/arc_easy.yaml",
        )
    if not spec.generation.evalscope:
        raise UsageError(
            f"{where}: generation needs `evalscope`, the name of a benchmark",
            found=f"keys: {', '.join(task['generation'])}",
            mend="evalscope: arc",
        )
    wanted = {
        "item": ("says how an item is recognised", '"{{ question }}"'),
        "dataset": ("says what is asked", "allenai/ai2_arc"),
    }
    for key, (why, example) in wanted.items():
        without = [block for block in ("loglikelihood", "generation") if not getattr(getattr(spec, block), key)]
        if without:
            raise UsageError(
                f"{where}: both blocks need `{key}`, which {why}",
                found=f"none under {' and '.join(without)}",
                mend=f"{key}: {example}",
            )
    return spec


def _items_task(raw: Mapping[str, Any], where: str, path: Path) -> TaskSpec:
    keys = (
        "name",
        "title",
        "items",
        "extract",
        "max_new_tokens",
        "chat_template",
        "chance",
        "subject",
        "seeds",
        "temperature",
    )
    task = _known_keys(raw, (*keys, "top_p", "top_k", "metric"), where)
    name = _name(task, where)
    file = path.parent / _text(task, "items", where)
    if not file.is_file():
        raise UsageError(
            f"{where}: its items are not there", found=str(file), mend="`items:` is relative to the suite file"
        )
    pattern = _text(task, "extract", where)
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise UsageError(
            f"{where}: `extract` is not a regular expression", found=str(error), mend=r"extract: 'answer : (\d+)'"
        ) from error
    metric = task.get("metric", "acc")
    if metric not in ITEMS_METRICS:
        raise UsageError(
            f"{where}: `metric` is lm-eval's for the choices{nearest(str(metric), ITEMS_METRICS)}",
            found=repr(metric),
            mend=f"metric: {' or '.join(ITEMS_METRICS)}",
        )
    if groups != 1:
        raise UsageError(f"{where}: `extract` needs one group", found=pattern, mend=r"extract: 'answer : (\d+)'")
    read_items(file, where)
    shared = {"chance": task.get("chance"), "item": "{{ id }}", "subject": task.get("subject", "{{ subject }}")}
    sampling = {key: task[key] for key in ("seeds", "temperature", "top_p", "top_k") if key in task}
    return TaskSpec(
        name=name,
        title=str(task.get("title", name)),
        loglikelihood=_block(
            LoglikelihoodSpec,
            {"metric": metric, "chat_template": task.get("chat_template", True), **shared},
            where,
        ),
        generation=_block(
            GenerationSpec,
            {
                "metric": "exact_match",
                "max_new_tokens": task.get("max_new_tokens"),
                **sampling,
                **{**shared, "chance": 0.0},
            },
            where,
        ),
        items=ItemsSpec(path=file.resolve(), extract=pattern),
    )


Spec = TypeVar("Spec", LoglikelihoodSpec, GenerationSpec)


def _block(kind: type[Spec], raw: Any, where: str) -> Spec:
    """`raw` as a `kind`, each value checked against the type of its field."""
    known = {f.name: f for f in fields(kind)}
    block = _known_keys(raw, tuple(known), where)
    values: dict[str, Any] = {}
    for key, value in block.items():
        if value is None and known[key].default is None:
            continue
        values[key] = _of_type(str(known[key].type), value, f"{where}: `{key}`")
    lacking = [n for n, f in known.items() if f.default is MISSING and n not in values]
    if lacking:
        raise UsageError(f"{where} lacks `{lacking[0]}`", found=f"keys: {', '.join(block)}", mend=f"{lacking[0]}: ...")
    _check_range(values, where)
    _check_seeds(values.get("seeds", (0,)), where)
    return kind(**values)


def _of_type(kind: str, value: Any, where: str) -> Any:
    if kind.startswith("tuple"):
        members = list(value) if isinstance(value, list | tuple) else [value]
        wanted: type = int if "int" in kind else str
        if not members or any(not isinstance(m, wanted) or isinstance(m, bool) for m in members):
            raise UsageError(
                f"{where} must be a list of {wanted.__name__}", found=repr(value)[:80], mend="see `plies suites NAME`"
            )
        return tuple(members)
    if kind.startswith("float") and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    plain: dict[str, type] = {"str": str, "int": int, "bool": bool}
    wanted = plain.get(kind, float)
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise UsageError(f"{where} must be {wanted.__name__}", found=repr(value)[:80], mend="see `plies suites NAME`")
    return value


def _check_range(values: Mapping[str, Any], where: str) -> None:
    bounds = {"max_new_tokens": (1, 1_000_000), "num_fewshot": (0, 1000), "temperature": (0.0, 100.0), "top_p": (1e-9, 1.0),
              "top_k": (0, 1_000_000), "chance": (0.0, 1.0)}  # fmt: skip
    for key, (low, high) in bounds.items():
        if key in values and not low <= values[key] <= high:
            raise UsageError(
                f"{where}: `{key}` must lie in [{low:g}, {high:g}]",
                found=repr(values[key]),
                mend=f"{key}: {high:g} at most",
            )


def _check_seeds(seeds: tuple[int, ...], where: str) -> None:
    if len(set(seeds)) < len(seeds) or not all(0 <= seed <= LARGEST_SEED for seed in seeds):
        raise UsageError(
            f"{where}: `seeds` must be distinct numbers from 0 to {LARGEST_SEED}",
            found=repr(list(seeds))[:80],
            mend="seeds: [0, 1, 2]",
        )


def _known_keys(raw: Any, known: Iterable[str], where: str) -> dict[str, Any]:
    known = tuple(known)
    if not isinstance(raw, Mapping):
        raise UsageError(f"{where} must be a mapping", found=type(raw).__name__, mend="see `plies suites miniature`")
    for key in raw:
        if key not in known:
            raise UsageError(
                f"{where}: unknown key {key!r}{nearest(str(key), known)}",
                found=f"known keys: {', '.join(known)}",
                mend="spell it as one of these, or take it out",
            )
    return dict(raw)


def _text(raw: Mapping[str, Any], key: str, where: str) -> str:
    value = raw.get(key)
    if not isinstance(value, str) or not value:
        raise UsageError(f"{where} needs `{key}`, a text", found=repr(value)[:80], mend=f"{key}: ...")
    return value


def _name(task: Mapping[str, Any], where: str) -> str:
    name = _text(task, "name", where)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise UsageError(
            f"{where}: a task's name holds letters, digits, `_` and `-` alone", found=name, mend="name: arc_easy"
        )
    return name


def _digest(specs: tuple[TaskSpec, ...], path: Path) -> str:
    """Over the resolved settings and the bytes of the suite's own item and task files, not over comments or titles."""
    whole = hashlib.sha256()
    for spec in specs:
        plain = {k: v for k, v in asdict(spec).items() if k not in ("title", "items")}
        whole.update(canonical_json(plain).encode())
        if spec.items is not None:
            whole.update(spec.items.extract.encode())
            whole.update(spec.items.path.read_bytes())
        if spec.loglikelihood.lm_eval_file:
            file = path.parent / spec.loglikelihood.lm_eval_file
            if not file.is_file():
                raise UsageError(
                    f"suite {path.name}, task {spec.name!r}: {spec.loglikelihood.lm_eval_file} is not there",
                    found=f"no file {file}",
                    mend="`lm_eval_file:` is relative to the suite file",
                )
            for part in sorted(file.parent.glob(f"{file.stem}.*")):
                whole.update(part.read_bytes())
    return f"sha256:{whole.hexdigest()}"

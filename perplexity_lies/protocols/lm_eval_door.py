"""The door to lm-eval, and the only file that imports it: its own tasks and metrics over our engine.

Each task is lm-eval's stock YAML included by path (its index of 14,000 tasks is not built), with the dataset replaced by
the mirror's folder. Tokenisation, splitting and scoring rules are lm-eval's (`TemplateLM`, `ConfigurableTask`); the engine only
answers token requests.
"""

from __future__ import annotations

import importlib.util
import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset, Features, List, Value
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import DEFAULT_METRIC_REGISTRY
from lm_eval.api.samplers import FirstNSampler

from perplexity_lies.catalogue.items import Item, by_occurrence
from perplexity_lies.catalogue.mirror import Mirror
from perplexity_lies.catalogue.sources import LmEvalItems
from perplexity_lies.catalogue.tasks import Suite, TaskSpec, share_of_limit
from perplexity_lies.digests import canonical_json
from perplexity_lies.engines.base import Engine, Message, ScoreRequest
from perplexity_lies.errors import CheckpointError, UsageError
from perplexity_lies.protocols.base import Context, answer_all, item_name, library_item, render_template
from perplexity_lies.protocols.lm_eval_records import Heard, Part, by_document, gold_index_of, record_of_sample
from perplexity_lies.protocols.loglikelihood import ITEMS_METRICS, Loglikelihood
from perplexity_lies.record.records import ItemRecord, Status

RANKED = ("multiple_choice", "loglikelihood")
"""lm-eval's output types that can be ranked."""

LM_EVAL_LOADING_ERRORS = (ValueError, KeyError, FileNotFoundError, ImportError, TypeError)
"""What lm-eval raises for a task that it cannot load."""


class EngineLM(TemplateLM):
    """lm-eval's view of an engine."""

    def __init__(self, engine: Engine, context: Context, title: str, *, bare: bool = False) -> None:
        """`bare`: the tokenizer adds nothing to a text, since the chat template has placed the special tokens."""
        super().__init__()
        self.bare = bare
        self.engine = engine
        self.context = context
        self.title = title
        self.heard = Heard()

    @property
    def tokenizer(self) -> Any:
        return self.engine.tokenizer

    @property
    def tokenizer_name(self) -> str:
        return str(self.engine.tokenizer.name_or_path).replace("/", "__")

    @property
    def eot_token_id(self) -> int:
        end = self.engine.tokenizer.eos_token_id
        if end is None:
            raise CheckpointError(
                "an item with an empty prompt cannot be asked of this checkpoint",
                found="its tokenizer has neither a BOS nor an EOS token to begin with",
                mend="state eos_token in its tokenizer_config.json",
            )
        return int(end)

    @cached_property
    def prefix_token_id(self) -> int:
        bos = self.engine.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return self.engine.encode(string, False if self.bare and add_special_tokens is None else add_special_tokens)

    def apply_chat_template(self, chat_history: list[Message], add_generation_prompt: bool = True) -> str:
        rendered = self.engine.render_chat(chat_history, add_generation_prompt)
        self.heard.messages[rendered] = canonical_json(chat_history)
        if not self.heard.bos_added and not self.bare:
            self.heard.bos_added = self.engine.encode(rendered)[:1] != self.engine.encode(rendered, False)[:1]
        return rendered

    def _loglikelihood_tokens(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        wanted = [
            ScoreRequest(context_ids=tuple(context), continuation_ids=tuple(continuation)) if continuation else None
            for _, context, continuation in requests
        ]
        answer_all(self.context, self.title, [request for request in wanted if request is not None], self.engine.score)
        answers = []
        for request, (texts, context, continuation) in zip(wanted, requests, strict=True):
            self.heard.spelled[texts] = (*context, *continuation)
            if request is None:
                self.heard.tokens[texts] = (len(context), 0)
                self.heard.lost[texts] = (Status.REFUSED, f"the answer {texts[1]!r} adds no token to its prompt")
                answers.append((0.0, False))
                continue
            answer = self.context.journal.get(request.key)
            self.heard.tokens[texts] = (answer["context_tokens"], answer["truncated_tokens"])
            if answer.get("error"):
                self.heard.lost[texts] = (Status.ERRORED if answer["failed"] else Status.REFUSED, answer["error"])
            answers.append((answer["loglikelihood_nats"], answer["is_greedy"]))
        return answers

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError("rolling log-likelihood is refused before a task runs")

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        raise NotImplementedError("generation under lm-eval is refused before a task runs")


def ask_lm_eval(kind: type[Loglikelihood], engine: Engine, suite: Suite, context: Context) -> list[ItemRecord]:
    """Records of every item of `suite` under lm-eval, task by task in the suite's order.

    Items of a suite's own that go through the chat template are given to the tokenizer as HF's `apply_chat_template` and
    every server do it, and as they are asked for a reply: nothing is put before the template's text. Stock tasks are
    asked as lm-eval asks them: a BOS that the tokenizer adds stands before a template that writes none.

    Raises UsageError for a task that lm-eval cannot load or that is not ranked by log-likelihood.
    """
    records: dict[str, list[ItemRecord]] = {}
    with tempfile.TemporaryDirectory(prefix="plies-lm-eval-") as work:
        groups: dict[tuple[bool, bool, tuple[int, ...]], list[TaskSpec]] = {}
        for task in suite.tasks:
            settings = kind.of(task)
            own = settings.chat_template and task.items_on(kind.rung) is not None
            groups.setdefault((settings.chat_template, own, settings.seeds), []).append(task)
        for number, ((chat, own, _), tasks) in enumerate(sorted(groups.items())):
            folder = Path(work) / str(number)
            folder.mkdir()
            lm = EngineLM(engine, context, "log-likelihood", bare=own)
            records |= _ask_together(kind, lm, replace(suite, tasks=tuple(tasks)), chat, folder)
    return [record for task in suite.tasks for record in records[task.name]]


def _ask_together(
    kind: type[Loglikelihood], lm: EngineLM, suite: Suite, chat: bool, folder: Path
) -> dict[str, list[ItemRecord]]:
    """Tasks that agree on chat template and seeds, a pass for each seed: their requests reach the engine as a whole."""
    from lm_eval.tasks import TaskManager

    context = lm.context
    if chat and not lm.engine.has_chat_template:
        raise UsageError(
            f"suite {suite.name!r} asks {suite.tasks[0].name!r} through a chat template, and the checkpoint has none",
            found="no chat_template in its tokenizer", mend="add chat_template.jinja, or a suite with `chat_template: false`",
        )  # fmt: skip
    contents = {spec.name: _task_contents(spec, kind.of(spec), suite, context, folder) for spec in suite.tasks}
    for content in itertools.chain(*contents.values()):
        (folder / f"{content['task']}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    manager = TaskManager(include_defaults=False, include_path=str(folder))
    parts = {
        name: [Part(c["task"], Path(c.get("include", "")).stem, _load_ranked(manager, c["task"], name)) for c in found]
        for name, found in contents.items()
    }
    limits = {spec.name: _limit_of_each(spec, kind.of(spec), context) for spec in suite.tasks}
    names = {spec.name: _names(parts[spec.name], kind.of(spec), spec.name, limits[spec.name]) for spec in suite.tasks}
    records: dict[str, list[ItemRecord]] = {spec.name: [] for spec in suite.tasks}
    for number, seed in enumerate(kind.of(suite.tasks[0]).seeds or (None,)):
        asked = [spec for spec in suite.tasks if number == 0 or _moved_by_seed(parts[spec.name], kind.of(spec))]
        samples = _pass(lm, {spec.name: parts[spec.name] for spec in asked}, limits, chat, manager, seed)
        for spec in asked:
            for item, (part, sample) in zip(names[spec.name], samples[spec.name], strict=True):
                record = record_of_sample(sample, item, part, spec, kind.of(spec), lm.heard, context.rounding)
                records[spec.name].append(replace(record, seed=seed or 0))
    return records


def _pass(
    lm: EngineLM,
    parts: dict[str, list[Part]],
    limits: dict[str, int | None],
    chat: bool,
    manager: Any,
    seed: int | None,
) -> dict[str, list[tuple[Part, dict[str, Any]]]]:
    """lm-eval's samples by task in the order of the documents, with one seed of its few-shot sampler."""
    from lm_eval.evaluator import simple_evaluate

    if not parts:
        return {}
    flat = [(part, limits[name]) for name, found in parts.items() for part in found]
    # lm-eval takes one limit for all tasks; the documents by number say the same task by task
    chosen = {part.name: list(range(min(len(part.task.eval_docs), each))) for part, each in flat if each is not None}
    results = simple_evaluate(
        model=lm,
        tasks=[part.task for part, _ in flat],
        samples=chosen or None,
        bootstrap_iters=0,
        apply_chat_template=chat,
        task_manager=manager,
        log_samples=True,
        **({"fewshot_random_seed": seed} if seed is not None else {}),
    )
    assert results is not None
    return {
        name: [(part, sample) for part in found for sample in by_document(results["samples"][part.name])]
        for name, found in parts.items()
    }


def _limit_of_each(spec: TaskSpec, settings: Loglikelihood, context: Context) -> int | None:
    """How many documents of each of a task's parts are asked; None for all."""
    return share_of_limit(context.limit, len(_fitting(settings.lm_eval)) if "*" in settings.lm_eval else 1)[1]


def _moved_by_seed(parts: Sequence[Part], settings: Loglikelihood) -> bool:
    """Whether a seed changes what is asked: few-shot examples that are drawn."""
    return settings.num_fewshot > 0 and any(not isinstance(part.task.sampler, FirstNSampler) for part in parts)


def _names(parts: Sequence[Part], settings: Loglikelihood, name: str, limit: int | None) -> list[str]:
    """The items' names in the order of the documents, told before anything is asked.

    Raises UsageError for a template that does not fit the documents, or gives one name to two of them.
    """
    where, named = f"task {name!r}, {settings.rung}", []
    for part in parts:
        for _, doc in part.task.doc_iterator(limit=limit):
            ranked = part.task.OUTPUT_TYPE == "multiple_choice"
            content = [part.task.doc_to_text(doc), part.task.doc_to_choice(doc) if ranked else ""]
            named.append((item_name(settings.item, part.fields(doc), where), repr(content)))
    return by_occurrence(named, where, "put another field of the item into `item:`")


def _load(manager: Any, name: str, asked: str) -> Any:
    """A task of lm-eval's. Raises UsageError led by `asked` for one that it cannot load."""
    try:
        return manager.load([name])["tasks"][name]
    except LM_EVAL_LOADING_ERRORS as error:
        raise UsageError(
            asked, found=" ".join(str(error).split())[:300],
            mend="try the same YAML in plain lm-eval: lm_eval --include_path ...",
        ) from error  # fmt: skip


def _load_ranked(manager: Any, part: str, name: str) -> Any:
    task = _load(manager, part, f"lm-eval cannot load task {name!r}")
    if task.OUTPUT_TYPE not in RANKED:
        raise UsageError(
            f"task {name!r} is not ranked by log-likelihood",
            found=f"its lm-eval output_type is {task.OUTPUT_TYPE}",
            mend=f"a task whose output_type is one of {', '.join(RANKED)}",
        )
    return task


def _task_contents(
    spec: TaskSpec, settings: Loglikelihood, suite: Suite, context: Context, folder: Path
) -> list[dict[str, Any]]:
    """What the YAMLs hold that lm-eval loads for a task of the suite: one, or one for each that its pattern fits."""
    source = spec.items_on(settings.rung)
    if source is not None:
        return [_items_task(spec.name, source.load(context.mirror, context.limit), folder)]
    base = suite.path.parent / settings.lm_eval_file if settings.lm_eval_file else _stock_tasks() / settings.lm_eval
    where = f"suite {suite.name!r}, task {spec.name!r}"
    dataset = context.mirror.folder(settings.dataset)
    if "*" not in settings.lm_eval:
        return [_included(spec.name, base, dataset, settings.num_fewshot, where) | settings.overrides]
    found = _fitting(settings.lm_eval) or [base]
    found = found[: share_of_limit(context.limit, len(found))[0]]
    return [
        _included(f"{spec.name}--{number}", file, dataset, settings.num_fewshot, where) | settings.overrides
        for number, file in enumerate(found)
    ]


def _fitting(pattern: str) -> list[Path]:
    """The stock YAMLs that a pattern fits, by name; those that begin with `_` are lm-eval's templates and groups."""
    return sorted(file for file in _stock_tasks().glob(pattern) if not file.name.startswith("_"))


def _included(name: str, base: Path, dataset: Path, shots: int, where: str) -> dict[str, Any]:
    """A task YAML over another one, with the dataset in the mirror. Raises UsageError where `base` is not there."""
    if not base.is_file():
        raise UsageError(
            f"{where}: its lm-eval YAML is not there", found=f"no file {'/'.join(base.parts[-2:])}",
            mend="a path relative to lm-eval's tasks/ folder, such as arc/arc_easy.yaml",
        )  # fmt: skip
    return {"include": str(base.resolve()), "task": name, "dataset_path": str(dataset), "num_fewshot": shots}


OF_MANY_ITEMS = (
    "f1", "mcc", "brier_score", "likelihood", "perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte",
)  # fmt: skip
"""lm-eval's metrics that are no share of one item."""


class _Plain(yaml.SafeLoader):
    """Reads a task's YAML without running what its `!function` names."""


_Plain.add_constructor("!function", lambda loader, node: None)


def task_metrics(settings: Loglikelihood, suite: Suite) -> tuple[str, ...]:
    """The metrics that a task's YAML, or the one that it includes, lists; lm-eval's own where it lists none.

    None for a task that is not there, or that is not ranked: another error tells it.
    """
    file = suite.path.parent / settings.lm_eval_file if settings.lm_eval_file else _stock_tasks() / settings.lm_eval
    file = next(iter(_fitting(settings.lm_eval) if "*" in settings.lm_eval else ()), file)
    whole: dict[str, Any] = {}
    while file.is_file():
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=_Plain)  # noqa: S506
        whole = {**content, **whole} if isinstance(content, dict) else whole
        included = whole.pop("include", None)
        if not isinstance(included, str):
            break
        file = file.parent / included
    if whole.get("output_type") not in RANKED:
        return ()
    listed = whole.get("metric_list")
    if listed is None:
        names = [str(name) for name in DEFAULT_METRIC_REGISTRY.get(whole["output_type"], ())]
    else:
        names = [str(entry["metric"]) for entry in listed if isinstance(entry, dict) and "metric" in entry]
    return tuple(name for name in names if name not in OF_MANY_ITEMS)


def _stock_tasks() -> Path:
    """lm-eval's `tasks/` folder, found without importing it (which would read its index)."""
    found = importlib.util.find_spec("lm_eval")
    assert found is not None and found.submodule_search_locations
    return Path(found.submodule_search_locations[0]) / "tasks"


def _items_task(name: str, items: Sequence[Item], folder: Path) -> dict[str, Any]:
    """A task over items of the suite's own: every text stands as it was written.

    The items go by way of parquet with stated types (a JSON loader would guess: a date becomes a timestamp), and columns are
    named, not put through Jinja (which drops a last newline, and which lm-eval follows by reading digits as a number).
    """
    bare = next((item.id for item in items if not item.choices), "")
    if bare:
        raise UsageError(
            f"task {name!r} cannot be ranked", found=f"item {bare!r} has no choices", mend="rungs: [generation]"
        )
    text = Value("string")
    types = {field.name: text for field in fields(Item)} | {"choices": List(text), "gold": Value("int64")}
    columns = {name: [getattr(item, name) for item in items] for name in types}
    file = folder / f"{name}.parquet"
    Dataset.from_dict(columns, features=Features(types)).to_parquet(file)
    return {
        "task": name,
        "dataset_path": "parquet",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "question",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "num_fewshot": 0,
        "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ITEMS_METRICS],
        "metadata": {"version": 1.0},
    }


def documents(source: LmEvalItems, mirror: Mirror, limit: int | None) -> list[Item]:
    """Question, choices and right answer of an lm-eval task's documents, of the first `limit`.

    Raises UsageError for a task whose prompt is not one text (WinoGrande's are one a choice).
    """
    from lm_eval.tasks import TaskManager

    where = source.title
    with tempfile.TemporaryDirectory(prefix="plies-lm-eval-") as work:
        content = _included("source", _stock_tasks() / source.lm_eval, mirror.folder(source.dataset), 0, where)
        (Path(work) / "source.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        task = _load(
            TaskManager(include_defaults=False, include_path=work), "source", f"lm-eval cannot load the {where}"
        )
    if task.multiple_input:
        raise UsageError(
            f"{where} cannot be asked as items", found="each choice has a prompt of its own", mend="items: {evalscope: ...}"
        )  # fmt: skip
    return [_item(task, doc, source, where) for _, doc in task.doc_iterator(limit=limit)]


def _item(task: Any, doc: dict[str, Any], source: LmEvalItems, where: str) -> Item:
    ranked = task.OUTPUT_TYPE == "multiple_choice"
    choices = [str(choice) for choice in task.doc_to_choice(doc)] if ranked else []
    gold = gold_index_of(task, doc) if ranked else -1
    question = render_template(source.question, doc, where) if source.question else str(task.doc_to_text(doc))
    target = choices[gold] if ranked else str(task.doc_to_target(doc))
    return library_item(source, doc, question=question, choices=choices, gold=gold, target=target)

"""The door to lm-eval, and the only file that imports it: its own tasks and metrics over our engine.

Each task is lm-eval's stock YAML included by path (its index of 14,000 tasks is not built), with the dataset replaced by
the mirror's folder. Tokenisation, splitting and scoring rules are lm-eval's (`TemplateLM`, `ConfigurableTask`); the engine only
answers token requests.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset, Features, List, Value
from lm_eval.api.model import TemplateLM

from perplexity_lies.catalogue.items import Item
from perplexity_lies.catalogue.mirror import Mirror
from perplexity_lies.catalogue.sources import LmEvalItems
from perplexity_lies.catalogue.tasks import Suite, TaskSpec
from perplexity_lies.digests import canonical_json, sha256_text
from perplexity_lies.engines.base import Engine, Message, ScoreRequest
from perplexity_lies.errors import CheckpointError, UsageError
from perplexity_lies.protocols.base import (
    Context,
    answer_all,
    fill,
    item_name,
    library_item,
    refuse_scale,
    refuse_twins,
    render_template,
)
from perplexity_lies.protocols.loglikelihood import ITEMS_METRICS, Loglikelihood
from perplexity_lies.protocols.ranking import is_fragile, ranked_first
from perplexity_lies.record.records import ItemRecord, Reading, Status

RANKED = ("multiple_choice", "loglikelihood")
"""lm-eval's output types that can be ranked."""

LM_EVAL_LOADING_ERRORS = (ValueError, KeyError, FileNotFoundError, ImportError, TypeError)
"""What lm-eval raises for a task that it cannot load."""


class EngineLM(TemplateLM):
    """lm-eval's view of an engine."""

    def __init__(self, engine: Engine, context: Context, title: str) -> None:
        super().__init__()
        self.engine = engine
        self.context = context
        self.title = title
        self.messages: dict[str, str] = {}
        """Rendered chat -> the messages it was made of, as canonical JSON."""
        self.tokens: dict[tuple[str, str], tuple[int, int]] = {}
        """(context, continuation) -> tokens of the context that were fed, and tokens that were cut from its left."""
        self.lost: dict[tuple[str, str], tuple[Status, str]] = {}
        """(context, continuation) -> why the engine has no log-likelihood of it."""

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
        return self.engine.encode(string, add_special_tokens)

    def apply_chat_template(self, chat_history: list[Message], add_generation_prompt: bool = True) -> str:
        rendered = self.engine.render_chat(chat_history, add_generation_prompt)
        self.messages[rendered] = canonical_json(chat_history)
        return rendered

    def _loglikelihood_tokens(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        for (context, continuation), _, tokens in requests:
            if not tokens:
                raise UsageError(
                    f"the answer {continuation!r} adds no token to its prompt, so it has no log-likelihood",
                    found=f"the prompt ends in {context[-40:]!r}",
                    mend="an item whose choices the tokenizer can tell from the prompt",
                )
        wanted = [ScoreRequest(context_ids=tuple(ctx), continuation_ids=tuple(cont)) for _, ctx, cont in requests]
        answer_all(self.context, self.title, wanted, self.engine.score)
        found = [self.context.journal.get(request.key) for request in wanted]
        for (texts, _, _), answer in zip(requests, found, strict=True):
            self.tokens[texts] = (answer["context_tokens"], answer["truncated_tokens"])
            if answer.get("error"):
                self.lost[texts] = (Status.ERRORED if answer["failed"] else Status.REFUSED, answer["error"])
        return [(answer["loglikelihood_nats"], answer["is_greedy"]) for answer in found]

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError("rolling log-likelihood is refused before a task runs")

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        raise NotImplementedError("generation under lm-eval is refused before a task runs")


def ask_lm_eval(kind: type[Loglikelihood], engine: Engine, suite: Suite, context: Context) -> list[ItemRecord]:
    """Records of every item of `suite` under lm-eval, task by task in the suite's order.

    Raises UsageError for a task that lm-eval cannot load or that is not ranked by log-likelihood.
    """
    records: dict[str, list[ItemRecord]] = {}
    with tempfile.TemporaryDirectory(prefix="plies-lm-eval-") as work:
        for chat in (False, True):
            tasks = tuple(task for task in suite.tasks if kind.of(task).chat_template is chat)
            if tasks:
                folder = Path(work) / ("chat" if chat else "plain")
                folder.mkdir()
                records |= _ask_together(kind, engine, replace(suite, tasks=tasks), chat, context, folder)
    whole = [record for task in suite.tasks for record in records[task.name]]
    refuse_twins(whole, kind, suite)
    return whole


def _ask_together(
    kind: type[Loglikelihood], engine: Engine, suite: Suite, chat: bool, context: Context, folder: Path
) -> dict[str, list[ItemRecord]]:
    """One `simple_evaluate` over tasks that agree on the chat template: their requests reach the engine as a whole."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    if chat and not engine.has_chat_template:
        raise UsageError(
            f"suite {suite.name!r} asks {suite.tasks[0].name!r} through a chat template, and the checkpoint has none",
            found="no chat_template in its tokenizer", mend="add chat_template.jinja, or a suite with `chat_template: false`",
        )  # fmt: skip
    for spec in suite.tasks:
        content = _task_content(spec, kind.of(spec), suite, context, folder)
        (folder / f"{spec.name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    manager = TaskManager(include_defaults=False, include_path=str(folder))
    tasks = {spec.name: _load_ranked(manager, spec.name) for spec in suite.tasks}
    lm = EngineLM(engine, context, "log-likelihood")
    results = simple_evaluate(
        model=lm,
        tasks=list(tasks.values()),
        limit=context.limit,
        bootstrap_iters=0,
        apply_chat_template=chat,
        task_manager=manager,
        log_samples=True,
    )
    assert results is not None
    return {
        spec.name: [
            _record(sample, tasks[spec.name], spec, kind, lm) for sample in _by_document(results["samples"][spec.name])
        ]
        for spec in suite.tasks
    }


def _load(manager: Any, name: str, asked: str) -> Any:
    """A task of lm-eval's. Raises UsageError led by `asked` for one that it cannot load."""
    try:
        return manager.load([name])["tasks"][name]
    except LM_EVAL_LOADING_ERRORS as error:
        raise UsageError(
            asked, found=" ".join(str(error).split())[:300],
            mend="try the same YAML in plain lm-eval: lm_eval --include_path ...",
        ) from error  # fmt: skip


def _load_ranked(manager: Any, name: str) -> Any:
    task = _load(manager, name, f"lm-eval cannot load task {name!r}")
    if task.OUTPUT_TYPE not in RANKED:
        raise UsageError(
            f"task {name!r} is not ranked by log-likelihood",
            found=f"its lm-eval output_type is {task.OUTPUT_TYPE}",
            mend=f"a task whose output_type is one of {', '.join(RANKED)}",
        )
    return task


def _task_content(
    spec: TaskSpec, settings: Loglikelihood, suite: Suite, context: Context, folder: Path
) -> dict[str, Any]:
    """What the YAML holds that lm-eval loads for a task of the suite."""
    if spec.items is not None:
        return _items_task(spec.name, spec.items.load(context.mirror, context.limit), folder)
    base = suite.path.parent / settings.lm_eval_file if settings.lm_eval_file else _stock_tasks() / settings.lm_eval
    where = f"suite {suite.name!r}, task {spec.name!r}"
    return _included(spec.name, base, context.mirror.folder(settings.dataset), settings.num_fewshot, where)


def _included(name: str, base: Path, dataset: Path, shots: int, where: str) -> dict[str, Any]:
    """A task YAML over another one, with the dataset in the mirror. Raises UsageError where `base` is not there."""
    if not base.is_file():
        raise UsageError(
            f"{where}: its lm-eval YAML is not there", found=f"no file {'/'.join(base.parts[-2:])}",
            mend="a path relative to lm-eval's tasks/ folder, such as arc/arc_easy.yaml",
        )  # fmt: skip
    return {"include": str(base.resolve()), "task": name, "dataset_path": str(dataset), "num_fewshot": shots}


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


def _by_document(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One sample a document (lm-eval logs one for each filter), in document order."""
    first: dict[int, dict[str, Any]] = {}
    for sample in samples:
        first.setdefault(sample["doc_id"], sample)
    return [first[index] for index in sorted(first)]


def _record(sample: dict[str, Any], task: Any, spec: TaskSpec, kind: type[Loglikelihood], lm: EngineLM) -> ItemRecord:
    """An lm-eval sample in our words."""
    settings, doc, where = kind.of(spec), sample["doc"], f"task {spec.name!r}, {kind.rung}"
    pairs = [(str(context), str(continuation)) for context, continuation, *_ in sample["arguments"]]
    answers = [response[0] for response in sample["resps"]]
    ranked = task.OUTPUT_TYPE == "multiple_choice"
    choices = (
        [str(choice) for choice in task.doc_to_choice(doc)] if ranked else [continuation for _, continuation in pairs]
    )
    gold = _gold_index(task, doc) if ranked else 0
    lost = next((lm.lost[pair] for pair in pairs if pair in lm.lost), None)
    nats = [] if lost else [float(answer[0]) for answer in answers][: len(choices)]
    prompt = lm.messages.get(pairs[0][0]) or _common_prefix([context for context, _ in pairs])
    return ItemRecord(
        task=spec.name,
        subject=fill(settings.subject, doc, where) if settings.subject else "",
        item=item_name(settings.item, doc, where),
        rung=kind.rung,
        prompt=_readable(prompt),
        prompt_sha256=sha256_text(
            canonical_json([[lm.messages.get(context, context), continuation] for context, continuation in pairs])
        ),
        gold=choices[gold],
        choices=tuple(choices),
        gold_index=gold,
        readings=(_reading(sample, spec.name, settings, choices, nats, lost[0] if lost else Status.SCORED),),
        choice_loglikelihoods_nats=tuple(nats),
        choice_is_greedy=() if lost else tuple(bool(answer[1]) for answer in answers)[: len(choices)],
        fragile=is_fragile(nats, choices, settings.metric, lm.context.rounding.nats),
        prompt_tokens=max(lm.tokens[pair][0] for pair in pairs),
        truncated_prompt_tokens=max(lm.tokens[pair][1] for pair in pairs),
        error=lost[1] if lost else "",
    )


def _reading(
    sample: dict[str, Any],
    task: str,
    settings: Loglikelihood,
    choices: Sequence[str],
    nats: Sequence[float],
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
        answer=choices[ranked_first(nats, choices, settings.metric)],
    )


def _gold_index(task: Any, doc: dict[str, Any]) -> int:
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
    gold = _gold_index(task, doc) if ranked else -1
    question = render_template(source.question, doc, where) if source.question else str(task.doc_to_text(doc))
    target = choices[gold] if ranked else str(task.doc_to_target(doc))
    return library_item(source, doc, question=question, choices=choices, gold=gold, target=target)

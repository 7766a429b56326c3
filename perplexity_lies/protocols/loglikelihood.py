"""The log-likelihood protocol: lm-eval's own tasks and metrics over our engine. The only file that imports `lm_eval`.

Each task is lm-eval's stock YAML included by path (its index of 14,000 tasks is not built), with the dataset replaced by
the mirror's folder. Tokenisation, splitting and scoring rules are lm-eval's (`TemplateLM`, `ConfigurableTask`); the engine only
answers token requests. Knows nothing of generation.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Sequence
from dataclasses import fields
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset, Features, List, Value
from lm_eval.api.model import TemplateLM

from perplexity_lies.catalogue.items import Item, read_items
from perplexity_lies.catalogue.suite import ITEMS_METRICS, Suite, TaskSpec
from perplexity_lies.engines.base import Engine, Message, ScoreRequest
from perplexity_lies.errors import CheckpointError, UsageError
from perplexity_lies.protocols.base import Context, answer_all, fill, item_name, refuse_scale, refuse_twins
from perplexity_lies.record.records import LOGLIKELIHOOD, ItemRecord, Status, sha256_text
from perplexity_lies.record.store import canonical_json

RANKED = ("multiple_choice", "loglikelihood")
"""lm-eval's output types that this protocol can ask."""


class EngineLM(TemplateLM):
    """lm-eval's view of an engine."""

    def __init__(self, engine: Engine, context: Context, title: str) -> None:
        super().__init__()
        self.engine = engine
        self.context = context
        self.title = title
        self.asked: dict[str, str] = {}
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
        self.asked[rendered] = canonical_json(chat_history)
        return rendered

    def _loglikelihood_tokens(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        for (context, continuation), _, tokens in requests:
            if not tokens:
                raise UsageError(
                    f"the answer {continuation!r} adds no token to its prompt, so it has no log-likelihood",
                    found=f"the prompt ends in {context[-40:]!r}",
                    mend="an item whose choices the tokenizer can tell from the prompt",
                )
        asked = [ScoreRequest(context_ids=tuple(ctx), continuation_ids=tuple(cont)) for _, ctx, cont in requests]
        answer_all(self.context, self.title, asked, self.engine.score)
        found = [self.context.journal.get(request.key) for request in asked]
        for (texts, _, _), answer in zip(requests, found, strict=True):
            self.tokens[texts] = (answer["context_tokens"], answer["truncated_tokens"])
            if answer.get("error"):
                self.lost[texts] = (Status.ERRORED if answer["failed"] else Status.REFUSED, answer["error"])
        return [(answer["loglikelihood_nats"], answer["is_greedy"]) for answer in found]

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError("rolling log-likelihood is refused before a task runs")

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        raise NotImplementedError("generation under lm-eval is refused before a task runs")


def run(engine: Engine, suite: Suite, context: Context) -> list[ItemRecord]:
    """Records of every item of `suite` under lm-eval, task by task in the suite's order.

    Raises UsageError for a task that lm-eval cannot load or that is not ranked by log-likelihood.
    """
    records: dict[str, list[ItemRecord]] = {}
    with tempfile.TemporaryDirectory(prefix="plies-lm-eval-") as work:
        for chat in (False, True):
            specs = [task for task in suite.tasks if task.loglikelihood.chat_template is chat]
            if specs:
                records |= _run_together(engine, suite, specs, chat, context, Path(work))
    whole = [record for task in suite.tasks for record in records[task.name]]
    refuse_twins(whole, {task.name: task.loglikelihood.item for task in suite.tasks})
    return whole


def _run_together(
    engine: Engine, suite: Suite, specs: Sequence[TaskSpec], chat: bool, context: Context, work: Path
) -> dict[str, list[ItemRecord]]:
    """One `simple_evaluate` over tasks that agree on the chat template: their requests reach the engine as a whole."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    if chat and not engine.has_chat_template:
        raise UsageError(
            f"suite {suite.name!r} asks {specs[0].name!r} through a chat template, and the checkpoint has none",
            found="no chat_template in its tokenizer", mend="add chat_template.jinja, or a suite with `chat_template: false`",
        )  # fmt: skip
    folder = work / ("chat" if chat else "plain")
    folder.mkdir()
    for spec in specs:
        (folder / f"{spec.name}.yaml").write_text(_task_yaml(spec, suite, context, folder), encoding="utf-8")
    manager = TaskManager(include_defaults=False, include_path=str(folder))
    tasks = {spec.name: _load(manager, folder, spec) for spec in specs}
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
            _record(sample, tasks[spec.name], spec, lm) for sample in _by_document(results["samples"][spec.name])
        ]
        for spec in specs
    }


def _load(manager: Any, folder: Path, spec: TaskSpec) -> Any:
    try:
        task = manager.load([spec.name])["tasks"][spec.name]
    except (ValueError, KeyError, FileNotFoundError, ImportError, TypeError) as error:
        raise UsageError(
            f"lm-eval cannot load task {spec.name!r}", found=" ".join(str(error).split())[:300],
            mend="try the same YAML in plain lm-eval: lm_eval --include_path ...",
        ) from error  # fmt: skip
    if task.OUTPUT_TYPE not in RANKED:
        raise UsageError(
            f"task {spec.name!r} is not ranked by log-likelihood",
            found=f"its lm-eval output_type is {task.OUTPUT_TYPE}",
            mend=f"a task whose output_type is one of {', '.join(RANKED)}",
        )
    return task


def _task_yaml(spec: TaskSpec, suite: Suite, context: Context, folder: Path) -> str:
    """The YAML that lm-eval loads for a task of the suite."""
    settings = spec.loglikelihood
    if spec.items is not None:
        return yaml.safe_dump(_items_task(spec.name, read_items(spec.items.path), folder))
    own = {
        "task": spec.name,
        "dataset_path": str(context.mirror.folder(settings.dataset)),
        "num_fewshot": settings.num_fewshot,
    }
    if settings.lm_eval_file:
        base = suite.path.parent / settings.lm_eval_file
    else:
        base = _stock_tasks() / settings.lm_eval
    if not base.is_file():
        raise UsageError(
            f"suite {suite.name!r}, task {spec.name!r}: its lm-eval YAML is not there", found=str(settings.lm_eval or base),
            mend="a path relative to lm-eval's tasks/ folder, such as arc/arc_easy.yaml",
        )  # fmt: skip
    return yaml.safe_dump({"include": str(base.resolve()), **own})


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
    text, columns = (
        Value("string"),
        {field.name: [getattr(item, field.name) for item in items] for field in fields(Item)},
    )
    types = {
        "id": text,
        "question": text,
        "choices": List(text),
        "gold": Value("int64"),
        "target": text,
        "subject": text,
    }
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


def _record(sample: dict[str, Any], task: Any, spec: TaskSpec, lm: EngineLM) -> ItemRecord:
    """An lm-eval sample in our words."""
    settings, doc, where = spec.loglikelihood, sample["doc"], f"task {spec.name!r}, log-likelihood"
    pairs = [(str(context), str(continuation)) for context, continuation, *_ in sample["arguments"]]
    answers = [response[0] for response in sample["resps"]]
    scores = {name: float(sample[name]) for name in sample["metrics"] if isinstance(sample[name], int | float)}
    if settings.metric not in scores:
        raise UsageError(
            f"{where}: lm-eval gives no metric {settings.metric!r}",
            found=f"metrics: {', '.join(scores)}",
            mend="mend `metric:`",
        )
    ranked = task.OUTPUT_TYPE == "multiple_choice"
    choices = (
        [str(choice) for choice in task.doc_to_choice(doc)] if ranked else [continuation for _, continuation in pairs]
    )
    gold = _gold_index(task, doc) if ranked else 0
    status, error = next((lm.lost[pair] for pair in pairs if pair in lm.lost), (Status.SCORED, ""))
    if not error:
        refuse_scale(spec.name, LOGLIKELIHOOD, settings.metric, scores[settings.metric])
    loglikelihoods = [] if error else [float(answer[0]) for answer in answers][: len(choices)]
    prompt = lm.asked.get(pairs[0][0]) or _common_prefix([context for context, _ in pairs])
    return ItemRecord(
        task=spec.name,
        subject=fill(settings.subject, doc, where) if settings.subject else "",
        item=item_name(settings.item, doc, where),
        protocol=LOGLIKELIHOOD,
        prompt=_readable(prompt),
        prompt_sha256=sha256_text(
            canonical_json([[lm.asked.get(context, context), continuation] for context, continuation in pairs])
        ),
        status=status,
        score=0.0 if error else scores[settings.metric],
        metric=settings.metric,
        scores={} if error else scores,
        gold=choices[gold],
        answer="" if error else choices[_ranked_first(loglikelihoods, choices, settings.metric)],
        choices=tuple(choices),
        choice_loglikelihoods_nats=tuple(loglikelihoods),
        choice_is_greedy=() if error else tuple(bool(answer[1]) for answer in answers)[: len(choices)],
        gold_index=gold,
        fragile=is_fragile(loglikelihoods, choices, settings.metric, lm.context.rounding.nats),
        prompt_tokens=max(lm.tokens[pair][0] for pair in pairs),
        truncated_prompt_tokens=max(lm.tokens[pair][1] for pair in pairs),
        extractor=f"lm-eval@{version('lm-eval')}",
        error=error,
    )


def _gold_index(task: Any, doc: dict[str, Any]) -> int:
    """As lm-eval's `process_results` finds it; the first where several are right."""
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if isinstance(gold, list):
        gold = gold[0]
    return int(gold) if isinstance(gold, int) else list(task.doc_to_choice(doc)).index(gold)


def _norms(choices: Sequence[str], metric: str) -> list[int]:
    """What lm-eval divides a choice's log-likelihood by: nothing, or its characters."""
    return [max(1, len(choice)) if metric == "acc_norm" else 1 for choice in choices]


def _ranked_first(loglikelihoods: Sequence[float], choices: Sequence[str], metric: str) -> int:
    """lm-eval's argmax: of the sum, or of the sum by characters of the choice; the first of equals."""
    values = [nats / norm for nats, norm in zip(loglikelihoods, _norms(choices, metric), strict=True)]
    return values.index(max(values))


def is_fragile(loglikelihoods: Sequence[float], choices: Sequence[str], metric: str, rounding_nats: float) -> bool:
    """Whether moving each log-likelihood by no more than `rounding_nats` could rank another choice first."""
    if len(loglikelihoods) < 2:
        return False
    norms = _norms(choices, metric)
    first = _ranked_first(loglikelihoods, choices, metric)
    least = (loglikelihoods[first] - rounding_nats) / norms[first]
    return any((loglikelihoods[i] + rounding_nats) / norms[i] > least for i in range(len(choices)) if i != first)


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

"""The door to evalscope: its own benchmarks, prompts and judging over our engine. `evalscope_items` alone imports it beside this.

evalscope asks a model one sample at a time from a pool of threads. So that the engine sees all requests at once, the
benchmark's own loader is run first and its samples are put to the engine together; evalscope's task runner is then given a
`ModelAPI` that answers from the journal. A call that was not foreseen (a second turn) is answered on the spot.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from evalscope import TaskConfig, run_task
from evalscope.api.benchmark import DefaultDataAdapter
from evalscope.api.dataset import Sample
from evalscope.api.messages import ChatMessage, ChatMessageAssistant
from evalscope.api.mixin import CodeExecutionSandboxMixin
from evalscope.api.model import ChatCompletionChoice, GenerateConfig, ModelAPI, ModelOutput, ModelUsage
from evalscope.api.registry import get_benchmark
from evalscope.benchmarks.humaneval import utils as humaneval
from evalscope.constants import HubType
from evalscope.metrics.math import parser as mathematics
from evalscope.utils import multi_choices

from perplexity_lies.catalogue.items import Item, dump_items
from perplexity_lies.catalogue.mirror import Mirror
from perplexity_lies.catalogue.sources import EvalscopeItems
from perplexity_lies.catalogue.tasks import Suite, share_of_limit
from perplexity_lies.engines.base import Engine, GenerateRequest, GenerateResult, Message
from perplexity_lies.errors import MissingError, PliesError, UsageError
from perplexity_lies.extract.base import EXACT_MATCH, opened_thought
from perplexity_lies.protocols.base import Context, answer_all, library_item
from perplexity_lies.protocols.code_judging import CodeJudge
from perplexity_lies.protocols.evalscope_items import ITEMS_BENCHMARK, WHOLE_REPLY
from perplexity_lies.protocols.evalscope_reviews import (
    Pass,
    Question,
    Texts,
    fields_of,
    numbered,
    plain_messages,
    question_of,
    read_reviews,
    record_of,
    right_of,
    target_of,
)
from perplexity_lies.protocols.generation import RUNS_CODE, Generation
from perplexity_lies.protocols.math_judging import warm_child
from perplexity_lies.protocols.reach import never_replied
from perplexity_lies.record.records import ItemRecord

EVALSCOPE_LOADING_ERRORS = (ValueError, KeyError, OSError, AssertionError)
"""What evalscope raises for a benchmark that it cannot load."""


class EngineAPI(ModelAPI):
    """evalscope's view of an engine: calls are answered from the journal."""

    def __init__(self, engine: Engine, wanted: Pass) -> None:
        super().__init__(model_name="plies", config=GenerateConfig())
        self.engine, self._context, self._task = engine, wanted.context, wanted.task
        self._settings, self._seed = wanted.settings, wanted.seed
        self._lock = threading.Lock()

    def request(self, messages: Sequence[Message]) -> GenerateRequest:
        """The engine's request for a chat. Its seed depends on the chat, not on the order of calls."""
        prompt, settings = self.engine.render_chat(messages), self._settings
        return GenerateRequest(
            prompt=prompt,
            add_special_tokens=not self.engine.has_chat_template,
            max_new_tokens=settings.max_new_tokens,
            stop=settings.stop,
            sampling=settings.sampling,
            seed=int.from_bytes(hashlib.sha256(f"{self._seed}\n{prompt}".encode()).digest()[:4], "big")
            if settings.temperature
            else 0,
            messages=tuple((m["role"], m["content"]) for m in messages) if self.engine.takes_messages else (),
        )

    def answer(self, messages: Sequence[Message]) -> GenerateResult:
        """The reply to a chat, from the journal or, when it was not foreseen, from the engine."""
        request = self.request(messages)
        with self._lock:
            if not self._context.journal.finished(request.key):
                answer_all(self._context, f"{self._task} (one more turn)", [request], self.engine.generate)
            return GenerateResult(**self._context.journal.get(request.key))

    def generate(self, input: list[ChatMessage], tools: Any, tool_choice: Any, config: GenerateConfig) -> ModelOutput:
        """The reply as evalscope takes it; one that could not be had is empty, and the record says why."""
        reply = self.answer(plain_messages(input))
        choice = ChatCompletionChoice(
            message=ChatMessageAssistant(content=reply.text, model=self.model_name, source="generate"),
            stop_reason="max_tokens" if reply.finish_reason == "length" else "stop",
        )
        usage = ModelUsage(
            input_tokens=reply.prompt_tokens,
            output_tokens=reply.completion_tokens,
            total_tokens=reply.prompt_tokens + reply.completion_tokens,
        )
        return ModelOutput(model=self.model_name, choices=[choice], usage=usage)


def ask_evalscope(kind: type[Generation], engine: Engine, suite: Suite, context: Context) -> list[ItemRecord]:
    """Records of every item of `suite` under evalscope, task by task and seed by seed in the suite's order.

    Raises UsageError for a benchmark that evalscope does not have or cannot load.
    """
    plans = []
    for task in suite.tasks:
        settings = kind.of(task)
        source = task.items_on(kind.rung)
        items = tuple(source.load(context.mirror, context.limit)) if source is not None else None
        for seed in settings.seeds:
            wanted = Pass(task=task.name, settings=settings, seed=seed, context=context, items=items)
            api = EngineAPI(engine, wanted)
            plans.append((wanted, api, numbered(_foresee(wanted, api), wanted.where)))
    requests = [api.request(question.messages) for _, api, questions in plans for question in questions]
    answer_all(context, "generation", requests, engine.generate)
    records: list[ItemRecord] = []
    for wanted, api, questions in plans:
        records += _judge(wanted, api, questions)
    return records


def _dataset(folder: Path, subset: str) -> dict[str, Any]:
    """evalscope's arguments for a dataset in the mirror."""
    return {"local_path": str(folder), **({"subset_list": [subset]} if subset else {})}


def _config(wanted: Pass, model: Any, work: Path) -> TaskConfig:
    """Stock evalscope settings but for what the suite states."""
    settings, items = wanted.settings, wanted.items
    own: dict[str, Any] = {"few_shot_num": settings.num_fewshot}
    if items is not None:
        file = work / "items.jsonl"
        file.write_text(dump_items(items), encoding="utf-8")
        own |= {"local_path": str(file), "extra_params": {"extract": settings.extract or WHOLE_REPLY}}
    else:
        own |= _dataset(wanted.context.mirror.folder(settings.dataset), settings.subset)
        own |= {"extra_params": settings.extra_params} if settings.extra_params else {}
    limit = wanted.context.limit
    if items is None and not settings.subset and limit is not None:
        subsets = sorted(_adapter(settings.evalscope, None, wanted.where).subset_list)
        kept, limit = share_of_limit(limit, len(subsets))
        own |= {"subset_list": subsets[:kept]}
    name = ITEMS_BENCHMARK if items is not None else settings.evalscope
    return TaskConfig(
        model=model,
        model_id="plies",
        datasets=[name],
        dataset_args={name: own},
        dataset_hub=HubType.LOCAL,
        generation_config={"max_tokens": settings.max_new_tokens, "temperature": settings.temperature},
        limit=limit,
        eval_batch_size=1,
        seed=42 + wanted.seed,
        work_dir=str(work),
        no_timestamp=True,
        collect_perf=False,
    )


def _foresee(wanted: Pass, api: EngineAPI) -> list[Question]:
    """What evalscope will ask, by the benchmark's own loader."""
    with tempfile.TemporaryDirectory(prefix="plies-evalscope-") as work:
        loaded, questions = _load(_config(wanted, api, Path(work)), f"task {wanted.task!r}")
        return [question_of(sample, subset, questions, wanted) for subset, samples in loaded for sample in samples]


def _lacking(name: str, where: str, error: ImportError) -> MissingError:
    """What to tell of a benchmark whose own packages are not installed."""
    return MissingError(
        f"{where}: evalscope's {name!r} needs a package that is not installed",
        found=" ".join(str(error).split())[:300], mend=f"pip install 'evalscope[{name}]'",
    )  # fmt: skip


def _adapter(name: str, config: TaskConfig | None, where: str) -> Any:
    """A benchmark's own code. Raises UsageError for one that evalscope does not have, MissingError for lacking packages."""
    try:
        adapter = get_benchmark(name, config)
    except ImportError as error:
        raise _lacking(name, where, error) from error
    except ValueError as error:
        raise UsageError(
            f"{where}: evalscope has no benchmark {name!r}", found=str(error).splitlines()[0][:200],
            mend="a name from `evalscope benchmark-info --list`",
        ) from error  # fmt: skip
    if isinstance(adapter, CodeExecutionSandboxMixin) and name not in RUNS_CODE:
        raise UsageError(
            f"{where}: evalscope's {name!r} runs the checkpoint's code, which our sandbox cannot judge for it",
            found="it would run as a plain process of this machine", mend=f"one of {', '.join(RUNS_CODE)}",
        )  # fmt: skip
    return adapter


def _load(config: TaskConfig, where: str) -> tuple[list[tuple[str, list[Sample]]], Texts]:
    """The samples of a benchmark by subset, and their questions. Raises UsageError for one that evalscope cannot load."""
    name = config.datasets[0]
    adapter = _adapter(name, config, where)
    texts = _keep_questions(adapter)
    try:
        return [(subset, list(samples)) for subset, samples in adapter.load_dataset().items()], texts
    except ImportError as error:
        raise _lacking(name, where, error) from error
    except EVALSCOPE_LOADING_ERRORS as error:
        raise UsageError(
            f"{where}: evalscope cannot load {name!r}", found=" ".join(str(error).split())[:300],
            mend="check `subset:` and the dataset's folder in the mirror",
        ) from error  # fmt: skip


def _keep_questions(adapter: DefaultDataAdapter) -> Texts:
    """Questions as they were before the prompt template, filled when the adapter loads."""
    questions: Texts = {}
    load = adapter.load

    def load_and_keep() -> Any:
        test, shots = load()
        for subset, samples in test.items():
            questions.update({(subset, sample.id): sample.input for sample in samples if isinstance(sample.input, str)})
        return test, shots

    adapter.load = load_and_keep
    return questions


@contextlib.contextmanager
def _swapped(module: Any, name: str, ours: Any) -> Iterator[None]:
    """`ours` in place of a function of evalscope's, for as long as it judges."""
    stock = getattr(module, name)
    setattr(module, name, ours)
    try:
        yield
    finally:
        setattr(module, name, stock)


@contextlib.contextmanager
def _fallbacks_noted() -> Iterator[set[str]]:
    """The replies in which evalscope's parsers of choices find no answer as asked for and take the last capital letter."""
    stock, seen = multi_choices._fallback_parse_answer, set[str]()

    def noted(completion: str, allowed_options: set[str]) -> set[str] | None:
        seen.add(completion)
        return stock(completion, allowed_options)

    with _swapped(multi_choices, "_fallback_parse_answer", noted):
        yield seen


def _run(config: TaskConfig, where: str) -> None:
    """evalscope's task runner. Raises UsageError for what a benchmark's own judging raises."""
    try:
        run_task(config)
    except PliesError:
        raise
    except Exception as error:
        raise UsageError(
            f"{where}: evalscope cannot judge the replies", found=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            mend="mend that, then the same command again: the replies are kept",
        ) from error  # fmt: skip


def _judge(wanted: Pass, api: EngineAPI, questions: Sequence[Question]) -> list[ItemRecord]:
    """Run evalscope's task runner over the answers and read its reviews back."""
    with tempfile.TemporaryDirectory(prefix="plies-evalscope-") as folder:
        work, coding = Path(folder), CodeJudge(wanted.context, wanted.task)
        if wanted.settings.runs_code and wanted.context.sandbox is not None:
            coding.run([q.problem for q in questions], [api.answer(q.messages).text for q in questions])
        # evalscope's humaneval asks our sandbox, and never runs a program itself, with the flag or without
        shut_in = _swapped(humaneval, "check_correctness", coding.check_correctness)
        step = wanted.context.reporter.step(f"evalscope judges {wanted.task}")
        with step, warm_child(mathematics), shut_in, _fallbacks_noted() as fell_back:
            _run(_config(wanted, api, work), wanted.where)
        reviews = {(subset, row["index"]): row for subset, row in read_reviews(work, {q.subset for q in questions})}
    readers = wanted.settings.readers()
    theirs = wanted
    if wanted.items is not None:  # what evalscope itself can say of items; the headline is ours
        theirs = replace(wanted, settings=replace(wanted.settings, metric=EXACT_MATCH))
    records = []
    for question in questions:
        reply, review = api.answer(question.messages), reviews.get((question.subset, question.index))
        prefix = opened_thought(api.request(question.messages).prompt)
        why = coding.why_unjudged(question.problem, reply.text) if wanted.settings.runs_code else ""
        fell = reply.text in fell_back
        record = record_of(question, reply, review, theirs, prefix=prefix, fell_back=fell, unjudged=why)
        if wanted.items is not None:
            shortest = readers[0].shortest_right(question.target)
            never = never_replied(api.engine, shortest, wanted.settings.max_new_tokens)
            record = replace(record, never_right=never)
        if readers:
            ours = tuple(reader.read(record) for reader in readers)
            record = replace(record, readings=ours if wanted.items is not None else (*record.readings, *ours))
        records.append(record)
    return records


def benchmark_metrics(settings: Generation, where: str) -> tuple[str, ...]:
    """The metrics that a benchmark names; with the suite's own where the benchmark's code, which may add some, knows it.

    Raises UsageError for a benchmark that evalscope does not have, MissingError for one whose packages are absent.
    """
    adapter = _adapter(settings.evalscope, None, where)
    names = [entry if isinstance(entry, str) else next(iter(entry), "") for entry in adapter.metric_list]
    source = inspect.getsource(sys.modules[type(adapter).__module__])
    judges_itself = "def match_score" in source or "def calculate_metrics" in source
    if judges_itself and any(f"{quote}{settings.metric}{quote}" in source for quote in "'\""):
        names.append(settings.metric)
    return tuple(dict.fromkeys(names))


def samples(source: EvalscopeItems, mirror: Mirror, limit: int | None) -> list[Item]:
    """Question, choices and right answer of a benchmark's samples as its loader makes them, of the first `limit`.

    Raises UsageError for a benchmark that evalscope does not have or cannot load.
    """
    with tempfile.TemporaryDirectory(prefix="plies-evalscope-") as work:
        config = TaskConfig(
            model="none",
            datasets=[source.evalscope],
            dataset_args={
                source.evalscope: {"few_shot_num": 0} | _dataset(mirror.folder(source.dataset), source.subset)
            },
            dataset_hub=HubType.LOCAL,
            limit=limit,
            work_dir=work,
            no_timestamp=True,
        )
        loaded, texts = _load(config, source.title)
    flat = [(sample, subset) for subset, of_subset in loaded for sample in of_subset]
    return [_item(sample, subset, texts, source) for sample, subset in flat[:limit]]


def _item(sample: Sample, subset: str, texts: Texts, source: EvalscopeItems) -> Item:
    fields, choices, target = fields_of(sample, subset, texts), sample.choices or [], target_of(sample)
    gold = right_of(target, choices)
    if choices and gold < 0:
        raise UsageError(
            f"{source.title} cannot be asked as items", found=f"the target {target[:80]!r} is none of the choices",
            mend="a benchmark with one right choice",
        )  # fmt: skip
    right = choices[gold] if choices else target
    return library_item(source, fields, question=fields["question"], choices=choices, gold=gold, target=right)

"""The generation protocol: evalscope's own benchmarks, prompts and judging over our engine. Alone imports `evalscope`.

evalscope asks a model one sample at a time from a pool of threads. So that the engine sees all requests at once, the
benchmark's own loader is run first and its samples are put to the engine together; evalscope's task runner is then given a
`ModelAPI` that answers from the journal. A call that was not foreseen (a second turn) is answered on the spot.

Knows nothing of log-likelihood.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from evalscope import TaskConfig, run_task
from evalscope.api.benchmark import BenchmarkMeta, DefaultDataAdapter
from evalscope.api.dataset import DatasetDict, MemoryDataset, Sample
from evalscope.api.messages import ChatMessage, ChatMessageAssistant
from evalscope.api.metric import Score
from evalscope.api.model import ChatCompletionChoice, GenerateConfig, ModelAPI, ModelOutput, ModelUsage
from evalscope.api.registry import get_benchmark, register_benchmark
from evalscope.constants import HubType

from perplexity_lies.catalogue.items import read_items
from perplexity_lies.catalogue.suite import Suite, TaskSpec
from perplexity_lies.engines.base import Engine, GenerateRequest, GenerateResult, Message
from perplexity_lies.errors import UsageError
from perplexity_lies.protocols.base import Context, answer_all, fill, item_name, refuse_scale, refuse_twins
from perplexity_lies.record.records import GENERATION, ItemRecord, Status, sha256_text
from perplexity_lies.record.store import canonical_json

EXACT_MATCH = "exact_match"

ITEMS_BENCHMARK = "plies_items"
"""Our own benchmark: items beside a suite, judged by an exact match of what a regex extracts."""

LOOP_TOKENS = 16
"""Longest period, in words, that counts as a loop."""


class EngineAPI(ModelAPI):
    """evalscope's view of an engine: calls are answered from the journal."""

    def __init__(self, engine: Engine, context: Context, spec: TaskSpec, seed: int) -> None:
        super().__init__(model_name="plies", config=GenerateConfig())
        self._engine, self._context, self._spec, self._seed = engine, context, spec, seed
        self._lock = threading.Lock()
        self.unforeseen = 0
        """Calls that the loader's samples did not foretell."""

    @property
    def rounding_margin(self) -> float:
        """Logits between the two best tokens below which rounding may choose."""
        return self._context.rounding.margin

    def request(self, messages: Sequence[Message]) -> GenerateRequest:
        """The engine's request for a chat. The seed hangs on the chat itself, not on when it is asked."""
        prompt, settings = self._engine.render_chat(messages), self._spec.generation
        return GenerateRequest(
            prompt=prompt,
            add_special_tokens=not self._engine.has_chat_template,
            max_new_tokens=settings.max_new_tokens,
            stop=settings.stop,
            sampling=settings.sampling,
            seed=int.from_bytes(hashlib.sha256(f"{self._seed}\n{prompt}".encode()).digest()[:4], "big")
            if settings.temperature
            else 0,
            messages=tuple((m["role"], m["content"]) for m in messages) if self._engine.takes_messages else (),
        )

    def answer(self, messages: Sequence[Message]) -> GenerateResult:
        """The reply to a chat, from the journal or, when it was not foreseen, from the engine."""
        request = self.request(messages)
        with self._lock:
            if not self._context.journal.finished(request.key):
                self.unforeseen += 1
                answer_all(self._context, f"{self._spec.name} (one more turn)", [request], self._engine.generate)
            return GenerateResult(**self._context.journal.get(request.key))

    def generate(self, input: list[ChatMessage], tools: Any, tool_choice: Any, config: GenerateConfig) -> ModelOutput:
        """The reply as evalscope takes it; one that could not be had is empty, and `_record` says why."""
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


def plain_messages(messages: Sequence[ChatMessage]) -> list[Message]:
    """evalscope's messages as transformers' chat templates take them."""
    return [{"role": message.role, "content": message.text} for message in messages]


@dataclass(frozen=True, slots=True)
class Asked:
    """A sample as the benchmark's loader made it."""

    subset: str
    index: int
    """evalscope's own index of the sample within its subset."""
    item: str
    subject: str
    messages: list[Message]
    target: str


def run(engine: Engine, suite: Suite, context: Context) -> list[ItemRecord]:
    """Records of every item of `suite` under evalscope, task by task and seed by seed in the suite's order.

    Raises UsageError for a benchmark that evalscope does not have or cannot load.
    """
    plans = [
        (task, seed, api, _foresee(api, task, context, seed))
        for task in suite.tasks
        for seed in task.generation.seeds
        for api in [EngineAPI(engine, context, task, seed)]
    ]
    requests = [api.request(asked.messages) for _, _, api, samples in plans for asked in samples]
    answer_all(context, "generation", requests, engine.generate)
    records: list[ItemRecord] = []
    for task, seed, api, samples in plans:
        records += _judge(api, task, context, seed, samples)
    refuse_twins(records, {task.name: task.generation.item for task in suite.tasks})
    return records


def _config(api: EngineAPI, task: TaskSpec, context: Context, seed: int, work: str) -> TaskConfig:
    """Stock evalscope settings but for what the suite states."""
    settings = task.generation
    name = ITEMS_BENCHMARK if task.items else settings.evalscope
    own: dict[str, Any] = {"few_shot_num": settings.num_fewshot}
    if task.items:
        own |= {"local_path": str(task.items.path), "extra_params": {"extract": task.items.extract}}
    else:
        own |= {"local_path": str(context.mirror.folder(settings.dataset))}
        own |= {"subset_list": [settings.subset]} if settings.subset else {}
    return TaskConfig(
        model=api,
        model_id="plies",
        datasets=[name],
        dataset_args={name: own},
        dataset_hub=HubType.LOCAL,
        generation_config={"max_tokens": settings.max_new_tokens, "temperature": settings.temperature},
        limit=context.limit,
        eval_batch_size=1,
        seed=42 + seed,
        work_dir=work,
        no_timestamp=True,
        collect_perf=False,
    )


def _foresee(api: EngineAPI, task: TaskSpec, context: Context, seed: int) -> list[Asked]:
    """What evalscope will ask, by the benchmark's own loader."""
    with tempfile.TemporaryDirectory(prefix="plies-evalscope-") as work:
        config = _config(api, task, context, seed, work)
        name = config.datasets[0]
        try:
            adapter = get_benchmark(name, config)
        except ValueError as error:
            raise UsageError(
                f"task {task.name!r}: evalscope has no benchmark {name!r}", found=str(error).splitlines()[0][:200],
                mend="a name from `evalscope benchmark-info --list`",
            ) from error  # fmt: skip
        questions = _keep_questions(adapter)
        try:
            loaded = adapter.load_dataset()
        except (ValueError, KeyError, OSError, AssertionError) as error:
            raise UsageError(
                f"task {task.name!r}: evalscope cannot load {name!r}", found=" ".join(str(error).split())[:300],
                mend="check `subset:` and the dataset's folder in the mirror",
            ) from error  # fmt: skip
        return [_asked(sample, subset, questions, task) for subset, samples in loaded.items() for sample in samples]


def _keep_questions(adapter: DefaultDataAdapter) -> dict[tuple[str, int], str]:
    """Questions as they were before the prompt template, filled when the adapter loads."""
    questions: dict[tuple[str, int], str] = {}
    load = adapter.load

    def load_and_keep() -> Any:
        test, shots = load()
        for subset, samples in test.items():
            questions.update({(subset, sample.id): sample.input for sample in samples if isinstance(sample.input, str)})
        return test, shots

    adapter.load = load_and_keep
    return questions


def _asked(sample: Sample, subset: str, questions: dict[tuple[str, int], str], task: TaskSpec) -> Asked:
    messages = plain_messages(sample.input)
    fields = {
        "question": questions.get((subset, sample.id), messages[-1]["content"]),
        "choices": sample.choices or [],
        "target": sample.target,
        "subset": subset,
        "metadata": sample.metadata or {},
        **((sample.metadata or {}) if task.items else {}),
    }
    where = f"task {task.name!r}, generation"
    target = sample.target if isinstance(sample.target, str) else " | ".join(sample.target)
    return Asked(
        subset=subset,
        index=int(sample.id),
        item=item_name(task.generation.item, fields, where),
        subject=fill(task.generation.subject, fields, where) if task.generation.subject else "",
        messages=messages,
        target=target,
    )


def _judge(api: EngineAPI, task: TaskSpec, context: Context, seed: int, samples: Sequence[Asked]) -> list[ItemRecord]:
    """Run evalscope's task runner over the answers and read its reviews back."""
    with tempfile.TemporaryDirectory(prefix="plies-evalscope-") as work:
        with context.reporter.step(f"evalscope judges {task.name}"):
            run_task(_config(api, task, context, seed, work))
        reviews = {(subset, row["index"]): row for subset, row in _reviews(Path(work), {s.subset for s in samples})}
    return [_record(asked, reviews.get((asked.subset, asked.index)), api, task, seed) for asked in samples]


def _reviews(work: Path, subsets: set[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(subset, review) of every file under reviews/: evalscope names them `<benchmark>_<subset>.jsonl`."""
    for path in sorted((work / "reviews").rglob("*.jsonl")):
        subset = max((s for s in subsets if path.stem.endswith(s)), key=len, default=path.stem)
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                yield subset, json.loads(line)


def _record(asked: Asked, review: dict[str, Any] | None, api: EngineAPI, task: TaskSpec, seed: int) -> ItemRecord:
    reply = api.answer(asked.messages)
    settings = task.generation
    score = review["sample_score"]["score"] if review is not None else {}
    values = {
        name: float(value) for name, value in (score.get("value") or {}).items() if isinstance(value, int | float)
    }
    error = reply.error or ("" if review is not None else "evalscope gave no review of this item")
    if not error and settings.metric not in values and score.get("status", "success") != "success":
        why = score.get("explanation") or (score.get("metadata") or {}).get(settings.metric) or "no reason given"
        error = f"evalscope could not score the reply: {why}"
    if not error and settings.metric not in values:
        raise UsageError(
            f"task {task.name!r}, generation: evalscope gives no metric {settings.metric!r}",
            found=f"metrics: {', '.join(values) or 'none'}", mend="mend `metric:`",
        )  # fmt: skip
    if not error:
        refuse_scale(task.name, GENERATION, settings.metric, values[settings.metric])
    answer = "" if error else str(score.get("extracted_prediction") or "").strip()
    return ItemRecord(
        task=task.name,
        subject=asked.subject,
        item=asked.item,
        protocol=GENERATION,
        seed=seed,
        prompt=asked.messages[-1]["content"] if len(asked.messages) == 1 else _transcript(asked.messages),
        prompt_sha256=sha256_text(canonical_json(asked.messages)),
        status=status_of(reply, answer, error),
        score=0.0 if error else values[settings.metric],
        metric=settings.metric,
        scores={} if error else values,
        gold=asked.target,
        answer=answer,
        text=reply.text,
        finish_reason=reply.finish_reason if not reply.error else "",
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens,
        truncated_prompt_tokens=reply.truncated_tokens,
        fragile=reply.smallest_margin is not None and reply.smallest_margin <= api.rounding_margin,
        extractor=f"evalscope@{version('evalscope')}",
        error=error,
    )


def _transcript(messages: Sequence[Message]) -> str:
    return "\n".join(f"{m['role']}: {m['content']}" for m in messages)


def status_of(reply: GenerateResult, answer: str, error: str) -> Status:
    """Why the item has the score it has. An answer that was found counts as scored, even in a reply cut by its budget."""
    if reply.error and not reply.failed:
        return Status.REFUSED
    if error:
        return Status.ERRORED
    if not reply.text.strip():
        return Status.DEGENERATE
    if answer:
        return Status.SCORED
    if reply.finish_reason == "length":
        return Status.DEGENERATE if loops(reply.text) else Status.TRUNCATED
    return Status.UNPARSED


def loops(text: str) -> bool:
    """Whether the second half of a text repeats one period of at most `LOOP_TOKENS` words."""
    words = text.split()
    tail = words[len(words) // 2 :]
    if len(tail) < 2 * LOOP_TOKENS:
        return False
    return any(
        all(tail[i] == tail[i - period] for i in range(period, len(tail))) for period in range(1, LOOP_TOKENS + 1)
    )


@register_benchmark(
    BenchmarkMeta(
        name=ITEMS_BENCHMARK,
        pretty_name="items beside a plies suite",
        description="Items asked as they stand, judged by an exact match of what a regex extracts.",
        dataset_id="",
        metric_list=[EXACT_MATCH],
        few_shot_num=0,
        eval_split="test",
        prompt_template="{question}",
        extra_params={"extract": {"type": "str", "description": "Regex whose first group is the answer.", "value": ""}},
    )
)
class ItemsAdapter(DefaultDataAdapter):
    """Items of a suite's own; the question is asked as it stands."""

    def load(self) -> tuple[DatasetDict, None]:
        path = Path(self.dataset_id)
        samples = [
            Sample(
                id=index,
                group_id=index,
                input=item.question,
                target=item.target,
                metadata={"id": item.id, "subject": item.subject},
            )
            for index, item in enumerate(read_items(path)[: self.limit])
        ]
        return DatasetDict({"default": MemoryDataset(samples, name=path.stem)}), None

    def extract_answer(self, prediction: str, task_state: Any) -> str:
        found = re.findall(self.extra_params["extract"], prediction)
        return found[-1].strip() if found else ""

    def match_score(self, original_prediction: str, filtered_prediction: str, reference: str, task_state: Any) -> Score:
        """To the letter: evalscope's own `exact_match` does not see case, in which two answers may differ."""
        value = {EXACT_MATCH: float(filtered_prediction == reference)}
        return Score(
            value=value,
            main_score_name=EXACT_MATCH,
            extracted_prediction=filtered_prediction,
            prediction=original_prediction,
        )

"""The run wing, read top to bottom: resolve, open, guard, ask every rung, store.

One engine object serves all rungs. What is on disk already is not asked again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perplexity_lies.catalogue.ladder import ladder_of
from perplexity_lies.catalogue.mirror import Mirror, open_mirror
from perplexity_lies.catalogue.narrow import narrow
from perplexity_lies.catalogue.suite import load_suite
from perplexity_lies.catalogue.tasks import Suite, TaskSpec, rung_class
from perplexity_lies.checkpoint.lookup import Checkpoint, resolve
from perplexity_lies.digests import without_defaults
from perplexity_lies.engines import engine_of, open_engine
from perplexity_lies.engines.base import Engine, EngineOptions, ScoreResult
from perplexity_lies.engines.template import both_args, template_args, template_facts
from perplexity_lies.errors import MissingError, UsageError
from perplexity_lies.guard import guard, nats_by_key, weights_unchanged
from perplexity_lies.installed import require, versions
from perplexity_lies.options import RunOptions
from perplexity_lies.progress import Reporter
from perplexity_lies.protocols.base import Context
from perplexity_lies.protocols.hygiene import quarantine
from perplexity_lies.record.journal import Journal
from perplexity_lies.record.manifest import Manifest, SuiteFacts, TaskFacts
from perplexity_lies.record.records import Status
from perplexity_lies.record.store import Run, start_run
from perplexity_lies.rungs import RUNGS
from perplexity_lies.sandbox import Sandbox, find_sandbox

GUARD_PROMPTS = 2
"""First questions of the suite's own items that the guard asks beside its fixed texts."""


def evaluate(checkpoint: str, *, suite: str | Path, **options: Any) -> Run:
    """Run `suite` on `checkpoint` and return its run directory, OUT/runs/<suite>-<checkpoint>-<key>.

    `checkpoint` may be the address of a server, `http://HOST:PORT/v1#MODEL`; `options` are the fields of `RunOptions`.
    With `rungs`, what another call has asked on the other rungs stays.

    The same call again continues where the last one stopped, and only reads when it was complete.

    Raises UsageError, MissingError or CheckpointError, each with what to type next.
    """
    told = RunOptions(**options)
    require("plies evaluate runs a checkpoint", "eval")
    wanted = narrow(load_suite(suite), tasks=told.tasks, seeds=told.seeds, greedy=told.greedy)
    mirror = open_mirror(told.data)
    mirror.refuse_missing(wanted.datasets, f"plies data fetch {suite} {told.data or 'DIR'}")
    wanted = ladder_of(wanted, mirror) if told.ladder else wanted
    datasets = {name: mirror.digest(name) for name in wanted.datasets}
    named = resolve(
        checkpoint,
        allow_pickle=told.allow_pickle,
        trust_remote_code=told.trust_remote_code,
        tokenizer=told.tokenizer,
    )
    given = both_args(
        template_args(wanted.chat_template_args, f"suite {wanted.name!r}, `chat_template_args`"),
        template_args(told.chat_template_args, "--chat-template-args"),
    )
    engine = engine_of(told.engine, named)
    loading = EngineOptions(device=told.device, dtype=told.dtype, chat_template_args=given)
    sandbox = find_sandbox() if told.run_code else None
    run = _start(Path(told.out), named, wanted, datasets, told.limit, engine, loading)
    rungs = [rung for rung in told.wanted_rungs if wanted.tasks_on(rung)]
    if not rungs:
        raise UsageError(
            f"no task of suite {wanted.name!r} is asked on --rungs {told.rungs}",
            found=f"its rungs: {', '.join(rung for rung in RUNGS if wanted.tasks_on(rung))}",
            mend="leave --rungs out",
        )
    coding = _coding_tasks(wanted, rungs)
    with contextlib.closing(run), contextlib.closing(Reporter(quiet=told.quiet)) as reporter:
        if coding and sandbox is None:
            reporter.note(f"{', '.join(coding)}: needs --run-code; replies are written and stay unjudged until then")
        work = Work(run, named, wanted, mirror, told.limit, reporter, sandbox)
        waiting = [rung for rung in rungs if not work.settled(rung)]
        if run.manifest.complete and not waiting:
            reporter.note(f"{named.name}: complete in {run.path}")
        else:
            work.ask(engine, loading, waiting)
    return run


@dataclass(slots=True)
class Work:
    """A run that is under way."""

    run: Run
    checkpoint: Checkpoint
    suite: Suite
    mirror: Mirror
    limit: int | None
    reporter: Reporter
    sandbox: Sandbox | None = None
    """What runs code in replies; None without `--run-code`."""
    timings: dict[str, float] = field(default_factory=dict)

    def _has_records(self, rung: str) -> bool:
        return all(self.run.has_records(task.name, rung) for task in self.suite.tasks_on(rung))

    def settled(self, rung: str) -> bool:
        """Whether every task has its records, and none failed for a reason that another try might not meet."""
        if not self._has_records(rung):
            return False
        paths = [self.run.records_path(task.name, rung) for task in self.suite.tasks_on(rung)]
        return not any(record.status is Status.ERRORED for record in self.run.records(paths))

    def ask(self, engine_name: str, options: EngineOptions, rungs: Sequence[str]) -> None:
        """Check the metrics, load the engine, guard it, ask every task on each rung."""
        if self.sandbox is not None and _coding_tasks(self.suite, rungs):
            self.run.update(run_code=self.sandbox.describe())
        with self._step("checking the suite", "suite"):
            for rung in rungs:
                for task in self.suite.tasks_on(rung):
                    task.rungs[rung].check_metric(task, self.suite)
        with self._timed("load"), self._step("loading", "loading"):
            engine = open_engine(engine_name, self.checkpoint, options)
        self._same_settings(engine, options.chat_template_args)
        self._refuse_unscored(engine, rungs)
        with self._timed("guard"), self._step("guard", "guard"):
            self._guard(engine)
        for name, check in self.run.manifest.guard.items():
            if check.passed is False:
                self.reporter.note(f"{self.checkpoint.name}: the guard failed, {name}: {check.detail}")
        for rung in rungs:
            with self._timed(rung):
                self._ask_rung(engine, rung, tuple(rungs))
        self.run.update(
            complete=True,
            rungs=tuple(rung for rung in RUNGS if self.suite.tasks_on(rung) and self._has_records(rung)),
            timings={name: round(seconds, 3) for name, seconds in self.timings.items()},
        )

    def _ask_rung(self, engine: Engine, rung: str, together: tuple[str, ...]) -> None:
        journal = self.run.journal(RUNGS[rung].answers or rung)
        log = self.run.log_path(rung)
        try:
            self._guard_weights(engine, journal)
            context = Context(
                mirror=self.mirror,
                limit=self.limit,
                journal=journal,
                log=log,
                reporter=self.reporter,
                rounding=self.run.manifest.rounding,
                sandbox=self.sandbox,
                rungs=together,
            )
            with quarantine(log):
                records = rung_class(rung).ask(engine, self.suite, context)
        finally:
            journal.close()
        self.run.write_records(rung, records)
        self._guard_weights(engine)

    @contextlib.contextmanager
    def _timed(self, name: str) -> Any:
        started = time.monotonic()
        yield
        self.timings[f"{name}_s"] = time.monotonic() - started

    @contextlib.contextmanager
    def _step(self, title: str, log: str) -> Any:
        with self.reporter.step(f"{self.checkpoint.name}: {title}"), quarantine(self.run.log_path(log)):
            yield

    def _refuse_unscored(self, engine: Engine, rungs: Sequence[str]) -> None:
        """Raise MissingError where answers are to be ranked and the engine has no log-likelihoods of them."""
        ranked = [rung for rung in rungs if not RUNGS[rung].replies]
        replying = ",".join(rung for rung in RUNGS if RUNGS[rung].replies)
        if ranked and engine.why_no_score:
            raise MissingError(
                f"{self.checkpoint.name} cannot be asked under {RUNGS[ranked[0]].title}",
                found=engine.why_no_score,
                mend=f"the same with --rungs {replying}: there is then no hidden gap",
            )

    def _guard(self, engine: Engine) -> None:
        """The artifact guard's short form, once a run: what it found goes into the manifest."""
        if self.run.manifest.guard:
            return
        own = [task.items for task in self.suite.tasks if task.items is not None][:GUARD_PROMPTS]
        found = guard(engine, prompts=[source.load(self.mirror, 1)[0].question for source in own], beginnings_told=True)
        self.run.update(
            guard=found.describe(),
            fingerprint=tuple(dataclasses.asdict(result) for result in found.fingerprint),
            rounding=found.rounding,
        )

    def _guard_weights(self, engine: Engine, journal: Journal | None = None) -> None:
        """Hold the weights of now against those that the run began with and those that the journal's answers came from."""
        loaded = [ScoreResult(**result) for result in self.run.manifest.fingerprint]  # type: ignore[arg-type]
        if not loaded:
            return
        earlier = [nats_by_key(loaded)]
        if journal is not None:
            answers = [journal.get(result.key) for result in loaded if journal.finished(result.key)]
            earlier.append({answer["key"]: answer["loglikelihood_nats"] for answer in answers})
            if not answers:
                journal.add(loaded)
        found = weights_unchanged(engine, earlier)
        if found.passed is False:
            self.run.update(guard={**self.run.manifest.guard, **found.describe()})

    def _same_settings(self, engine: Engine, chat_template_args: str) -> None:
        """Fill the settings of a fresh run; refuse to continue one that began on another device or dtype."""
        template = template_facts(None if engine.takes_messages else engine.tokenizer, chat_template_args)
        now, began = {**engine.settings, **template}, self.run.manifest.settings
        if "chat_template_args_unused" in template:
            unused = template["chat_template_args_unused"]
            self.reporter.note(f"{self.checkpoint.name}: its chat template has no word of {unused}")
        keys = ("device", "dtype", "attention", "prompts")
        differing = {k: (began.get(k), now.get(k)) for k in keys if began and began.get(k) != now.get(k)}
        if differing:
            raise UsageError(
                f"run {self.run.path} began with other settings",
                found=[f"{k}: began with {was}, now {is_}" for k, (was, is_) in differing.items()],
                mend="give the same --device and --dtype, or another --out",
            )
        if not began:
            self.run.update(settings=now)


def _coding_tasks(suite: Suite, rungs: Sequence[str]) -> list[str]:
    """Tasks whose replies are judged by running them."""
    return [task.name for rung in rungs for task in suite.tasks_on(rung) if task.rungs[rung].runs_code]


def _start(
    out: Path,
    checkpoint: Checkpoint,
    suite: Suite,
    datasets: dict[str, str],
    limit: int | None,
    engine: str,
    options: EngineOptions,
) -> Run:
    """The run directory of this identity; options at their default are left out of it."""
    found = versions()
    identity = {
        "checkpoint": checkpoint.digest,
        "suite": suite.digest,
        "datasets": datasets,
        "limit": limit,
        "engine": {"engine": engine, **without_defaults(options)},
        "versions": found,
    }
    manifest = Manifest(
        checkpoint=checkpoint.describe(),
        suite=SuiteFacts(name=suite.name, title=suite.title, digest=suite.digest, limit=limit, narrowed=suite.narrowed),
        datasets=datasets,
        engine={"engine": engine, **dataclasses.asdict(options)},
        versions=found,
        tasks=tuple(_task_facts(task) for task in suite.tasks),
    )
    label = f"{suite.name}-{Path(checkpoint.name).name}"
    return start_run(out / "runs", identity=identity, manifest=manifest, label=label)


def _task_facts(task: TaskSpec) -> TaskFacts:
    rungs = {name: settings.facts(task) for name, settings in task.rungs.items()}
    return TaskFacts(
        name=task.name, title=task.title, series=task.series, length_tokens=task.length_tokens,
        rungs=rungs, subjects=task.subjects,
    )  # fmt: skip

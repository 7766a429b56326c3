"""The run wing, read top to bottom: resolve, open, ask under both protocols, store.

One engine object serves both protocols. What is on disk already is not asked again. Knows nothing of statistics.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any

from perplexity_lies.catalogue.items import read_items
from perplexity_lies.catalogue.mirror import Mirror, open_mirror
from perplexity_lies.catalogue.suite import Suite, load_suite
from perplexity_lies.checkpoint.lookup import Checkpoint, resolve
from perplexity_lies.doctor import require
from perplexity_lies.engines import engine_of, open_engine
from perplexity_lies.engines.base import Engine, EngineOptions, ScoreResult
from perplexity_lies.errors import MissingError, UsageError, nearest
from perplexity_lies.guard import guard, nats_by_key, weights_unchanged
from perplexity_lies.progress import Reporter
from perplexity_lies.protocols import runner
from perplexity_lies.protocols.base import Context, Rounding, plain
from perplexity_lies.protocols.hygiene import quarantine
from perplexity_lies.record.records import GENERATION, LOGLIKELIHOOD, PROTOCOLS, Status
from perplexity_lies.record.store import Journal, Run, start_run

VERSIONED = ("perplexity-lies", "torch", "transformers", "lm-eval", "evalscope", "datasets", "tokenizers")
"""Distributions whose versions a run depends on."""

GUARD_PROMPTS = 2
"""First questions of the suite's own items that the guard asks beside its fixed texts."""


def evaluate(
    checkpoint: str,
    *,
    suite: str | Path,
    out: str | Path = "plies-out",
    data: str | Path | None = None,
    limit: int | None = None,
    engine: str = "torch",
    tokenizer: str | None = None,
    protocol: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    quiet: bool = False,
) -> Run:
    """Run `suite` on `checkpoint` under both protocols and return its run directory, OUT/runs/<suite>-<checkpoint>-<key>.

    `checkpoint` may be the address of a server, `http://HOST:PORT/v1#MODEL`; `tokenizer` is then the directory or hub id of
    its tokenizer. `protocol` asks under one protocol alone: what another call has asked under the other one stays.

    The same call again continues where the last one stopped, and only reads when it was complete. `limit` keeps the first
    items of each task; `data` is an offline mirror of datasets in hub layout.

    Raises UsageError, MissingError or CheckpointError, each with what to type next.
    """
    if limit is not None and limit < 1:
        raise UsageError(
            f"--limit {limit} asks for no items", found="a limit is a number of items of each task", mend="--limit 50"
        )
    require("plies evaluate runs a checkpoint", "eval")
    wanted, mirror = load_suite(suite), open_mirror(data)
    datasets = {name: mirror.digest(name) for name in wanted.datasets}
    protocols = _protocols(protocol)
    named = resolve(checkpoint, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code, tokenizer=tokenizer)
    engine, options = engine_of(engine, named), EngineOptions(device=device, dtype=dtype)
    run = _start(Path(out), named, wanted, datasets, limit, engine, options)
    with contextlib.closing(run), contextlib.closing(Reporter(quiet=quiet)) as reporter:
        if run.complete and all(_settled(run, wanted, protocol) for protocol in protocols):
            reporter.note(f"{named.name}: complete in {run.path}")
        else:
            _ask(run, named, wanted, mirror, limit, engine, options, protocols, reporter)
    return run


def _protocols(asked: str | None) -> tuple[str, ...]:
    """Both, or the one that was asked for. Raises UsageError for another word."""
    if asked is None:
        return PROTOCOLS
    if asked not in PROTOCOLS:
        raise UsageError(
            f"there is no protocol {asked!r}{nearest(asked, PROTOCOLS)}",
            found=f"protocols: {', '.join(PROTOCOLS)}",
            mend="leave --protocol out for both",
        )
    return (asked,)


def _asked(run: Run, suite: Suite, protocol: str) -> bool:
    """Whether every task has its records under `protocol`."""
    return all(run.has_records(task.name, protocol) for task in suite.tasks)


def _settled(run: Run, suite: Suite, protocol: str) -> bool:
    """Whether it was asked, and no record failed for a reason that another try might not meet."""
    if not _asked(run, suite, protocol):
        return False
    return not any(record.status is Status.ERRORED for record in run.records() if record.protocol == protocol)


def _ask(
    run: Run, checkpoint: Checkpoint, suite: Suite, mirror: Mirror, limit: int | None, engine_name: str,
    options: EngineOptions, protocols: Sequence[str], reporter: Reporter,
) -> None:  # fmt: skip
    started = time.monotonic()
    timings: dict[str, float] = {}
    with reporter.step(f"{checkpoint.name}: loading"), quarantine(run.log_path("loading")):
        engine = open_engine(engine_name, checkpoint, options)
    timings["load_s"] = time.monotonic() - started
    _same_settings(run, engine)
    waiting = [protocol for protocol in protocols if not _settled(run, suite, protocol)]
    if LOGLIKELIHOOD in waiting and engine.why_no_score:
        raise MissingError(
            f"{checkpoint.name} cannot be asked under the log-likelihood protocol",
            found=engine.why_no_score,
            mend=f"the same with --protocol {GENERATION}: generation alone, and no hidden gap",
        )
    before = time.monotonic()
    with reporter.step(f"{checkpoint.name}: guard"), quarantine(run.log_path("guard")):
        _guard(run, engine, suite)
    for name, check in run.manifest["guard"].items():
        if check["passed"] is False:
            reporter.note(f"{checkpoint.name}: the guard failed, {name}: {check['detail']}")
    timings["guard_s"] = time.monotonic() - before
    for protocol in waiting:
        before = time.monotonic()
        journal = run.journal(protocol)
        try:
            _guard_weights(run, engine, journal)
            with reporter.step(f"{checkpoint.name}: starting {protocol}"), quarantine(run.log_path(protocol)):
                ask = runner(protocol)
            rounding = Rounding(**run.manifest["rounding"])
            context = Context(mirror, limit, journal, run.log_path(protocol), reporter, rounding)
            with quarantine(context.log):
                records = ask(engine, suite, context)
        finally:
            journal.close()
        run.write_records(protocol, records)
        timings[f"{protocol}_s"] = time.monotonic() - before
        _guard_weights(run, engine)
    run.update(
        complete=True,
        protocols=[protocol for protocol in PROTOCOLS if _asked(run, suite, protocol)],
        timings={name: round(seconds, 3) for name, seconds in timings.items()},
    )


def _guard(run: Run, engine: Engine, suite: Suite) -> None:
    """The artifact guard's short form, once a run: what it found goes into the manifest."""
    if "guard" in run.manifest:
        return
    own = [task.items.path for task in suite.tasks if task.items is not None][:GUARD_PROMPTS]
    found = guard(engine, prompts=[read_items(path)[0].question for path in own])
    run.update(
        guard=found.describe(),
        fingerprint=[asdict(result) for result in found.fingerprint],
        rounding={"nats": found.tolerance.nats, "margin": found.tolerance.margin},
    )


def _guard_weights(run: Run, engine: Engine, journal: Journal | None = None) -> None:
    """Hold the weights of now against those that the run began with and those that the journal's answers came from."""
    loaded = [ScoreResult(**result) for result in run.manifest["fingerprint"]]
    if not loaded:
        return
    earlier = [nats_by_key(loaded)]
    if journal is not None:
        answers = [journal.get(result.key) for result in loaded if journal.finished(result.key)]
        earlier.append({answer["key"]: answer["loglikelihood_nats"] for answer in answers})
        if not answers:
            journal.add([plain(result) for result in loaded])
    found = weights_unchanged(engine, earlier)
    if found.passed is False:
        run.update(guard={**run.manifest["guard"], **found.describe()})


def _start(
    out: Path,
    checkpoint: Checkpoint,
    suite: Suite,
    datasets: dict[str, str],
    limit: int | None,
    engine: str,
    options: EngineOptions,
) -> Run:
    asked = {"engine": engine, **asdict(options)}
    identity = {
        "checkpoint": checkpoint.digest,
        "suite": suite.digest,
        "datasets": datasets,
        "limit": limit,
        "asked": asked,
        "versions": _versions(),
    }
    manifest = {
        "checkpoint": checkpoint.describe(),
        "suite": {"name": suite.name, "title": suite.title, "digest": suite.digest, "limit": limit},
        "datasets": datasets,
        "settings": {},
        "asked": asked,
        "versions": _versions(),
        "tasks": [_task_facts(task) for task in suite.tasks],
        "timings": {},
    }
    return start_run(
        out / "runs", identity=identity, manifest=manifest, label=f"{suite.name}-{Path(checkpoint.name).name}"
    )


def _task_facts(task: Any) -> dict[str, Any]:
    ll, gen = task.loglikelihood, task.generation
    shots = f"{ll.num_fewshot}-shot"
    asked = "items of the suite" if task.items else ll.lm_eval or ll.lm_eval_file
    judged = "exact match of the extracted answer" if task.items else f"evalscope {gen.evalscope} {gen.subset}".strip()
    return {
        "name": task.name,
        "title": task.title,
        "loglikelihood": {"metric": ll.metric, "chance": ll.chance, "source": f"lm-eval, {asked}, {shots}"},
        "generation": {
            "metric": gen.metric,
            "chance": gen.chance,
            "source": f"{judged}, {gen.num_fewshot}-shot, at most {gen.max_new_tokens} tokens, temperature {gen.temperature:g}",
        },
    }


def _versions() -> dict[str, str]:
    found = {"python": python_version()}
    for name in VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _same_settings(run: Run, engine: Engine) -> None:
    """Fill the settings of a fresh run; refuse to continue one that began on another device or dtype."""
    now, began, keys = engine.settings, run.manifest["settings"], ("device", "dtype", "attention", "prompts")
    differing = {k: (began.get(k), now.get(k)) for k in keys if began and began.get(k) != now.get(k)}
    if differing:
        raise UsageError(
            f"run {run.path} began with other settings",
            found=[f"{k}: began with {was}, now {is_}" for k, (was, is_) in differing.items()],
            mend="give the same --device and --dtype, or another --out",
        )
    if not began:
        run.update(settings=now)

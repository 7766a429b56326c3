"""The artifact guard catches faults planted on purpose, names the right check, and leaves the unbroken twin alone."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
import yaml
from rich.console import Console

from perplexity_lies.api import compare
from perplexity_lies.checkpoint.lookup import resolve
from perplexity_lies.cli import main
from perplexity_lies.engines import generation, scoring
from perplexity_lies.engines.base import (
    Engine,
    EngineOptions,
    GenerateRequest,
    GenerateResult,
    Message,
    ScoreRequest,
    ScoreResult,
)
from perplexity_lies.engines.loading import kernels_for
from perplexity_lies.engines.torch import TorchEngine
from perplexity_lies.errors import MissingError
from perplexity_lies.guard import Guarded, guard, nats_by_key, weights_unchanged
from perplexity_lies.read.comparison import load_comparison
from perplexity_lies.read.gate import Outcome, decide
from perplexity_lies.run import evaluate
from reports import html, terminal

from .engines.conftest import FAMILIES, VOCABULARY

SPECIAL = ("<pad>", "<bos>", "<eos>", "<user>", "<assistant>")
LETTERS = ["\n", *(chr(code) for code in range(32, 127) if chr(code) not in "`^~|")]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
MOST_TOKENS = 18_000
"""Of the short form, where a token is a letter."""


def save_tokenizer(directory: Path) -> None:
    """A token for each letter, so that any reply reads back as its tokens."""
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *LETTERS))}
    assert len(vocabulary) == VOCABULARY
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = tokenizers.decoders.Fuse()
    tokenizer.add_special_tokens(list(SPECIAL))
    names = {"eos_token": "<eos>", "bos_token": "<bos>", "pad_token": "<pad>"}
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=256, **names)
    wrapped.chat_template = TEMPLATE
    wrapped.save_pretrained(directory)


@pytest.fixture(scope="session")
def family_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`family_checkpoint("mamba2", seed=1)` -> a directory with random weights, built once: do not write in it."""
    root = tmp_path_factory.mktemp("guarded")
    built: dict[tuple[str, int], Path] = {}

    def build(family: str, seed: int = 0) -> Path:
        if (family, seed) not in built:
            path = built[family, seed] = root / f"{family}-{seed}"
            with torch.random.fork_rng(devices=[]), kernels_for(torch.device("cpu")):
                torch.manual_seed(seed)
                model = transformers.AutoModelForCausalLM.from_config(FAMILIES[family]())
                for name, weight in model.named_parameters():
                    if name.endswith("conv_weight"):  # KDA's convolution begins as the identity: no state of it matters
                        torch.nn.init.normal_(weight)
            model.save_pretrained(path)
            save_tokenizer(path)
        return built[family, seed]

    return build


@pytest.fixture
def opened(family_checkpoint: Callable[..., Path]) -> Callable[..., TorchEngine]:
    """`opened("llama", dtype="bfloat16")` -> an engine of one's own, to break."""

    def open_one(family: str, *, seed: int = 0, dtype: str = "float32", kind: type[TorchEngine] = TorchEngine) -> Any:
        return kind(resolve(str(family_checkpoint(family, seed))), EngineOptions(device="cpu", dtype=dtype))

    return open_one


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def failed(found: Guarded) -> set[str]:
    return {check.name for check in found.failed}


# --- no false alarm -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_float32_passes_every_check(opened: Callable[..., TorchEngine], family: str) -> None:
    found = guard(opened(family))
    assert [(check.name, check.detail) for check in found.checks if check.passed is not True] == []
    assert len(found.checks) == 11


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["llama", "hybrid-kda"])
def test_lower_precision_raises_no_alarm(opened: Callable[..., TorchEngine], family: str, dtype: str) -> None:
    found = guard(opened(family, dtype=dtype))
    assert [(check.name, check.detail) for check in found.failed] == []
    assert sum(check.passed is True for check in found.checks) >= 9


def test_the_full_form_asks_more(opened: Callable[..., TorchEngine]) -> None:
    engine = opened("llama")
    count = [0]
    engine.model.register_forward_pre_hook(
        lambda _, __, given: count.__setitem__(0, count[0] + given["input_ids"].numel()), with_kwargs=True
    )
    short = guard(engine)
    spent, count[0] = count[0], 0
    full = guard(engine, full=True)
    assert not short.failed and not full.failed
    assert spent <= MOST_TOKENS < count[0]


# --- ten faults -----------------------------------------------------------------------------------------------------

Break = Callable[[pytest.MonkeyPatch, TorchEngine], None]


def around(model: Any, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the arguments of every forward pass."""
    forward = model.forward

    @functools.wraps(forward)
    def changed(*args: Any, **given: Any) -> Any:
        change(given)
        return forward(*args, **given)

    model.forward = changed


def mask_dropped_in_generation(_: pytest.MonkeyPatch, engine: TorchEngine) -> None:
    def drop(given: dict[str, Any]) -> None:
        if given["input_ids"].shape[1] == 1:
            given.pop("attention_mask", None)

    around(engine.model, drop)


def state_leaks_between_rows(_: pytest.MonkeyPatch, engine: TorchEngine) -> None:
    """The recurrent state of each row of a batch is, after a step, partly its neighbour's."""
    for layer in engine.model.model.layers:
        if hasattr(layer, "mixer"):
            forward = layer.mixer.forward

            def leaking(x: torch.Tensor, forward: Any = forward, **given: Any) -> Any:
                out, state = forward(x, **given)
                return out, dataclasses.replace(state, recurrent=(state.recurrent + state.recurrent.roll(1, 0)) / 2)

            layer.mixer.forward = leaking


def convolution_not_forked(patch: pytest.MonkeyPatch, _: TorchEngine) -> None:
    """A fork takes keys, values and recurrent states along and begins the convolution anew."""
    gather = scoring.gather

    def forgetting(state: Any, rows: Sequence[int]) -> Any:
        forked = gather(state, rows)
        for layer in forked.layers:
            if hasattr(layer, "state"):
                layer.state = dataclasses.replace(layer.state, conv=torch.zeros_like(layer.state.conv))
        return forked

    patch.setattr(scoring, "gather", forgetting)


def convolution_shared_by_forks(patch: pytest.MonkeyPatch, _: TorchEngine) -> None:
    """transformers writes its convolution states in place: a fork of one row that is no copy writes into its stem."""
    gather = scoring.gather

    def aliasing(state: Any, rows: Sequence[int]) -> Any:
        forked = gather(state, rows)
        for mine, theirs in zip(forked.layers, state.layers, strict=True):
            conv = getattr(theirs, "conv_states", None)
            if conv is not None and len(rows) == 1:
                mine.conv_states = conv
        return forked

    patch.setattr(scoring, "gather", aliasing)


def positions_begin_anew_after_a_fork(_: pytest.MonkeyPatch, engine: TorchEngine) -> None:
    def restart(given: dict[str, Any]) -> None:
        rows, width = given["input_ids"].shape
        if given.get("past_key_values") is not None and width > 1:
            given["position_ids"] = torch.arange(width).expand(rows, width)

    around(engine.model, restart)


def logits_shifted_in_the_scorer(patch: pytest.MonkeyPatch, _: TorchEngine) -> None:
    read = scoring._read
    patch.setattr(scoring, "_read", lambda chunks, reads: read([torch.cat(list(chunks)).roll(1, 0)], reads))


def logits_shifted_in_the_model(_: pytest.MonkeyPatch, engine: TorchEngine) -> None:
    engine.model.get_output_embeddings().register_forward_hook(lambda _, __, logits: logits.roll(1, 1))


def end_token_ignored(_: pytest.MonkeyPatch, engine: TorchEngine) -> None:
    engine.end_ids = frozenset()


class LeftPadding(TorchEngine):
    """Generation as a static batch, padded on the left with nothing to tell the recurrence so."""

    def generate(self, requests: Sequence[GenerateRequest], *_: Any) -> Iterator[list[GenerateResult]]:
        rows = [self._row(request) for request in requests]
        width, state = max(len(row.prompt_ids) for row in rows), None
        tokens = torch.tensor([[2] * (width - len(row.prompt_ids)) + list(row.prompt_ids) for row in rows])
        with torch.inference_mode():
            while any(row.finish_reason is None for row in rows):
                output = self.model(input_ids=tokens, past_key_values=state, use_cache=True)
                state, tokens = output.past_key_values, output.logits[:, -1].argmax(-1, keepdim=True)
                for row, token in zip(rows, tokens[:, 0].tolist(), strict=True):
                    if row.finish_reason is None:
                        generation.advance(row, token, self.tokenizer, self.end_ids, None)
        yield [generation.result_of(row, self.tokenizer, self.context_tokens) for row in rows]


class TemplateTwice(TorchEngine):
    """A rendered chat is taken for a message and rendered again."""

    def render_chat(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        once = super().render_chat(messages, add_generation_prompt)
        return super().render_chat([{"role": "user", "content": once}], add_generation_prompt)


class MixingCache(TorchEngine):
    """A prefix cache that looks at the beginning of a prompt only, and hands out what another prompt left there."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.first: dict[str, str] = {}

    def generate(self, requests: Sequence[GenerateRequest], *rest: Any) -> Iterator[list[GenerateResult]]:
        for request in requests:
            prompt = self.first.setdefault(request.prompt[:60], request.prompt)
            for batch in super().generate([dataclasses.replace(request, prompt=prompt)], *rest):
                yield [dataclasses.replace(result, key=request.key) for result in batch]


class StaleCache(TorchEngine):
    """Log-likelihoods are kept by their tokens, whatever the weights have become."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.kept: dict[str, ScoreResult] = {}

    def score(self, requests: Sequence[ScoreRequest], *rest: Any) -> Iterator[list[ScoreResult]]:
        fresh = [request for request in requests if request.key not in self.kept]
        self.kept |= {result.key: result for batch in super().score(fresh, *rest) for result in batch}
        yield [self.kept[request.key] for request in requests]


FAULTS: dict[str, tuple[str, Break | type[TorchEngine], str]] = {
    "attention mask dropped in generation": ("llama", mask_dropped_in_generation, "padding"),
    "left padding fed to the recurrence": ("pure-kda", LeftPadding, "padding"),
    "state leaking between rows": ("hybrid-kda", state_leaks_between_rows, "batch size"),
    "convolution state not forked": ("hybrid-kda", convolution_not_forked, "shared prefixes"),
    "convolution state not forked, in place": ("qwen3_next", convolution_shared_by_forks, "prompt isolation"),
    "wrong position ids after a fork": ("llama", positions_begin_anew_after_a_fork, "shared prefixes"),
    "wrong position ids after a fork, hybrid": ("hybrid-kda", positions_begin_anew_after_a_fork, "shared prefixes"),
    "logits shifted by one in the scorer": ("llama", logits_shifted_in_the_scorer, "scored position"),
    "logits shifted by one in the model": ("llama", logits_shifted_in_the_model, "cached against full"),
    "chat template applied twice": ("llama", TemplateTwice, "chat template"),
    "end token ignored": ("llama", end_token_ignored, "end token"),
    "prefix cache mixing two prompts": ("hybrid-kda", MixingCache, "prompt isolation"),
}
"""Fault -> the family it is planted in, what plants it, and the check that must name it."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(
    opened: Callable[..., TorchEngine], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    family, plant, check = FAULTS[fault]
    if isinstance(plant, type):
        engine = opened(family, kind=plant)
    else:
        engine = opened(family)
        plant(monkeypatch, engine)
    assert check in failed(guard(engine)), [found.detail for found in guard(engine).checks]


def test_log_likelihoods_of_other_weights_are_caught(opened: Callable[..., TorchEngine]) -> None:
    """A cache that outlives its weights: the engine says of the new ones what it has kept of the old."""
    engine = opened("llama", kind=StaleCache)
    assert not guard(engine).failed
    engine.model.load_state_dict(opened("llama", seed=1).model.state_dict())
    assert "weights" in failed(guard(engine))


def test_weights_that_change_after_loading_are_caught(opened: Callable[..., TorchEngine]) -> None:
    engine = opened("hybrid-kda")
    loaded = nats_by_key(guard(engine).fingerprint)
    assert weights_unchanged(engine, [loaded]).passed
    with torch.no_grad():
        engine.model.get_output_embeddings().weight[5] += 0.5
    assert weights_unchanged(engine, [loaded]).passed is False


# --- engines that do not show their model ---------------------------------------------------------------------------


class Opaque(Engine):
    """Another engine, of which only the interface is seen."""

    def __init__(self, inner: TorchEngine, why_no_score: str = "") -> None:
        self.inner, self.tokenizer, self.silent = inner, inner.tokenizer, why_no_score

    @property
    def context_tokens(self) -> int:
        return self.inner.context_tokens

    @property
    def settings(self) -> dict[str, Any]:
        return {"engine": "opaque"}

    @property
    def has_chat_template(self) -> bool:
        return self.inner.has_chat_template

    @property
    def why_no_score(self) -> str:
        return self.silent

    def score(self, requests: Sequence[ScoreRequest], *rest: Any) -> Iterator[list[ScoreResult]]:
        if self.silent:
            raise MissingError("no log-likelihoods", found=self.silent)
        return self.inner.score(requests, *rest)

    def generate(self, requests: Sequence[GenerateRequest], *rest: Any) -> Iterator[list[GenerateResult]]:
        return self.inner.generate(requests, *rest)

    def encode(self, text: str, add_special_tokens: bool | None = None) -> list[int]:
        return self.inner.encode(text, add_special_tokens)

    def render_chat(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        return self.inner.render_chat(messages, add_generation_prompt)


def test_an_engine_without_its_model_is_asked_what_it_can_be_asked(opened: Callable[..., TorchEngine]) -> None:
    found = {check.name: check for check in guard(Opaque(opened("hybrid-kda"))).checks}
    assert [check.detail for check in found.values() if check.passed is False] == []
    unchecked = {name for name, check in found.items() if check.passed is None}
    assert (
        {"scored position", "cached against full"}
        <= unchecked
        <= {"scored position", "cached against full", "end token"}
    )
    assert "does not show its model" in found["scored position"].detail


def test_an_engine_without_log_likelihoods_is_asked_for_replies(opened: Callable[..., TorchEngine]) -> None:
    found = {check.name: check for check in guard(Opaque(opened("llama"), "the server has none")).checks}
    assert [check.detail for check in found.values() if check.passed is False] == []
    assert found["batch size"].passed and found["prompt isolation"].passed and found["chat template"].passed
    assert "no log-likelihoods" in found["negative control"].detail


@pytest.mark.parametrize(
    ("family", "plant", "check"),
    [
        ("hybrid-kda", state_leaks_between_rows, "batch size"),
        ("hybrid-kda", convolution_not_forked, "shared prefixes"),
        ("llama", mask_dropped_in_generation, "padding"),
        ("llama", logits_shifted_in_the_scorer, "negative control"),
        ("llama", TemplateTwice, "chat template"),
        ("llama", MixingCache, "restart"),
    ],
)
def test_faults_show_without_the_model(
    opened: Callable[..., TorchEngine], monkeypatch: pytest.MonkeyPatch, family: str, plant: Any, check: str
) -> None:
    engine = opened(family, kind=plant) if isinstance(plant, type) else opened(family)
    if not isinstance(plant, type):
        plant(monkeypatch, engine)
    assert check in failed(guard(Opaque(engine)))


def test_an_end_token_is_looked_for_where_a_reply_comes_to_one(opened: Callable[..., TorchEngine]) -> None:
    engine = opened("gpt2", seed=1)
    found = {check.name: check for check in guard(Opaque(engine)).checks}
    assert found["end token"].passed, "this seed must have replies that end"
    engine.end_ids = frozenset()
    assert "end token" in failed(guard(Opaque(engine)))


# --- what a failed guard does ---------------------------------------------------------------------------------------


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """One task of items of its own."""
    asked = [
        {"id": f"i{i}", "subject": "", "question": f"{i} and {i + 1} are", "choices": [f"{2 * i + 1}", "none"], "gold": 0,
         "target": f"{2 * i + 1}"}
        for i in range(4)
    ]  # fmt: skip
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in asked))
    task = {"name": "own", "items": "items.jsonl", "extract": r"(\d+)", "max_new_tokens": 4, "chat_template": False}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"name": "own", "tasks": [task]}))
    return tmp_path / "own.yaml"


def printed(comparison: Any) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(terminal.render(comparison))
    return console.export_text()


def test_a_failed_guard_flags_the_comparison(
    family_checkpoint: Callable[..., Path], suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, student = str(family_checkpoint("llama")), str(family_checkpoint("hybrid-kda"))
    out = tmp_path / "out"
    sound = compare(teacher, student, suite=suite, out=out, device="cpu", quiet=True)
    assert sound.guard_failures == () and "guard failed" not in printed(sound)
    assert "not a finding" not in sound.headline() and 'id="guard"' not in html.render(sound)
    assert all(check["passed"] is not False for check in sound.provenance["student"]["guard"].values())

    convolution_not_forked(monkeypatch, None)  # type: ignore[arg-type]
    broken = compare(teacher, student, suite=suite, out=tmp_path / "broken", device="cpu", quiet=True)
    assert {(failure.side, failure.check) for failure in broken.guard_failures} >= {("student", "shared prefixes")}
    assert {failure.side for failure in broken.guard_failures} == {"student"}
    first = broken.cautions[: len(broken.guard_failures)]
    assert {caution.kind for caution in first} == {"guard"} and "shared prefixes" in " ".join(c.text for c in first)
    assert "not a finding" in broken.headline() and "pp" not in broken.headline()
    verdict = decide(broken, 100)
    assert verdict.outcome is Outcome.INCONCLUSIVE and "student: shared prefixes" in verdict.reason
    assert "guard" not in decide(sound, 100).reason
    assert "the guard failed" in printed(broken).lower() and "student: shared prefixes" in printed(broken)
    page = html.render(load_comparison(broken.write(tmp_path / "comparison.json")))
    assert 'id="guard"' in page and "from scored alone" in page
    assert '<dl class="tiles">' not in page and '<dl class="tiles">' in html.render(sound)


def test_a_run_is_not_continued_with_other_weights_unseen(
    family_checkpoint: Callable[..., Path], suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal carries its fingerprint: answers of other weights are not taken for this checkpoint's."""
    asked = {"suite": suite, "device": "cpu", "quiet": True}
    run = evaluate(str(family_checkpoint("llama")), out=tmp_path, **asked)
    other = evaluate(str(family_checkpoint("llama", seed=1)), out=tmp_path, **asked)
    assert run.path != other.path
    before = (run.path / "manifest.json").read_text()
    shutil.rmtree(run.path / "records")
    again = evaluate(str(family_checkpoint("llama")), out=tmp_path, **asked)
    timeless = {key: value for key, value in again.manifest.items() if key != "timings"}
    assert timeless == {key: value for key, value in json.loads(before).items() if key != "timings"}

    shutil.rmtree(run.path / "records")
    shutil.copytree(other.path / "responses", run.path / "responses", dirs_exist_ok=True)
    mixed = evaluate(str(family_checkpoint("llama")), out=tmp_path, **asked)
    assert mixed.manifest["guard"]["weights"]["passed"] is False


def test_doctor_prints_what_it_measured_and_exits_by_it(
    family_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["doctor", str(family_checkpoint("hybrid-kda")), "--device", "cpu"]
    with pytest.raises(SystemExit) as sound:
        main(command)
    said = capsys.readouterr().out
    assert sound.value.code == 0 and "The guard passed." in said and "negative control" in said
    convolution_not_forked(monkeypatch, None)  # type: ignore[arg-type]
    with pytest.raises(SystemExit) as broken:
        main(command)
    said = capsys.readouterr().out
    assert broken.value.code == 1 and "FAILED" in said and "shared prefixes" in said


def test_doctor_of_nothing_usable_is_a_plain_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as code:
        main(["doctor", str(tmp_path / "none")])
    assert code.value.code in (2, 3) and "Traceback" not in capsys.readouterr().err

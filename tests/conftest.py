"""What every test shares: no network, and tiny checkpoints with random weights in the shape of real ones."""

from __future__ import annotations

import importlib
import ipaddress
import json
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SHARED = Path(__file__).parents[2] / "shared"
"""Pretrained checkpoints and benchmark items, where a machine has them; tests that use it skip where it is absent."""

TINY_CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2, "max_position_embeddings": 512},
    "qwen3": {"num_key_value_heads": 2, "max_position_embeddings": 512, "head_dim": 8},
    "gpt_neox": {"max_position_embeddings": 512},
    "gpt2": {"n_positions": 512},
    "mamba": {},
}
"""`model_type` -> what it adds to the common sizes below."""

TINY_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL_TOKENS = ("<|end|>", "<|begin|>", "<|user|>", "<|assistant|>", "<|system|>")
"""Ids 0 to 4; `<|end|>` is the end-of-sequence token."""


def _is_local(address: object) -> bool:
    if not isinstance(address, tuple):  # a Unix socket's path
        return True
    host = str(address[0])
    if host in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


SMALL_PROBES = {
    "as_a_run": {
        "SHORT_REPLIES_TOKENS": (9, 4, 1), "LONG_REPLY_TOKENS": 12, "LONG_PROMPT_TOKENS": 130, "CUT_REPLY_TOKENS": 6,
    },
    "stops": {"STOP_REPLY_TOKENS": 8},
    "sampling": {"SAMPLED_TOKENS": 6},
}  # fmt: skip
"""Constants of the guard's modules that cost most of its time, as tests of other things have them."""


@pytest.fixture(scope="session", autouse=True)
def whole_probes() -> Iterator[dict[str, dict[str, Any]]]:
    """What the guard's probes are in a run. Tests get `SMALL_PROBES`; the guard's own tests put these back."""
    modules = {name: importlib.import_module(f"perplexity_lies.guard.{name}") for name in SMALL_PROBES}
    whole = {name: {key: getattr(modules[name], key) for key in small} for name, small in SMALL_PROBES.items()}
    with pytest.MonkeyPatch.context() as patch:
        for name, small in SMALL_PROBES.items():
            for key, value in small.items():
                patch.setattr(modules[name], key, value)
        yield whole


@pytest.fixture(autouse=True)
def network_attempts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Hosts that the test tried to reach. Each attempt fails, and the test with it unless it empties the list."""
    attempts: list[str] = []
    connect, connect_ex, getaddrinfo = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def refuse(address: object) -> None:
        attempts.append(str(address))
        raise ConnectionRefusedError(f"tests have no network: {address}")

    def guarded_connect(self: socket.socket, address: Any) -> None:
        if not _is_local(address):
            refuse(address)
        connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> int:
        if not _is_local(address):
            refuse(address)
        return connect_ex(self, address)

    def guarded_getaddrinfo(host: Any, *rest: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name is not None and not _is_local((name,)):
            attempts.append(str(name))
            raise socket.gaierror(socket.EAI_NONAME, f"tests have no network: {name}")
        return getaddrinfo(host, *rest, **options)

    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    monkeypatch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_getaddrinfo)
    yield attempts
    assert not attempts, f"this test reached for the network: {attempts}"


def _save_tokenizer(directory: Path, *, chat_template: bool) -> int:
    """A byte-level tokenizer (any text round-trips, one token a byte); returns its size."""
    import tokenizers
    import transformers

    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *alphabet))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", bos_token="<|begin|>", model_max_length=512
    )
    if chat_template:
        wrapped.chat_template = TINY_TEMPLATE
    wrapped.save_pretrained(directory)
    return len(vocabulary)


def build_tiny_checkpoint(
    directory: Path, model_type: str = "llama", *, seed: int = 0, chat_template: bool = False, dtype: str = "float32"
) -> Path:
    """Two layers of width 32 with random weights, as `save_pretrained` writes them; torch's random state stays."""
    import torch
    import transformers

    directory.mkdir(parents=True, exist_ok=True)
    vocabulary = _save_tokenizer(directory, chat_template=chat_template)
    sizes = {"vocab_size": vocabulary, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    ends = {"eos_token_id": 0, "bos_token_id": 1, "pad_token_id": 0, "tie_word_embeddings": False}
    config = transformers.AutoConfig.for_model(
        model_type, num_attention_heads=4, initializer_range=0.2, **sizes, **ends, **TINY_CONFIGS[model_type]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config)
    model.to(getattr(torch, dtype)).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny_checkpoint("qwen3", seed=1, chat_template=True)` -> a directory, built once: do not write in it."""
    root = tmp_path_factory.mktemp("checkpoints")
    built: dict[str, Path] = {}

    def build(model_type: str = "llama", **options: Any) -> Path:
        key = json.dumps([model_type, options], sort_keys=True)
        if key not in built:
            built[key] = build_tiny_checkpoint(root / f"{model_type}-{len(built)}", model_type, **options)
        return built[key]

    return build


@pytest.fixture(scope="session")
def tiny_llama(tiny_checkpoint: Callable[..., Path]) -> Path:
    """A tiny Llama directory without chat template: do not write in it."""
    return tiny_checkpoint("llama")


@pytest.fixture
def llama_copy(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy of `tiny_llama` to damage."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "checkpoint"))


@pytest.fixture(scope="session")
def shared_models() -> Path:
    """Directory of small pretrained checkpoints; skips where the machine has none."""
    if not (SHARED / "models").is_dir():
        pytest.skip("no ../shared/models on this machine")
    return SHARED / "models"

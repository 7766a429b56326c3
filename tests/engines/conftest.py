"""Tiny random models of many families, built from transformers' own configurations, and the slow references beside them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers

from perplexity_lies.engines.base import ScoreRequest
from perplexity_lies.engines.device import cpu_threads
from perplexity_lies.engines.loading import kernels_for

VOCABULARY = 97
CONTEXT_TOKENS = 256
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT_TOKENS,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = {**COMMON, "num_key_value_heads": 2}
HYBRID = {**GROUPED, "head_dim": 8, "num_hidden_layers": 4}

SPECIAL = ("<pad>", "<bos>", "<eos>", "<user>", "<assistant>")
LETTERS = ["\n", *(chr(code) for code in range(32, 127) if chr(code) not in "`^~|")]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def _hybrid(**layers: Any) -> Any:
    from distill.students import hybrid

    hybrid.register()
    return hybrid.HybridConfig(**HYBRID, **layers)


FAMILIES: dict[str, Callable[[], Any]] = {
    "qwen3": lambda: transformers.Qwen3Config(**GROUPED, head_dim=8),
    "llama": lambda: transformers.LlamaConfig(**GROUPED),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**COMMON),
    "mistral-window": lambda: transformers.MistralConfig(**GROUPED, sliding_window=24),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, n_positions=CONTEXT_TOKENS, initializer_range=0.2,
        bos_token_id=1, eos_token_id=2,
    ),
    "gpt_neo": lambda: transformers.GPTNeoConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_layers=4, num_heads=4, attention_types=[[["global", "local"], 2]],
        window_size=16, max_position_embeddings=CONTEXT_TOKENS, initializer_range=0.2, bos_token_id=1, eos_token_id=2,
    ),
    "mamba2": lambda: transformers.Mamba2Config(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=3, state_size=16, expand=2, head_dim=16, num_heads=4,
        n_groups=1, chunk_size=16, initializer_range=0.2, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    ),
    "qwen3_next": lambda: transformers.Qwen3NextConfig(
        **GROUPED, head_dim=8, linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=8,
        linear_value_head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
        shared_expert_intermediate_size=16, layer_types=["linear_attention", "full_attention", "linear_attention"],
    ),
    "hybrid-mamba2": lambda: _hybrid(layer_types=["mamba2", "full_attention", "mamba2", "swa"], sliding_window=12),
    "hybrid-mixture": lambda: _hybrid(
        layer_types=["kda", "gdn", "gla", "swa"], sliding_window=24, attention_sinks=2, output_norm=True,
    ),
    "hybrid-kda": lambda: _hybrid(layer_types=["kda", "full_attention", "kda", "kda"]),
    "pure-kda": lambda: _hybrid(layer_types=["kda"] * 4),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with cpu_threads(1):
        yield


@pytest.fixture(scope="session")
def random_model() -> Callable[[str], Any]:
    """`random_model("qwen3")` -> a model in eval mode with random weights, the same at every call."""
    built: dict[str, Any] = {}

    def build(family: str) -> Any:
        if family not in built:
            with torch.random.fork_rng(devices=[]), kernels_for(torch.device("cpu")):  # fla may be installed, for a GPU
                torch.manual_seed(0)
                built[family] = transformers.AutoModelForCausalLM.from_config(FAMILIES[family]()).eval()
        return built[family]

    return build


@pytest.fixture(params=sorted(FAMILIES))
def model(request: pytest.FixtureRequest, random_model: Callable[[str], Any]) -> Any:
    """Each family in turn."""
    return random_model(request.param)


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


@torch.no_grad()
def score_alone(model: Any, request: ScoreRequest, context_tokens: int) -> tuple[float, bool]:
    """The definition: one row, the whole sequence at once, truncated from the left as lm-eval truncates."""
    ids = (*request.context_ids, *request.continuation_ids)[-(context_tokens + 1) :]
    n = min(len(request.continuation_ids), len(ids) - 1)
    logprobs = model(input_ids=torch.tensor([ids[:-1]]), use_cache=False).logits[0].double().log_softmax(-1)[-n:]
    wanted = torch.tensor(ids[-n:])
    return float(logprobs.gather(-1, wanted[:, None]).sum()), bool((logprobs.argmax(-1) == wanted).all())


@torch.no_grad()
def generate_alone(model: Any, prompt: tuple[int, ...], max_new_tokens: int, end_ids: list[int]) -> list[int]:
    """HF `generate`, greedy, one row."""
    ids = torch.tensor([prompt])
    whole = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=end_ids,
        pad_token_id=0,
    )  # fmt: skip
    found: list[int] = whole[0, len(prompt) :].tolist()
    return found


def few_shot_requests(seed: int = 0) -> list[ScoreRequest]:
    """Requests as a suite makes them: headers, items below them, choices of one to a hundred tokens, some beginning alike."""
    rng = random.Random(seed)
    draw = lambda n: tuple(rng.randrange(3, VOCABULARY) for _ in range(n))  # noqa: E731
    requests = []
    for header in (draw(60), draw(25), ()):
        for _ in range(4):
            context = header + draw(rng.randrange(1, 50))
            long = draw(100)
            choices = [draw(1), draw(1), draw(rng.randrange(2, 9)), long, long[:40], long[:1]]
            requests += [ScoreRequest(context_ids=context, continuation_ids=choice) for choice in choices]
    over_long = draw(CONTEXT_TOKENS + 40)
    requests += [ScoreRequest(context_ids=over_long, continuation_ids=draw(n)) for n in (1, 30)]
    requests.append(ScoreRequest(context_ids=(1,), continuation_ids=draw(12)))
    rng.shuffle(requests)
    return requests

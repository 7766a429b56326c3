"""Random checkpoints of realistic shape for the speed benchmarks, with a tokenizer trained on the benchmark's own texts.

Weights are random: speed and memory do not depend on what a checkpoint knows. `eos_token_id` lists enough ids that greedy
replies end after about a hundred tokens, some early, some never: the spread that makes static batches wait.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "30m": {
        "hidden_size": 384, "num_hidden_layers": 10, "intermediate_size": 1152, "num_attention_heads": 6,
        "num_key_value_heads": 2, "head_dim": 64,
    },
    "tiny-vocabulary-152k": {
        "hidden_size": 64, "num_hidden_layers": 4, "intermediate_size": 192, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16,
    },
    "qwen3-0.6b": {
        "hidden_size": 1024, "num_hidden_layers": 28, "intermediate_size": 3072, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128,
    },
}  # fmt: skip
KEPT = {10: (0, 4, 8), 4: (0,), 28: (0, 2, 6, 11, 13, 18, 21)}
"""Layers of the hybrid that keep softmax attention, by depth."""


def build(folder: Path, shape: str, *, hybrid: bool, vocabulary: int, hub: Path, dtype: str = "float32") -> Path:
    """A checkpoint directory of random weights, the same at every call; built once, and again where the code has changed."""
    marker, source = folder / "built-from", _source()
    if marker.exists() and marker.read_text() == source:
        return folder
    import torch
    import transformers

    tokenizer = _tokenizer(hub)
    rng = random.Random(0)
    ends = [0, *rng.sample(range(3, min(vocabulary, len(tokenizer))), max(1, min(vocabulary, len(tokenizer)) // 80))]
    common = {
        **SHAPES[shape], "vocab_size": vocabulary, "max_position_embeddings": 4096, "tie_word_embeddings": True,
        "eos_token_id": 0, "bos_token_id": None, "pad_token_id": 0, "initializer_range": 0.05,
    }  # fmt: skip
    if hybrid:
        from distill.students import hybrid as students

        students.register()
        layers = common["num_hidden_layers"]
        types = ["full_attention" if i in KEPT[layers] else "kda" for i in range(layers)]
        config: Any = students.HybridConfig(**common, layer_types=types)
    else:
        config = transformers.Qwen3Config(**common)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype))
    model.generation_config = transformers.GenerationConfig(eos_token_id=ends, pad_token_id=0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    marker.write_text(source)
    return folder


def _source() -> str:
    """Digest of the code that makes a checkpoint."""
    import distill.students

    files = [Path(__file__), *sorted(Path(distill.students.__file__).parent.glob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _tokenizer(hub: Path) -> Any:
    import tokenizers
    import transformers

    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=32_000, special_tokens=["<|end|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )  # fmt: skip
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.train_from_iterator(_texts(hub), trainer)
    # No chat template: with transformers 5, evalscope 1.14.1 cannot apply one to its own messages.
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")


def _texts(hub: Path) -> Iterator[str]:
    import datasets

    sources = [
        ("openai/gsm8k", "main", "train", ("question", "answer")),
        ("cais/mmlu", "all", "test", ("question",)),
        ("Rowan/hellaswag", "default", "validation", ("ctx",)),
        ("allenai/ai2_arc", "ARC-Challenge", "train", ("question",)),
    ]
    for name, config, split, fields in sources:
        for row in datasets.load_dataset(str(hub / name), config, split=split):
            yield from (str(row[field]) for field in fields)

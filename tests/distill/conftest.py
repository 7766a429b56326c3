"""What the tests of `distill` share: one thread, torch's random state put back, and models of a few thousand weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from transformers import PreTrainedTokenizerBase, Qwen3ForCausalLM

from distill.miniature.teacher import new_teacher
from distill.miniature.tokenizer import build_tokenizer
from distill.recipe.settings import StudentConfig, TeacherConfig
from distill.students.convert import assembled, new_student
from distill.students.hybrid import HybridForCausalLM
from suites.miniature.world import vocabulary

TINY_TEACHER = TeacherConfig(
    layers=3,
    hidden_size=32,
    intermediate_size=48,
    heads=4,
    kv_heads=2,
    head_dim=8,
    rope_theta=10000.0,
    max_positions=256,
)


@pytest.fixture(autouse=True)
def torch_state() -> Iterator[None]:
    """One thread and a seeded generator inside the test, everything as before after it."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.set_num_threads(1)
        torch.manual_seed(0)
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def teacher_config() -> TeacherConfig:
    """The shape of `teacher`."""
    return TINY_TEACHER


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """The miniature world's tokenizer."""
    return build_tokenizer(vocabulary())


@pytest.fixture
def teacher(tokenizer: PreTrainedTokenizerBase) -> Qwen3ForCausalLM:
    """A random teacher of three layers, its weights large enough that predictions differ."""
    model = new_teacher(TINY_TEACHER, tokenizer, seed=0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)
    return model


@pytest.fixture
def make_hybrid(teacher: Qwen3ForCausalLM) -> Callable[..., HybridForCausalLM]:
    """`make_hybrid(kept=(1,))` -> a student of `teacher` whose mixers' weights are far from their starting values."""

    def make(kept: tuple[int, ...] = (1,), mixer: str | tuple[str, ...] = "kda") -> HybridForCausalLM:
        config = StudentConfig(mixer=mixer, chunk_size=4, sliding_window=4, attention_sinks=2)
        student = new_student(teacher, 1, config)
        with torch.no_grad():
            for name, parameter in student.named_parameters():
                if ".mixer." in name:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
        return assembled(teacher, student, kept).eval()

    return make


@pytest.fixture(scope="session")
def toy() -> list[str]:
    """Overlays that make the bundled recipe's student in seconds: two rows, two steps a stage."""
    steps = (f"stage{kind}.steps=2" for kind in ("1", "2", "3a", "3b"))
    return ["name=toy", "student.selection_batches=1", "defaults.rows=2", *steps]

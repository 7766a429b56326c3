"""HybridForCausalLM: the transformers conventions, packing, padding, caches, round trips."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedTokenizerBase

from distill.export import export_checkpoint, load_exported
from distill.students.hybrid import HybridConfig, HybridForCausalLM, MixerCacheLayer, register
from perplexity_lies.engines.loading import STUDENTS

MakeHybrid = Callable[..., HybridForCausalLM]
PLANS = {
    "kda": ((), "kda"),
    "kda, one kept": ((1,), "kda"),
    "gdn, two kept": ((0, 2), "gdn"),
    "all kept": ((0, 1, 2), "kda"),
    "mamba2, one kept": ((1,), "mamba2"),
    "swa": ((), "swa"),
    "gdn, gla, swa": ((), ("gdn", "gla", "swa")),
    "swa, mamba2, one kept": ((2,), ("swa", "mamba2", "kda")),
}
"""Name -> layers that keep attention, and mixers."""


@pytest.fixture(params=PLANS)
def model(request: pytest.FixtureRequest, make_hybrid: MakeHybrid) -> HybridForCausalLM:
    """A model of each plan in turn."""
    return make_hybrid(*PLANS[request.param])


def random_ids(rows: int, length: int) -> torch.Tensor:
    return torch.randint(6, 250, (rows, length))


@torch.no_grad()
def test_cached_equals_full(model: HybridForCausalLM) -> None:
    ids = random_ids(2, 15)
    full = model(ids).logits
    out = model(ids[:, :6], use_cache=True)
    logits = [out.logits]
    for first, last in [(6, 7), (7, 8), (8, 12), (12, 13), (13, 14), (14, 15)]:
        out = model(ids[:, first:last], past_key_values=out.past_key_values, use_cache=True)
        logits.append(out.logits)
    torch.testing.assert_close(torch.cat(logits, 1), full, rtol=1e-4, atol=1e-4)
    assert out.past_key_values.get_seq_length() == 15


@torch.no_grad()
def test_packed_equals_separate(model: HybridForCausalLM) -> None:
    lengths = (5, 1, 7)
    documents = [random_ids(1, n) for n in lengths]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    alone = torch.cat([model(d, use_cache=False).logits for d in documents], 1)
    ends = torch.tensor([0, 5, 6, 13], dtype=torch.int32)
    for marks in ({"position_ids": positions}, {"cu_seqlens": ends}):
        packed = model(torch.cat(documents, 1), **marks, use_cache=False).logits
        torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("left", [True, False])
@torch.no_grad()
def test_padded_equals_alone(model: HybridForCausalLM, left: bool) -> None:
    lengths, longest = (4, 9, 6), 9
    rows = [random_ids(1, n) for n in lengths]
    ids, mask = torch.zeros((3, longest), dtype=torch.long), torch.zeros((3, longest), dtype=torch.long)
    for row, (tokens, n) in enumerate(zip(rows, lengths, strict=True)):
        where = slice(longest - n, longest) if left else slice(0, n)
        ids[row, where], mask[row, where] = tokens[0], 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    padded = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    for row, tokens in enumerate(rows):
        torch.testing.assert_close(padded[row, mask[row].bool()], model(tokens).logits[0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_batched_generation_equals_one_by_one(model: HybridForCausalLM) -> None:
    lengths = (3, 8, 5)
    rows = [random_ids(1, n) for n in lengths]
    ids = torch.cat([F.pad(row, (8 - row.shape[1], 0)) for row in rows])
    mask = torch.cat([F.pad(torch.ones_like(row), (8 - row.shape[1], 0)) for row in rows])
    options = {"max_new_tokens": 7, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    together = model.generate(ids, attention_mask=mask, **options)[:, 8:]
    for row, tokens in enumerate(rows):
        alone = model.generate(tokens, attention_mask=torch.ones_like(tokens), **options)[0, tokens.shape[1] :]
        assert together[row].tolist() == alone.tolist()
    greedy = rows[0]
    for _ in range(7):
        greedy = torch.cat((greedy, model(greedy).logits[:, -1:].argmax(-1)), 1)
    assert together[0].tolist() == greedy[0, 3:].tolist()


@torch.no_grad()
def test_cache_rows_can_be_selected_reordered_and_repeated(model: HybridForCausalLM) -> None:
    ids, following = random_ids(3, 6), random_ids(4, 2)
    for change, rows in (
        (lambda c: c.batch_select_indices(torch.tensor([2, 0, 2, 1])), [2, 0, 2, 1]),
        (lambda c: c.reorder_cache(torch.tensor([1, 1, 2])), [1, 1, 2]),
        (lambda c: c.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
    ):
        cache = model(ids, use_cache=True).past_key_values
        change(cache)
        new = following[torch.arange(len(rows)) % 4]
        moved = model(new, past_key_values=cache).logits
        expected = model(torch.cat((ids[rows], new), 1)).logits[:, 6:]
        torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_beam_search_runs_on_the_cache(make_hybrid: MakeHybrid) -> None:
    model, ids = make_hybrid((1,)), random_ids(2, 5)
    options = {"max_new_tokens": 5, "num_beams": 3, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with_cache = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    without = model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=False, **options)
    assert with_cache.tolist() == without.tolist()


def test_a_mixers_cache_layer_cannot_be_cropped_but_reset(make_hybrid: MakeHybrid) -> None:
    model, ids = make_hybrid((1,)), random_ids(1, 5)
    cache = model(ids, use_cache=True).past_key_values
    assert isinstance(cache, DynamicCache) and isinstance(cache.layers[0], MixerCacheLayer)
    assert not cache.is_croppable
    cache.reset()
    assert cache.get_seq_length() == 0 and cache.layers[0].state is None


def test_a_cache_made_for_nothing_and_missing_inputs_are_refused(make_hybrid: MakeHybrid) -> None:
    model, ids = make_hybrid((1,)), random_ids(1, 5)
    with pytest.raises(ValueError, match=r"DynamicCache\(config=model.config\)"):
        model(ids, past_key_values=DynamicCache())
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model()
    embedded = model.model.embed_tokens(ids)
    torch.testing.assert_close(model(inputs_embeds=embedded).logits, model(ids).logits)


def test_loss_is_the_mean_cross_entropy_of_the_labelled_tokens(make_hybrid: MakeHybrid) -> None:
    model, ids = make_hybrid((1,)), random_ids(2, 9)
    labels = ids.clone()
    labels[:, :4] = -100
    out = model(ids, labels=labels)
    expected = F.cross_entropy(out.logits[:, 3:-1].reshape(-1, out.logits.shape[-1]), ids[:, 4:].reshape(-1))
    torch.testing.assert_close(out.loss, expected)


def test_logits_to_keep(make_hybrid: MakeHybrid) -> None:
    model, ids = make_hybrid((1,)), random_ids(2, 9)
    full = model(ids).logits
    torch.testing.assert_close(model(ids, logits_to_keep=2).logits, full[:, -2:])
    torch.testing.assert_close(model(ids, logits_to_keep=torch.tensor([0, 5])).logits, full[:, [0, 5]])


def test_gradient_checkpointing_gives_the_same_gradients(model: HybridForCausalLM) -> None:
    ids = random_ids(2, 9)
    model.train()
    gradients = []
    for enable in (False, True):
        if enable:
            model.activation_checkpointing_enable()
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


@torch.no_grad()
def test_eager_equals_sdpa(model: HybridForCausalLM) -> None:
    ids, logits = random_ids(2, 9), {}
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    for kind in ("sdpa", "eager"):
        model.set_attn_implementation(kind)
        logits[kind] = [model(ids).logits, model(ids, attention_mask=mask).logits[mask.bool()]]
    for one, other in zip(logits["sdpa"], logits["eager"], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model", ["kda, one kept", "gdn, gla, swa", "swa, mamba2, one kept"], indirect=True)
@torch.no_grad()
def test_compiled_whole_equals_plain(model: HybridForCausalLM) -> None:
    ids, positions = random_ids(2, 9), torch.tensor([[*range(4), *range(5)]] * 2)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    plain, whole = (form(ids, position_ids=positions, use_cache=False).logits for form in (model, compiled))
    torch.testing.assert_close(whole, plain, rtol=1e-4, atol=1e-4)
    torch.compiler.reset()


def test_weights_are_tied(make_hybrid: MakeHybrid) -> None:
    model = make_hybrid((1,))
    assert model.lm_head.weight is model.model.embed_tokens.weight


@torch.no_grad()
def test_save_and_load_change_nothing(model: HybridForCausalLM, tmp_path: Path) -> None:
    register()
    ids = random_ids(2, 9)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    differing = {key for key, value in loaded.config.to_dict().items() if value != model.config.to_dict()[key]}
    assert differing <= {"_name_or_path", "dtype"}
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    rounded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    exact = {name for name, value in rounded.named_parameters() if value.dtype == torch.float32}
    assert exact == {name for name, _ in rounded.named_parameters() if name.endswith(("A_log", "dt_bias"))}
    assert torch.isfinite(rounded(ids).logits).all()


@torch.no_grad()
def test_exported_directory_loads_through_the_auto_classes(
    make_hybrid: MakeHybrid, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model, ids = make_hybrid((1,)), random_ids(2, 9)
    export_checkpoint(model, tokenizer, tmp_path / "student")
    loaded, loaded_tokenizer = load_exported(tmp_path / "student")
    assert type(loaded) is HybridForCausalLM and loaded.dtype == torch.float32
    for (name, value), (_, own) in zip(loaded.state_dict().items(), model.state_dict().items(), strict=True):
        exact = name.endswith(("A_log", "dt_bias"))
        assert torch.equal(value, own if exact else own.to(torch.bfloat16).float()), name
    assert loaded_tokenizer.get_vocab() == tokenizer.get_vocab()
    config = json.loads((tmp_path / "student" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("plies_hybrid", ["HybridForCausalLM"])
    assert json.loads((tmp_path / "student" / "generation_config.json").read_text())["eos_token_id"] == 3
    stored = AutoModelForCausalLM.from_pretrained(tmp_path / "student", dtype="auto")
    assert stored.dtype == torch.bfloat16 and stored.model.layers[0].mixer.A_log.dtype == torch.float32
    assert torch.isfinite(stored(ids).logits).all()


def test_register_twice_and_by_the_table() -> None:
    module, _, function = STUDENTS["plies_hybrid"].partition(":")
    assert (module, function) == (register.__module__, register.__name__)
    register()
    register()
    assert type(AutoConfig.for_model("plies_hybrid", num_hidden_layers=1, layer_types=["kda"])) is HybridConfig


def test_importing_distill_imports_no_torch() -> None:
    code = "import sys, distill; print(sorted({'torch', 'transformers', 'typer'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

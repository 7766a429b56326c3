"""Every planted fault in one table: what plants it, and the family that it is planted in.

`PLANTED` must be caught; `OUTSIDE` names what the guard cannot see, with the reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import transformers

from perplexity_lies.engines.base import GenerateRequest

from ..engines.conftest import COMMON, GROUPED
from . import faults_of_runs as runs
from . import faults_of_slots as slots
from .faults import FAULTS, Break


def _cut(request: GenerateRequest) -> dict[str, Any]:
    return {"max_prompt_tokens": min(request.max_prompt_tokens or 100, 100)}


PLANTED: dict[str, tuple[str, Break | type]] = {
    **{name: (family, plant) for name, (family, plant, _) in FAULTS.items()},
    # slots and buffers
    "positions one too far in slots": ("llama", slots.in_steps(slots.moved_positions)),
    "positions one too far in slots, hybrid": ("hybrid-kda", slots.in_steps(slots.moved_positions)),
    "positions of the longest row for all": ("qwen3", slots.in_steps(slots.longest_positions)),
    "mask one place too wide": ("llama", slots.in_steps(slots.one_place_too_wide)),
    "first token of a row hidden": ("llama", slots.in_steps(slots.first_token_hidden)),
    "sliding window ignored in steps": ("mistral-window", slots.window_ignored),
    "late rows keep an old recurrent state": ("hybrid-kda", slots.late_rows_keep_an_old_state),
    "late rows keep an old state, Mamba-2": ("mamba2", slots.late_rows_keep_an_old_state),
    "late rows enter one token short": ("llama", slots.late_rows_enter_one_short),
    "prompts kept by their length": ("llama", slots.prompts_kept_by_length),
    "shrinking mixes up lengths": ("llama", slots.shrink_mixes_lengths),
    "shrinking forgets a layer": ("hybrid-kda", slots.shrink_forgets),
    "growing drops the last key": ("llama", slots.growth_drops_a_token),
    "growing forgets the beginning": ("llama", slots.growth_forgets_the_beginning),
    "neighbours' logits in a batch with a free slot": ("llama", slots.rows_of_half_a_batch),
    # generation
    "replies one token short": ("llama", runs.asked(lambda r: {"max_new_tokens": max(1, r.max_new_tokens - 1)})),
    "prompts cut silently at 100 tokens": ("llama", runs.asked(_cut)),
    "every reply says it ended": ("llama", runs.results(lambda r, _: dataclasses.replace(r, finish_reason="stop"))),
    "one of several end tokens known": ("llama", runs.first_end_only),
    "end token stands in the text": ("llama", runs.results(runs.end_kept_in_text)),
    "no end at the first token": ("llama", runs.no_end_at_first),
    "repetition penalty, silently": ("llama", runs.chosen_by(runs.repetition_penalty)),
    "greedy over coarse logits": ("llama", runs.chosen_by(lambda logits, _: (logits * 2).round() / 2)),
    "special tokens in the text": ("llama", runs.results(runs.with_ids)),
    # stop strings
    "stop strings ignored": ("llama", runs.asked(lambda r: {"stop": ()})),
    "only the first stop string": ("llama", runs.asked(lambda r: {"stop": r.stop[:1]})),
    "stop strings within one token only": ("llama", runs.stop_within_one_token),
    "stop string left in the text": ("llama", runs.results(runs.stop_kept)),
    "cut one letter before the stop string": ("llama", runs.results(runs.stop_cuts_a_letter_more)),
    "stop strings searched without special tokens": ("llama", runs.stops_without_special_tokens),
    "the text cut after a special stop string": ("llama", runs.results(runs.special_stop_kept)),
    # sampling
    "temperature ignored": ("llama", runs.sampled(temperature=1.0)),
    "temperature multiplied, by 1.3": ("llama", runs.scaled(1.3)),
    "temperature ignored, greedy": ("llama", runs.sampled(temperature=0.0)),
    "top_k ignored": ("llama", runs.sampled(top_k=0)),
    "top_k one too wide": ("llama", runs.asked(runs.one_wider)),
    "top_p ignored": ("llama", runs.sampled(top_p=1.0)),
    "top_p before the temperature": ("llama", runs.nucleus_before_temperature),
    "seeds ignored": ("llama", runs.asked(lambda r: {"seed": 0})),
    "one generator for all rows": ("llama", runs.one_generator_for_all),
    "seeds by place in the batch": ("llama", runs.seeds_by_place),
    # scoring
    "cut on the right": ("llama", runs.cut_on_the_right),
    "cut tokens not counted": ("llama", runs.scores(lambda r, _: dataclasses.replace(r, truncated_tokens=0))),
    "mean instead of sum": ("llama", runs.scores(runs.mean_of)),
    "always greedy": ("llama", runs.scores(lambda r, _: dataclasses.replace(r, is_greedy=True))),
    "never greedy": ("llama", runs.scores(lambda r, _: dataclasses.replace(r, is_greedy=False))),
    "log-likelihoods of coarse logits": ("llama", runs.coarse_logits),
    "log-likelihoods of a batch swapped": ("llama", runs.answers_of_a_batch_swapped),
    "positions one too far after a fork": ("llama", runs.forked_positions(1)),
    "positions one too far after a fork, GPT-NeoX": ("gpt_neox", runs.forked_positions(1)),
    "positions one short after a fork, hybrid": ("hybrid-kda", runs.forked_positions(-1)),
    # templates and tokenizers
    "the template writes the clock": ("llama", runs.template(lambda t: "{{ strftime_now('%H:%M:%S') }} " + t)),
    "the template writes the date": ("llama", runs.template(lambda t: t + "{{ strftime_now('%d %b %Y') }} ")),
    "two renderings differ": ("llama", runs.counting_template),
    "the assistant's turn is not opened": ("llama", runs.template(lambda t: t.split("{% if add_gen")[0])),
    "the assistant's turn is opened twice": (
        "llama",
        runs.template(lambda t: t.replace("<assistant>", "<assistant>" * 2)),
    ),
    "an end token after the open turn": (
        "llama",
        runs.template(lambda t: t.replace("<assistant>", "<assistant><eos>")),
    ),
    "BOS by the tokenizer, none in the template": ("llama", runs.bos_without_template),
    "BOS by both": ("llama", runs.encoding(lambda ids, add, e: [1, *ids] if ids[:1] == [1] else ids)),
    "an end token after every text": ("llama", runs.encoding(lambda ids, add, e: ids if add is False else [*ids, 2])),
}

OUTSIDE: dict[str, tuple[str, Break | type, str]] = {
    "wrong weights in the files": ("llama", runs.other_weights, "every path computes with them"),
    "a wrong rope_theta in config.json": ("llama", runs.other_frequencies, "every path computes with it"),
    "a tokenizer that loses capital letters": ("llama", runs.lowered, "every path reads the same text"),
    "positions beyond 600 tokens": ("llama", runs.far_positions, "no probe is that long"),
}
"""Fault -> family, what plants it, and why the guard cannot see it."""

SOUND: dict[str, Callable[[], Any]] = {
    "phi3": lambda: transformers.Phi3Config(**GROUPED),
    "gemma2": lambda: transformers.Gemma2Config(**GROUPED, head_dim=8, sliding_window=32, query_pre_attn_scalar=8),
    "falcon": lambda: transformers.FalconConfig(**{**COMMON, "num_kv_heads": 4}),
    "olmo2": lambda: transformers.Olmo2Config(**GROUPED),
    "mixtral": lambda: transformers.MixtralConfig(**GROUPED, num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **GROUPED, head_dim=8, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=16
    ),
}
"""More families, beside those of `tests/engines/conftest.py`, on which the guard must raise no alarm."""

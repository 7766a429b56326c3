"""As parity_smoke.py, over tasks that are not in `smoke`: subjects of MMLU, CMMLU and BBH, PIQA, TruthfulQA MC1.

    python benchmarks/parity_items.py CHECKPOINT... --data HUB --limit 120

The suite is written here. BBH is asked for replies alone: lm-eval has no log-likelihood form of it.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import yaml
from parity_smoke import compare_checkpoint, conclude

from perplexity_lies.catalogue.suite import load_suite

MMLU = ("anatomy", "astronomy", "formal_logic", "high_school_physics", "marketing", "nutrition", "virology")
CMMLU = ("agronomy", "astronomy", "elementary_mathematics", "ethnology", "world_history")
BBH = ("date_understanding", "boolean_expressions", "word_sorting")

MAX_NEW_TOKENS = 16
"""Short replies: what is compared is whether they are the same."""


def _both(name: str, ranking: dict[str, Any], generation: dict[str, Any]) -> dict[str, Any]:
    """A task on both rungs."""
    generation = {"max_new_tokens": MAX_NEW_TOKENS, "metric": "accuracy", "item": QUESTION, **generation}
    return {"name": name, "loglikelihood": {"metric": "acc", "item": QUESTION, **ranking}, "generation": generation}


QUESTION = "{{ question }} | {{ choices | join(' | ') }}"


def tasks() -> list[dict[str, Any]]:
    """The suite's tasks, as a suite file holds them."""
    found = [
        _both(
            f"mmlu_{subject}",
            {"lm_eval": f"mmlu/default/mmlu_{subject}.yaml", "dataset": "cais/mmlu"},
            {"evalscope": "mmlu", "dataset": "cais/mmlu", "subset": subject},
        )
        for subject in MMLU
    ]
    found += [
        _both(
            f"cmmlu_{subject}",
            {
                "lm_eval": f"cmmlu/cmmlu_{subject}.yaml",
                "dataset": "haonan-li/cmmlu",
                "item": "{{ Question }} | {{ A }} | {{ B }} | {{ C }} | {{ D }}",
            },
            {"evalscope": "cmmlu", "dataset": "evalscope/cmmlu", "subset": subject},
        )
        for subject in CMMLU
    ]
    found += [
        _both(
            "piqa",
            {
                "lm_eval": "piqa/piqa.yaml", "dataset": "baber/piqa", "metric": "acc_norm",
                "item": "{{ goal }} | {{ sol1 }} | {{ sol2 }}",
            },
            {"evalscope": "piqa", "dataset": "extraordinarylab/piqa"},
        ),
        _both(
            "truthfulqa_mc1",
            {"lm_eval": "truthfulqa/truthfulqa_mc1.yaml", "dataset": "truthfulqa/truthful_qa", "item": "{{ question }}"},
            {
                "evalscope": "truthful_qa", "dataset": "truthfulqa/truthful_qa", "metric": "multi_choice_acc",
                "item": "{{ question }}",
            },
        ),
    ]  # fmt: skip
    for subject in BBH:
        generation = {
            "evalscope": "bbh", "dataset": "evalscope/bbh", "subset": subject, "num_fewshot": 3,
            "max_new_tokens": MAX_NEW_TOKENS, "metric": "accuracy", "item": "{{ question }}",
        }  # fmt: skip
        found.append({"name": f"bbh_{subject}", "generation": generation})
    return found


def main() -> None:
    """Compare, print, write, exit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="*", type=Path)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/hub"))
    parser.add_argument("--limit", type=int, default=120)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/parity_items.json"))
    asked = parser.parse_args()
    asked.checkpoints = asked.checkpoints or [Path("../shared/models") / n for n in ("tinystories-656k", "stories260K")]
    if not asked.data.is_dir():
        print(f"parity_items: skipped (no mirror at {asked.data})")
        return
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "parity.yaml"
        file.write_text(yaml.safe_dump({"name": "parity", "tasks": tasks()}), encoding="utf-8")
        table = {
            checkpoint.name: compare_checkpoint(
                checkpoint.resolve(), load_suite(file), asked.data.resolve(), asked.limit, Path(scratch)
            )
            for checkpoint in asked.checkpoints
        }
    conclude(table, asked.limit, asked.out)


if __name__ == "__main__":
    main()

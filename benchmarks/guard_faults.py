"""What the artifact guard sees: planted faults caught or missed, false alarms on sound checkpoints, cost.

    python benchmarks/guard_faults.py [--out benchmarks/results/guard_faults.json] [--only WORD]

Plants every fault of `tests/guard/planted.py` in a tiny checkpoint of its family, in float32 and bfloat16, and makes the
guard's checks until one fails; then runs it on sound checkpoints of every family in the two dtypes, which must pass. Exits 1 when
a sound one fails or when fewer than nine tenths of the faults are caught.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pytest
import torch
import transformers
from _provenance import provenance

from perplexity_lies.checkpoint.lookup import resolve
from perplexity_lies.engines.base import EngineOptions
from perplexity_lies.engines.loading import kernels_for
from perplexity_lies.engines.torch import TorchEngine
from perplexity_lies.guard import Guarded, first_failed, guard
from tests.engines.conftest import FAMILIES, save_tokenizer
from tests.guard.planted import OUTSIDE, PLANTED, SOUND

DTYPES = ("float32", "bfloat16")
LEAST_CAUGHT = 0.9


def checkpoint(folder: Path, family: str, seed: int = 0) -> Path:
    """A checkpoint of random weights, built once."""
    path = folder / f"{family}-{seed}"
    if not path.exists():
        with kernels_for(torch.device("cpu")):
            torch.manual_seed(seed)
            model = transformers.AutoModelForCausalLM.from_config({**FAMILIES, **SOUND}[family]())
            for name, weight in model.named_parameters():
                if name.endswith("conv_weight"):  # as in tests/guard: KDA's convolution begins as the identity
                    torch.nn.init.normal_(weight)
        model.save_pretrained(path)
        save_tokenizer(path)
    return path


def opened(folder: Path, family: str, dtype: str, kind: type[TorchEngine] = TorchEngine, seed: int = 0) -> TorchEngine:
    options = EngineOptions(device="cpu", dtype=dtype)
    return kind(resolve(str(checkpoint(folder, family, seed))), options)


def told(found: Guarded) -> dict[str, str]:
    """Check -> what it found, of those that failed."""
    return {check.name: check.detail for check in found.failed}


def planted(folder: Path, only: str) -> Iterator[dict[str, Any]]:
    """One row a fault and dtype."""
    faults = {name: (*fault, "") for name, fault in PLANTED.items()} | OUTSIDE
    for name, (family, plant, outside) in faults.items():
        for dtype in DTYPES if only in name else ():
            with pytest.MonkeyPatch.context() as patch:
                engine = opened(folder, family, dtype, plant if isinstance(plant, type) else TorchEngine)
                if not isinstance(plant, type):
                    plant(patch, engine)
                found = first_failed(engine)
            by = found.name if found is not None else ""
            unmet = "" if by else engine.why_not_slots
            print(
                f"{'caught' if by else 'MISSED':7} {dtype:9} {name}: {by}{outside}{unmet and f' (no slots: {unmet})'}",
                flush=True,
            )
            yield {
                "fault": name, "family": family, "dtype": dtype, "caught_by": by, "detail": found.detail if found else "",
                "outside": outside, "no_slots": unmet,
            }  # fmt: skip


def sound(folder: Path, only: str) -> Iterator[dict[str, Any]]:
    """One row a family and dtype."""
    for family in {**FAMILIES, **SOUND} if not only else ():
        for dtype in DTYPES:
            engine = opened(folder, family, dtype, seed=1)
            started = time.monotonic()
            found = guard(engine)
            seconds = time.monotonic() - started
            unmade = [check.name for check in found.checks if check.passed is None]
            print(
                f"{'ALARM' if found.failed else 'sound':7} {dtype:9} {family} {told(found) or ''} {unmade}", flush=True
            )
            yield {
                "family": family, "dtype": dtype, "failed": told(found), "not_made": unmade, "seconds": round(seconds, 2),
                "measured": {c.name: c.measured for c in found.checks if c.measured is not None},
            }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "guard_faults.json")
    parser.add_argument("--only", default="", help="faults whose name holds this word; nothing is written")
    told_ = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        faults = list(planted(Path(folder), told_.only))
        families = list(sound(Path(folder), told_.only))
    inside = [row for row in faults if not row["outside"]]
    caught = {dtype: sum(bool(r["caught_by"]) for r in inside if r["dtype"] == dtype) for dtype in DTYPES}
    of = {dtype: sum(r["dtype"] == dtype for r in inside) for dtype in DTYPES}
    alarms = sum(bool(row["failed"]) for row in families)
    summary = {"caught": caught, "planted": of, "outside": len(OUTSIDE), "sound": len(families), "false_alarms": alarms}
    print(json.dumps(summary))
    if not told_.only:
        content = {"summary": summary, "faults": faults, "sound": families, "provenance": provenance()}
        told_.out.write_text(json.dumps(content, indent=1) + "\n")
    return int(alarms > 0 or any(caught[d] < LEAST_CAUGHT * of[d] for d in DTYPES))


if __name__ == "__main__":
    sys.exit(main())

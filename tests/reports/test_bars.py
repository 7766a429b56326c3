"""What a page says of ranked choices: bar, order and "ranked first" never contradict each other."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from perplexity_lies.protocols.ranking import ranked_first
from perplexity_lies.record.records import ItemRecord, Reading, Status
from reports.texts import item_texts

CARD = Path(__file__).parents[2] / "reports" / "templates" / "card.js"

NODE = """
const make = (tag, className, ...children) => ({ tag, className, style: {}, children: children.filter(Boolean),
  append(...more) { this.children.push(...more); } });
const fs = require("fs");
const { barShares, natsCell } = new Function("make", "RUNGS", "SIDES",
  fs.readFileSync(process.argv[1], "utf8") + "; return { barShares, natsCell };")(make, [], []);
const cells = JSON.parse(fs.readFileSync(0, "utf8"));
console.log(JSON.stringify(cells.map((reply) => ({
  shares: barShares(reply),
  chips: reply.nats.map((_, i) => natsCell(reply, i).children.some((child) => child.children?.includes("ranked first"))),
}))));
"""


def record(rng: random.Random, metric: str) -> ItemRecord:
    choices = tuple("x" * rng.randrange(1, 60) + "é" * rng.randrange(3) + str(i) for i in range(rng.randrange(2, 6)))
    spread = rng.choice([0.001, 1.0, 40.0, 900.0])
    nats = tuple(-rng.random() * spread for _ in choices)
    first = ranked_first(nats, choices, metric)
    read = Reading(extractor="e", status=Status.SCORED, score=1.0, metric=metric, answer=choices[first])
    return ItemRecord(
        task="t", item="i", rung="loglikelihood", prompt="q", prompt_sha256="", gold=choices[0], choices=choices,
        gold_index=0, readings=(read,), choice_loglikelihoods_nats=nats,
    )  # fmt: skip


def test_bars_of_500_records_say_what_is_ranked() -> None:
    if shutil.which("node") is None:
        pytest.skip("no node on this machine")
    rng = random.Random(0)
    records = [record(rng, rng.choice(["acc", "acc_norm", "acc_bytes"])) for _ in range(500)]
    replies: list[dict[str, Any]] = [item_texts([[one]])["loglikelihood"]["sides"][0][0] for one in records]
    ran = subprocess.run(["node", "-e", NODE, str(CARD)], input=json.dumps(replies), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    for one, reply, said in zip(records, replies, json.loads(ran.stdout), strict=True):
        values = reply.get("per_unit") or reply["nats"]
        assert said["chips"] == [i == reply["ranked"] for i in range(len(values))]
        assert said["shares"][reply["ranked"]] == max(said["shares"]), one
        order = sorted(range(len(values)), key=values.__getitem__)
        assert [said["shares"][i] for i in order] == sorted(said["shares"]), one
        assert max(said["shares"]) <= 1.0 + 1e-12


def test_what_another_metric_ranks_by_has_no_bar() -> None:
    assert item_texts([[record(random.Random(1), "acc_mutual_info")]])["loglikelihood"]["sides"][0][0]["unbarred"]

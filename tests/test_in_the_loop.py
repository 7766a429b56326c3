"""The harness in a training loop gives what its own records say, and refuses early."""

from __future__ import annotations

from pathlib import Path

import pytest

from perplexity_lies.errors import MissingError
from perplexity_lies.in_the_loop import measurer
from perplexity_lies.record.store import open_run

EMBEDDED = Path(__file__).parents[1] / "perplexity_lies" / "embedded"


@pytest.mark.slow
def test_the_harness_in_the_loop_gives_what_its_records_say(tmp_path: Path) -> None:
    found = measurer(suite="miniature", out=tmp_path, limit=3)(EMBEDDED / "student")
    records = list(open_run(next((tmp_path / "runs").iterdir())).records())
    assert len(records) == 5 * 2 * 3
    for record in records:
        assert found.tasks[record.task][record.rung].items[record.item] == record.score
    assert {len(scores.items) for by_rung in found.tasks.values() for scores in by_rung.values()} == {3}


def test_a_suite_whose_data_are_not_there_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(MissingError):
        measurer(suite="smoke", out=tmp_path, data=tmp_path)

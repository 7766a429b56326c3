"""What read the answers: named in the rows of a comparison and in its frame of replies."""

from perplexity_lies.read.compare import compare_runs
from perplexity_lies.rungs import GENERATION as GEN


def test_frames_tell_answers_that_a_fallback_rule_read(handmade, tmp_path):
    records = [
        handmade.record("a", str(i), GEN, 1.0, answer="B", rule=rule)
        for i, rule in enumerate(("fallback: last capital letter", "pattern"))
    ]
    runs = [handmade.write_run(tmp_path / name, records, name=name) for name in "ts"]
    replies = compare_runs(*runs).replies
    assert replies.fallback.tolist() == [rule.startswith("fallback") for rule in replies.rule] and any(replies.fallback)


def test_a_row_names_what_its_numbers_were_read_by(handmade, tmp_path):
    """After `plies reread --headline` the suite's metric is no longer that of the numbers."""
    tasks = [{"name": "a", "rungs": {GEN: {"metric": "acc", "source": "s"}}}]
    found = {}
    for extractor, metric in (("evalscope@1.14.1", "acc"), ("number@1", "exact_match")):
        records = [handmade.record("a", str(i), GEN, 1.0, extractor=extractor, metric=metric) for i in range(4)]
        runs = [handmade.write_run(tmp_path / f"{extractor}{name}", records, name=name, tasks=tasks) for name in "ts"]
        comparison = compare_runs(*runs)
        row = comparison.tasks[0].rungs[GEN]
        found[extractor] = row.metric, row.extractor
        assert set(comparison.gaps[comparison.gaps.task == "a"].metric) == {metric}
    assert found == {"evalscope@1.14.1": ("acc", "evalscope@1.14.1"), "number@1": ("exact_match", "number@1")}

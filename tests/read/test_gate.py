"""The gate: non-inferiority of the generation gap."""

import pytest

from perplexity_lies.errors import UsageError
from perplexity_lies.read.compare import compare_runs
from perplexity_lies.read.gate import Outcome, decide, decide_all, judge
from perplexity_lies.read.stats.estimate import NO_INTERVAL, Estimate
from perplexity_lies.read.stats.regimes import STUDENT_T
from perplexity_lies.record.records import Status
from perplexity_lies.rungs import GENERATION, LOGLIKELIHOOD

LL, GEN = LOGLIKELIHOOD, GENERATION


def right(k, n=400):
    return [1] * k + [0] * (n - k)


@pytest.fixture
def compared(handmade, tmp_path):
    """A comparison whose tasks have these generation scores: {task: (teacher, student)}."""

    def of(scores):
        runs = [
            handmade.scores_run(
                tmp_path / name,
                {
                    (task, protocol): right(400) if protocol == LL else columns[side]
                    for task, columns in scores.items()
                    for protocol in (LL, GEN)
                },
                name=name,
            )
            for side, name in enumerate(("teacher", "student"))
        ]
        return compare_runs(*runs)

    return of


def found(low, high):
    return Estimate(value=(low + high) / 2, low=low, high=high, n=100, units=100, apart=50, method=STUDENT_T)


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [
        (-2.9, 1, Outcome.PASS),
        (-3, 1, Outcome.INCONCLUSIVE),
        (-9, -3, Outcome.INCONCLUSIVE),
        (-9, -3.1, Outcome.REGRESS),
        (1, 4, Outcome.PASS),
    ],
)
def test_judging_one_interval(low, high, outcome):
    assert judge(found(low, high), 3.0) is outcome


def test_no_interval_is_inconclusive():
    one = Estimate(value=0, low=None, high=None, n=1, units=1, apart=0, method=NO_INTERVAL, why="a single item")
    assert judge(one, 3.0) is Outcome.INCONCLUSIVE


def test_pass(compared):
    verdict = decide(compared({"a": (right(360), right(358))}), 3.0)
    assert (verdict.outcome, verdict.exit_code) == (Outcome.PASS, 0)
    assert [row.task for row in verdict.rows] == ["a", "overall"]


def unmeasured(handmade, tmp_path, lost, losing="b"):
    """Two tasks on which both sides are all right, but that `lost` of 200 replies of the student were never had."""

    def run(name, lose):
        records = [
            handmade.record(task, f"{i:03}", protocol, float(not gone), **({"status": Status.ERRORED} if gone else {}))
            for task in "ab"
            for protocol in (LL, GEN)
            for i in range(200)
            for gone in [lose and task == losing and protocol == GEN and i < lost]
        ]
        return handmade.write_run(tmp_path / name, records, name=name)

    return decide(compare_runs(run("teacher", False), run("student", True)), 3.0)


@pytest.mark.parametrize(("lost", "outcome"), [(0, "pass"), (10, "pass"), (11, "inconclusive"), (200, "inconclusive")])
def test_what_was_not_measured_has_not_passed(handmade, tmp_path, lost, outcome):
    verdict = unmeasured(handmade, tmp_path, lost)
    assert verdict.outcome == outcome
    assert (f"b: {lost} of 200 items have no pair under generation" in verdict.reason) == (outcome != "pass")


@pytest.mark.parametrize(("subjects", "outcome"), [(2, "inconclusive"), (9, "inconclusive"), (10, "pass")])
def test_few_clusters_decide_nothing(handmade, tmp_path, subjects, outcome):
    runs = []
    for name, wrong in (("teacher", 0), ("student", 1)):
        records = [
            handmade.record("a", f"{i:03}", protocol, float(i % 200 >= wrong), subject=str(i % subjects))
            for protocol in (LL, GEN)
            for i in range(400)
        ]
        runs.append(handmade.write_run(tmp_path / name, records, name=name))
    verdict = decide(compare_runs(*runs), 5.0)
    assert verdict.outcome == outcome and ("clusters are too few" in verdict.reason) == (outcome != "pass")


def test_regress(compared):
    verdict = decide(compared({"a": (right(360), right(250))}), 3.0)
    assert (verdict.outcome, verdict.exit_code) == (Outcome.REGRESS, 1)
    assert "−27.5 pp" in verdict.reason and "−3 pp" in verdict.reason


def test_inconclusive_tells_how_many_would_do(compared):
    comparison = compared({"a": (right(360), right(345))})
    verdict = decide(comparison, 5.0)
    assert (verdict.outcome, verdict.exit_code) == (Outcome.INCONCLUSIVE, 4)
    needed = verdict.rows[-1].units_needed
    assert needed > 400 and str(needed) in verdict.reason


def test_a_task_that_regresses_is_not_hidden_by_the_mean(compared):
    tasks = {f"fine{i}": (right(300), right(330)) for i in range(4)}
    verdict = decide(compared({**tasks, "broken": (right(360), right(250))}), 3.0)
    assert verdict.rows[-1].outcome is Outcome.PASS
    assert verdict.outcome is Outcome.REGRESS
    assert verdict.reason.startswith("broken −27.5 pp")


def test_the_gate_ignores_the_loglikelihood_gap(handmade, tmp_path):
    runs = [
        handmade.scores_run(tmp_path / name, {("a", LL): ranked, ("a", GEN): right(300)}, name=name)
        for name, ranked in (("t", right(400)), ("s", right(10)))
    ]
    assert decide(compare_runs(*runs), 3.0).outcome is Outcome.PASS


@pytest.mark.parametrize("margin", [0, -1, 101, float("nan")])
def test_margins_that_make_no_sense_are_refused(compared, margin):
    with pytest.raises(UsageError, match="margin"):
        decide(compared({"a": (right(300), right(300))}), margin)


def test_nothing_generated_is_refused(handmade, tmp_path):
    runs = [handmade.scores_run(tmp_path / name, {("a", LL): right(300)}, name=name) for name in "ts"]
    with pytest.raises(UsageError, match="nothing to judge"):
        decide(compare_runs(*runs), 3.0)


def test_generation_alone_is_judged(handmade, tmp_path):
    runs = [
        handmade.scores_run(tmp_path / name, {("a", GEN): right(k)}, name=name) for name, k in (("t", 300), ("s", 100))
    ]
    assert decide(compare_runs(*runs), 3.0).outcome is Outcome.REGRESS


def test_every_student_is_judged_the_worst_first(handmade, tmp_path):
    runs = [
        handmade.scores_run(tmp_path / name, {("a", GEN): right(k)}, name=name)
        for name, k in (("t", 300), ("s", 300), ("w", 100))
    ]
    verdicts = decide_all(compare_runs(*runs), 3.0)
    assert [(verdict.student, verdict.outcome) for verdict in verdicts] == [
        ("student 2", "regress"),
        ("student 1", "pass"),
    ]


def test_answers_of_a_fallback_rule_are_counted_and_said(handmade, tmp_path):
    """In the numbers of each side, in a caution, and in the gate's reason."""

    def run(name, every):
        records = [
            handmade.record(
                "t", f"{i:03}", GEN, 1.0, answer="A", rule="fallback: last capital letter" if i % every == 0 else ""
            )
            for i in range(120)
        ]
        return handmade.write_run(tmp_path / name, records, name=name)

    comparison = compare_runs(run("teacher", 200), run("student", 2))
    teacher, student = comparison.tasks[0].rungs[GEN].sides
    assert (teacher.fallbacks, student.fallbacks, student.fallback, student.coverage) == (1, 60, 0.5, 1.0)
    (caution,) = (caution for caution in comparison.cautions if caution.kind == "fallback")
    assert "60 of 120 of the student's generation records" in caution.text and caution.task == "t"
    verdict = decide(comparison, 5.0)
    assert verdict.outcome is Outcome.INCONCLUSIVE and "t, fallback: 60 of 120 of the student's" in verdict.reason


def test_a_side_that_another_extractor_read_does_not_pair(handmade, tmp_path):
    """One run was read again with --headline, the other was not: a gap between them would be the extractors'."""
    runs = [
        handmade.write_run(
            tmp_path / name,
            [handmade.record("a", f"{i:03}", GEN, 1.0, extractor=extractor) for i in range(40)],
            name=name,
        )
        for name, extractor in (
            ("t", "pattern@1"),
            ("s", "strict@1"),
            ("l", "evalscope@1.14.1"),
            ("m", "evalscope@1.15.0"),
        )
    ]
    (left,) = compare_runs(*runs[:2]).unpaired
    assert left.reason == "extractor differs" and len(left.items) == 40
    assert compare_runs(*runs[2:]).overall is not None

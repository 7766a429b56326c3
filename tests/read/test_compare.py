"""Two run directories made by hand -> a comparison: pairing, refusals, cautions, JSON."""

import json
import random

import pytest

from perplexity_lies.errors import UsageError
from perplexity_lies.read.compare import compare_runs, load_comparison
from perplexity_lies.record.records import GENERATION, LOGLIKELIHOOD, Status

LL, GEN = LOGLIKELIHOOD, GENERATION
RIGHT_80 = [1] * 80 + [0] * 20
RIGHT_50 = [1] * 50 + [0] * 50


@pytest.fixture
def compared(handmade, tmp_path):
    """Compare two lists of records; few resamples, since numbers are `gap`'s affair."""

    def of(teacher, student, teacher_changes=None, student_changes=None):
        one = handmade.write_run(tmp_path / "t", teacher, name="teacher", **(teacher_changes or {}))
        other = handmade.write_run(tmp_path / "s", student, name="student", **(student_changes or {}))
        return compare_runs(one, other, resamples=200)

    return of


@pytest.fixture
def by_scores(handmade, tmp_path):
    """Compare two `{(task, protocol): scores}`."""

    def of(teacher, student, **changes):
        one = handmade.scores_run(tmp_path / "t", teacher, name="teacher", **changes)
        other = handmade.scores_run(tmp_path / "s", student, name="student", **changes)
        return compare_runs(one, other, resamples=2000)

    return of


def reasons(comparison):
    return {(left.what, left.reason, left.items) for left in comparison.unpaired}


def kinds(comparison, task):
    return {caution.kind for caution in comparison.cautions if caution.task == task}


def test_gap_hidden_gap_and_flips(by_scores):
    comparison = by_scores(
        {("a", LL): [1] * 100, ("a", GEN): RIGHT_80}, {("a", LL): [0] * 5 + [1] * 95, ("a", GEN): [0] * 50 + [1] * 50}
    )
    (row,) = comparison.tasks
    assert row.loglikelihood.gap.value == pytest.approx(-5)
    assert row.generation.gap.value == pytest.approx(-30)
    assert row.hidden_gap.value == pytest.approx(-25)
    assert (row.generation.gained, row.generation.lost) == (20, 50)
    assert row.generation.teacher.score.value == pytest.approx(80)
    assert comparison.overall.hidden_gap.value == pytest.approx(-25)


def test_overall_leaves_out_a_task_with_one_protocol(by_scores):
    both = {("a", LL): RIGHT_80, ("a", GEN): RIGHT_80}
    worse = {("a", LL): RIGHT_50, ("a", GEN): RIGHT_80}
    comparison = by_scores({**both, ("only", LL): [1] * 100}, {**worse, ("only", LL): [0] * 100})
    assert comparison.overall.loglikelihood.gap.value == pytest.approx(-30)
    assert comparison.overall.loglikelihood.gap.n == 100
    assert ("hidden gap", "paired by log-likelihood only") in {(w, r) for w, r, _ in reasons(comparison)}
    assert "unpaired" in kinds(comparison, "only")


def test_everything_unpaired_is_listed_with_its_reason(handmade, compared):
    record = handmade.record
    teacher = [record("a", str(i), LL, 1.0) for i in range(7)]
    student = [record("a", str(i), LL, 0.0) for i in range(2)]
    student += [
        record("a", "2", LL, 1.0, prompt="another question"),
        record("a", "3", LL, 0.0, status=Status.ERRORED, error="CUDA"),
        record("a", "4", LL, 0.0, status=Status.REFUSED),
        record("a", "5", LL, 0.0, metric="acc_norm"),
        record("a", "9", LL, 0.0),
        record("a", "10", LL, 1.0, gold="another"),
    ]
    teacher.append(record("a", "10", LL, 1.0))
    comparison = compared(teacher, student)
    assert reasons(comparison) == {
        (LL, "prompt differs", ("2",)),
        (LL, "student's record is errored", ("3",)),
        (LL, "student's record is refused", ("4",)),
        (LL, "metric differs", ("5",)),
        (LL, "reference answer differs", ("10",)),
        (LL, "only in the teacher's run", ("6",)),
        (LL, "only in the student's run", ("9",)),
        ("hidden gap", "paired by log-likelihood only", ("0", "1")),
    }
    (row,) = comparison.tasks
    assert row.loglikelihood.gap.n == 2
    assert row.loglikelihood.student.score.value == 0
    assert row.loglikelihood.student.statuses == {"errored": 1, "refused": 1, "scored": 6}
    assert row.loglikelihood.student.coverage == pytest.approx(6 / 8)
    assert comparison.overall is None
    assert "no hidden gap" in comparison.headline()


def test_unanswered_replies_count_as_the_library_scored_them(handmade, compared):
    record = handmade.record
    lost = [Status.UNPARSED, Status.TRUNCATED, Status.DEGENERATE]
    teacher = [record("a", str(i), GEN, 1.0) for i in range(4)]
    student = [record("a", str(i), GEN, 0.0, status=status) for i, status in enumerate(lost)]
    student += [record("a", "3", GEN, 1.0, finish_reason="length")]
    row = compared(teacher, student).tasks[0].generation
    assert (row.gap.n, row.student.score.value) == (4, 25)
    assert (row.student.coverage, row.student.truncation, row.teacher.truncation) == (0.25, 0.25, 0)


def test_hidden_gap_uses_only_items_with_all_four_scores(handmade, compared):
    record = handmade.record

    def run(ranked, generated):
        return [record("a", str(i), LL, ranked[i]) for i in range(4)] + [
            record("a", str(i), GEN, generated[i]) for i in range(2)
        ]

    comparison = compared(run([1.0] * 4, [1.0] * 2), run([1.0, 0.0, 0.0, 0.0], [0.0, 0.0]))
    (row,) = comparison.tasks
    assert (row.loglikelihood.gap.value, row.generation.gap.value) == (-75, -100)
    assert (row.hidden_gap.value, row.hidden_gap.n) == (-50, 2)
    assert (("hidden gap", "paired by log-likelihood only", ("2", "3"))) in reasons(comparison)


def test_seeds_are_averaged_before_anything_else(handmade, compared):
    record = handmade.record
    teacher = [record("a", str(i), GEN, 1.0, seed=seed) for i in range(2) for seed in (0, 1)]
    student = [record("a", "0", GEN, float(seed), seed=seed) for seed in (0, 1)]
    student += [record("a", "1", GEN, 0.0, seed=seed) for seed in (0, 1)]
    comparison = compared(teacher, student)
    assert comparison.tasks[0].generation.gap.n == 2
    assert comparison.tasks[0].generation.gap.value == pytest.approx(-75)
    assert comparison.paired_items[0].generation.student.score == 0.5
    assert [reply.seed for reply in comparison.paired_items[0].generation.student.replies] == [0, 1]
    assert "seeds" not in kinds(comparison, "a")


def test_differing_seeds_are_said(handmade, compared):
    teacher = [handmade.record("a", "0", GEN, 1.0, seed=0)]
    assert "seeds" in kinds(compared(teacher, [handmade.record("a", "0", GEN, 1.0, seed=1)]), "a")


def test_subjects_are_clusters(handmade, compared):
    records = [
        handmade.record("a", str(i), protocol, float(i % 3 == 0), subject=f"s{i % 4}")
        for i in range(40)
        for protocol in (LL, GEN)
    ]
    (row,) = compared(records, records).tasks
    assert (row.subjects, row.hidden_gap.units, row.hidden_gap.n) == (4, 4, 40)


@pytest.mark.parametrize(
    ("changes", "said", "tried"),
    [
        ({"suite": {"digest": "other"}}, "suites differ", "--suite miniature"),
        ({"suite": {"limit": 50}}, "limits differ", "--suite miniature"),
        ({"settings": {"dtype": "bfloat16"}}, "dtypes differ", "--dtype float32"),
        ({"complete": False}, "not complete", "plies evaluate student --suite miniature"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(handmade, compared, changes, said, tried):
    records = [handmade.record("a", "0", LL, 1.0)]
    with pytest.raises(UsageError, match=said) as refused:
        compared(records, records, student_changes=changes)
    assert any(tried in line for line in refused.value.mend)
    assert refused.value.found


def test_two_records_of_one_seed_are_refused(handmade, compared):
    record = handmade.record("a", "0", LL, 1.0)
    with pytest.raises(UsageError, match="cannot be read"):
        compared([record, record], [record])


def test_bytes_do_not_depend_on_record_order_place_or_timings(handmade, tmp_path):
    teacher, student = handmade.demo_pair(tmp_path / "one", items=12)
    first = compare_runs(teacher, student, resamples=300)
    moved = []
    for run in (teacher, student):
        copy = tmp_path / "two" / run.name
        (copy / "records").mkdir(parents=True)
        manifest = json.loads((run / "manifest.json").read_text())
        (copy / "manifest.json").write_text(json.dumps(manifest | {"timings": {"wall_s": random.random()}}))
        for file in (run / "records").iterdir():
            lines = file.read_text().splitlines(keepends=True)
            random.Random(3).shuffle(lines)
            (copy / "records" / file.name).write_text("".join(lines))
        moved.append(copy)
    written = compare_runs(*moved, resamples=300).to_json()
    assert written == first.to_json()
    assert b"timings" not in written and str(tmp_path).encode() not in written and written.endswith(b"}\n")


def test_absolute_paths_do_not_reach_the_comparison(handmade, compared, tmp_path):
    records = [handmade.record("a", "0", LL, 1.0)]
    comparison = compared(
        records, records, {"checkpoint": {"name": f"{tmp_path}/kept-name"}, "settings": {"data": "/a/b/hub"}}
    )
    assert comparison.teacher_name == "kept-name"
    assert comparison.provenance["teacher"]["settings"]["data"] == "hub"
    assert str(tmp_path).encode() not in comparison.to_json()


def test_json_round_trip(handmade, tmp_path):
    comparison = compare_runs(*handmade.demo_pair(tmp_path, items=6, limit=6), resamples=200)
    path = comparison.write(tmp_path / "deep" / "comparison.json")
    loaded = load_comparison(path)
    assert loaded.to_json() == comparison.to_json() == path.read_bytes()
    assert loaded.headline() == comparison.headline()
    assert loaded.partial and loaded.limit == 6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda raw: "{", "not JSON"),
        (lambda raw: "[]", "not a comparison"),
        (lambda raw: json.dumps(raw | {"format": 99}), "format 99"),
        (lambda raw: json.dumps({k: v for k, v in raw.items() if k != "tasks"}), "lacks ['tasks']"),
        (lambda raw: json.dumps(raw | {"extra": 1}), "unknown keys ['extra']"),
        (lambda raw: json.dumps(raw | {"limit": "many"}), "comparison.limit should be int"),
        (lambda raw: json.dumps(raw | {"tasks": [{"task": "a"}]}), "comparison.tasks[0]"),
    ],
)
def test_malformed_comparisons_are_refused(handmade, tmp_path, change, said):
    comparison = compare_runs(*handmade.demo_pair(tmp_path, items=3), resamples=50)
    path = tmp_path / "comparison.json"
    path.write_text(change(json.loads(comparison.to_json())))
    with pytest.raises(UsageError) as refused:
        load_comparison(path)
    assert said in refused.value.found[0]


def test_a_missing_comparison_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot use"):
        load_comparison(tmp_path / "none.json")


def test_cautions(handmade, tmp_path):
    scores = {("a", LL): [1] * 40, ("a", GEN): [1] * 10 + [0] * 30}
    tasks = [{"name": "a", "generation": {"metric": "acc", "source": "s", "chance": 0.25}}]
    teacher = handmade.scores_run(tmp_path / "t", scores, tasks=tasks, suite={"limit": 40})
    student = handmade.scores_run(tmp_path / "s", scores, tasks=tasks, suite={"limit": 40}, versions={"torch": "2.0"})
    comparison = compare_runs(teacher, student, resamples=200)
    assert {"saturated", "chance", "few items"} <= kinds(comparison, "a")
    assert {"partial", "same checkpoint", "versions"} <= kinds(comparison, "")


def test_no_caution_where_there_is_nothing_to_say(by_scores):
    scores = {("a", LL): RIGHT_80 * 2, ("a", GEN): RIGHT_50 * 2}
    assert by_scores(scores, scores).cautions == ()


def test_frames(handmade, tmp_path):
    comparison = compare_runs(*handmade.demo_pair(tmp_path, items=10), resamples=200)
    gaps, items = comparison.gaps, comparison.items
    assert len(gaps) == 2 * (5 + 1) and list(gaps.task[-2:]) == ["overall", "overall"]
    assert gaps.n.tolist() == [10] * 10 + [50] * 2
    recall = items[items.task == "recall"]
    line = gaps[(gaps.task == "recall") & (gaps.protocol == GEN)].iloc[0]
    assert line.student == pytest.approx(100 * recall.generation_student_score.mean())
    assert line.gap_pp == pytest.approx(line.student - line.teacher)
    assert all(len(nats) == 4 for nats in items.loglikelihood_teacher_nats)
    assert items.generation_student_text.str.len().min() > 0


@pytest.mark.parametrize(
    ("student", "said"),
    [
        ({("a", LL): RIGHT_80, ("a", GEN): [0] * 80 + [1] * 20}, "Log-likelihood hides"),
        ({("a", LL): [0] * 80 + [1] * 20, ("a", GEN): RIGHT_80}, "Log-likelihood understates"),
        ({("a", LL): [1] * 100, ("a", GEN): [0] * 100}, "Log-likelihood flatters"),
        ({("a", LL): [1] * 81 + [0] * 19, ("a", GEN): RIGHT_80}, "not distinguishable from zero"),
        ({("a", LL): RIGHT_80, ("a", GEN): RIGHT_80}, "cannot be excluded"),
    ],
)
def test_headline_says_no_more_than_the_interval(by_scores, student, said):
    assert said in by_scores({("a", LL): RIGHT_80, ("a", GEN): RIGHT_80}, student).headline()


@pytest.mark.parametrize(
    ("ranked", "generated", "said"),
    [
        (
            RIGHT_50,
            RIGHT_80,
            "the student is 30.0 pp behind its teacher; asked to generate, it is level with its teacher.",
        ),
        (RIGHT_80, RIGHT_50, "the student is level with its teacher; asked to generate, it is 30.0 pp behind."),
        ([1] * 100, [1] * 100, "the student is 20.0 pp ahead of its teacher; asked to generate, it is 20.0 pp ahead."),
    ],
)
def test_headline_tells_where_the_student_stands(by_scores, ranked, generated, said):
    teacher = {("a", LL): RIGHT_80, ("a", GEN): RIGHT_80}
    assert said in by_scores(teacher, {("a", LL): ranked, ("a", GEN): generated}).headline()


def test_a_task_that_no_one_can_generate_cannot_show_a_gap(by_scores):
    scores = {("a", LL): RIGHT_80, ("a", GEN): [0] * 100}
    assert "floor" in kinds(by_scores(scores, scores), "a")


def test_headline_without_an_interval(by_scores):
    headline = by_scores({("a", LL): [1], ("a", GEN): [1]}, {("a", LL): [1], ("a", GEN): [0]}).headline()
    assert "too few items" in headline


def test_notebook_rendering_is_escaped(handmade, compared):
    hostile = "<script>alert(1)</script>"
    records = [handmade.record(hostile, "0", protocol, 1.0) for protocol in (LL, GEN)]
    shown = compared(records, records, {"checkpoint": {"name": hostile}})._repr_html_()
    assert "<script" not in shown
    assert shown.count("&lt;script&gt;") == 2

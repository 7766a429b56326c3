"""Two run directories made by hand -> a comparison: pairing, refusals, cautions, JSON."""

import json
import random

import pytest

from perplexity_lies.errors import MissingError, UsageError
from perplexity_lies.read.compare import compare_runs, load_comparison
from perplexity_lies.record.records import Reading, Status
from perplexity_lies.rungs import GENERATION, HIDDEN_GAP, LOGLIKELIHOOD

LL, GEN, HIDDEN = LOGLIKELIHOOD, GENERATION, HIDDEN_GAP.name
RIGHT_80 = [1] * 80 + [0] * 20
RIGHT_50 = [1] * 50 + [0] * 50


@pytest.fixture
def compared(handmade, tmp_path):
    """Compare two lists of records; numbers are the affair of `stats`."""

    def of(teacher, student, teacher_changes=None, student_changes=None):
        one = handmade.write_run(tmp_path / "t", teacher, name="teacher", **(teacher_changes or {}))
        other = handmade.write_run(tmp_path / "s", student, name="student", **(student_changes or {}))
        return compare_runs(one, other)

    return of


@pytest.fixture
def by_scores(handmade, tmp_path):
    """Compare two `{(task, protocol): scores}`."""

    def of(teacher, student, **changes):
        one = handmade.scores_run(tmp_path / "t", teacher, name="teacher", **changes)
        other = handmade.scores_run(tmp_path / "s", student, name="student", **changes)
        return compare_runs(one, other)

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
    assert row.gap(LL).value == pytest.approx(-5)
    assert row.gap(GEN).value == pytest.approx(-30)
    assert row.contrast(HIDDEN).value == pytest.approx(-25)
    assert (row.rungs[GEN].sides[1].gained, row.rungs[GEN].sides[1].lost) == (20, 50)
    assert row.rungs[GEN].sides[0].score.value == pytest.approx(80)
    assert comparison.overall.contrast(HIDDEN).value == pytest.approx(-25)


def test_overall_leaves_out_a_task_with_one_protocol(by_scores):
    both = {("a", LL): RIGHT_80, ("a", GEN): RIGHT_80}
    worse = {("a", LL): RIGHT_50, ("a", GEN): RIGHT_80}
    comparison = by_scores({**both, ("only", LL): [1] * 100}, {**worse, ("only", LL): [0] * 100})
    assert comparison.overall.gap(LL).value == pytest.approx(-30)
    assert comparison.overall.gap(LL).n == 100
    assert comparison.tasks[1].gap(LL).value == -100 and comparison.tasks[1].contrast(HIDDEN) is None
    said = [caution.text for caution in comparison.cautions if caution.kind == "one-sided"]
    assert "one-sided" in kinds(comparison, "only") and not comparison.unpaired
    assert len(said) == 1 and "not in the overall row" in said[0]


def test_tasks_of_one_rung_alone_have_an_overall_row_of_their_own(by_scores):
    scores = {("a", LL): RIGHT_80, ("b", GEN): RIGHT_50}
    comparison = by_scores(scores, {("a", LL): RIGHT_50, ("b", GEN): RIGHT_50})
    assert (comparison.overall.gap(LL).value, comparison.overall.gap(GEN).value) == (-30, 0)
    assert comparison.overall.contrasts == {} and "no task has numbers on both rungs" in comparison.headline()
    assert not any("overall row" in caution.text for caution in comparison.cautions)


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
    }
    (row,) = comparison.tasks
    assert row.gap(LL).n == 2
    assert row.rungs[LL].sides[1].score.value == 0
    assert row.rungs[LL].sides[1].statuses == {"errored": 1, "refused": 1, "scored": 6}
    assert row.rungs[LL].sides[1].coverage == pytest.approx(6 / 8)
    assert comparison.overall.gap(LL).n == 2 and comparison.overall.contrast(HIDDEN) is None
    assert "no hidden gap" in comparison.headline() and "100.0 pp behind" in comparison.headline()


def test_unanswered_replies_count_as_the_library_scored_them(handmade, compared):
    record = handmade.record
    lost = [Status.UNPARSED, Status.TRUNCATED, Status.DEGENERATE]
    teacher = [record("a", str(i), GEN, 1.0) for i in range(4)]
    student = [record("a", str(i), GEN, 0.0, status=status) for i, status in enumerate(lost)]
    student += [record("a", "3", GEN, 1.0, finish_reason="length")]
    comparison = compared(teacher, student)
    one, other = comparison.tasks[0].rungs[GEN].sides
    assert (other.gap.n, other.score.value) == (4, 25)
    assert (other.coverage, other.truncation, one.truncation) == (0.25, 0.25, 0)
    assert comparison.items_of[0].rungs[GEN].statuses == ("ssss", "utdc")


def test_hidden_gap_uses_only_items_with_all_four_scores(handmade, compared):
    record = handmade.record

    def run(ranked, generated):
        return [record("a", str(i), LL, ranked[i]) for i in range(4)] + [
            record("a", str(i), GEN, generated[i]) for i in range(2)
        ]

    comparison = compared(run([1.0] * 4, [1.0] * 2), run([1.0, 0.0, 0.0, 0.0], [0.0, 0.0]))
    (row,) = comparison.tasks
    assert (row.gap(LL).value, row.gap(GEN).value) == (-75, -100)
    assert (row.contrast(HIDDEN).value, row.contrast(HIDDEN).n) == (-50, 2)
    assert (("hidden gap", "paired by log-likelihood only", ("2", "3"))) in reasons(comparison)


def test_seeds_are_averaged_before_anything_else(handmade, compared):
    record = handmade.record
    teacher = [record("a", str(i), GEN, 1.0, seed=seed) for i in range(2) for seed in (0, 1)]
    student = [record("a", "0", GEN, float(seed), seed=seed) for seed in (0, 1)]
    student += [record("a", "1", GEN, 0.0, seed=seed) for seed in (0, 1)]
    comparison = compared(teacher, student)
    assert comparison.tasks[0].gap(GEN).n == 2
    assert comparison.tasks[0].gap(GEN).value == pytest.approx(-75)
    assert comparison.items_of[0].rungs[GEN].scores == ((1.0, 1.0), (0.5, 0.0))
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
    assert (row.subjects, row.contrast(HIDDEN).units, row.contrast(HIDDEN).n) == (4, 4, 40)


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
    first = compare_runs(teacher, student)
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
    written = compare_runs(*moved).to_json()
    assert written == first.to_json()
    assert "wall_s" not in written and str(tmp_path) not in written and written.endswith("}\n")


def test_absolute_paths_do_not_reach_the_comparison(handmade, compared, tmp_path):
    records = [handmade.record("a", "0", LL, 1.0)]
    comparison = compared(
        records, records, {"checkpoint": {"name": f"{tmp_path}/kept-name"}, "settings": {"data": "/a/b/hub"}}
    )
    assert comparison.baseline.name == "kept-name"
    assert comparison.baseline.manifest.settings["data"] == "hub"
    assert str(tmp_path) not in comparison.to_json()


def test_json_round_trip(handmade, tmp_path):
    comparison = compare_runs(*handmade.demo_pair(tmp_path, items=6, limit=6))
    path = comparison.write(tmp_path / "deep" / "comparison.json")
    loaded = load_comparison(path)
    assert loaded == comparison and loaded.to_json(path.parent) == path.read_text()
    assert [side.run for side in loaded.sides] == [side.run for side in comparison.sides]
    assert loaded.headline() == comparison.headline()
    assert loaded.partial and loaded.limit == 6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda raw: "{", "not JSON"),
        (lambda raw: "[]", "not a comparison"),
        (lambda raw: json.dumps(raw | {"format": 99}), "format 99"),
        (lambda raw: json.dumps({k: v for k, v in raw.items() if k != "tasks"}), "lacks `tasks`"),
        (lambda raw: json.dumps(raw | {"extra": 1}), "unknown key 'extra'"),
        (lambda raw: json.dumps(raw | {"overall": 5}), "overall should be a mapping"),
        (lambda raw: json.dumps(raw | {"sides": raw["sides"][:1]}), "one place for each side"),
        (lambda raw: json.dumps(raw).replace('"value": 100.0', '"value": NaN', 1), "finite"),
        (lambda raw: json.dumps(raw | {"tasks": [{"task": "a"}]}), "tasks[0] lacks"),
    ],
)
def test_malformed_comparisons_are_refused(handmade, tmp_path, change, said):
    comparison = compare_runs(*handmade.demo_pair(tmp_path, items=3))
    path = tmp_path / "comparison.json"
    path.write_text(change(json.loads(comparison.to_json())))
    with pytest.raises(UsageError) as refused:
        load_comparison(path)
    assert said in str(refused.value) and refused.value.mend


def test_a_missing_comparison_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot use"):
        load_comparison(tmp_path / "none.json")


def test_cautions(handmade, tmp_path):
    scores = {("a", LL): [1] * 40, ("a", GEN): [1] * 10 + [0] * 30}
    tasks = [{"name": "a", "rungs": {GEN: {"metric": "acc", "source": "s", "chance": 0.25}}}]
    teacher = handmade.scores_run(tmp_path / "t", scores, tasks=tasks, suite={"limit": 40})
    student = handmade.scores_run(tmp_path / "s", scores, tasks=tasks, suite={"limit": 40}, versions={"torch": "2.0"})
    comparison = compare_runs(teacher, student)
    assert {"saturated", "chance", "few items"} <= kinds(comparison, "a")
    assert {"partial", "same checkpoint", "versions"} <= kinds(comparison, "")


def test_no_caution_where_there_is_nothing_to_say(by_scores):
    scores = {("a", LL): RIGHT_80 * 2, ("a", GEN): RIGHT_50 * 2}
    assert by_scores(scores, scores).cautions == ()


def test_frames(handmade, tmp_path):
    comparison = compare_runs(*handmade.demo_pair(tmp_path, items=10))
    gaps, items, replies = comparison.gaps, comparison.items, comparison.replies
    assert len(gaps) == 2 * (5 + 1) and list(gaps.task[-2:]) == ["overall", "overall"]
    assert gaps.n.tolist() == [10] * 10 + [50] * 2
    recall = items[items.task == "recall"]
    line = gaps[(gaps.task == "recall") & (gaps.rung == GEN)].iloc[0]
    assert line.student == pytest.approx(100 * recall.generation_student_score.mean())
    assert line.gap_pp == pytest.approx(line.student - line.teacher)
    assert len(items) == 50 and len(replies) == 200 and set(items.generation_teacher_status) <= set(Status)
    ranked, written = replies[replies.rung == LL], replies[replies.rung == GEN]
    assert all(len(nats) == 4 for nats in ranked.choice_loglikelihoods_nats) and written.text.str.len().min() > 0
    both = written[written.side == "student"].set_index(["task", "item"]).score
    assert both.to_dict() == items.set_index(["task", "item"]).generation_student_score.to_dict()


def test_texts_of_runs_that_are_gone_or_changed_are_refused(handmade, tmp_path):
    teacher, student = handmade.demo_pair(tmp_path, items=4)
    comparison = compare_runs(teacher, student)
    file = next((student / "records").iterdir())
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(MissingError, match="not here") as refused:
        _ = comparison.replies
    assert "have changed" in refused.value.found[0]
    (teacher / "manifest.json").unlink()
    with pytest.raises(MissingError) as refused:
        _ = comparison.replies
    assert "no manifest.json" in refused.value.found[0]


# --- several students, several readings, cut prompts ----------------------------------------------------------------


def test_a_students_numbers_do_not_depend_on_another_student(handmade, tmp_path):
    teacher, student = handmade.demo_pair(tmp_path, items=30)
    other = handmade.scores_run(tmp_path / "other", {("arith", LL): [1] * 30, ("arith", GEN): [0] * 30}, name="other")
    alone, beside = compare_runs(teacher, student), compare_runs(teacher, student, student)
    assert [side.label for side in beside.sides] == ["teacher", "student 1", "student 2"]
    for one, two in zip(alone.rows, beside.rows, strict=True):
        for rung in (LL, GEN):
            assert one.gap(rung) == two.gap(rung, 1) == two.gap(rung, 2)
            assert one.rungs[rung].sides[0].score == two.rungs[rung].sides[0].score
        assert one.contrast(HIDDEN) == two.contrast(HIDDEN, 1) == two.contrast(HIDDEN, 2)
    assert beside.headline().count("Log-likelihood hides") == 2
    assert "student 2 (builtin:student)" in beside.headline()
    unpaired = compare_runs(teacher, student, other).unpaired
    assert "only in the teacher and the student 1's run" in {left.reason for left in unpaired}


def test_readings_of_other_extractors_stand_beside_the_headline(handmade, compared):
    def run(headline, strict):
        read = [
            Reading(extractor="strict@1", status=Status.SCORED, metric="exact_match", score=float(s)) for s in strict
        ]
        return [
            handmade.record("a", str(i), GEN, float(score), readings=(read[i],) if i < len(read) else ())
            for i, score in enumerate(headline)
        ]

    row = compared(run([1, 1, 1, 1], [1, 1, 0]), run([1, 1, 0, 0], [0, 0, 0])).tasks[0].rungs[GEN]
    one, other = row.readings["strict@1"]
    assert row.sides[1].gap.value == -50 and list(row.readings) == ["strict@1"]
    assert (one.score.n, one.score.value, other.score.value) == (3, pytest.approx(200 / 3), 0.0)
    assert other.gap.value == pytest.approx(-200 / 3)


def test_cut_and_overlong_prompts_are_cautioned_with_counts(handmade, compared):
    def run(**more):
        return [
            handmade.record("a", str(i), rung, 1.0, **(more if i < 3 else {})) for i in range(4) for rung in (LL, GEN)
        ]

    found = compared(run(), run(truncated_prompt_tokens=7, beyond_context_tokens=9)).cautions
    said = {caution.kind: caution.text for caution in found}
    assert said["cut prompts"].startswith("3 of 4 of the student's generation prompts")
    assert said["beyond context"].startswith("3 of 4 of the student's generation records")


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
    assert "has no interval: a single item has no spread" in headline


def test_notebook_rendering_is_escaped(handmade, compared):
    hostile = "<script>alert(1)</script>"
    records = [handmade.record(hostile, "0", protocol, 1.0) for protocol in (LL, GEN)]
    shown = compared(records, records, {"checkpoint": {"name": hostile}})._repr_html_()
    assert "<script" not in shown
    assert shown.count("&lt;script&gt;") == 2

"""The gate by a policy: rules, Holm over tasks, doubts, and what it writes."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from perplexity_lies.errors import UsageError
from perplexity_lies.read.compare import compare_runs
from perplexity_lies.read.gate import Outcome, decide
from perplexity_lies.read.judged import judged
from perplexity_lies.read.policy import Policy, Rule, load_policy, one_margin
from perplexity_lies.read.verdicts import junit_xml, markdown, plain_verdicts
from perplexity_lies.record.records import Status
from perplexity_lies.rungs import GENERATION as GEN
from perplexity_lies.rungs import LOGLIKELIHOOD as LL


def right(k, n=400):
    return [1] * k + [0] * (n - k)


@pytest.fixture
def compared(handmade, tmp_path):
    """A comparison with these numbers of right items of 400: {(task, rung): (teacher, student)}."""

    def of(counts, **more):
        runs = [
            handmade.scores_run(
                tmp_path / str(len(counts)) / name,
                {key: right(found[side]) for key, found in counts.items()},
                name=name,
                **more,
            )
            for side, name in enumerate(("teacher", "student"))
        ]
        return compare_runs(*runs)

    return of


def rules(*found):
    return Policy(rules=tuple(Rule(**rule) for rule in found))


def test_what_a_rule_judges_equals_the_rows_of_the_comparison(handmade, tmp_path):
    comparison = compare_runs(*handmade.demo_pair(tmp_path))
    for what in (LL, GEN, "hidden gap"):
        shown = [
            row.contrast(what) if what == "hidden gap" else row.gap(what)
            for row in (*comparison.tasks, comparison.overall)
        ]
        tasks = judged(comparison, Rule(what=what, of="tasks", margin=1), 1)
        (overall,) = judged(comparison, Rule(what=what, margin=1), 1)
        assert [one.gap() for one in (*tasks, overall)] == shown


def test_each_rule_has_its_own_margin(compared):
    comparison = compared({(task, rung): (360, 352 if rung == GEN else 360) for task in "ab" for rung in (LL, GEN)})
    assert decide(comparison, rules({"what": GEN, "margin": 8})).outcome is Outcome.PASS
    assert decide(comparison, rules({"what": LL, "margin": 8}, {"what": GEN, "margin": 0.5})).outcome is Outcome.REGRESS
    assert decide(comparison, rules({"what": "hidden gap", "margin": 2})).outcome is Outcome.INCONCLUSIVE
    (row,) = decide(comparison, rules({"what": GEN, "of": ("a", "b"), "margin": 8})).rows
    assert row.task == "a+b" and row.gap.n == 800


def test_tasks_are_corrected_by_holm(compared):
    """One task just beyond the margin regresses alone, and not among fifteen."""
    alone = {("t0", GEN): (360, 341)}
    among = alone | {(f"t{i}", GEN): (360, 360) for i in range(1, 15)}
    policy = rules({"what": GEN, "of": "tasks", "margin": 2.5, "require": "no regress"})
    found = compared(alone)
    assert found.tasks[0].gap(GEN).high < -2.5
    assert decide(found, policy).outcome is Outcome.REGRESS
    assert decide(compared(among), policy).outcome is Outcome.PASS
    both = compared({**among, ("t15", GEN): (360, 250)})
    assert (
        decide(both, policy).reason.startswith("t15 −27.5 pp") and "Holm over 16 tasks" in decide(both, policy).reason
    )


def test_tasks_on_the_margin_do_not_fail_together():
    """2,000 policies of 15 tasks exactly on the margin: by Holm at most 2.5 % regress (+- 1.05 %, three standard errors)."""
    from perplexity_lies.read.gate import _surely_worse
    from perplexity_lies.read.judged import Judged
    from perplexity_lies.read.stats.regimes import GAP_WEIGHTS, stratum

    rng, failed, runs = np.random.default_rng(0), 0, 2000
    for _ in range(runs):
        tasks = []
        for task in range(15):
            gained, lost, _ = rng.multinomial(200, (0.07, 0.10, 0.83))
            cells = np.ones((200, 2))
            cells[:gained, 0], cells[gained : gained + lost, 1] = 0, 0
            tasks.append(Judged(str(task), (str(task),), [stratum(cells)], GAP_WEIGHTS))
        failed += bool(_surely_worse(tasks, 3.0))
    assert failed / runs <= 0.025 + 0.0105


@pytest.mark.parametrize(("what", "status"), [("truncation", Status.TRUNCATED), ("degenerate", Status.DEGENERATE)])
def test_shares_of_replies_are_held_to_a_margin(handmade, tmp_path, what, status):
    def run(name, every):
        records = [
            handmade.record("t", f"{i:03}", GEN, 0.0, status=status if i % every == 0 else Status.SCORED)
            for i in range(300)
        ]
        return handmade.write_run(tmp_path / name, records, name=name)

    comparison = compare_runs(run("teacher", 100), run("student", 3))
    verdict = decide(comparison, rules({"what": what, "margin": 5}))
    assert verdict.outcome is Outcome.REGRESS and what in verdict.reason
    assert decide(comparison, rules({"what": what, "margin": 60})).outcome is Outcome.PASS


@pytest.mark.parametrize(
    ("counts", "kind"),
    [({("a", GEN): (0, 0)}, "floor"), ({("a", LL): (400, 400)}, "saturated")],
)
def test_what_cannot_show_a_gap_has_not_passed(compared, counts, kind):
    verdict = decide(compared(counts), rules({"what": next(iter(counts))[1], "margin": 5}))
    assert (verdict.outcome, verdict.exit_code) == (Outcome.INCONCLUSIVE, 4) and f"a, {kind}:" in verdict.reason


def test_cut_prompts_void_even_a_regression(handmade, tmp_path):
    def run(name, score):
        records = [handmade.record("t", f"{i:03}", GEN, score, truncated_prompt_tokens=int(i < 3)) for i in range(200)]
        return handmade.write_run(tmp_path / name, records, name=name)

    verdict = decide(compare_runs(run("t", 1.0), run("s", 0.2)), 3.0)
    assert verdict.outcome is Outcome.INCONCLUSIVE and "t, cut prompts" in verdict.reason


def test_a_partial_run_is_said_to_be_one(compared):
    verdict = decide(compared({("a", GEN): (360, 359)}, suite={"limit": 400}), 3.0)
    assert str(verdict).startswith("PARTIAL pass: ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rules: []", "at least 1 item"),
        ("rules: [{what: generatoin, margin: 3}]", "did you mean 'generation'"),
        ("rules: [{what: generation, margin: 0}]", "greater than 0"),
        ("rules: [{what: generation, margin: 3, group: tasks}]", "unknown key 'group'"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(tmp_path, text, said):
    file = tmp_path / "gate.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=said):
        load_policy(file)


def test_a_task_that_was_not_asked_is_refused(compared):
    with pytest.raises(UsageError, match="not asked, did you mean|not asked"):
        decide(compared({("gsm8k", GEN): (3, 3)}), rules({"what": GEN, "of": ("gsm8",), "margin": 3}))


ALLOWED = {
    "testsuites": {"name", "time", "tests", "failures", "disabled", "errors"},
    "testsuite": {
        "name",
        "tests",
        "failures",
        "errors",
        "time",
        "disabled",
        "skipped",
        "timestamp",
        "hostname",
        "id",
        "package",
    },
    "testcase": {"name", "assertions", "time", "classname", "status"},
    "failure": {"type", "message"},
    "error": {"type", "message"},
}
"""Elements and attributes of junit-10.xsd, the schema of Jenkins' xUnit plugin, that stand in what we write."""


def test_junit_keeps_to_the_schema_and_counts_rightly(compared):
    task = "a<b>&\x07"
    verdict = decide(compared({(task, GEN): (360, 250), ("c", GEN): (380, 380)}), 3.0)
    root = ElementTree.fromstring(junit_xml([verdict]).split("?>", 1)[1])
    assert root.tag == "testsuites"
    for element in root.iter():
        assert set(element.attrib) <= ALLOWED[element.tag]
    for suite in root:
        assert int(suite.get("tests")) == len(suite.findall("testcase")) > 0
        assert int(suite.get("failures")) == len(suite.findall("testcase/failure")) > 0
        assert int(suite.get("errors")) == len(suite.findall("testcase/error"))
        assert {"name", "tests"} <= set(suite.attrib) and all(case.get("name") for case in suite)
    assert any("a<b>&?" in case.get("name") for case in root[0])
    assert "a\\<b\\>\\&" in markdown([verdict])
    assert json.loads(json.dumps(plain_verdicts([verdict])))[0]["exit_code"] == 1


def test_the_command_compares_runs_and_writes_all_three(handmade, tmp_path):
    teacher, student = handmade.demo_pair(tmp_path / "runs", items=40)
    policy = tmp_path / "gate.yaml"
    policy.write_text("rules: [{what: generation, margin: 3}, {what: hidden gap, margin: 5}]")
    outputs = {name: tmp_path / f"gate.{name}" for name in ("junit", "summary", "json")}
    flags = [text for name, path in outputs.items() for text in (f"--{name}", str(path))]
    command = [sys.executable, "-m", "perplexity_lies.cli", "gate", str(student), "--baseline", str(teacher)]
    found = subprocess.run([*command, "--policy", str(policy), *flags], capture_output=True, text=True, check=False)
    assert found.returncode == 1, found.stderr
    assert found.stdout.startswith("regress: overall −")
    assert ElementTree.parse(outputs["junit"]).getroot().tag == "testsuites"
    assert "### plies gate: student: regress" in outputs["summary"].read_text()
    assert json.loads(outputs["json"].read_text())[0]["outcome"] == "regress"
    bare = subprocess.run(command, capture_output=True, text=True, check=False)
    assert bare.returncode == 2 and "--margin or --policy" in bare.stderr


def test_a_margin_is_a_policy():
    assert [rule.of for rule in one_margin(3.0).rules] == ["tasks", "overall"]

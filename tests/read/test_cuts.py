"""Prompts that were cut, and items that cannot be right: counted, cautioned, and told in the headline."""

from perplexity_lies.read.compare import compare_runs
from perplexity_lies.rungs import GENERATION, LOGLIKELIHOOD

LL, GEN = LOGLIKELIHOOD, GENERATION


def test_other_cuts_on_sides_and_rungs_are_counted_and_told_first(handmade, tmp_path):
    """20 items: when ranked, the teacher's first 4 are cut and the student's first 6, by more; replies see whole prompts."""

    def run(name, cut, tokens):
        records = [
            handmade.record("t", f"{i:02}", rung, 1.0, truncated_prompt_tokens=tokens if rung == LL and i < cut else 0)
            for rung in (LL, GEN)
            for i in range(20)
        ]
        return handmade.write_run(tmp_path / name, records, name=name)

    found = compare_runs(run("teacher", 4, 3), run("student", 6, 9))
    said = [caution.text for caution in found.cautions if caution.kind == "cut differently"]
    assert "6 of 20 items were cut by other lengths on each side under log-likelihood" in said[0]
    assert said[1].startswith("4 of 20 items of the teacher") and said[2].startswith("6 of 20 items of the student")
    assert "4 of 20 of the teacher's log-likelihood prompts, 6 of 20 of the student's" in found.headline()


def test_items_that_no_checkpoint_could_have_right_are_counted(handmade, tmp_path):
    def run(name):
        records = [
            handmade.record("t", f"{i:02}", GEN, 0.0, never_right="the tokenizer cannot spell the reference" * (i < 3))
            for i in range(9)
        ]
        return handmade.write_run(tmp_path / name, records, name=name)

    found = compare_runs(run("teacher"), run("student"))
    said = [caution.text for caution in found.cautions if caution.kind == "never right"]
    assert said[0] == (
        "3 of 9 of the teacher's generation records can be right for no checkpoint: the tokenizer cannot spell the reference"
    )

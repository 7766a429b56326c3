"""Suites: the shipped load, broken ones say what is wrong and what to write, a digest moves with what is asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from perplexity_lies.catalogue.items import read_items
from perplexity_lies.catalogue.mirror import open_mirror
from perplexity_lies.catalogue.suite import catalogue, load_suite
from perplexity_lies.errors import MissingError, UsageError

ITEM: dict[str, Any] = {"id": "a1", "question": "1 + 1 = ?", "choices": ["2", "3"], "gold": 0, "target": "2"}
TASK: dict[str, Any] = {"name": "sums", "items": "items.jsonl", "extract": r"(\d+)", "max_new_tokens": 8}
STOCK: dict[str, Any] = {
    "name": "arc",
    "loglikelihood": {"lm_eval": "arc/arc_easy.yaml", "dataset": "o/d", "metric": "acc", "item": "{{ id }}"},
    "generation": {
        "evalscope": "arc",
        "dataset": "o/d",
        "max_new_tokens": 8,
        "metric": "accuracy",
        "item": "{{ metadata.id }}",
    },
}
WriteSuite = Callable[..., Path]


def task(**changed: Any) -> dict[str, Any]:
    return {**TASK, **changed}


def stock(block: str = "generation", drop: str = "", **changed: Any) -> dict[str, Any]:
    inner = {key: value for key, value in {**STOCK[block], **changed}.items() if key != drop}
    return {**STOCK, block: inner}


@pytest.fixture
def write(tmp_path: Path) -> WriteSuite:
    """`write(TASK, ...)` -> a suite file of these tasks, with an items file beside it."""

    def write_suite(*tasks: Any, folder: str = "suite", text: str | None = None, **top: Any) -> Path:
        path = tmp_path / folder / "own.yaml"
        path.parent.mkdir(exist_ok=True)
        items = path.with_name("items.jsonl")
        if not items.exists():
            items.write_text(json.dumps(ITEM) + "\n")
        path.write_text(text if text is not None else yaml.safe_dump({"name": "own", "tasks": list(tasks), **top}))
        return path

    return write_suite


def refusal(path: Path | str) -> UsageError:
    with pytest.raises(UsageError) as error:
        load_suite(path)
    assert error.value.found and error.value.mend, str(error.value)
    return error.value


# --- shipped --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(catalogue()))
def test_shipped_suite_loads_and_bears_its_name(name: str) -> None:
    suite = load_suite(name)
    assert suite.name == name and suite.title and suite.tasks
    for each in suite.tasks:
        assert each.loglikelihood.item and each.generation.item
        assert each.items is None or len(read_items(each.items.path)) > 0


def test_smoke_is_the_five_benchmarks_with_their_datasets() -> None:
    suite = load_suite("smoke")
    assert [each.name for each in suite.tasks] == ["arc_easy", "arc_challenge", "hellaswag", "winogrande", "gsm8k"]
    assert suite.datasets[0] == "allenai/ai2_arc" and len(set(suite.datasets)) == len(suite.datasets)


def test_own_suite_is_read_as_written(write: WriteSuite) -> None:
    suite = load_suite(write(task(temperature=1, seeds=[0, 7], chance=0.5, metric="acc_norm", chat_template=False)))
    (only,) = suite.tasks
    assert only.generation.seeds == (0, 7) and only.generation.sampling.temperature == 1.0
    assert only.loglikelihood.chance == 0.5 and only.loglikelihood.metric == "acc_norm"
    assert not only.loglikelihood.chat_template and only.generation.metric == "exact_match"
    assert only.items is not None and only.items.path.name == "items.jsonl" and suite.datasets == ()


# --- malformed ------------------------------------------------------------------------------------------------------

MALFORMED: dict[str, tuple[list[Any], str, str]] = {
    # name: (tasks, in what is said, in what to do)
    "tasks_empty": ([], "`tasks` must be a list", "plies suites"),
    "task_is_text": (["sums"], "must be a mapping", "plies suites"),
    "unknown_key": ([task(max_new_token=8)], "did you mean 'max_new_tokens'?", "spell it"),
    "unknown_key_in_block": ([stock(metirc="accuracy")], "did you mean 'metric'?", "spell it"),
    "text_for_a_number": ([task(max_new_tokens="many")], "`max_new_tokens` must be int", "plies suites"),
    "truth_for_a_number": ([task(max_new_tokens=True)], "`max_new_tokens` must be int", "plies suites"),
    "number_for_truth": ([task(chat_template="no")], "`chat_template` must be bool", "plies suites"),
    "text_for_seeds": ([task(seeds=["a"])], "`seeds` must be a list of int", "plies suites"),
    "seeds_empty": ([task(seeds=[])], "`seeds` must be a list of int", "plies suites"),
    "seeds_twice": ([task(seeds=[1, 1])], "`seeds` must be distinct", "seeds: [0, 1, 2]"),
    "seed_negative": ([task(seeds=[-50])], "`seeds` must be distinct numbers from 0", "seeds: [0, 1, 2]"),
    "budget_zero": ([task(max_new_tokens=0)], "`max_new_tokens` must lie in [1", "max_new_tokens"),
    "temperature_below": ([task(temperature=-0.1)], "`temperature` must lie in [0, 100]", "temperature"),
    "temperature_nan": ([task(temperature=float("nan"))], "`temperature` must lie in", "temperature"),
    "top_p_above": ([task(top_p=1.5)], "`top_p` must lie in", "top_p"),
    "chance_above": ([task(chance=25)], "`chance` must lie in [0, 1]", "chance"),
    "no_budget": ([{k: v for k, v in TASK.items() if k != "max_new_tokens"}], "`max_new_tokens`", ""),
    "items_missing": ([task(items="other.jsonl")], "its items are not there", "relative to the suite"),
    "items_not_a_text": ([task(items=["items.jsonl"])], "needs `items`", "items: ..."),
    "regex_broken": ([task(extract="(a")], "not a regular expression", "extract:"),
    "regex_without_group": ([task(extract="a+")], "needs one group", "extract:"),
    "regex_with_two_groups": ([task(extract="(a)(b)")], "needs one group", "extract:"),
    "metric_unknown": ([task(metric="accuracy")], "`metric` is lm-eval's", "acc or acc_norm"),
    "two_of_one_name": ([task(), task()], "two tasks of one name", "its own name"),
    "name_with_a_slash": ([task(name="a/b")], "letters, digits", "name: arc_easy"),
    "no_name": ([{k: v for k, v in TASK.items() if k != "name"}], "needs `name`", "name: ..."),
    "both_lm_eval": ([stock("loglikelihood", lm_eval_file="x.yaml")], "one of `lm_eval` and", "lm_eval:"),
    "neither_lm_eval": ([stock("loglikelihood", drop="lm_eval")], "one of `lm_eval` and", "lm_eval:"),
    "no_item": ([stock(drop="item")], "need `item`", "item:"),
    "no_dataset": ([stock(drop="dataset")], "need `dataset`", "dataset:"),
    "no_evalscope": ([stock(drop="evalscope")], "needs `evalscope`", "evalscope: arc"),
    "no_metric": ([stock(drop="metric")], "lacks `metric`", "metric: ..."),
    "no_generation": ([{k: v for k, v in STOCK.items() if k != "generation"}], "lacks `generation:`", "generation:"),
    "block_is_a_list": ([{**STOCK, "generation": []}], "must be a mapping", "plies suites"),
    "lm_eval_file": (
        [stock("loglikelihood", drop="lm_eval", lm_eval_file="x.yaml")],
        "x.yaml is not there",
        "relative to",
    ),
}


@pytest.mark.parametrize("name", sorted(MALFORMED))
def test_malformed_suite_says_what_is_wrong_and_what_to_write(write: WriteSuite, name: str) -> None:
    tasks, said, mend = MALFORMED[name]
    error = refusal(write(*tasks))
    assert said in f"{error.asked}\n{error.found}", str(error)
    assert mend in "\n".join(error.mend), str(error)
    assert "own.yaml" in error.asked
    if tasks and isinstance(tasks[0], dict) and name not in ("no_name", "two_of_one_name"):
        assert tasks[0]["name"] in f"{error.asked}\n{error.found}", str(error)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tasks: [", "is not YAML"),
        ("- name: a\n", "must be a mapping"),
        ("", "must be a mapping"),
        ("just words", "must be a mapping"),
        ("tasks: []\n", "needs `name`"),
        ("name: 5\ntasks: []\n", "needs `name`"),
        ("name: own\n", "`tasks` must be a list"),
        ("name: own\ntasks: {}\n", "`tasks` must be a list"),
        ("name: own\ntask: []\n", "did you mean 'tasks'?"),
        ("name: a\nname: b\ntasks: []\n", "stands twice"),
        ("name: !!python/object:os.system x\n", "is not YAML"),
    ],
)
def test_text_that_is_no_suite(write: WriteSuite, text: str, said: str) -> None:
    error = refusal(write(text=text))
    assert said in f"{error.asked}\n{error.found}", str(error)


def test_suite_that_is_not_utf8(write: WriteSuite) -> None:
    path = write(TASK)
    path.write_bytes(b"name: \xff\xfe\n")
    assert "is not YAML" in refusal(path).asked


@pytest.mark.parametrize("name", ["smok", "nothing", "no/such/file.yaml", "x" * 5000])
def test_unknown_suite_names_those_there_are(name: str) -> None:
    error = refusal(name)
    assert "smoke" in error.found[0] and "--suite FILE.yaml" in error.mend[0]
    assert ("did you mean 'smoke'?" in error.asked) == (name == "smok")


BAD_ITEMS: dict[str, tuple[bytes, str]] = {
    "not_json": (b"{'id': 1}\n", "not JSON"),
    "blank_line": (b"\n" + json.dumps(ITEM).encode() + b"\n", "not JSON"),
    "list": (b"[]\n", "a JSON list, not an object"),
    "number": (b"3\n", "a JSON int, not an object"),
    "lacks_keys": (b'{"id": "a", "question": "q"}\n', "no 'choices', 'gold', 'target'"),
    "second_id": ((json.dumps(ITEM) + "\n").encode() * 2, "id 'a1' a second time"),
    "id_number": (json.dumps({**ITEM, "id": 1}).encode(), "'id' must be a text"),
    "id_empty": (json.dumps({**ITEM, "id": ""}).encode(), "'id' must be a text"),
    "id_spaces": (json.dumps({**ITEM, "id": "a  b"}).encode(), "'id' must be a text without spaces"),
    "one_choice": (json.dumps({**ITEM, "choices": ["2"]}).encode(), "'choices' must be two texts"),
    "target_empty": (json.dumps({**ITEM, "target": " "}).encode(), "'target' is empty"),
    "choice_number": (json.dumps({**ITEM, "choices": [2, 3]}).encode(), "'choices' must be two texts"),
    "choice_empty": (json.dumps({**ITEM, "choices": ["2", ""]}).encode(), "'choices' must be two texts"),
    "gold_beyond": (json.dumps({**ITEM, "gold": 2}).encode(), "'gold' must be an index into 2"),
    "gold_negative": (json.dumps({**ITEM, "gold": -1}).encode(), "'gold' must be an index"),
    "gold_truth": (json.dumps({**ITEM, "gold": True}).encode(), "'gold' must be an index"),
    "subject_number": (json.dumps({**ITEM, "subject": 4}).encode(), "'subject' is not a text"),
    "half_a_surrogate": (b'{"id":"a","question":"\\ud800","choices":["1","2"],"gold":0,"target":"1"}', "not a text"),
    "deep": (b"[" * 100_000, "not JSON"),
}


@pytest.mark.parametrize("name", sorted(BAD_ITEMS))
def test_broken_item_is_named_by_its_line(write: WriteSuite, name: str) -> None:
    content, found = BAD_ITEMS[name]
    path = write(TASK)
    path.with_name("items.jsonl").write_bytes(content)
    error = refusal(path)
    assert found in error.found[0], str(error)
    assert f"items.jsonl:{2 if name == 'second_id' else 1} is not an item" in error.asked and "'sums'" in error.asked
    assert '"question"' in error.mend[0]


@pytest.mark.parametrize(("content", "said"), [(b"", "holds no items"), (b"\xff\xfe\x00", "is not UTF-8 text")])
def test_items_file_without_items(write: WriteSuite, content: bytes, said: str) -> None:
    path = write(TASK)
    path.with_name("items.jsonl").write_bytes(content)
    assert said in refusal(path).asked


def test_items_keep_every_letter(tmp_path: Path) -> None:
    odd = {**ITEM, "question": "a\u2028b\r\n\x85 ", "target": "2024-01-01", "more": 1}
    (tmp_path / "i.jsonl").write_text(json.dumps(odd, ensure_ascii=False) + "\n", newline="")
    (item,) = read_items(tmp_path / "i.jsonl")
    assert (item.question, item.target, item.subject) == ("a\u2028b\r\n\x85 ", "2024-01-01", "")


# --- digest ---------------------------------------------------------------------------------------------------------


def digest(path: Path) -> str:
    return load_suite(path).digest


def test_digest_stays_with_comments_titles_order_of_keys_and_place(write: WriteSuite) -> None:
    first = write(TASK)
    before = digest(first)
    first.write_text("# a comment\n" + first.read_text())
    assert digest(first) == before
    assert digest(write(task(title="Sums"), folder="elsewhere", title="Other")) == before
    assert digest(write(dict(reversed(TASK.items())), folder="third")) == before


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "other"},
        {"max_new_tokens": 9},
        {"extract": r"(\d)"},
        {"chat_template": False},
        {"chance": 0.5},
        {"seeds": [1]},
        {"temperature": 0.5},
        {"top_p": 0.9},
        {"top_k": 3},
        {"metric": "acc_norm"},
        {"subject": "{{ id }}"},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_digest_moves_with_each_setting(write: WriteSuite, changed: dict[str, Any]) -> None:
    assert digest(write(task(**changed), folder="b")) != digest(write(TASK, folder="a"))


@pytest.mark.parametrize("block", ["loglikelihood", "generation"])
def test_digest_moves_with_each_setting_of_a_stock_task(write: WriteSuite, block: str) -> None:
    before = digest(write(STOCK))
    changes: dict[str, Any] = {"dataset": "o/e", "num_fewshot": 2, "item": "{{ x }}", "metric": "n", "chance": 0.1}
    changes |= {"subset": "s", "stop": ["\n"]} if block == "generation" else {"chat_template": True}
    digests = {key: digest(write(stock(block, **{key: value}))) for key, value in changes.items()}
    assert before not in digests.values() and len(set(digests.values())) == len(changes)


def test_digest_moves_with_one_byte_of_the_items(write: WriteSuite) -> None:
    path = write(TASK)
    before = digest(path)
    items = path.with_name("items.jsonl")
    items.write_text(items.read_text().replace("1 + 1", "1 + 2"))
    assert digest(path) != before


def test_digest_moves_with_the_suites_own_lm_eval_files(write: WriteSuite) -> None:
    path = write(stock("loglikelihood", drop="lm_eval", lm_eval_file="own_task.yaml"))
    path.with_name("own_task.yaml").write_text("task: x\n")
    path.with_name("own_task.py").write_text("A = 1\n")
    before = digest(path)
    path.with_name("own_task.py").write_text("A = 2\n")
    assert digest(path) != before


# --- mirror ---------------------------------------------------------------------------------------------------------


def hub(path: Path, aliases: Any = None) -> Path:
    (path / "org" / "real").mkdir(parents=True)
    (path / "org" / "real" / "data.txt").write_text("rows")
    if aliases is not None:
        (path / "ALIASES.json").write_text(aliases if isinstance(aliases, str) else json.dumps(aliases))
    return path


def test_mirror_finds_a_dataset_by_name_and_by_alias(tmp_path: Path) -> None:
    mirror = open_mirror(hub(tmp_path, {"other/name": "org/real"}))
    assert mirror.folder("org/real") == mirror.folder("other/name") == (tmp_path / "org" / "real").resolve()
    assert mirror.digest("org/real") == mirror.digest("other/name")


def test_missing_dataset_says_what_is_there_and_the_command_that_fetches_it(tmp_path: Path) -> None:
    with pytest.raises(MissingError) as error:
        open_mirror(hub(tmp_path)).folder("Rowan/hellaswag")
    assert error.value.found == ("1 datasets there: org/real",)
    fetch = f"hf download --repo-type dataset Rowan/hellaswag --local-dir {tmp_path}/Rowan/hellaswag"
    assert error.value.mend == (fetch,)


def test_no_mirror_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PLIES_DATA", raising=False)
    with pytest.raises(MissingError) as error:
        open_mirror(None).folder("Rowan/hellaswag")
    assert "PLIES_DATA" in error.value.found[0] and "hf download" in error.value.mend[0]


def test_environment_names_the_mirror_and_the_option_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLIES_DATA", str(hub(tmp_path / "a")))
    assert open_mirror(None).path == tmp_path / "a"
    assert open_mirror(hub(tmp_path / "b")).path == tmp_path / "b"
    monkeypatch.setenv("PLIES_DATA", str(tmp_path / "none"))
    with pytest.raises(MissingError) as error:
        open_mirror(None)
    assert "PLIES_DATA" in error.value.asked and "is not a directory" in error.value.asked
    monkeypatch.setenv("PLIES_DATA", "")
    assert open_mirror(None).path is None


@pytest.mark.parametrize("aliases", ["{", "[]", {"a": 5}, '{"a": "\\u0000'])
def test_broken_aliases_are_named(tmp_path: Path, aliases: Any) -> None:
    with pytest.raises(UsageError) as error:
        open_mirror(hub(tmp_path, aliases)).folder("other/name")
    assert "ALIASES.json" in error.value.asked and error.value.found and error.value.mend


def test_digest_of_a_dataset_is_over_names_and_bytes_not_over_place(tmp_path: Path) -> None:
    here = open_mirror(hub(tmp_path / "a"))
    there = open_mirror(hub(tmp_path / ".cache" / "b"))
    before = here.digest("org/real")
    assert before == there.digest("org/real")
    (tmp_path / ".cache" / "b" / "org" / "real" / "data.txt").write_text("rowS")
    assert there.digest("org/real") != before
    (tmp_path / "a" / "org" / "real" / ".cache").mkdir()
    (tmp_path / "a" / "org" / "real" / ".cache" / "hf").write_text("what hf download keeps")
    assert here.digest("org/real") == before
    (tmp_path / "a" / "org" / "real" / "data.txt").rename(tmp_path / "a" / "org" / "real" / "date.txt")
    assert here.digest("org/real") != before

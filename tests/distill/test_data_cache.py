"""Tokenised once: what is on disk is what the source says, after a kill, after growing, and bad input is named."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from transformers import PreTrainedTokenizerBase

from distill.data import Tokens, cache
from distill.data.cache import FILES, TokenCache, fitted
from distill.data.rows import Row, Source, open_source
from distill.miniature.tokenizer import build_tokenizer
from distill.recipe.settings import DataConfig
from perplexity_lies.errors import MissingError, UsageError
from perplexity_lies.progress import Reporter
from suites.miniature.world import vocabulary

WORDS = ("a", "b", "c", "d", "e", "f")
QUIET = Reporter(quiet=True)
HUB = Path(__file__).resolve().parents[3] / "shared" / "data" / "hub"


def text_of(number: int) -> str:
    """A text of one to nine words that says which it is."""
    return " ".join(WORDS[(number // 6**place) % 6] for place in range(1 + number % 9))


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def texts(path: Path, count: int, **more: Any) -> Path:
    return write_jsonl(path, [{"text": text_of(number), **more} for number in range(count)])


def config_of(path: Path | str, **settings: Any) -> DataConfig:
    settings = settings if "messages" in settings else {"text": "text", **settings}
    return DataConfig(source=str(path), **settings)


def cache_of(
    config: DataConfig, tokenizer: Any, directory: Path, *, tokens: int = 10**9, length: int = 64
) -> TokenCache:
    made = TokenCache("web", config, tokenizer, length, directory)
    made.grow(tokens, 0, QUIET)
    return made


def everything(made: TokenCache) -> list[Tokens]:
    corpus = made.corpus()
    return [corpus[number] for number in range(len(corpus))]


def contents(made: TokenCache) -> list[bytes]:
    return [(made.directory / name).read_bytes() for name in FILES]


def test_documents_are_the_rows_in_order(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    made = cache_of(config_of(texts(tmp_path / "web.jsonl", 700)), tokenizer, tmp_path / "cache")
    documents = everything(made)
    assert [tokenizer.decode(document.ids) for document in documents] == [f"{text_of(n)} <eos>" for n in range(700)]
    assert all(document.completions == ((0, len(document.ids)),) for document in documents)
    manifest = json.loads((made.directory / "manifest.json").read_text())
    assert manifest["exhausted"] and manifest["counts"]["documents"] == manifest["counts"]["rows"] == 700
    assert manifest["counts"]["tokens"] == sum(len(d.ids) for d in documents) == manifest["counts"]["completion_tokens"]
    assert list(manifest["version"]) == [str(tmp_path / "web.jsonl")] and not manifest["left_out"]


def test_formats_hold_the_same_documents(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [{"text": text_of(number), "score": number % 5, "other": None} for number in range(60)]
    write_jsonl(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.txt").write_text("\n\n".join(row["text"] for row in rows), encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=7)
    made = [
        everything(cache_of(config_of(tmp_path / f"a.{kind}"), tokenizer, tmp_path / "cache"))
        for kind in ("jsonl", "txt", "parquet")
    ]
    assert made[0] == made[1] == made[2] and len(made[0]) == 60
    three = everything(cache_of(config_of(tmp_path / "a.*"), tokenizer, tmp_path / "cache"))
    assert three == made[0] * 3


def test_a_glob_reads_files_by_name_and_scores_filter(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    for name, score in (("b", 3.9), ("a", 4), ("c", None), ("d", 5)):
        texts(tmp_path / f"{name}.jsonl", 3, score=score)
    made = cache_of(config_of(tmp_path / "*.jsonl", at_least={"score": 4}), tokenizer, tmp_path / "cache")
    assert len(everything(made)) == 6 and made.left_out == {"below score 4": 6}
    assert "6 left out: below score 4" in made.summary()


@pytest.mark.parametrize(
    ("rule", "sizes"), [("split", [2, 4, 4, 4, 3]), ("cut", [2, 4, 4]), ("drop", [2, 4])], ids=["split", "cut", "drop"]
)
def test_what_is_too_long(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, rule: str, sizes: list[int]) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "a " * count} for count in (1, 3, 10)])
    made = cache_of(config_of(tmp_path / "a.jsonl", too_long=rule), tokenizer, tmp_path / "cache", length=4)
    assert [len(document.ids) for document in everything(made)] == sizes
    assert made.left_out == ({"too long": 1} if rule == "drop" else {})
    assert made.counts[rule] == (0 if rule == "drop" else 1)


def test_pieces_keep_their_completions() -> None:
    document = Tokens(list(range(10)), ((2, 4), (6, 9)))
    assert fitted(document, 5, "split") == [
        Tokens([0, 1, 2, 3, 4], ((2, 4),)),
        Tokens([5, 6, 7, 8, 9], ((1, 4),)),
    ]
    assert fitted(document, 7, "cut") == [Tokens([0, 1, 2, 3, 4, 5, 6], ((2, 4), (6, 7)))]
    assert fitted(document, 10, "drop") == [document] and fitted(document, 9, "drop") == []


def test_conversations_and_what_is_left_out_of_them(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    def said(*turns: str) -> dict[str, Any]:
        roles = ("user", "assistant")
        return {"chat": [{"role": roles[n % 2], "content": text} for n, text in enumerate(turns)]}

    rows = [said("a", "b", "c", "d e"), said("a"), {"chat": []}, said("a b c d e f a b", "c")]
    made = cache_of(
        config_of(write_jsonl(tmp_path / "a.jsonl", rows), messages="chat", too_long="cut"),
        tokenizer,
        tmp_path,
        length=9,
    )
    (document,) = everything(made)
    assert tokenizer.decode(document.ids) == "<user> a <assistant> b <eos> <user> c <assistant> d"
    assert document.completions == ((3, 5), (8, 9))
    assert made.left_out == {"without a completion": 3} and made.counts["cut"] == 2


def test_streaming_stops_when_there_is_enough_and_goes_on_when_more_is_asked(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    config = config_of(texts(tmp_path / "web.jsonl", 3000))
    small = cache_of(config, tokenizer, tmp_path / "cache", tokens=3000)
    assert 3000 <= small.counts["tokens"] < 6000 and not small.exhausted
    prefix = small.corpus().upto(3000)
    first = [prefix[number] for number in range(len(prefix))]
    assert 3000 <= sum(len(document.ids) for document in first) < 3010 and prefix.tokens < 3010
    grown = cache_of(config, tokenizer, tmp_path / "cache")
    assert grown.directory == small.directory and grown.exhausted and grown.counts["documents"] == 3000
    again = grown.corpus().upto(3000)
    assert [again[number] for number in range(len(again))] == first
    assert contents(grown) == contents(cache_of(config, tokenizer, tmp_path / "other"))


def test_nothing_is_read_again(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(texts(tmp_path / "web.jsonl", 600))
    before = everything(cache_of(config, tokenizer, tmp_path / "cache"))
    source = open_source(config, ["text"])
    unread = Source(source.identity, source.version, lambda start: pytest.fail("the rows were opened again"))
    monkeypatch.setattr(cache, "open_source", lambda config, columns: unread)
    assert everything(cache_of(config, tokenizer, tmp_path / "cache")) == before


def test_what_changes_the_tokens_changes_the_place(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    path = texts(tmp_path / "web.jsonl", 30)

    def place(config: DataConfig, tokenizer: Any = tokenizer, length: int = 64) -> Path:
        return TokenCache("web", config, tokenizer, length, tmp_path).directory

    places = [
        place(config_of(path)),
        place(config_of(path, at_least={"text": 1})),
        place(config_of(path, too_long="drop")),
        place(config_of(path), length=32),
        place(config_of(path), build_tokenizer([*vocabulary(), "more"])),
        place(config_of(path, messages="text")),
    ]
    assert place(config_of(path)) == places[0]
    texts(path, 31)
    assert len({*places, place(config_of(path))}) == 7


def interrupted(source: Source, after: int) -> Source:
    def rows(start: int) -> Iterator[Row]:
        for number, row in enumerate(source.rows(start), start):
            if number == after:
                raise KeyboardInterrupt
            yield row

    return Source(source.identity, source.version, rows)


@pytest.mark.parametrize("after", [0, 100, 256, 600, 1023])
def test_an_interrupted_cache_ends_with_the_same_bytes(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    config = config_of(texts(tmp_path / "web.jsonl", 1024))
    with monkeypatch.context() as patch:
        patch.setattr(cache, "open_source", lambda config, columns: interrupted(open_source(config, columns), after))
        with pytest.raises(KeyboardInterrupt):
            cache_of(config, tokenizer, tmp_path / "killed")
    directory = TokenCache("web", config, tokenizer, 64, tmp_path / "killed").directory
    for name in FILES:
        with (directory / name).open("ab") as file:
            file.write(b"half a write")
    killed = cache_of(config, tokenizer, tmp_path / "killed")
    whole = cache_of(config, tokenizer, tmp_path / "whole")
    assert contents(killed) == contents(whole) and killed.counts == whole.counts


KILLED = """
import os, signal, sys
from pathlib import Path
from distill.data import cache
from distill.data.rows import Source, open_source
from distill.recipe.settings import DataConfig
from distill.miniature.tokenizer import build_tokenizer
from perplexity_lies.progress import Reporter
from suites.miniature.world import vocabulary

def dying(config, columns):
    source = open_source(config, columns)
    def rows(start):
        for number, row in enumerate(source.rows(start), start):
            if number == 1500:
                os.kill(os.getpid(), signal.SIGKILL)
            yield row
    return Source(source.identity, source.version, rows)

cache.COMMIT_S, cache.open_source = 0.0, dying
config = DataConfig(source=sys.argv[1], text="text")
cache.TokenCache("web", config, build_tokenizer(vocabulary()), 64, Path(sys.argv[2])).grow(10**9, 0, Reporter(quiet=True))
"""


def test_a_killed_process_loses_what_its_last_manifest_does_not_count(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    path = texts(tmp_path / "web.jsonl", 2000)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(path), str(tmp_path / "killed")],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    config = config_of(path)
    left = TokenCache("web", config, tokenizer, 64, tmp_path / "killed")
    assert left.counts["rows"] == 1280 and not left.exhausted
    whole = cache_of(config, tokenizer, tmp_path / "whole")
    assert contents(cache_of(config, tokenizer, tmp_path / "killed")) == contents(whole)


def test_several_writers_take_turns(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    config = config_of(texts(tmp_path / "web.jsonl", 1500))
    with ThreadPoolExecutor(3) as pool:
        made = list(pool.map(lambda _: cache_of(config, tokenizer, tmp_path / "shared"), range(3)))
    whole = cache_of(config, tokenizer, tmp_path / "whole")
    assert all(contents(each) == contents(whole) and each.counts == whole.counts for each in made)


def test_a_damaged_cache_is_named(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    config = config_of(texts(tmp_path / "web.jsonl", 30))
    directory = cache_of(config, tokenizer, tmp_path / "cache").directory
    os.truncate(directory / "ids.bin", 10)
    with pytest.raises(UsageError, match="is damaged") as caught:
        cache_of(config, tokenizer, tmp_path / "cache")
    assert caught.value.mend == (f"rm -r {directory}",)


def test_a_source_that_changed_does_not_continue_another(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(texts(tmp_path / "web.jsonl", 3000))
    cache_of(config, tokenizer, tmp_path / "cache", tokens=100)
    source = open_source(config, ["text"])
    moved = Source(source.identity, lambda: "another revision", source.rows)
    monkeypatch.setattr(cache, "open_source", lambda config, columns: moved)
    with pytest.raises(UsageError, match="data 'web' has changed since"):
        cache_of(config, tokenizer, tmp_path / "cache")


GOOD = json.dumps({"text": "a b", "score": 1}) + "\n"


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        (GOOD + "{bad\n", {}, "a.jsonl, line 2 is not JSON"),
        (GOOD + "\n[1]\n", {}, "a.jsonl, line 3 is not an object"),
        (GOOD, {"text": "txt"}, "a.jsonl, line 1 has no column 'txt', did you mean 'text'?"),
        (GOOD, {"at_least": {"quality": 4}}, "a.jsonl, line 1 has no column 'quality'"),
        (GOOD, {"at_least": {"text": 4}}, "a.jsonl, line 1: column 'text' is not a number"),
        (GOOD, {"at_least": {"score": 4}}, "data 'web' has no documents"),
        ('{"text": 5}\n', {}, "a.jsonl, line 1: the text is not a string"),
        (GOOD, {"messages": "text"}, "a.jsonl, line 1: a conversation must be a list of messages"),
        ("", {}, "data 'web' has no documents"),
        ('{"text": ""}\n', {}, "data 'web' has no documents"),
    ],
)
def test_bad_input_is_named(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, text: str, settings: dict[str, Any], message: str
) -> None:
    (tmp_path / "a.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        cache_of(config_of(tmp_path / "a.jsonl", **settings), tokenizer, tmp_path / "cache").corpus()
    assert message in caught.value.asked and caught.value.found and caught.value.mend


def test_files_that_cannot_be_read_are_named(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    (tmp_path / "a.csv").write_text("text\n", encoding="utf-8")
    (tmp_path / "a.parquet").write_text("no parquet", encoding="utf-8")
    (tmp_path / "a.txt").write_bytes(b"good\n\xff\xfe\n")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"content": "a"}]), tmp_path / "b.parquet")
    for name, message in (
        ("a.csv", "a.csv cannot be read"),
        ("a.parquet", "a.parquet is not a parquet file"),
        ("a.txt", "a.txt is not UTF-8 text"),
        ("b.parquet", "b.parquet has no column 'text'"),
    ):
        with pytest.raises(UsageError, match=message):
            cache_of(config_of(tmp_path / name), tokenizer, tmp_path / "cache")
    with pytest.raises(MissingError, match=r"no file '.*none\*.jsonl'"):
        cache_of(config_of(tmp_path / "none*.jsonl"), tokenizer, tmp_path / "cache")


def hub_layout(folder: Path) -> Path:
    """A dataset of two subsets as it lies on the hub."""
    for subset in ("one", "two"):
        for split, count in (("train", 40), ("test", 5)):
            (folder / subset).mkdir(parents=True, exist_ok=True)
            rows = [{"text": text_of(n), "score": float(n % 5)} for n in range(count)]
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / subset / f"{split}-00000.parquet")
    configs = "".join(f"- config_name: {subset}\n  data_dir: {subset}\n" for subset in ("one", "two"))
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n", encoding="utf-8")
    return folder


def test_a_dataset_is_streamed_by_its_library(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = hub_layout(tmp_path / "org" / "data")
    config = config_of(folder, subset="two", at_least={"score": 4})
    made = cache_of(config, tokenizer, tmp_path / "cache")
    assert len(everything(made)) == 8 and made.counts["rows"] == 40
    monkeypatch.chdir(tmp_path)
    test = cache_of(config_of("org/data", subset="two", split="test"), tokenizer, tmp_path / "cache")
    assert [tokenizer.decode(document.ids) for document in everything(test)] == [
        f"{text_of(n)} <eos>" for n in range(5)
    ]
    source = open_source(config, ["text"])
    assert list(source.rows(37)) == list(source.rows(0))[37:] and len(list(source.rows(37))) == 3


def test_a_dataset_that_cannot_be_had_is_named(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(MissingError, match="dataset 'no/such' cannot be had"):
        cache_of(config_of("no/such"), tokenizer, tmp_path / "cache")
    folder = hub_layout(tmp_path / "data")
    with pytest.raises(UsageError, match="has no subset 'three'") as caught:
        cache_of(config_of(folder, subset="three"), tokenizer, tmp_path / "cache")
    assert "'one', 'two'" in caught.value.found[0]
    with pytest.raises(UsageError, match="has no split 'dev'"):
        cache_of(config_of(folder, subset="one", split="dev"), tokenizer, tmp_path / "cache")


def test_a_real_dataset(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    folder = HUB / "openai" / "gsm8k"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    config = config_of(folder, subset="main", split="test", text="question", too_long="split")
    made = cache_of(config, tokenizer, tmp_path / "cache", tokens=5000)
    assert made.counts["tokens"] >= 5000 and not made.exhausted

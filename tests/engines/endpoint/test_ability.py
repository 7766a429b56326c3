"""What a server can do and where it is, as the endpoint engine finds out."""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from perplexity_lies.checkpoint.client import parse_address
from perplexity_lies.checkpoint.lookup import LOOK_UP, resolve
from perplexity_lies.cli import main
from perplexity_lies.engines import engine_of, open_engine
from perplexity_lies.engines.base import EngineOptions
from perplexity_lies.errors import MissingError, UsageError

from .client import connect, named, with_bos
from .server import FOR_EVER, MODEL, Fault, Service, serving


@pytest.mark.parametrize(
    ("settings", "prompts", "why"),
    [
        ({}, "ids", ""),
        ({"takes_ids": False}, "text", ""),
        ({"echoes": False}, "ids", "the reply has no log-probabilities"),
        ({"echoes": False, "takes_ids": False}, "text", "prompt must be a string"),
        ({"completes": False}, "messages", "no such route"),
    ],
)
def test_ability(torch_engine: Any, files: Path, settings: dict[str, bool], prompts: str, why: str) -> None:
    with serving(torch_engine, **settings) as service:
        found = connect(service, files).ability
        assert found.prompts == prompts and why in found.why_no_score and bool(found.why_no_score) == bool(why)


def test_a_server_that_can_do_nothing(torch_engine: Any, files: Path, service: Service) -> None:
    service.faults = [Fault("501", times=FOR_EVER)]
    with pytest.raises(MissingError, match="answers neither prompts nor chats") as caught:
        connect(service, files)
    assert len(caught.value.found) == 5


def test_another_checkpoints_tokenizer(service: Service, files: Path, tmp_path: Path) -> None:
    directory = tmp_path / "other"
    directory.mkdir()
    content = json.loads((files / "tokenizer.json").read_text())
    words = content["model"]["vocab"]
    content["model"]["vocab"] = {**words, "q": words["z"], "z": words["q"]}
    (directory / "tokenizer.json").write_text(json.dumps(content))
    shutil.copy(files / "tokenizer_config.json", directory)
    with pytest.raises(UsageError, match="not the one that the server uses") as caught:
        connect(service, directory)
    assert "q" in caught.value.found[0] and "z" in caught.value.found[1]
    with (
        serving(service.engine, takes_ids=False, adds_bos=True) as other,
        pytest.raises(UsageError, match="not the one"),
    ):
        connect(other, files)


def test_a_key_is_sent_and_asked_for(torch_engine: Any, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(torch_engine, key="s3cret") as service:
        with pytest.raises(MissingError, match="does not let us in") as caught:
            named(service, files)
        assert "PLIES_API_KEY" in caught.value.mend[0]
        monkeypatch.setenv("PLIES_API_KEY", "s3cret")
        checkpoint = named(service, files)
        assert "s3cret" not in str(checkpoint.describe())


def test_the_fingerprint_is_of_address_model_description_and_tokenizer(
    torch_engine: Any, files: Path, tmp_path: Path
) -> None:
    other = with_bos(files, tmp_path / "bos")
    with serving(torch_engine) as service:
        first, again = named(service, files), named(service, files)
        assert first.digest == again.digest and first.kind == "endpoint" and first.weights_digest == ""
        digests = {first.digest, named(service, None).digest, named(service, other).digest}
        service.context_tokens = 100
        digests.add(named(service, files).digest)
        assert len(digests) == 4
        assert (first.describe().url, first.describe().served_model) == (service.url, MODEL)


def test_the_model_may_be_left_out_where_there_is_one(torch_engine: Any, service: Service) -> None:
    found = resolve(service.url).served
    assert found is not None and found.model == MODEL
    service.listed = (MODEL, "other")
    with pytest.raises(UsageError, match="names no model") as caught:
        resolve(service.url)
    assert "other" in caught.value.found[0]


def test_nobody_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        with pytest.raises(MissingError, match="no OpenAI-compatible server answers") as told:
            resolve(f"{url}#m")
        assert f"after {LOOK_UP.attempts} attempts" in str(told.value.found)
        with pytest.raises(SystemExit) as left:
            main(["evaluate", f"{url}#m", "--suite", "miniature", "--tokenizer", "builtin:teacher"])
        assert left.value.code == 3


@pytest.mark.parametrize(
    ("name", "url", "model"),
    [
        ("http://h:80", "http://h:80/v1", ""),
        ("http://h:80/#a/b", "http://h:80/v1", "a/b"),
        ("https://h/api/v1#m", "https://h/api/v1", "m"),
        ("http://[::1]:80/v1/", "http://[::1]:80/v1", ""),
        ("http://h/other#/a/path", "http://h/other", "/a/path"),
    ],
)
def test_addresses(name: str, url: str, model: str) -> None:
    found = parse_address(name)
    assert found is not None and (found.url, found.model) == (url, model)


@pytest.mark.parametrize(
    "name",
    [
        "ftp://h/v1",
        "http:///v1",
        "https://h/page",
        "http://h/v1?a=b",
        "http://u:p@h/v1",
        "http://h o/v1",
        "http://[/v1",
    ],
)
def test_no_addresses(name: str) -> None:
    with pytest.raises(UsageError):
        parse_address(name)
    assert parse_address("org/name") is None


def test_the_engine_of_a_checkpoint(service: Service, files: Path) -> None:
    here, there = resolve(str(files)), named(service, files)
    assert [engine_of("torch", here), engine_of("torch", there), engine_of("endpoint", there)] == [
        "torch",
        "endpoint",
        "endpoint",
    ]
    for name in ("endpoint", "tensorrt"):
        with pytest.raises(UsageError) as caught:
            engine_of(name, here)
        assert caught.value.mend


def test_vllm_that_is_not_installed_names_its_extra(files: Path) -> None:
    if importlib.util.find_spec("vllm"):
        pytest.skip("vllm is installed here")
    with pytest.raises(MissingError, match="'vllm' cannot start") as caught:
        open_engine("vllm", resolve(str(files)), EngineOptions())
    assert "perplexity-lies[vllm]" in caught.value.mend[0]

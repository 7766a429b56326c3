"""What a chat template is given: arguments of the run's own, and a clock that stands still."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from perplexity_lies.checkpoint.lookup import resolve
from perplexity_lies.engines import open_engine
from perplexity_lies.engines.base import EngineOptions
from perplexity_lies.engines.template import CLOCK, both_args, template_args, template_facts
from perplexity_lies.errors import UsageError

ASKED = [{"role": "user", "content": "hello"}]


@pytest.fixture
def rendered(llama_copy: Path) -> Any:
    """`rendered(template, arguments)` -> what an engine that was opened so asks, and its tokenizer."""

    def of(template: str, arguments: str = "") -> tuple[str, Any]:
        (llama_copy / "chat_template.jinja").write_text(template)
        options = EngineOptions(device="cpu", chat_template_args=arguments)
        engine = open_engine("torch", resolve(str(llama_copy)), options)
        text = engine.render_chat(ASKED)
        assert text == engine.tokenizer.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True)
        return text, engine.tokenizer

    return of


def test_the_clock_stands_still_and_is_told(rendered: Any) -> None:
    template = "{{ strftime_now('%d %b %Y %S') }} {{ messages[0]['content'] }}"
    text, tokenizer = rendered(template)
    assert text == "01 Jan 2025 00 hello" and template_facts(tokenizer, "") == {"template_clock": CLOCK}
    stated = '{"strftime_now":"2031-07-04"}'
    text, tokenizer = rendered(template, stated)
    assert text == "04 Jul 2031 00 hello" and template_facts(tokenizer, stated)["template_clock"] == "2031-07-04"


def test_arguments_reach_the_template(rendered: Any) -> None:
    template = "{{ messages[0]['content'] }}{% if enable_thinking is defined and not enable_thinking %} no{% endif %}"
    given = '{"enable_thinking":false}'
    assert (rendered(template)[0], rendered(template, given)[0]) == ("hello", "hello no")
    assert template_facts(rendered(template, given)[1], given) == {"chat_template_args": given}
    plain = "{{ messages[0]['content'] }}"
    assert template_facts(rendered(plain, given)[1], given)["chat_template_args_unused"] == "enable_thinking"


def test_options_stand_over_the_suite() -> None:
    assert both_args('{"a":1,"b":2}', '{"b":3}') == '{"a":1,"b":3}' and both_args("", "") == ""
    assert template_args({"a": True}, "x") == template_args('{ "a": true }', "x") == '{"a":true}'


@pytest.mark.parametrize(
    "wrong",
    [
        "{",
        "[1]",
        "3",
        '{"tokenize": true}',
        '{"a b": 1}',
        '{"strftime_now": "soon"}',
        '{"strftime_now": 3}',
        {"a": {1}},
    ],
)
def test_what_is_no_argument(wrong: Any) -> None:
    with pytest.raises(UsageError, match="--chat-template-args") as error:
        template_args(wrong, "--chat-template-args")
    assert error.value.found and json.loads(error.value.mend[0])

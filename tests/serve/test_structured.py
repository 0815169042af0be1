"""Answers held to a form, over HTTP: OpenAI's field, vLLM's field, and what is wrong with either."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import openai
import pytest

from distill.engine.constrained import grammar as grammars
from distill.engine.runner import Engine, EngineConfig
from distill.serve.fields import Limits
from tests.engine.models import byte_tokenizer, chat_model
from tests.serve.conftest import MODEL, Running, start

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"type": "string", "maxLength": 4}, "b": {"enum": [1, None]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "pair", "strict": True, "schema": SCHEMA}}
MESSAGES: Any = [{"role": "user", "content": "the cat"}]


@pytest.fixture(scope="module")
def client(running: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=running.url, api_key="unused", max_retries=0) as client:
        yield client


def test_json_schema_in_chats_whole_and_streamed(client: openai.OpenAI) -> None:
    asked: Any = {"model": MODEL, "messages": MESSAGES, "seed": 1, "response_format": FORMAT, "max_tokens": 200}
    whole = client.chat.completions.create(n=4, **asked)
    finished = [c.message.content or "" for c in whole.choices if c.finish_reason == "stop"]
    assert finished and all(jsonschema_rs.is_valid(SCHEMA, json.loads(text)) for text in finished)
    streamed = [chunk.choices[0] for chunk in client.chat.completions.create(stream=True, **asked)]
    assert "".join(c.delta.content or "" for c in streamed) == whole.choices[0].message.content
    assert streamed[-1].finish_reason == whole.choices[0].finish_reason


def test_json_object_and_text(client: openai.OpenAI) -> None:
    asked: Any = {"model": MODEL, "messages": MESSAGES, "temperature": 0, "max_tokens": 12}
    free = client.chat.completions.create(**asked).choices[0].message.content
    assert client.chat.completions.create(response_format={"type": "text"}, **asked).choices[0].message.content == free
    cut = client.chat.completions.create(response_format={"type": "json_object"}, **asked).choices[0]
    assert (cut.message.content or "").startswith("{") and cut.finish_reason in ("stop", "length")


def test_structured_outputs_on_both_endpoints(client: openai.OpenAI) -> None:
    regex: Any = {"extra_body": {"structured_outputs": {"regex": "[0-9]{3}-(yes|no)"}}}
    chat = client.chat.completions.create(model=MODEL, messages=MESSAGES, **regex)
    assert re.fullmatch("[0-9]{3}-(yes|no)", chat.choices[0].message.content or "")
    many = client.completions.create(model=MODEL, prompt=["the", "a dog"], n=2, **regex)
    assert all(re.fullmatch("[0-9]{3}-(yes|no)", c.text) and c.finish_reason == "stop" for c in many.choices)
    for schema in ({"const": [1, 2]}, '{"const": [1, 2]}'):
        held = client.completions.create(
            model=MODEL, prompt="the", max_tokens=90, extra_body={"structured_outputs": {"json": schema}}
        )
        assert json.loads(held.choices[0].text) == [1, 2]


@pytest.mark.parametrize(
    "fields,param",
    [
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": {"type": "json_object", "json_schema": {}}}, "response_format.json_schema"),
        ({"response_format": "json_object"}, "response_format"),
        ({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "json_object": True}}, "structured_outputs"),
        ({"structured_outputs": {"regex": 5}}, "structured_outputs.regex"),
        ({"structured_outputs": {"regex": "(a"}}, "structured_outputs.regex"),
        ({"structured_outputs": {"regex": "a" * 5000}}, "structured_outputs.regex"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": {"type": "object", "minProperties": 3}}}, "structured_outputs.json"),
        ({"structured_outputs": {"json_object": "yes"}}, "structured_outputs.json_object"),
        ({"structured_outputs": {"grammar": "x"}}, "structured_outputs.grammar"),
        ({"guided_json": {}}, "guided_json"),
    ],
)
def test_what_is_wrong_is_named(client: openai.OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=3, extra_body=fields)
    assert caught.value.param == param
    assert f"'{param}" in caught.value.message


def test_a_missing_package_and_a_slow_compilation_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_tokenizer()
    engine = Engine(chat_model(tokenizer), tokenizer, EngineConfig(max_batch=2, block_size=8))
    server, url = start(engine, limits=Limits(grammar_seconds=0.0))
    with openai.OpenAI(base_url=url, api_key="unused", max_retries=0) as client:
        ask: Any = {"model": MODEL, "messages": MESSAGES, "response_format": {"type": "json_object"}}
        with pytest.raises(openai.BadRequestError, match="was not compiled within 0 s"):
            client.chat.completions.create(**ask)
    server.should_exit = True
    monkeypatch.setattr(grammars, "find_spec", lambda name: None)
    bare = Engine(engine.model, tokenizer, EngineConfig(max_batch=2, block_size=8))
    server, url = start(bare)
    with openai.OpenAI(base_url=url, api_key="unused", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError, match=r"distill\[xgrammar\]") as caught:
            client.chat.completions.create(**ask)
        assert caught.value.param == "response_format"
    server.should_exit = True

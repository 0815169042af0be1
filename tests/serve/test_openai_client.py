"""The official client, unmodified, against a running server."""

from __future__ import annotations

import json
import math

import openai
import pytest

from distill.engine.runner import Engine
from distill.model.chat import render
from distill.records import user_message
from tests.engine.models import byte_tokenizer, chat_model, reference
from tests.serve.conftest import MODEL, Running, start

MESSAGES = [{"role": "user", "content": "the cat"}]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def client(running: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=running.url, api_key="unused", max_retries=0)


def _expected(running: Running, ids: list[int], max_tokens: int) -> str:
    tokens = reference(running.engine.model, ids, max_tokens)
    return running.tokenizer.decode(list(tokens), skip_special_tokens=True)


def test_models(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_chat_is_greedy_generate(client: openai.OpenAI, running: Running) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=0, max_tokens=12)
    ids = render(running.tokenizer, user_message("the cat"), True)
    assert answer.choices[0].message.content == _expected(running, ids, 12)
    assert answer.choices[0].message.role == "assistant"
    assert answer.object == "chat.completion"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(ids)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_chat_without_limit_runs_to_the_context(client: openai.OpenAI, running: Running) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, temperature=0, extra_body={"ignore_eos": True}
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None and answer.usage.total_tokens == running.engine.max_model_len == 256


def test_streaming_says_the_same(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=0, max_tokens=40)
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=MESSAGES,
            temperature=0,
            max_tokens=40,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert len({c.id for c in chunks}) == 1


def test_completions_of_text_and_token_ids(client: openai.OpenAI, running: Running) -> None:
    ids = running.tokenizer("the mat").input_ids
    expected = _expected(running, ids, 9)
    for prompt in ("the mat", ids):
        answer = client.completions.create(model=MODEL, prompt=prompt, temperature=0, max_tokens=9)
        assert [c.text for c in answer.choices] == [expected]
    other = running.tokenizer("a dog ran").input_ids
    for prompts in (["the mat", "a dog ran"], [ids, other]):
        answer = client.completions.create(model=MODEL, prompt=prompts, temperature=0, max_tokens=9)
        assert [c.text for c in answer.choices] == [expected, _expected(running, other, 9)]
        assert answer.usage is not None and answer.usage.prompt_tokens == len(ids) + len(other)
    pieces = client.completions.create(model=MODEL, prompt=ids, temperature=0, max_tokens=9, stream=True)
    assert "".join(c.choices[0].text for c in pieces) == expected


def test_default_length_of_a_completion_is_16(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="cat", extra_body={"ignore_eos": True})
    assert answer.usage is not None and answer.usage.completion_tokens == 16


def test_seeded_choices(client: openai.OpenAI) -> None:
    def ask(n: int, seed: int) -> list[str | None]:
        answer = client.chat.completions.create(
            model=MODEL, messages=MESSAGES, n=n, seed=seed, max_tokens=20, temperature=1.0, top_p=0.95
        )
        assert [c.index for c in answer.choices] == list(range(n))
        return [c.message.content for c in answer.choices]

    four = ask(4, 7)
    assert len(set(four)) == 4
    assert ask(4, 7) == four
    assert ask(2, 7) == four[:2]
    assert ask(4, 8) != four


def test_stop_strings_cut_the_text(client: openai.OpenAI) -> None:
    def ask(stop: list[str] | None, stream: bool) -> tuple[str, str | None]:
        chunks = client.completions.create(
            model=MODEL, prompt="the", temperature=0, max_tokens=60, stop=stop, extra_body={"ignore_eos": True}
        )
        if stream:
            pieces = list(
                client.completions.create(
                    model=MODEL,
                    prompt="the",
                    temperature=0,
                    max_tokens=60,
                    stop=stop,
                    stream=True,
                    extra_body={"ignore_eos": True},
                )
            )
            return "".join(p.choices[0].text for p in pieces), pieces[-1].choices[0].finish_reason
        return chunks.choices[0].text, chunks.choices[0].finish_reason

    text, reason = ask(None, False)
    assert reason == "length"
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    cut = text[: text.index(stop)]
    many = ["never", "seen", "in", "this", stop, "text!"]
    many = [s for s in many if s == stop or s not in text]
    for stream in (False, True):
        assert ask([stop], stream) == (cut, "stop")
        assert ask(many, stream) == (cut, "stop")


def test_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, temperature=0, max_tokens=5, logprobs=True, top_logprobs=3
    )
    assert answer.choices[0].logprobs is not None
    content = answer.choices[0].logprobs.content
    assert content is not None and answer.usage is not None and len(content) == answer.usage.completion_tokens
    for item in content:
        assert len(item.top_logprobs) == 3
        assert item.logprob == item.top_logprobs[0].logprob  # greedy takes the best
        assert sum(math.exp(t.logprob) for t in item.top_logprobs) <= 1.0 + 1e-6
    legacy = client.completions.create(model=MODEL, prompt="the", temperature=0, max_tokens=4, logprobs=2)
    found = legacy.choices[0].logprobs
    assert found is not None and found.tokens is not None and found.text_offset is not None
    assert found.top_logprobs is not None and all(len(t) <= 2 for t in found.top_logprobs)
    assert found.text_offset == [len("".join(found.tokens[:i])) for i in range(len(found.tokens))]
    streamed = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, temperature=0, max_tokens=5, logprobs=True, top_logprobs=3, stream=True
    )
    pieces = [c.choices[0].logprobs for c in streamed]
    assert [i.token for p in pieces if p is not None for i in p.content or []] == [i.token for i in content]


def test_error_names_the_field(client: openai.OpenAI) -> None:
    cases: list[tuple[dict[str, object], str]] = [
        ({"extra_body": {"no_such_field": 1}}, "no_such_field"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"cat": 1}}, "logit_bias"),
        ({"extra_body": {"tools": [{"type": "function"}]}}, "tools[0].function"),
        ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice"),
        ({"extra_body": {"echo": True}}, "echo"),
        ({"extra_body": {"repetition_penalty": 1e-30}}, "repetition_penalty"),
        ({"extra_body": {"stop_token_ids": list(range(65))}}, "stop_token_ids"),
        ({"seed": 1 << 70}, "seed"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": []}]}, "messages[0].tool_calls"),
        ({"extra_body": {"response_format": {"type": "yaml"}}}, "response_format"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"n": 0}, "n"),
        ({"stop": [""]}, "stop"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"extra_body": {"stream_options": {"include_usage": True}}}, "stream_options"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
    ]
    for fields, name in cases:
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(**{"model": MODEL, "messages": MESSAGES, "max_tokens": 3, **fields})
        assert caught.value.param == name, fields
        assert name.partition("[")[0] in caught.value.message


def test_neutral_values_are_accepted(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": [{"type": "text", "text": "the cat"}]}],
        max_completion_tokens=2,
        user="me",
        response_format={"type": "text"},
        logit_bias={},
        extra_body={"best_of": 1},
    )
    assert answer.usage is not None and answer.usage.completion_tokens <= 2


def test_other_refusals(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="other", messages=MESSAGES)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model=MODEL, prompt=[5] * 256, max_tokens=1)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="vocabulary"):
        client.completions.create(model=MODEL, prompt=[100_000], max_tokens=1)


def test_key_is_asked_for() -> None:
    tokenizer = byte_tokenizer()
    server, url = start(Engine(chat_model(tokenizer), tokenizer), api_key="right")
    try:
        assert openai.OpenAI(base_url=url, api_key="right").models.list().data[0].id == MODEL
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=url, api_key="wrong", max_retries=0).models.list()
    finally:
        server.should_exit = True


def test_raw_stream_ends_with_done(running: Running) -> None:
    import http.client

    host = running.url.removeprefix("http://").removesuffix("/v1")
    connection = http.client.HTTPConnection(host, timeout=30)
    body = json.dumps({"model": MODEL, "prompt": "the", "max_tokens": 3, "temperature": 0, "stream": True})
    connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
    response = connection.getresponse()
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.read().decode().strip().split("\n\n")
    assert all(event.startswith("data: ") for event in events)
    assert events[-1] == "data: [DONE]"
    assert json.loads(events[0].removeprefix("data: "))["object"] == "text_completion"
    connection.close()

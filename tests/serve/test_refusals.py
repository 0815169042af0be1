"""What is refused, and that it is refused by name: fields, keys, sizes."""

from __future__ import annotations

import hmac
import http.client
import json
import typing
from collections.abc import Iterator

import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params

from distill.engine.runner import Engine, EngineConfig
from distill.serve import guard
from distill.serve.fields import Limits
from tests.engine.models import byte_tokenizer, chat_model
from tests.serve.conftest import MODEL, Running, start

COMMON = {
    "model",
    *("frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "max_tokens", "n", "seed", "stop", "stream"),
    *("stream_options", "temperature", "top_p", "user"),
}
TAKEN = {
    "/v1/completions": COMMON | {"prompt", "echo"},
    "/v1/chat/completions": COMMON
    | {"messages", "max_completion_tokens", "metadata", "response_format", "top_logprobs", "tools", "tool_choice"},
}
SHAPES = {
    "/v1/completions": completion_create_params.CompletionCreateParamsNonStreaming,
    "/v1/chat/completions": chat_create_params.CompletionCreateParamsNonStreaming,
}
BODIES: dict[str, dict[str, object]] = {
    "/v1/completions": {"model": MODEL, "prompt": "the", "max_tokens": 1},
    "/v1/chat/completions": {"model": MODEL, "messages": [{"role": "user", "content": "the"}], "max_tokens": 1},
}
# of those of the client's fields that we do not implement, the ones with a value that asks for nothing
ODD: dict[str, list[object]] = {
    "best_of": [2],
    "suffix": ["end"],
    "store": [True],
    "modalities": [["text", "audio"]],
    "parallel_tool_calls": ["no"],
    "service_tier": ["flex"],
}


def _request(
    url: str, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    """One request with its path as written; clients of a higher level would tidy it up."""
    connection = http.client.HTTPConnection(url.removeprefix("http://").removesuffix("/v1"), timeout=60)
    try:
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in (headers or {}).items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("content-length", str(len(body)))
        connection.endheaders(body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def _post(url: str, path: str, body: dict[str, object]) -> tuple[int, dict[str, typing.Any]]:
    status, data = _request(url, "POST", path, json.dumps(body).encode())
    return status, json.loads(data)


@pytest.mark.parametrize("path", SHAPES)
def test_every_field_of_the_official_client_is_taken_or_refused_by_name(running: Running, path: str) -> None:
    fields = set(typing.get_type_hints(SHAPES[path]))
    assert TAKEN[path] - {"metadata"} <= fields
    for name in sorted(fields - TAKEN[path]):
        for value in ODD.get(name, [{"x": 1}]):
            status, answer = _post(running.url, path, {**BODIES[path], name: value})
            assert status == 400 and answer["error"]["param"] == name, (name, value, status, answer)
            assert f"'{name}'" in answer["error"]["message"]
    for name in fields - TAKEN[path] | {"echo" if "chat" in path else "messages"}:  # null is the same as left out
        assert _post(running.url, path, {**BODIES[path], name: None})[0] == 200, name


@pytest.fixture(scope="module")
def locked() -> Iterator[str]:
    tokenizer = byte_tokenizer()
    server, url = start(Engine(chat_model(tokenizer), tokenizer, EngineConfig(block_size=8)), api_key="secret")
    yield url
    server.should_exit = True


PATHS = [
    "/metrics",
    "/v1/models",
    "/v1/models/tiny/chat",
    "/openapi.json",
    "/tokenizer_info",
    "/nowhere",
    "//health",
    "/health/",
    "/health/.",
    "/health/../metrics",
    "/v1/../health",
    "/./health",
    "/health;/metrics",
    "/health%2f",
    "/health%00",
    "/health%20",
    "/HEALTH",
    "/metrics?/health",
    "/metrics#/health",
    "/metrics%3f/health",
    "http://127.0.0.1/health",
    "http://127.0.0.1/metrics",
    "*",
]


@pytest.mark.parametrize("path", PATHS)
def test_no_spelling_of_a_path_passes_without_the_key(locked: str, path: str) -> None:
    for method in ("GET", "POST", "HEAD", "OPTIONS", "DELETE"):
        status, data = _request(locked, method, path, b"{}" if method == "POST" else None)
        assert status == 401, (method, path, status)
        assert b"distill_" not in data and b"tiny/chat" not in data


def test_health_alone_is_open(locked: str) -> None:
    assert _request(locked, "GET", "/health")[0] == 200
    assert _request(locked, "GET", "/%68ealth?x=1")[0] == 200  # the same route, in another spelling
    for path in TAKEN:
        assert _request(locked, "POST", path, json.dumps(BODIES[path]).encode())[0] == 401
        right = {"authorization": "Bearer secret"}
        assert _request(locked, "POST", path, json.dumps(BODIES[path]).encode(), right)[0] == 200


def test_the_key_is_compared_whole_and_in_constant_time(locked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def record(given: bytes, expected: bytes) -> bool:
        compared.append((given, expected))
        return hmac.compare_digest(given, expected)

    monkeypatch.setattr(guard, "compare_digest", record)
    wrong = ["", "Bearer", "Bearer ", "Bearer secre", "Bearer secrets", "bearer secret", "secret", "Bearer  secret"]
    for value in [*wrong, "Bearer \xe9", "Basic secret"]:
        status, data = _request(locked, "GET", "/v1/models", headers={"authorization": value})
        assert status == 401 and json.loads(data)["error"]["code"] == "invalid_api_key", value
    assert len(compared) == len(wrong) + 2 and {expected for _, expected in compared} == {b"Bearer secret"}
    connection = http.client.HTTPConnection(locked.removeprefix("http://").removesuffix("/v1"), timeout=60)
    connection.putrequest("GET", "/v1/models")
    for value in ("Bearer secret", "Bearer other"):  # which one counts is not for a proxy and us to disagree on
        connection.putheader("authorization", value)
    connection.endheaders()
    assert connection.getresponse().status == 401
    connection.close()


@pytest.fixture(scope="module")
def tight() -> Iterator[str]:
    limits = Limits(max_body_bytes=2000, max_header_bytes=1000, max_choices=4, max_tokens=8)
    tokenizer = byte_tokenizer()
    server, url = start(Engine(chat_model(tokenizer), tokenizer, EngineConfig(block_size=8)), limits=limits)
    yield url
    server.should_exit = True


def test_sizes_are_bounded(tight: str) -> None:
    for path, base in BODIES.items():
        for name, value in (("n", 5), ("n", -1), ("max_tokens", 9), ("max_tokens", 1 << 70), ("stop", ["x"] * 65)):
            status, answer = _post(tight, path, {**base, name: value})
            assert status == 400 and answer["error"]["param"] == name, (name, value, answer)
    assert (
        _post(tight, "/v1/chat/completions", {**BODIES["/v1/chat/completions"], "max_completion_tokens": 9})[0] == 400
    )
    many = {**BODIES["/v1/completions"], "prompt": ["a"] * 3, "n": 2}
    assert _post(tight, "/v1/completions", many)[1]["error"]["param"] == "n"
    long = {**BODIES["/v1/completions"], "prompt": [5] * 256}
    assert _post(tight, "/v1/completions", long)[1]["error"]["code"] == "context_length_exceeded"
    status, answer = _post(tight, "/v1/completions", {**BODIES["/v1/completions"], "user": "x" * 2000})
    assert status == 413 and "2000 bytes" in answer["error"]["message"]


def test_a_body_without_a_length_is_bounded_too(tight: str) -> None:
    connection = http.client.HTTPConnection(tight.removeprefix("http://").removesuffix("/v1"), timeout=60)
    chunks = (b" " * 500 for _ in range(8))
    connection.request("POST", "/v1/completions", chunks, encode_chunked=True, headers={"transfer-encoding": "chunked"})
    assert connection.getresponse().status == 413
    connection.close()


def test_headers_are_bounded(tight: str) -> None:
    for size in (990, 5000, 200_000):
        try:
            status, _ = _request(tight, "GET", "/health", headers={"x-long": "x" * size})
        except OSError:  # the server hangs up while we still send
            continue
        assert status in (400, 431), size
    assert _request(tight, "GET", "/health", headers={"x-short": "x" * 200})[0] == 200


def test_an_empty_or_any_key_is_fine_where_none_is_asked_for(running: Running) -> None:
    for headers in ({}, {"authorization": "Bearer "}, {"authorization": "Bearer"}, {"authorization": "Bearer unused"}):
        assert _request(running.url, "GET", "/v1/models", headers=headers)[0] == 200

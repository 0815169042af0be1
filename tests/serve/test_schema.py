"""The server under generated requests, valid and invalid by its own OpenAPI document: it refuses, it never breaks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import requests

from distill.engine.runner import Engine, EngineConfig
from distill.serve.fields import Limits
from tests.engine.models import byte_tokenizer, chat_model
from tests.serve.conftest import Running, start

schemathesis = pytest.importorskip("schemathesis", reason="in the extra `fuzz`")
LIMITS = Limits(max_choices=4, max_tokens=8, max_queue=64)
OPERATIONS = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("GET", "/v1/models/{name}"),
    ("GET", "/v1/models"),
    ("GET", "/tokenizer_info"),
    ("GET", "/metrics"),
    ("GET", "/health"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ tools | tojson }}" + str(tokenizer.chat_template)
    engine = Engine(chat_model(tokenizer), tokenizer, EngineConfig(max_batch=8, block_size=8))
    started, url = start(engine, limits=LIMITS)
    yield Running(url.removesuffix("/v1"), engine, tokenizer)
    started.should_exit = True


def _examine(server: Running, method: str, path: str, positive: bool, examples: int) -> dict[int, int]:
    """Send generated requests; how many got which status. None may be 5xx, and none may end the engine."""
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from schemathesis import GenerationMode

    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    mode = GenerationMode.POSITIVE if positive else GenerationMode.NEGATIVE
    statuses: dict[int, int] = {}
    session = requests.Session()
    session.trust_env = False

    @seed(20261125)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=schema[path][method].as_strategy(generation_mode=mode))
    def ask(case) -> None:  # type: ignore[no-untyped-def]
        response = case.call(session=session, timeout=60)
        statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
        assert response.status_code < 500, f"{response.status_code}: {response.text[:400]}"
        if response.status_code >= 400 and method == "POST":
            assert response.json()["error"]["message"]

    ask()
    assert requests.get(f"{server.url}/health", timeout=30).status_code == 200
    return statuses


def _check(server: Running, method: str, path: str, positive: bool, examples: int) -> None:
    statuses = _examine(server, method, path, positive, examples)
    print(f"{method} {path}: {statuses}")
    assert sum(statuses.values()) >= (examples if method == "POST" else 1)
    if positive:
        # a document cannot say all that goes together, nor what the template takes: many valid bodies are refused
        assert statuses.get(200, 0) > sum(statuses.values()) // 4 or "{" in path, statuses
    elif method == "POST":
        assert statuses.get(200, 0) <= sum(statuses.values()) // 2, statuses


CASES = [
    pytest.param(method, path, positive, id=f"{method} {path} {'valid' if positive else 'invalid'}")
    for method, path in OPERATIONS
    for positive in ((True, False) if method == "POST" else (True,))  # a GET has nothing to get wrong
]


@pytest.mark.parametrize("method,path,positive", CASES)
def test_generated_requests(server: Running, method: str, path: str, positive: bool) -> None:
    _check(server, method, path, positive, 50)


@pytest.mark.slow
@pytest.mark.parametrize("method,path,positive", CASES)
def test_many_generated_requests(server: Running, method: str, path: str, positive: bool) -> None:
    _check(server, method, path, positive, 500)


def test_the_document_names_every_route(server: Running) -> None:
    paths = requests.get(f"{server.url}/openapi.json", timeout=30).json()["paths"]
    assert {(m.upper(), p) for p, methods in paths.items() for m in methods} == set(OPERATIONS)

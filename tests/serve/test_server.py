"""The server process: starting, refusing, load, clients that leave, and its end."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distill.engine.runner import Engine, EngineConfig
from distill.errors import DistillError
from distill.serve.address import is_loopback
from distill.serve.child import embedded_server
from distill.serve.fields import Limits
from distill.serve.server import serve_model
from tests.engine.models import byte_tokenizer, chat_model
from tests.serve.conftest import MODEL, Running, start


def _until(condition: object, seconds: float = 20.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def _send(url: str, body: dict[str, object]) -> http.client.HTTPConnection:
    """POST a completion without waiting for the answer."""
    host = url.removeprefix("http://").removesuffix("/v1")
    connection = http.client.HTTPConnection(host, timeout=60)
    connection.request(
        "POST", "/v1/completions", json.dumps({"model": MODEL, **body}), {"content-type": "application/json"}
    )
    return connection


def _get(url: str, path: str) -> tuple[int, str]:
    host = url.removeprefix("http://").removesuffix("/v1")
    connection = http.client.HTTPConnection(host, timeout=60)
    connection.request("GET", path)
    response = connection.getresponse()
    return response.status, response.read().decode()


@pytest.mark.parametrize("stream", [False, True])
def test_client_that_leaves_frees_its_blocks(running: Running, stream: bool) -> None:
    engine, stats = running.engine, running.engine.stats
    finished = stats.finished
    body = {"prompt": "the cat", "max_tokens": 240, "n": 8, "ignore_eos": True, "stream": stream, "logprobs": 20}
    connection = _send(running.url, body)
    _until(lambda: engine.blocks_in_use > 0)
    assert connection.sock is not None
    connection.sock.close()
    connection.close()
    _until(lambda: engine.blocks_in_use == 0 and not engine.has_work)
    assert stats.finished == finished  # dropped, not run to their end


def test_full_queue_is_refused_and_the_accepted_are_served() -> None:
    tokenizer = byte_tokenizer()
    server, url = start(Engine(chat_model(tokenizer), tokenizer), limits=Limits(max_queue=1))
    try:
        first = _send(url, {"prompt": "the cat", "max_tokens": 200, "ignore_eos": True})
        _until(lambda: "distill_choices_open 1" in _get(url, "/metrics")[1])
        second = _send(url, {"prompt": "the cat", "max_tokens": 1}).getresponse()
        assert second.status == 503 and int(second.headers["retry-after"]) >= 1
        answer = json.loads(first.getresponse().read())
        assert answer["usage"]["completion_tokens"] == 200
        text = _get(url, "/metrics")[1]
        assert "distill_choices_open 0" in text and "distill_requests_rejected_total 1" in text
    finally:
        server.should_exit = True


def test_bad_bodies(running: Running) -> None:
    host = running.url.removeprefix("http://").removesuffix("/v1")
    for body, status in ((b"{", 400), (b"[]", 400), (b"\xff\xfe", 400), (b"[" * 100_000, 400), (b"x" * (5 << 20), 413)):
        connection = http.client.HTTPConnection(host, timeout=30)
        connection.request("POST", "/v1/chat/completions", body)
        response = connection.getresponse()
        assert response.status == status
        assert json.loads(response.read())["error"]["message"]
        connection.close()
    assert _get(running.url, "/nowhere")[0] == 404
    assert "error" in json.loads(_get(running.url, "/nowhere")[1])


def test_health_and_key(running: Running) -> None:
    assert _get(running.url, "/health") == (200, '{"status":"ok"}')
    tokenizer = byte_tokenizer()
    server, url = start(Engine(chat_model(tokenizer), tokenizer), api_key="secret")
    try:
        assert _get(url, "/health")[0] == 200
        for path in ("/metrics", "/v1/models", "//health", "/health/", "/v1/../health", "/openapi.json", "/health%2f"):
            assert _get(url, path)[0] == 401, path
    finally:
        server.should_exit = True


def test_open_hosts_need_a_key(tmp_path: Path) -> None:
    assert is_loopback("127.0.0.1") and is_loopback("::1") and is_loopback("localhost")
    assert not is_loopback("0.0.0.0") and not is_loopback("example.org")
    with pytest.raises(DistillError, match="API key"):
        serve_model(tmp_path, host="0.0.0.0", port=0)


def test_port_in_use_is_said_before_the_model_loads(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(DistillError, match=f"127.0.0.1:{port}") as caught:
            serve_model(tmp_path / "no-such-model", port=port)
        assert caught.value.remedy is not None and "port" in caught.value.remedy


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = byte_tokenizer()
    chat_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_embedded_server_lives_as_long_as_its_block(checkpoint: Path, tmp_path: Path) -> None:
    with embedded_server(checkpoint, log_path=tmp_path / "log.txt", dtype="float32", model_name=MODEL) as url:
        answer = json.loads(_send(url, {"prompt": "the", "max_tokens": 3}).getresponse().read())
        assert answer["choices"][0]["finish_reason"] in ("stop", "length")
    with pytest.raises(OSError):
        _get(url, "/health")


def test_embedded_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    with (
        pytest.raises(DistillError, match="embedded server ended"),
        embedded_server(folder, log_path=tmp_path / "log.txt"),
    ):
        pass


def test_child_dies_with_a_killed_parent(checkpoint: Path, tmp_path: Path) -> None:
    ready = tmp_path / "url"
    code = (
        "import sys, time, pathlib\nfrom distill.serve.child import embedded_server\n"
        f"with embedded_server({str(checkpoint)!r}, log_path=pathlib.Path({str(tmp_path / 'log')!r})) as url:\n"
        f"    pathlib.Path({str(ready)!r}).write_text(url)\n    time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    _until(lambda: ready.exists() and ready.read_text(), 60)
    url = ready.read_text()
    assert _get(url, "/health")[0] == 200
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()

    def gone() -> bool:
        try:
            _get(url, "/health")
        except OSError:
            return True
        return False

    _until(gone)


def test_engine_failure_reaches_the_client() -> None:
    tokenizer = byte_tokenizer()
    engine = Engine(chat_model(tokenizer), tokenizer, EngineConfig())
    server, url = start(engine)

    def broken() -> list[object]:
        raise RuntimeError("out of order")

    engine.step = broken  # type: ignore[method-assign,assignment]
    try:
        response = _send(url, {"prompt": "the", "max_tokens": 3}).getresponse()
        assert response.status == 500 and "out of order" in response.read().decode()
        assert _get(url, "/health")[0] == 503
        assert _send(url, {"prompt": "the", "max_tokens": 3}).getresponse().status == 503
    finally:
        server.should_exit = True

"""Load, clients that leave or read slowly, and the end: what they may not do to the engine and to others."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable

import pytest

from distill.engine.runner import Engine, EngineConfig
from distill.serve.fields import Limits
from distill.serve.loop import EngineLoop, Ticket
from distill.serve.tokens import Tokens
from tests.engine.models import byte_tokenizer, chat_model
from tests.serve.conftest import MODEL, start

LONG: dict[str, object] = {"model": MODEL, "prompt": "the cat", "max_tokens": 240, "ignore_eos": True}


def _engine() -> Engine:
    tokenizer = byte_tokenizer()
    return Engine(chat_model(tokenizer), tokenizer, EngineConfig(max_batch=16, block_size=8))


def _until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def _send(url: str, body: dict[str, object], path: str = "/v1/completions") -> http.client.HTTPConnection:
    """POST without waiting for the answer."""
    connection = http.client.HTTPConnection(url.removeprefix("http://").removesuffix("/v1"), timeout=60)
    connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
    return connection


def _metric(url: str, name: str) -> float:
    connection = http.client.HTTPConnection(url.removeprefix("http://").removesuffix("/v1"), timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return float(next(line.split()[1] for line in text.splitlines() if line.startswith(f"distill_{name} ")))


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_blocks_within_one_step(stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = _engine()
    noticed: list[int] = []
    freed: list[int] = []
    close, abort = EngineLoop.close, engine.abort

    def record_close(self: EngineLoop, ticket: Ticket) -> None:
        noticed.append(engine.stats.steps)
        close(self, ticket)

    def record_abort(request_id: str) -> None:
        abort(request_id)
        freed.append(engine.stats.steps)

    monkeypatch.setattr(EngineLoop, "close", record_close)
    monkeypatch.setattr(engine, "abort", record_abort)
    server, url = start(engine)
    try:
        connection = _send(url, {**LONG, "n": 4, "stream": stream})
        _until(lambda: engine.blocks_in_use > 0)
        assert connection.sock is not None
        connection.sock.close()
        connection.close()
        _until(lambda: engine.blocks_in_use == 0)
        assert len(noticed) == 1 and len(freed) == 4 and engine.stats.finished == 0
        assert freed[-1] - noticed[0] <= 1
        _until(lambda: _metric(url, "choices_open") == 0)
        assert _metric(url, "clients_gone_total") == 1
    finally:
        server.should_exit = True


def test_a_client_that_leaves_while_it_waits_never_runs() -> None:
    engine = Engine(chat_model(byte_tokenizer()), byte_tokenizer(), EngineConfig(max_batch=1, block_size=8))
    server, url = start(engine)
    try:
        first = _send(url, LONG)
        _until(lambda: engine.num_running == 1)
        second = _send(url, LONG)
        _until(lambda: engine.num_waiting == 1)
        assert second.sock is not None
        second.sock.close()
        second.close()
        _until(lambda: engine.num_waiting == 0)
        assert engine.num_running == 1, "dropped while the first still runs"
        assert json.loads(first.getresponse().read())["usage"]["completion_tokens"] == 240
        assert engine.stats.finished == 1
    finally:
        server.should_exit = True


@pytest.mark.parametrize("stream", [False, True])
def test_a_reader_that_stalls_holds_nobody_up_and_is_dropped(stream: bool) -> None:
    """It takes nothing of a megabyte: the engine goes on, others are served, and its place in the queue is freed."""
    engine = _engine()
    server, url = start(engine, limits=Limits(send_seconds=1.0), send_buffer_bytes=4096)
    host, port = url.removeprefix("http://").removesuffix("/v1").split(":")
    try:
        with socket.socket() as stalled:
            stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stalled.connect((host, int(port)))
            body = json.dumps({**LONG, "n": 8, "stream": stream, "logprobs": 20}).encode()
            head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
            stalled.sendall(head.encode() + body)
            _until(lambda: engine.blocks_in_use > 0)
            answer = json.loads(_send(url, {**LONG, "max_tokens": 5}).getresponse().read())
            assert answer["usage"]["completion_tokens"] == 5
            _until(lambda: not engine.has_work)
            _until(lambda: _metric(url, "choices_open") == 0)
            assert engine.blocks_in_use == 0
            # an answer in one piece is the network's once it is written; a stream is cut off
            assert _metric(url, "clients_gone_total") == (1 if stream else 0)
    finally:
        server.should_exit = True


def test_a_full_queue_refuses_before_anything_is_read_or_tokenised(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = _engine()
    encoded: list[str] = []
    encode = Tokens._encode

    def record(self: Tokens, text: str, add_special_tokens: bool) -> list[int]:
        encoded.append(text)
        return encode(self, text, add_special_tokens)

    monkeypatch.setattr(Tokens, "_encode", record)
    server, url = start(engine, limits=Limits(max_queue=3))
    try:
        first = _send(url, {**LONG, "n": 3})
        _until(lambda: engine.blocks_in_use > 0)
        for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"):
            response = _send(url, {"not": "even valid"}, path).getresponse()
            assert response.status == 503 and int(response.headers["retry-after"]) >= 1, path
            assert json.loads(response.read())["error"]["type"] == "server_error"
        host, port = url.removeprefix("http://").removesuffix("/v1").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as waiting:  # its body never comes
            waiting.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n")
            assert waiting.recv(100).startswith(b"HTTP/1.1 503 ")
        assert encoded == ["the cat"]
        assert [c["finish_reason"] for c in json.loads(first.getresponse().read())["choices"]] == ["length"] * 3
        # one request of more choices than there is room for: refused as a whole, before its text is tokenised
        response = _send(url, {**LONG, "prompt": "a dog", "n": 4}).getresponse()
        assert response.status == 503 and encoded == ["the cat"]
        response.read()
        assert _send(url, {**LONG, "max_tokens": 1}).getresponse().status == 200
    finally:
        server.should_exit = True


@pytest.mark.parametrize("stream", [False, True])
def test_a_stopping_server_drains(stream: bool) -> None:
    """What is open is answered in full; what comes later finds nobody."""
    engine = _engine()
    server, url = start(engine)
    open_requests = [_send(url, {**LONG, "stream": stream}) for _ in range(3)]
    _until(lambda: engine.num_running == 3)
    server.should_exit = True
    for connection in open_requests:
        data = connection.getresponse().read().decode()
        if stream:
            assert data.endswith("data: [DONE]\n\n") and '"finish_reason":"length"' in data
        else:
            assert json.loads(data)["usage"]["completion_tokens"] == 240
        connection.close()
    assert engine.blocks_in_use == 0

    def refused() -> bool:
        try:
            _send(url, LONG).close()
        except OSError:
            return True
        return False

    _until(refused)

"""A real server on a loopback port, in a thread."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import uvicorn
from transformers import PreTrainedTokenizerFast

from distill.engine.runner import Engine, EngineConfig
from distill.serve.app import create_app
from distill.serve.fields import Limits
from distill.serve.server import uvicorn_config
from tests.engine.models import byte_tokenizer, chat_model

MODEL = "tiny/chat"


@dataclass
class Running:
    """A server and the engine inside, to look at."""

    url: str
    engine: Engine
    tokenizer: PreTrainedTokenizerFast


def start(
    engine: Engine, *, api_key: str | None = None, limits: Limits = Limits(), send_buffer_bytes: int | None = None
) -> tuple[uvicorn.Server, str]:
    """Run an app until `should_exit` is set; returns once it answers."""
    listener = socket.create_server(("127.0.0.1", 0))
    if send_buffer_bytes is not None:  # connections inherit it
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
    app = create_app(engine, model_name=MODEL, api_key=api_key, limits=limits)
    server = uvicorn.Server(uvicorn_config(app, limits))
    threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True).start()
    while not server.started:
        time.sleep(0.01)
    return server, f"http://127.0.0.1:{listener.getsockname()[1]}/v1"


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    tokenizer = byte_tokenizer()
    engine = Engine(chat_model(tokenizer), tokenizer, EngineConfig(max_batch=16, block_size=8))
    server, url = start(engine)
    yield Running(url, engine, tokenizer)
    server.should_exit = True

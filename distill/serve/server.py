"""A standing server: one model behind the OpenAI protocol on one port, until it is stopped."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from distill.engine.parallel import Team
from distill.engine.runner import Engine, EngineConfig
from distill.engine.speculative.speculation import Draft
from distill.errors import DistillError
from distill.model.load import DeviceName, DtypeName, load_model, load_tokenizer
from distill.recipe.schema import Serve
from distill.runs import write_atomically
from distill.serve.address import refuse_open_host
from distill.serve.app import create_app
from distill.serve.fields import Limits

_PR_SET_PDEATHSIG = 1
_PARENT_POLL_SECONDS = 0.5
_ORPHAN_GRACE_SECONDS = 5.0
_DRAIN_SECONDS = 30
_SWITCH_SECONDS = 0.0005


def serve_model(
    path: str | Path,
    *,
    port: int,
    host: str = "127.0.0.1",
    api_key: str | None = None,
    model_name: str | None = None,
    dtype: DtypeName = "auto",
    device: DeviceName = "auto",
    settings: Serve = Serve(),
    ready_file: Path | None = None,
    die_with_parent: bool = False,
    num_shards: int = 1,
) -> None:
    """Serve until SIGINT or SIGTERM, then finish the open requests. Port 0 picks a free one. `ready_file` gets
    {"base_url", "port", "pid"} once requests are answered. A host other than loopback needs a key."""
    if die_with_parent:
        _die_with_parent()
    refuse_open_host(host, api_key)
    listener = _bind(host, port)
    with listener:
        tokenizer = load_tokenizer(path)
        model = load_model(path, dtype=dtype, device=device, num_shards=num_shards, packed=True)
        team = Team() if num_shards > 1 else None
        draft = load_draft(settings, dtype=dtype, device=device)
        engine = Engine(model, tokenizer, engine_config(settings), team=team, draft=draft)
        limits = Limits(max_queue=settings.max_queue)
        app = create_app(engine, model_name=model_name or str(path), api_key=api_key, limits=limits)
        # the engine's thread asks for the interpreter hundreds of times a step; at the default of 5 ms every request
        # that is being parsed would hold it up
        sys.setswitchinterval(_SWITCH_SECONDS)
        server = uvicorn.Server(uvicorn_config(app, limits))
        shown = f"[{host}]" if ":" in host else host
        base_url = f"http://{shown}:{listener.getsockname()[1]}/v1"
        announcer = threading.Thread(target=_announce, args=(server, base_url, ready_file), daemon=True)
        announcer.start()
        server.run(sockets=[listener])
    if app.state.engine_loop.failure is not None:
        raise DistillError(f"the engine failed: {app.state.engine_loop.failure}", remedy="see the log above")


def follow_model(path: str | Path, *, dtype: DtypeName, device: DeviceName, settings: Serve, num_shards: int) -> None:
    """One of the processes that compute for a server with a share of its model, until that ends. It is the server that
    signals are for: it finishes the open requests first."""
    model = load_model(path, dtype=dtype, device=device, num_shards=num_shards)
    engine = Engine(model, None, engine_config(settings), team=Team())
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    try:
        engine.follow()
    except RuntimeError as error:
        raise DistillError(f"the server's process is gone: {error}", remedy="start it again") from None


def uvicorn_config(app: FastAPI, limits: Limits) -> uvicorn.Config:
    """How the app is run: a parser that bounds headers whatever else is installed, and an end that drains."""
    return uvicorn.Config(
        app,
        http="h11",
        ws="none",
        loop="asyncio",
        h11_max_incomplete_event_size=limits.max_header_bytes,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
        lifespan="on",
    )


def engine_config(settings: Serve) -> EngineConfig:
    """The engine's limits from a recipe's serve section."""
    return EngineConfig(
        max_batch=settings.max_batch,
        block_size=settings.block_size,
        prefill_tokens=settings.prefill_tokens if "prefill_tokens" in settings.model_fields_set else 0,
        kv_bytes=int(settings.kv_gib * (1 << 30)),
        kv_dtype=settings.kv_dtype,
    )


def load_draft(settings: Serve, *, dtype: DtypeName, device: DeviceName) -> Draft | None:
    """The draft model that the serve section names, if it does."""
    if settings.draft is None:
        return None
    model = load_model(settings.draft, dtype=dtype, device=device)
    return Draft(model, load_tokenizer(settings.draft), settings.draft_tokens)


def _bind(host: str, port: int) -> socket.socket:
    """A listening socket, taken before the model loads: a port in use shows at once."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise DistillError(f"cannot resolve host {host}: {error.strerror}", remedy="give an address") from None
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise DistillError(
            f"cannot listen on {host}:{port}: {error.strerror}", remedy="stop what uses the port, or pass --port 0"
        ) from None
    return listener


def _announce(server: uvicorn.Server, base_url: str, ready_file: Path | None) -> None:
    """Say where the server is as soon as it answers."""
    while not server.started:
        if server.should_exit:
            return
        time.sleep(0.02)
    print(f"serving on {base_url}", file=sys.stderr, flush=True)
    if ready_file is not None:
        port = int(base_url.rsplit(":", 1)[1].partition("/")[0])
        write_atomically(ready_file, json.dumps({"base_url": base_url, "port": port, "pid": os.getpid()}))


def _die_with_parent() -> None:
    """End when the process that started us does: by the kernel's signal on Linux, and by looking everywhere."""
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_POLL_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_ORPHAN_GRACE_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()

"""A server as a child process: started, awaited, and gone with its parent."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distill.errors import DistillError

_POLL_SECONDS = 0.05
_STOP_SECONDS = 10.0
_LOG_TAIL_BYTES = 2000


@contextmanager
def embedded_server(
    model_path: str | Path,
    *,
    log_path: Path,
    model_name: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    max_batch: int | None = None,
    kv_gib: float | None = None,
    max_queue: int | None = None,
    startup_timeout_seconds: float = 300.0,
) -> Iterator[str]:
    """The base URL (`http://127.0.0.1:PORT/v1`) of `distill serve MODEL` on a free port, for as long as the block runs.

    The child ends with the block, with this process, and with the thread that entered the block (Linux signals the
    death of a thread's children), so enter it from a thread that stays. Its output goes to `log_path`.
    """
    command = [sys.executable, "-m", "distill", "serve", str(model_path), "--port", "0", "--die-with-parent"]
    for flag, value in (
        ("--model-name", model_name),
        ("--dtype", dtype),
        ("--device", device),
        ("--max-batch", max_batch),
        ("--kv-gib", kv_gib),
        ("--max-queue", max_queue),
    ):
        if value is not None:
            command += [flag, str(value)]
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="distill-serve-") as folder, open(log_path, "wb") as log:
        ready = Path(folder) / "ready.json"
        child = subprocess.Popen(
            [*command, "--ready-file", str(ready)], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            yield _wait(child, ready, log_path, startup_timeout_seconds)
        finally:
            _stop(child)


def _wait(child: subprocess.Popen[bytes], ready: Path, log_path: Path, timeout_seconds: float) -> str:
    """The base URL, once /health answers."""
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        code = child.poll()
        if code is not None:
            reason, _, remedy = _tail(log_path).removeprefix("error: ").partition(" -> ")
            raise DistillError(
                f"the embedded server ended with code {code}: {reason}", remedy=remedy or f"see {log_path}"
            )
        if ready.exists():
            announced = json.loads(ready.read_text())
            if _healthy(int(announced["port"])):
                return str(announced["base_url"])
        time.sleep(_POLL_SECONDS)
    raise DistillError(
        f"the embedded server did not answer within {timeout_seconds:.0f} s: {_tail(log_path)}",
        remedy=f"see {log_path}",
    )


def _healthy(port: int) -> bool:
    # http.client, as it takes no notice of proxy variables
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _stop(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _tail(log_path: Path) -> str:
    """Last line of the log."""
    with open(log_path, "rb") as log:
        log.seek(max(0, os.fstat(log.fileno()).st_size - _LOG_TAIL_BYTES))
        lines = log.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"

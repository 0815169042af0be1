"""`distill bench`: a server under growing load, and how much of the machine it uses."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import httpx2

from distill.errors import DistillError
from distill.runs import versions
from distill.serve.address import is_loopback
from distill.serve.bench.load import Server, Workload, run_load
from distill.serve.bench.machine import Machine, best_of, measure_machine
from distill.serve.bench.summary import RateResult, against, kv_tokens_read, summarize, utilisation
from distill.serve.child import embedded_server

_SHARES = (0.25, 0.5, 0.75, 1.0)  # of what the server answers at most: the rates, where none are given
_SAMPLE = re.compile(r"^distill_(\w+) (\S+)$", re.MULTILINE)
_INFO = re.compile(r'^distill_model_info\{dtype="(\w+)",device="(\w+)"\} 1$', re.MULTILINE)


@dataclass(frozen=True)
class ModelOptions:
    """How a model that is named by its folder is served for the benchmark."""

    dtype: str = "auto"
    device: str = "auto"
    max_batch: int | None = None
    kv_gib: float | None = None


@dataclass(frozen=True)
class Result:
    """All of a benchmark. `machine` is None where the server does not count what it computes, or is elsewhere."""

    target: str
    model: str
    workload: Workload
    machine: Machine | None
    rates: tuple[RateResult, ...]

    def document(self) -> dict[str, Any]:
        return {**asdict(self), "versions": versions()}


@contextmanager
def served(
    target: str, *, model_name: str | None, api_key: str | None, options: ModelOptions = ModelOptions()
) -> Iterator[Server]:
    """The server at a URL, or a child process that serves the model for as long as the block runs. Raises DistillError
    for options that the other of the two has."""
    if target.startswith(("http://", "https://")):
        if options != ModelOptions():
            raise DistillError(
                f"--dtype, --device, --max-batch and --kv-gib are of a model; {target} is served already",
                remedy="leave them out, or name a model folder",
            )
        base_url = target.rstrip("/").removesuffix("/v1") + "/v1"
        yield Server(base_url, model_name or _first_model(base_url, api_key), api_key)
        return
    if api_key is not None:
        raise DistillError("--api-key-env goes with a server's URL", remedy="leave it out")
    with TemporaryDirectory(prefix="distill-bench-") as folder:
        log = Path(folder) / "server.log"
        with embedded_server(target, log_path=log, model_name=model_name or target, **asdict(options)) as base_url:
            yield Server(base_url, model_name or target)


def bench(
    target: str, server: Server, workload: Workload, *, rates: Sequence[float] = (), tell: Callable[[str], None]
) -> Result:
    """Everything at once, then at each of `rates` requests per second; without any, at shares of the first result."""
    _check_context(server, workload)
    run_load(server, workload.prompts(-1)[:1], [0.0], max_tokens=workload.max_tokens)  # what the first request pays
    machine = _machine(server)
    results: list[RateResult] = []

    def at(rate: float | None) -> RateResult:
        tell("all requests at once" if rate is None else f"{rate:.3g} requests/s")
        results.append(measure(server, workload, rate, run=len(results), machine=machine))
        return results[-1]

    most = at(None).requests_per_second
    for rate in rates or [most * share for share in _SHARES]:
        at(rate)
    if machine is None:
        return Result(target, server.model, workload, None, tuple(results))
    best = best_of(machine, _machine(server))
    return Result(target, server.model, workload, best, tuple(against(best, machine, row) for row in results))


def measure(server: Server, workload: Workload, rate: float | None, *, run: int, machine: Machine | None) -> RateResult:
    """One rate. Raises DistillError where no request got an answer."""
    before = counters(server) if machine is not None else {}
    arrivals = workload.arrivals(rate)
    samples = run_load(server, workload.prompts(run), arrivals, max_tokens=workload.max_tokens)
    result = summarize(rate, samples)
    if not result.answered:
        why = next((s.error for s in samples if s.error), "no text came")
        raise DistillError(f"{server.base_url} answers none of the requests: {why}", remedy="see the server's log")
    if machine is None:
        return result
    busy, bandwidth, flop = utilisation(
        before, counters(server), kv_tokens=kv_tokens_read(samples), seconds=result.seconds, machine=machine
    )
    return replace(result, busy_share=busy, bandwidth_fraction=bandwidth, flop_fraction=flop)


def _check_context(server: Server, workload: Workload) -> None:
    """Refuse answers that the model's context would cut, where the server says how long it is (ours and vLLM do)."""
    for model in _get(server, "/v1/models").json()["data"]:
        context, asked = model.get("max_model_len"), workload.prompt_tokens + workload.max_tokens
        if model["id"] == server.model and context is not None and asked > context:
            raise DistillError(
                f"{workload.prompt_tokens} + {workload.max_tokens} tokens do not fit the context of {context}",
                remedy="give a smaller --prompt-tokens or --max-tokens",
            )


def _machine(server: Server) -> Machine | None:
    """Ceilings of this machine, where the server is ours and on it."""
    if not is_loopback(urlsplit(server.base_url).hostname or ""):
        return None
    response = _ask(server, "/metrics")
    info = _INFO.search(response.text) if response.status_code == 200 else None
    return measure_machine(info[2], info[1]) if info is not None else None


def counters(server: Server) -> dict[str, float]:
    """What our server counts, by the metrics' names without their prefix."""
    return {name: float(value) for name, value in _SAMPLE.findall(_get(server, "/metrics").text)}


def _first_model(base_url: str, api_key: str | None) -> str:
    data = _get(Server(base_url, "", api_key), "/v1/models").json()["data"]
    if not data:
        raise DistillError(f"{base_url} serves no model", remedy="name one with --model-name")
    return str(data[0]["id"])


def _get(server: Server, path: str) -> httpx2.Response:
    response = _ask(server, path)
    if response.status_code != 200:
        raise DistillError(
            f"{response.url} answers {response.status_code}: {response.text[:200]}",
            remedy="is it an OpenAI-compatible server, and is --api-key-env right?",
        )
    return response


def _ask(server: Server, path: str) -> httpx2.Response:
    url = server.base_url.removesuffix("/v1") + path
    try:
        return httpx2.get(url, headers=server.headers, timeout=60, trust_env=False)
    except httpx2.HTTPError as error:
        raise DistillError(f"no answer from {url}: {error}", remedy="is the server running?") from None

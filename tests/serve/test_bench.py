"""`distill bench`: its arithmetic by hand, and all of it against running servers."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from distill.cli import app
from distill.engine.runner import Engine, EngineConfig
from distill.errors import DistillError
from distill.serve.bench import run as benchmark
from distill.serve.bench import show
from distill.serve.bench.load import Sample, Server, Workload, run_load
from distill.serve.bench.machine import Machine, best_of, measure_machine
from distill.serve.bench.summary import (
    Percentiles,
    against,
    kv_tokens_read,
    percentiles,
    summarize,
    utilisation,
)
from distill.serve.fields import Limits
from distill.serve.footprint import footprint
from tests.engine.models import byte_tokenizer, chat_model, tiny_model
from tests.serve.conftest import MODEL, Running, start

SMALL = Workload(num_requests=6, prompt_tokens=20, max_tokens=5)


def test_percentiles_are_values_that_occurred() -> None:
    assert percentiles([]) is None
    assert percentiles([3.0]) == Percentiles(3.0, 3.0, 3.0)
    assert percentiles([float(i) for i in range(100, 0, -1)]) == Percentiles(50.0, 95.0, 99.0)
    assert percentiles([1.0, 2.0, 3.0]) == Percentiles(2.0, 3.0, 3.0)


def test_a_rate_by_hand() -> None:
    samples = [
        Sample(due=0.0, status=200, pieces=[0.5, 0.6, 0.8], done=1.0, prompt_tokens=10, completion_tokens=3),
        Sample(due=1.0, status=200, pieces=[1.25, 1.75], done=2.0, prompt_tokens=10, completion_tokens=4),
        Sample(due=1.0, status=503, done=1.01),
        Sample(due=1.0, status=0, done=4.0, error="gone"),
    ]
    found = summarize(1.5, samples)
    assert (found.answered, found.refused, found.failed, found.seconds) == (2, 1, 1, 4.0)
    assert (found.requests_per_second, found.output_tokens_per_second) == (0.5, 7 / 4)
    assert found.total_tokens_per_second == 27 / 4 and found.tokens_per_piece == 7 / 5
    assert found.first_token == Percentiles(0.25, 0.5, 0.5)
    assert found.between_tokens is not None and found.between_tokens.p50 == pytest.approx(0.2)
    assert found.between_tokens.p99 == pytest.approx(0.5)
    assert found.whole == Percentiles(1.0, 1.0, 1.0)
    assert found.refusal is not None and found.refusal.p99 == pytest.approx(0.01)
    # 3 tokens after 10: the second looks back at 11, the third at 12; 4 tokens: 11, 12, 13
    assert kv_tokens_read(samples) == 11 + 12 + 11 + 12 + 13


def test_utilisation_by_hand() -> None:
    before = dict.fromkeys(
        ("steps_total", "prefill_tokens_total", "decode_tokens_total", "sampled_tokens_total"), 100.0
    )
    before |= {"prefill_seconds_total": 1.0, "decode_seconds_total": 2.0}
    before |= {"step_weight_bytes": 1000.0, "kv_bytes_per_token": 10.0, "token_weights": 50.0, "head_weights": 7.0}
    spent = {"steps_total": 4, "prefill_tokens_total": 20, "decode_tokens_total": 6, "sampled_tokens_total": 8}
    spent |= {"prefill_seconds_total": 1, "decode_seconds_total": 1}
    after = {name: value + spent.get(name, 0) for name, value in before.items()}
    machine = Machine("cpu", "float32", 1, bytes_per_second=10_000.0, flop_per_second=4000.0)
    busy, bandwidth, flop = utilisation(before, after, kv_tokens=30, seconds=8.0, machine=machine)
    assert busy == 2 / 8
    assert bandwidth == pytest.approx((4 * 1000 + 30 * 10) / 2 / 10_000)
    assert flop == pytest.approx(2 * (26 * 50 + 8 * 7) / 2 / 4000)


def test_the_higher_ceiling_counts() -> None:
    before, after = Machine("cpu", "float32", 1, 10.0, 400.0), Machine("cpu", "float32", 1, 40.0, 100.0)
    assert best_of(before, after) == Machine("cpu", "float32", 1, 40.0, 400.0) and best_of(before, None) == before
    row = summarize(None, [Sample(0.0, 200, [1.0, 2.0], 2.0, 3, 2)])
    assert against(after, before, row) == row
    row = replace(row, busy_share=0.5, bandwidth_fraction=2.0, flop_fraction=0.1)
    found = against(best_of(before, after), before, row)
    assert found == replace(row, bandwidth_fraction=0.5, flop_fraction=0.1)


def test_arrivals_and_prompts() -> None:
    work = Workload(num_requests=4000, prompt_tokens=3, max_tokens=2)
    due = work.arrivals(8.0)
    assert due[0] == 0.0 and due == sorted(due) and due == work.arrivals(8.0)
    assert due[-1] == pytest.approx(4000 / 8, rel=0.1)
    assert work.arrivals(None) == [0.0] * 4000
    assert work.prompts(0) == work.prompts(0) != work.prompts(1)
    assert all(len(p) == 3 and min(p) >= 0 and max(p) < 256 for p in work.prompts(0))


def test_footprint_by_hand() -> None:
    """32 wide, 48 in the middle, 4 heads of 8 on 2 KV heads, 2 layers, 128 tokens, fp32."""
    found = footprint(tiny_model("llama-gqa"))
    layer = 32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 48
    assert found.token_weights == 2 * layer and found.head_weights == 128 * 32
    rest = 5 * 32 + 2 * 4  # norms; the rotary frequencies, twice
    assert found.step_weight_bytes == 4 * (2 * layer + 128 * 32 + rest)  # the head; the table is only looked up in
    assert (found.dtype, found.device) == ("float32", "cpu")
    tied = tiny_model("llama-gqa")
    tied.get_output_embeddings().weight = tied.get_input_embeddings().weight
    assert footprint(tied).step_weight_bytes == found.step_weight_bytes
    experts = footprint(tiny_model("mixtral"))  # four of them, and a router
    assert experts.token_weights == 2 * (layer - 3 * 32 * 48 + 4 * 3 * 32 * 48 + 4 * 32)


def test_the_machine_is_measured() -> None:
    for dtype in ("float32", "bfloat16"):
        found = measure_machine("cpu", dtype)
        assert found.bytes_per_second > 1e8 and found.flop_per_second > 1e8
        assert (found.device, found.dtype, found.threads) == ("cpu", dtype, torch.get_num_threads())


def test_a_server_under_growing_load(running: Running, tmp_path: Path) -> None:
    paths = tmp_path / "b.json", tmp_path / "b.svg"
    pytest.importorskip("matplotlib", reason="in the extra `plot`")
    arguments = ["bench", running.url, "--requests", "6", "--prompt-tokens", "20", "--max-tokens", "5"]
    arguments += ["--rate", "40", "--rate", "80", "--json", str(paths[0]), "--plot", str(paths[1])]
    steps = running.engine.stats.steps
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0 and running.engine.stats.steps > steps
    written = json.loads(paths[0].read_text())
    assert written["model"] == MODEL and [r["rate"] for r in written["rates"]] == [None, 40.0, 80.0]
    for row in written["rates"]:
        assert (row["answered"], row["refused"], row["failed"]) == (6, 0, 0)
        assert row["output_tokens_per_second"] == pytest.approx(30 / row["seconds"])
        assert row["total_tokens_per_second"] == pytest.approx(150 / row["seconds"])
        assert 0 < row["first_token"]["p50"] <= row["first_token"]["p99"] <= row["whole"]["p99"]
        assert 0 < row["busy_share"] < 1.2 and 0 < row["bandwidth_fraction"] < 1 and 0 < row["flop_fraction"] < 1
    assert written["machine"]["device"] == "cpu" and "transformers" in written["versions"]
    lines = done.stdout.splitlines()
    assert len(lines) == 4 and "between tokens ms" in lines[0] and "all at once" in lines[1]
    assert "<svg" in paths[1].read_text()


def test_rates_are_shares_of_what_the_server_answers_at_most(running: Running) -> None:
    server = Server(running.url, MODEL)
    told: list[str] = []
    result = benchmark.bench("x", server, SMALL, tell=told.append)
    most = result.rates[0].requests_per_second
    assert [r.rate for r in result.rates[1:]] == [most * share for share in (0.25, 0.5, 0.75, 1.0)]
    assert len(told) == 5 and len(show.table(result).splitlines()) == 6


def test_a_closed_loop_keeps_so_many_open(running: Running) -> None:
    prompts, arrivals = SMALL.prompts(0), SMALL.arrivals(None)
    samples = run_load(Server(running.url, MODEL), prompts, arrivals, max_tokens=3, max_open=1)
    assert all(s.answered for s in samples) and samples[0].due == 0.0
    one_by_one = sorted(samples, key=lambda s: s.due)
    assert all(earlier.done <= later.due for earlier, later in zip(one_by_one, one_by_one[1:], strict=False))


def test_refused_requests_are_counted_apart() -> None:
    tokenizer = byte_tokenizer()
    engine = Engine(chat_model(tokenizer), tokenizer, EngineConfig(block_size=8))
    server, url = start(engine, api_key="right", limits=Limits(max_queue=2))
    try:
        asked = Server(url, MODEL, "right")
        work = Workload(num_requests=12, prompt_tokens=20, max_tokens=60)
        result = benchmark.measure(asked, work, None, run=0, machine=None)
        assert result.answered >= 2 and result.refused >= 1 and result.answered + result.refused == 12
        assert result.refusal is not None and result.bandwidth_fraction is None
        with pytest.raises(DistillError, match="401"):
            benchmark.bench("x", Server(url, MODEL, "wrong"), SMALL, tell=print)
        with pytest.raises(DistillError, match="no model 'other'"):
            benchmark.measure(Server(url, "other", "right"), SMALL, None, run=0, machine=None)
    finally:
        server.should_exit = True


class _Stranger(http.server.BaseHTTPRequestHandler):
    """Another server: the model's list and one streamed answer, no counters."""

    def do_GET(self) -> None:
        found = self.path == "/v1/models"
        self._send(200 if found else 404, json.dumps({"data": [{"id": "strange"}]}).encode())

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        events: list[dict[str, object]] = [{"choices": [{"text": "a"}]}, {"choices": [{"text": "b"}]}]
        events.append({"choices": [], "usage": {"prompt_tokens": len(asked["prompt"]), "completion_tokens": 2}})
        lines = [f": a comment\n\ndata: {json.dumps(event)}\n\n" for event in events]
        self._send(200, "".join([*lines, "data: [DONE]\n\n"]).encode())

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def stranger() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Stranger) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_another_server_has_no_fractions(stranger: str) -> None:
    with benchmark.served(stranger + "/", model_name=None, api_key=None) as server:
        assert (server.base_url, server.model) == (stranger + "/v1", "strange")
        result = benchmark.bench(stranger, server, SMALL, rates=(100.0,), tell=lambda _: None)
    assert result.machine is None and result.rates[0].bandwidth_fraction is None
    assert [r.answered for r in result.rates] == [6, 6]
    assert show.table(result).splitlines()[1].endswith("-")


def test_nobody_there() -> None:
    with (
        pytest.raises(DistillError, match="no answer from"),
        benchmark.served("http://127.0.0.1:9", model_name=None, api_key=None),
    ):
        pass


@pytest.mark.parametrize(
    "arguments,named",
    [
        (("x", "--plot", "b.xyz"), "--plot"),  # all of these before anything is started or measured
        (("http://127.0.0.1:9", "--dtype", "float32"), "--dtype"),
        (("http://127.0.0.1:9", "--max-batch", "4"), "--max-batch"),
        (("x", "--api-key-env", "HOME"), "--api-key-env"),
    ],
)
def test_what_would_be_lost_or_passed_over_is_refused_before(arguments: tuple[str, ...], named: str) -> None:
    with pytest.raises(DistillError) as caught:
        CliRunner().invoke(app, ["bench", *arguments], catch_exceptions=False)
    assert named in f"{caught.value} {caught.value.remedy}"


def test_requests_that_the_context_would_cut_are_refused(running: Running) -> None:
    longest = running.engine.max_model_len
    work = Workload(num_requests=1, prompt_tokens=longest - 10, max_tokens=11)
    with pytest.raises(DistillError, match=f"context of {longest}"):
        benchmark.bench("x", Server(running.url, MODEL), work, tell=print)

"""A server with a full queue under ten times the load it can answer: how fast it refuses, and what that costs those
whom it answers.

    OMP_NUM_THREADS=1 python -m benchmarks.serve_overload [--quick] [--json PATH]

The reference is a closed loop: as many requests open as the queue holds, nobody refused. Then requests arrive at ten
times the rate at which those were answered, as a Poisson process. Load and server share this machine.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.common import Row, at_least, envelope, write_json
from distill.serve.bench.load import Server, Workload, run_load
from distill.serve.bench.run import counters
from distill.serve.bench.summary import RateResult, summarize
from distill.serve.child import embedded_server

MODEL = "data/teacher"
QUEUE = 8
OVERLOAD = 10.0
REFUSAL_P99_SECONDS = 0.05
LEAST_SHARE = 0.9  # of the reference's tokens per second, under overload


@dataclass(frozen=True)
class Phase:
    """One load: what clients saw, and the CPU-seconds that the server spent on it."""

    seen: RateResult
    cpu_seconds: float

    @property
    def tokens_per_cpu_second(self) -> float:
        return self.seen.output_tokens_per_second * self.seen.seconds / self.cpu_seconds


def run(server: Server, work: Workload, *, seconds: float) -> tuple[Phase, Phase]:
    """(the closed loop, the overload)."""
    run_load(server, work.prompts(-1)[:1], [0.0], max_tokens=work.max_tokens)
    reference = _phase(server, work, None)
    rate = OVERLOAD * reference.seen.requests_per_second
    storm = replace(work, num_requests=max(20, round(rate * seconds)), seed=1)
    return reference, _phase(server, storm, rate)


def _phase(server: Server, work: Workload, rate: float | None) -> Phase:
    """A closed loop without a rate, else an open one."""
    before, max_open = counters(server), QUEUE if rate is None else None
    samples = run_load(server, work.prompts(0), work.arrivals(rate), max_tokens=work.max_tokens, max_open=max_open)
    return Phase(summarize(rate, samples), counters(server)["cpu_seconds_total"] - before["cpu_seconds_total"])


def rows(reference: Phase, storm: Phase) -> list[Row]:
    """The bars: refusals at once, as much answered as without them, nothing broken."""
    refusal, pace, usual = storm.seen.refusal, storm.seen.between_tokens, reference.seen.between_tokens
    assert refusal is not None and pace is not None and usual is not None
    by_clock = storm.seen.output_tokens_per_second / reference.seen.output_tokens_per_second
    by_cpu = storm.tokens_per_cpu_second / reference.tokens_per_cpu_second
    return [
        Row("refusal, p99", refusal.p99, "s", bar=REFUSAL_P99_SECONDS, ok=refusal.p99 < REFUSAL_P99_SECONDS),
        Row("refusal, p50", refusal.p50, "s"),
        at_least("tokens/s, of the closed loop's", by_clock, LEAST_SHARE),
        at_least("tokens per CPU-second of the server, of the closed loop's", by_cpu, LEAST_SHARE),
        Row("between tokens, p50", pace.p50, "s", peer=usual.p50, ratio=usual.p50 / pace.p50),
        Row("failed", storm.seen.failed, "requests", bar=0, ok=storm.seen.failed == 0),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    work = Workload(num_requests=3 * QUEUE if asked.quick else 8 * QUEUE, prompt_tokens=64, max_tokens=32)
    with TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        with embedded_server(MODEL, log_path=log, dtype="float32", max_batch=QUEUE, max_queue=QUEUE) as url:
            reference, storm = run(Server(url, MODEL), work, seconds=4.0 if asked.quick else 15.0)
    found = rows(reference, storm)
    for row in found:
        verdict = "" if row.ok is None else "ok" if row.ok else "MISSED"
        print(f"{row.name:>58} {row.value:10.4f} {row.unit:9} bar {row.bar} {verdict}")
    details = {"queue": QUEUE, "overload": OVERLOAD, "closed_loop": asdict(reference), "storm": asdict(storm)}
    print(json.dumps(details, indent=1))
    if asked.json is not None:
        command = "OMP_NUM_THREADS=1 python -m benchmarks.serve_overload"
        write_json(asked.json, envelope(what="serve-overload", command=command, rows=found, details=details))


if __name__ == "__main__":
    main()

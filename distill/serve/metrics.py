"""Counters in Prometheus' text format."""

from __future__ import annotations

from dataclasses import dataclass

from distill.engine.runner import Engine


@dataclass
class Requests:
    """What came in."""

    received: int = 0
    rejected: int = 0  # for a full queue


def render(engine: Engine, requests: Requests, num_open: int) -> str:
    """The exposition: one sample a metric."""
    stats = engine.stats
    rows: list[tuple[str, str, str, float]] = [
        ("requests_total", "counter", "requests received", requests.received),
        ("requests_rejected_total", "counter", "requests refused for a full queue", requests.rejected),
        ("requests_open", "gauge", "requests accepted and not answered", num_open),
        ("sequences_running", "gauge", "sequences that hold KV blocks", engine.num_running),
        ("sequences_waiting", "gauge", "sequences that wait for room", engine.num_waiting),
        ("sequences_finished_total", "counter", "sequences finished", stats.finished),
        ("preemptions_total", "counter", "sequences put back for want of blocks", stats.preemptions),
        ("prefill_tokens_total", "counter", "prompt tokens computed", stats.prefill_tokens),
        ("decode_tokens_total", "counter", "tokens computed one a step", stats.decode_tokens),
        ("sampled_tokens_total", "counter", "tokens sampled", stats.sampled_tokens),
        ("steps_total", "counter", "forward passes", stats.steps),
        ("prefill_seconds_total", "counter", "time of steps with prefill", stats.prefill_seconds),
        ("decode_seconds_total", "counter", "time of steps of decode alone", stats.decode_seconds),
        ("kv_blocks_used", "gauge", "KV blocks in use", engine.blocks_in_use),
        ("kv_blocks", "gauge", "KV blocks in all", engine.num_blocks),
    ]
    lines = []
    for name, kind, text, value in rows:
        lines += [f"# HELP distill_{name} {text}", f"# TYPE distill_{name} {kind}", f"distill_{name} {value}"]
    return "\n".join(lines) + "\n"

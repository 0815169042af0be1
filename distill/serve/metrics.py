"""Counters and histograms in Prometheus' text format."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from distill.engine.runner import Engine
from distill.engine.types import Completion
from distill.serve.admission import Admission
from distill.serve.footprint import Footprint

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Histogram:
    """Observations by upper bound, Prometheus' way: every bucket counts all that is not above its bound."""

    def __init__(self, bounds: tuple[float, ...] = _SECONDS) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str) -> Iterator[str]:
        total = 0
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield f"{name}_sum {self._sum}"
        yield f"{name}_count {total}"


@dataclass
class Traffic:
    """What came in and how long it took, as the server saw it."""

    answers: Counter[tuple[str, int]] = field(default_factory=Counter)  # (route, status)
    finished: Counter[str] = field(default_factory=Counter)  # choices by finish reason
    gone: int = 0  # clients that left before their answer was complete
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_token: Histogram = field(default_factory=Histogram)
    between_tokens: Histogram = field(default_factory=Histogram)
    whole: Histogram = field(default_factory=Histogram)

    def count(self, completions: list[Completion], n: int) -> None:
        """An answer that is complete."""
        for index, completion in enumerate(completions):
            self.finished[completion.finish_reason] += 1
            self.completion_tokens += len(completion.token_ids)
            if index % n == 0:
                self.prompt_tokens += completion.prompt_tokens


def render(engine: Engine, cost: Footprint, traffic: Traffic, admission: Admission) -> str:
    """The exposition."""
    lines: list[str] = []
    for name, kind, text, value in [*_samples(engine, cost, traffic, admission), *_draft_samples(engine)]:
        lines += [*_head(name, kind, text), f"distill_{name} {value}"]
    lines += _head("model_info", "gauge", "how the model is held")
    lines.append(f'distill_model_info{{dtype="{cost.dtype}",device="{cost.device}"}} 1')
    lines += _head("answers_total", "counter", "answers by route and status")
    for (route, status), count in sorted(traffic.answers.items()):
        lines.append(f'distill_answers_total{{route="{route}",status="{status}"}} {count}')
    lines += _head("choices_finished_total", "counter", "choices answered, by finish reason")
    for reason, count in sorted(traffic.finished.items()):
        lines.append(f'distill_choices_finished_total{{reason="{reason}"}} {count}')
    for name, histogram, text in (
        ("time_to_first_token_seconds", traffic.first_token, "from a request's arrival to its first piece, streamed"),
        ("inter_token_seconds", traffic.between_tokens, "between the pieces of a streamed choice"),
        ("request_seconds", traffic.whole, "from a request's arrival to its last token"),
    ):
        lines += [*_head(name, "histogram", text), *histogram.lines(f"distill_{name}")]
    return "\n".join(lines) + "\n"


def _head(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP distill_{name} {text}", f"# TYPE distill_{name} {kind}"]


def _samples(
    engine: Engine, cost: Footprint, traffic: Traffic, admission: Admission
) -> list[tuple[str, str, str, float]]:
    """Metrics of one sample: name, kind, help, value."""
    stats = engine.stats
    return [
        ("requests_rejected_total", "counter", "requests refused for a full queue", admission.num_refused),
        ("clients_gone_total", "counter", "clients that left before their answer was complete", traffic.gone),
        ("choices_open", "gauge", "choices accepted and not answered", admission.num_open),
        ("choices_limit", "gauge", "choices that may be open", admission.limit),
        ("sequences_running", "gauge", "sequences that hold KV blocks", engine.num_running),
        ("sequences_waiting", "gauge", "sequences that wait for room", engine.num_waiting),
        ("sequences_finished_total", "counter", "sequences finished", stats.finished),
        ("preemptions_total", "counter", "sequences put back for want of blocks", stats.preemptions),
        ("prompt_tokens_total", "counter", "prompt tokens of answered requests", traffic.prompt_tokens),
        ("completion_tokens_total", "counter", "tokens of answered requests", traffic.completion_tokens),
        ("prefill_tokens_total", "counter", "prompt tokens computed", stats.prefill_tokens),
        ("cached_tokens_total", "counter", "prompt tokens found in the prefix cache", stats.cached_tokens),
        (
            "decode_tokens_total",
            "counter",
            "tokens computed in decode, guesses included",
            stats.decode_tokens,
        ),
        ("sampled_tokens_total", "counter", "tokens sampled", stats.sampled_tokens),
        ("steps_total", "counter", "forward passes", stats.steps),
        ("prefill_seconds_total", "counter", "time of steps with prefill", stats.prefill_seconds),
        ("decode_seconds_total", "counter", "time of steps of decode alone", stats.decode_seconds),
        ("cpu_seconds_total", "counter", "CPU time of the server's process", time.process_time()),
        ("kv_blocks_used", "gauge", "KV blocks in use", engine.blocks_in_use),
        ("kv_blocks_peak", "gauge", "most KV blocks in use so far", stats.blocks_peak),
        ("kv_blocks", "gauge", "KV blocks in all", engine.num_blocks),
        ("kv_bytes_per_token", "gauge", "KV bytes of one token", engine.cache.bytes_per_token if engine.cache else 0),
        ("step_weight_bytes", "gauge", "bytes of weights that a step reads", cost.step_weight_bytes),
        ("token_weights", "gauge", "weights that a token is multiplied with", cost.token_weights),
        ("head_weights", "gauge", "weights that a row of logits is multiplied with", cost.head_weights),
    ]


def _draft_samples(engine: Engine) -> list[tuple[str, str, str, float]]:
    """What a draft model did, where there is one."""
    if engine.speculation is None:
        return []
    stats, drafter = engine.stats, engine.speculation.drafter
    return [
        ("draft_tokens_total", "counter", "tokens that the draft guessed", stats.draft_tokens),
        ("draft_accepted_tokens_total", "counter", "guesses that stood", stats.accepted_tokens),
        ("draft_verifications_total", "counter", "forward passes of sequences with guesses", stats.verifications),
        ("draft_seconds_total", "counter", "time of guessing, part of the steps'", stats.draft_seconds),
        ("draft_acceptance_rate", "gauge", "share of the guesses that stood", stats.acceptance_rate),
        ("draft_accept_length", "gauge", "mean tokens that a verification yields", stats.accept_length),
        ("draft_kv_blocks_used", "gauge", "KV blocks of the draft in use", drafter.pool.num_used),
        ("draft_kv_bytes_per_token", "gauge", "KV bytes of one token of the draft", drafter.cache.bytes_per_token),
    ]

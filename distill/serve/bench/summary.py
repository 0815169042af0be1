"""From samples and a server's counters to the numbers of one rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from distill.serve.bench.load import Sample
from distill.serve.bench.machine import Machine

Counters = Mapping[str, float]


@dataclass(frozen=True)
class Percentiles:
    """Of some seconds: 50th, 95th and 99th, each a value that occurred (nearest rank)."""

    p50: float
    p95: float
    p99: float


@dataclass(frozen=True)
class RateResult:
    """One request rate; None: all at once. Times in seconds, fractions of the machine's measured ceilings while the
    engine computes. `refused` are answers 503, `failed` all others that gave no text."""

    rate: float | None
    seconds: float
    answered: int
    refused: int
    failed: int
    requests_per_second: float
    output_tokens_per_second: float
    total_tokens_per_second: float
    tokens_per_piece: float | None
    first_token: Percentiles | None
    between_tokens: Percentiles | None
    whole: Percentiles | None
    refusal: Percentiles | None
    busy_share: float | None = None
    bandwidth_fraction: float | None = None
    flop_fraction: float | None = None


def percentiles(seconds: Sequence[float]) -> Percentiles | None:
    """Nearest rank: the smallest value that at least p per cent do not exceed."""
    if not seconds:
        return None
    ranked = sorted(seconds)
    p50, p95, p99 = (ranked[math.ceil(p / 100 * len(ranked)) - 1] for p in (50, 95, 99))
    return Percentiles(p50, p95, p99)


def summarize(rate: float | None, samples: Sequence[Sample]) -> RateResult:
    """All that clients see. Waiting counts from when a request was due, not from when it could be sent."""
    answered = [s for s in samples if s.answered]
    seconds = max((s.done for s in samples), default=0.0)
    output, prompt = sum(s.completion_tokens for s in answered), sum(s.prompt_tokens for s in answered)
    pieces = sum(len(s.pieces) for s in answered)
    refused = [s for s in samples if s.status == 503]
    gaps = [later - earlier for s in answered for earlier, later in zip(s.pieces, s.pieces[1:], strict=False)]
    return RateResult(
        rate=rate,
        seconds=seconds,
        answered=len(answered),
        refused=len(refused),
        failed=len(samples) - len(answered) - len(refused),
        requests_per_second=len(answered) / seconds,
        output_tokens_per_second=output / seconds,
        total_tokens_per_second=(output + prompt) / seconds,
        tokens_per_piece=output / pieces if pieces else None,
        first_token=percentiles([s.pieces[0] - s.due for s in answered if s.pieces]),
        between_tokens=percentiles(gaps),
        whole=percentiles([s.done - s.due for s in answered]),
        refusal=percentiles([s.done - s.due for s in refused]),
    )


def kv_tokens_read(samples: Sequence[Sample]) -> int:
    """Tokens of context that decoding looked back at: for the i-th token after the first, the prompt and i tokens."""
    return sum(
        (s.completion_tokens - 1) * s.prompt_tokens + s.completion_tokens * (s.completion_tokens - 1) // 2
        for s in samples
        if s.answered
    )


def against(best: Machine, machine: Machine, row: RateResult) -> RateResult:
    """A rate's fractions of the ceilings of `machine`, as fractions of other ceilings."""
    if row.bandwidth_fraction is None or row.flop_fraction is None:
        return row
    return replace(
        row,
        bandwidth_fraction=row.bandwidth_fraction * machine.bytes_per_second / best.bytes_per_second,
        flop_fraction=row.flop_fraction * machine.flop_per_second / best.flop_per_second,
    )


def utilisation(
    before: Counters, after: Counters, *, kv_tokens: int, seconds: float, machine: Machine
) -> tuple[float, float, float]:
    """(share of the time that the engine computed, fraction of bandwidth, fraction of FLOP/s while it did).

    Bytes: the weights once a step, and the KV cache of every token decoding looked back at. FLOP: two for each weight
    and token, the LM head's for sampled tokens alone.
    """
    spent = {name: after[name] - before[name] for name in after}
    busy = spent["prefill_seconds_total"] + spent["decode_seconds_total"]
    read = spent["steps_total"] * after["step_weight_bytes"] + kv_tokens * after["kv_bytes_per_token"]
    tokens = spent["prefill_tokens_total"] + spent["decode_tokens_total"]
    flop = 2 * (tokens * after["token_weights"] + spent["sampled_tokens_total"] * after["head_weights"])
    return busy / seconds, read / busy / machine.bytes_per_second, flop / busy / machine.flop_per_second

"""A benchmark's numbers as a table, and as a plot where matplotlib is installed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from distill.errors import DistillError
from distill.serve.bench.run import Result
from distill.serve.bench.summary import Percentiles, RateResult

_LINE = "{:>11} {:>10} {:>8} {:>20} {:>18} {:>7} {:>6} {:>9} {:>6}"
_FORMATS = (".png", ".svg", ".pdf")
_COUNTS = ("refused", "failed", "bandwidth", "FLOP/s")


def table(result: Result) -> str:
    """A line a rate; the times are p50 / p95 / p99."""
    lines = [_LINE.format("requests/s", "answered/s", "tokens/s", "first token ms", "between tokens ms", *_COUNTS)]
    for row in result.rates:
        lines.append(
            _LINE.format(
                "all at once" if row.rate is None else f"{row.rate:.2f}",
                f"{row.requests_per_second:.2f}",
                f"{row.output_tokens_per_second:.1f}",
                _milliseconds(row.first_token),
                _milliseconds(row.between_tokens),
                row.refused,
                row.failed,
                _share(row.bandwidth_fraction),
                _share(row.flop_fraction),
            )
        )
    return "\n".join(lines)


def check_plot(path: Path) -> None:
    """Raise DistillError where `plot` could not draw to this path: known before minutes are spent on measuring."""
    if path.suffix not in _FORMATS:
        raise DistillError(f"--plot {path} has no known format", remedy=f"end it in {', '.join(_FORMATS)}")
    if find_spec("matplotlib") is None:
        raise DistillError("the plot needs matplotlib", remedy="pip install 'distill[plot]'")


def plot(result: Result, path: Path) -> None:
    """Throughput, time to the first token and time between tokens over the rate; the format is the path's suffix."""
    from matplotlib.figure import Figure  # in the extra `plot`

    rows = sorted((r for r in result.rates if r.rate is not None), key=lambda r: r.rate or 0.0)
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    throughput, first, between = figure.subplots(1, 3)
    rates = [row.rate or 0.0 for row in rows]
    throughput.plot(rates, [row.output_tokens_per_second for row in rows], marker="o", label="at the rate")
    for row in result.rates:
        if row.rate is None:
            throughput.axhline(row.output_tokens_per_second, linestyle="--", color="grey", label="all at once")
    throughput.set_ylabel("output tokens/s")
    throughput.set_ylim(bottom=0)
    for axes, name, of in (
        (first, "time to first token, ms", lambda row: row.first_token),
        (between, "time between tokens, ms", lambda row: row.between_tokens),
    ):
        _percentile_lines(axes.plot, rates, rows, of)
        axes.set_ylabel(name)
        axes.set_ylim(bottom=0)
    for axes in (throughput, first, between):
        axes.set_xlabel("requests/s")
        axes.set_xlim(left=0)
        axes.legend()
    work = result.workload
    figure.suptitle(f"{result.model}: {work.num_requests} requests, {work.prompt_tokens} + {work.max_tokens} tokens")
    figure.savefig(path)


def _percentile_lines(
    draw: Callable[..., object],
    rates: Sequence[float],
    rows: Sequence[RateResult],
    of: Callable[[RateResult], Percentiles | None],
) -> None:
    points = [(rate, found) for rate, row in zip(rates, rows, strict=True) if (found := of(row)) is not None]
    for name, values in (
        ("p50", [p.p50 for _, p in points]),
        ("p95", [p.p95 for _, p in points]),
        ("p99", [p.p99 for _, p in points]),
    ):
        draw([rate for rate, _ in points], [1000 * value for value in values], marker="o", label=name)


def _milliseconds(found: Percentiles | None) -> str:
    return "-" if found is None else " / ".join(f"{1000 * value:.0f}" for value in (found.p50, found.p95, found.p99))


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f}%"

"""Seconds of short GPU work: calls over different data in a CUDA graph: neither launches nor caches are timed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

CACHE_BYTES = 180 << 20  # several times the L2 of any GPU of 2026


def copies_for(num_bytes: int, *, most: int = 192) -> int:
    """How many copies of data of this size no cache holds together."""
    return max(2, min(most, -(-CACHE_BYTES // num_bytes)))


def seconds_each(calls: Sequence[Callable[[], Tensor]], *, rounds: int = 5, least: int = 20) -> float:
    """Median over `rounds` replays of the mean time of a call. The calls run in turn, each on its own data, again and
    again until there are `least`."""
    many = [calls[i % len(calls)] for i in range(max(least, len(calls)))]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        many[0]()  # compile and allocate outside of the graph
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in many:
            call()
    graph.replay()
    found = []
    for _ in range(rounds):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end) / 1e3 / len(many))
    return statistics.median(found)

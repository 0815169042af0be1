"""How much of a GPU's memory bandwidth paged decode attention takes for long contexts, against SDPA.

    python -m benchmarks.paged_bandwidth [--json PATH]

Keys and values of every context are read once a step: their bytes over the time are the bandwidth. SDPA gets contiguous
keys and values; to come by them from a paged cache they have to be gathered first, which is timed with it and without.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F

from benchmarks.common import Row, envelope, write_json
from benchmarks.gpu_models import copy_speed, peak_speed
from distill.engine.kv_cache import CODES, quantize_rows
from distill.kernels.paged_attention import paged_decode

_DIM = 128
_BLOCK = 32
_SHAPES = [(heads, kv_heads, length) for heads, kv_heads in ((32, 4), (8, 8)) for length in (8192, 32768)]
_LEAST_BYTES = 512 << 20  # more than the second-level cache holds
_ROUNDS = 10
_CALLS = 8


def seconds(call: Callable[[], object]) -> float:
    """The median time of a call on the device, in a CUDA graph of several, as the engine calls it."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(_CALLS):
            call()
    found = []
    for _ in range(_ROUNDS + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end) / 1e3 / _CALLS)
    return median(found[2:])


def code_seconds(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tables: torch.Tensor,
    lengths: torch.Tensor,
    codes: torch.dtype,
) -> float:
    """The same over a cache of codes with a scale a head and token."""
    stored, scales = zip(*(quantize_rows(t.flatten(0, 2), codes) for t in (keys, values)), strict=True)
    cache = [rows.view(t.shape) for rows, t in zip(stored, (keys, values), strict=True)]
    factors = (scales[0].view(keys.shape[:3]), scales[1].view(values.shape[:3]))
    return seconds(lambda: paged_decode(query, *cache, tables, lengths, scale=_DIM**-0.5, scales=factors))


def measure(heads: int, kv_heads: int, length: int, batch: int | None) -> tuple[list[Row], dict[str, float]]:
    """Rows of one shape; `batch` None: as many contexts as fill more than the caches of the GPU."""
    each = 2 * length * kv_heads * _DIM * 2
    rows = batch or -(-_LEAST_BYTES // each)
    blocks = length // _BLOCK
    keys, values = (
        torch.randn(rows * blocks, kv_heads, _BLOCK, _DIM, device="cuda", dtype=torch.bfloat16) for _ in range(2)
    )
    tables = torch.randperm(rows * blocks, device="cuda", dtype=torch.int32).view(rows, blocks)
    lengths = torch.full((rows,), length, device="cuda", dtype=torch.int64)
    query = torch.randn(rows, heads, _DIM, device="cuda", dtype=torch.bfloat16)

    def gather(cache: torch.Tensor) -> torch.Tensor:
        picked = cache.index_select(0, tables.view(-1)).view(rows, blocks, kv_heads, _BLOCK, _DIM)
        return picked.transpose(1, 2).reshape(rows, kv_heads, length, _DIM)

    whole = gather(keys), gather(values)

    def sdpa(key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(query.unsqueeze(2), key, value, enable_gqa=heads != kv_heads)

    arrived = torch.zeros(rows * kv_heads, dtype=torch.int32, device="cuda")

    def decode() -> torch.Tensor:
        return paged_decode(query, keys, values, tables, lengths, scale=_DIM**-0.5, arrived=arrived)

    own = decode()
    distance = float((own.float() - sdpa(*whole).squeeze(2).float()).abs().max())
    ours = seconds(decode)
    contiguous = seconds(lambda: sdpa(*whole))
    gathered = seconds(lambda: sdpa(gather(keys), gather(values)))
    total, peak = rows * each, peak_speed()
    coded = [(codes, code_seconds(query, keys, values, tables, lengths, codes)) for codes in CODES.values() if codes]
    name = f"{heads}:{kv_heads} heads, {rows} x {length} tokens"
    share = total / ours / peak
    found = [
        Row(f"{name}: share of bandwidth", share, "share", total / contiguous / peak, contiguous / ours),
        Row(f"{name}: against SDPA on gathered KV", share, "share", total / gathered / peak, gathered / ours),
    ]
    found += [Row(f"{name}: {str(codes)[6:]}, time of bf16 over its own", ours / own, "times") for codes, own in coded]
    return found, {f"{name}: microseconds": ours * 1e6, f"{name}: largest difference": distance}


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[Row] = []
    details: dict[str, object] = {"memory bandwidth: data sheet, copy": [peak_speed(), copy_speed()]}
    for heads, kv_heads, length in _SHAPES:
        for batch in (1, None):
            try:
                found, more = measure(heads, kv_heads, length, batch)
            except Exception as error:  # one shape is not to lose the others
                details[f"{heads}:{kv_heads} {length} {batch}: failed"] = f"{type(error).__name__}: {error}"[:300]
                continue
            rows += found
            details.update(more)
            for row in found:
                peer = "" if row.peer is None else f", SDPA {row.peer:.3f}, ratio {row.ratio:.2f}"
                print(f"{row.name}: {row.value:.3f}{peer}", flush=True)
            torch.cuda.empty_cache()
    if options.json:
        command = "python -m benchmarks.paged_bandwidth"
        write_json(options.json, envelope(what="paged decode", command=command, rows=rows, details=details))
    print(details)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

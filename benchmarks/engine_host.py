"""What a decode step costs the host: scheduling, filling the inputs of a captured step, reading and appending tokens.

    python -m benchmarks.engine_host [--json PATH]

The model's forward pass is left out, so that what remains is Python, which a GPU waits for where it takes longer than
the step itself. Median and 90th percentile of a hundred steps.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from unittest import mock

import torch
import transformers as hf

from benchmarks.common import Row, envelope, write_json
from distill.engine import choices, runner
from distill.engine.batch import PackedBatch
from distill.engine.runner import Engine, EngineConfig
from distill.engine.types import SamplingParams

_VOCAB = 128
BARS = {64: 0.7, 256: 2.5}  # milliseconds


def small_model() -> hf.PreTrainedModel:
    """Two layers: only its shapes are asked for."""
    config = hf.LlamaConfig(
        vocab_size=_VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
    )
    return hf.LlamaForCausalLM(config).float().eval()


def no_forward(model: hf.PreTrainedModel, batch: PackedBatch, rows: object, fusion: object = None) -> torch.Tensor:
    """Logits that nobody computed."""
    return torch.zeros(batch.input_ids.shape[1] if rows is None else len(rows), _VOCAB)  # type: ignore[arg-type]


def measure(model: hf.PreTrainedModel, count: int) -> tuple[float, float]:
    """Milliseconds of a step with `count` decoding sequences: median and 90th percentile."""
    config = EngineConfig(
        max_batch=256, attention="triton", fused=False, overlap=True, probe=False, prefill_tokens=8192, kv_bytes=1 << 28
    )
    engine = Engine(model, None, config)
    for index in range(count):
        engine.add(str(index), [5] * (100 + index % 7), SamplingParams(max_tokens=300, ignore_eos=True))
    times = []
    for _ in range(120):
        started = time.perf_counter()
        engine.step()
        times.append((time.perf_counter() - started) * 1e3)
    times = sorted(times[20:])
    return times[50], times[90]


def main() -> int:
    """Measure, print, write; the exit code says whether the bars are met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with (
        mock.patch.object(choices, "find_spec", lambda name: name),  # no kernel runs
        mock.patch.object(runner, "forward", no_forward),
    ):
        model = small_model()
        for count in (1, 64, 256):
            middle, late = measure(model, count)
            bar = BARS.get(count)
            ok = None if bar is None else middle <= bar
            rows.append(Row(f"host time of a step, {count} rows: median", middle, "ms", bar=bar, ok=ok))
            rows.append(Row(f"host time of a step, {count} rows: 90th percentile", late, "ms"))
            print(f"{count} rows: {middle:.3f} ms, p90 {late:.3f} ms" + ("" if bar is None else f" (bar {bar}: {ok})"))
    if options.json:
        command = "python -m benchmarks.engine_host"
        write_json(options.json, envelope(what="host time of a decode step", command=command, rows=rows, details={}))
    return 0 if all(row.ok is not False for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())

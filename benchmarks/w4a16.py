"""Weights in 4 bits, multiplied as they are: a layer's product, and a model's tokens, beside dense ones.

    python -m benchmarks.w4a16 [--quick] [--json PATH]

Products of one layer at 1, 8 and 64 rows on all threads, the best of several rounds in which packed, bfloat16 and
float32 take turns; `floor` is the time in which this machine reads the packed bytes once. Then the tokens per second of
the engine on a Llama of 30 M parameters at batch 1.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers as hf
from torch import Tensor, nn

from benchmarks.common import Row, envelope, write_json
from benchmarks.serve import thirty_million
from distill.engine.runner import Engine, EngineConfig
from distill.engine.types import SamplingParams
from distill.kernels.w4a16 import PackedLinear
from distill.model.calibration import pad_batches
from distill.model.load import load_model
from distill.quantize.export import save_packed
from distill.quantize.sequential import Nearest, WeightSettings, quantize_model

LAYERS = ((4096, 4096), (14336, 4096))
ROWS = (1, 8, 64)
GROUP = 128
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
LAYER_BAR, MODEL_BAR = 3.0, 1.8  # of batch 1 over bf16


def layer_rows(out: int, width: int, rows: int, rounds: int) -> list[Row]:
    """Milliseconds of one product, packed beside dense."""
    torch.manual_seed(0)
    codes = torch.randint(-8, 8, (out, width), dtype=torch.int8)
    scales = torch.rand(out, width // GROUP) * 0.01
    found = []
    for name, dtype in DTYPES.items():
        packed = PackedLinear(codes, scales)
        dense = nn.Linear(width, out, bias=False, dtype=dtype)
        x = torch.randn(rows, width).to(dtype)
        ours, peer = best_of(rounds, lambda p=packed, x=x: p(x), lambda d=dense, x=x: d(x))
        floor = packed.weight_bytes / read_speed()
        bar = LAYER_BAR if name == "bf16" and rows == 1 else None
        found.append(
            Row(f"{out} x {width}, {rows} rows, {name}", ours * 1e3, "ms", peer * 1e3, peer / ours, floor * 1e3, bar,
                None if bar is None else peer / ours >= bar)
        )  # fmt: skip
    return found


def best_of(rounds: int, *products: Callable[[], Tensor]) -> list[float]:
    """Seconds of each, taking turns."""
    best = [float("inf")] * len(products)
    with torch.inference_mode():
        for _ in range(rounds):
            for index, product in enumerate(products):
                started = time.perf_counter()
                product()
                best[index] = min(best[index], time.perf_counter() - started)
    return best


def read_speed() -> float:
    """Bytes per second of the fastest of a few sums over 256 MiB."""
    numbers = torch.ones(64 << 20)
    return numbers.nbytes / best_of(5, lambda: numbers.sum())[0]


def model_rows(new: int, rounds: int) -> list[Row]:
    """Tokens per second of the engine at batch 1, prompts of 128 tokens included."""
    with tempfile.TemporaryDirectory(prefix="distill-w4a16-") as folder:
        dense_folder, packed_folder = Path(folder, "dense"), Path(folder, "packed")
        model = thirty_million()
        model.to(torch.bfloat16).save_pretrained(dense_folder)
        tokens = torch.randint(1, 8192, (8, 128)).tolist()
        plain = load_model(dense_folder, dtype="float32", device="cpu")
        rounded = quantize_model(
            plain, pad_batches(tokens, max_length=128), WeightSettings(Nearest(), group_size=GROUP)
        )
        save_packed(plain, rounded.linears, packed_folder)
        found = []
        for name in DTYPES:
            dtype = "bfloat16" if name == "bf16" else "float32"
            engines = [
                _engine(load_model(packed_folder, dtype=dtype, device="cpu", packed=True)),
                _engine(load_model(dense_folder, dtype=dtype, device="cpu")),
            ]
            ours, peer = (new / seconds for seconds in best_of(rounds, *(_answer(e, tokens[0], new) for e in engines)))
            bar = MODEL_BAR if name == "bf16" else None
            ok = None if bar is None else ours / peer >= bar
            found.append(Row(f"30 M Llama, 1 x 128+{new}, {name}", ours, "tokens/s", peer, ours / peer, bar=bar, ok=ok))
        return found


def _engine(model: hf.PreTrainedModel) -> Engine:
    return Engine(model, None, EngineConfig(max_batch=1, prefix_cache=False))


def _answer(engine: Engine, prompt: list[int], new: int) -> Callable[[], Tensor]:
    def run() -> Tensor:
        engine.generate([prompt], SamplingParams(max_tokens=new, ignore_eos=True))
        return torch.empty(0)

    return run


def main() -> int:
    """Measure, print, write; the exit code says whether every bar is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small layer, 16 tokens")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    hf.logging.set_verbosity_error()
    layers, rounds = (((1024, 1024),), 3) if options.quick else (LAYERS, 15)
    rows = [row for out, width in layers for n in ROWS for row in layer_rows(out, width, n, rounds)]
    rows += model_rows(16 if options.quick else 128, 1 if options.quick else 5)
    for row in rows:
        floor = "" if row.floor is None else f", floor {row.floor:.3g}"
        bar = "" if row.bar is None else f" (bar {row.bar}: {row.ok})"
        print(
            f"{row.name}: {row.value:.4g} {row.unit}, dense {row.peer:.4g}, {row.ratio:.2f} times as fast{floor}{bar}"
        )
    if options.json:
        command = "python -m benchmarks.w4a16" + (" --quick" if options.quick else "")
        write_json(options.json, envelope(what="4-bit weights", command=command, rows=rows, details={"group": GROUP}))
    return 0 if all(row.ok is not False for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())

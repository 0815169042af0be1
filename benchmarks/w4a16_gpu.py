"""Products of 4-bit weights on a GPU, beside cuBLAS in bfloat16, torch's own packed product, and the memory's speed.

    python -m benchmarks.w4a16_gpu [--quick] [--json PATH]

Layers of 4,096 x 4,096 and 14,336 x 4,096 and those of Qwen2.5-7B (parts of one product joined), groups of 128, at
1, 8, 64, 128 and 256 rows. Each product runs in a CUDA graph over copies of the weight that no cache holds together;
median of five replays. `floor` is the time in which the packed bytes are read at the bandwidth of the data sheet; the
bandwidth of a copy, measured in the same run, is among the details. Needs a GPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import Row, envelope, write_json
from benchmarks.gpu_models import copy_speed, peak_speed
from benchmarks.gpu_timing import copies_for, seconds_each
from distill.kernels.w4a16 import PackedLinear
from distill.kernels.w4a16_product import dense

LAYERS = {
    "4096 x 4096": (4096, 4096),
    "14336 x 4096": (14336, 4096),
    "4608 x 3584 (qkv)": (4608, 3584),
    "3584 x 3584 (o)": (3584, 3584),
    "37888 x 3584 (gate and up)": (37888, 3584),
    "3584 x 18944 (down)": (3584, 18944),
}
ROWS = (1, 8, 64, 128, 256)
GROUP = 128
BARS = {1: 2.5, 8: 2.0, 64: 1.0}  # times cuBLAS at these rows, of the two layers that are no model's


def packed_layers(out: int, width: int) -> list[PackedLinear]:
    """As many as no cache holds."""
    torch.manual_seed(0)
    codes = torch.randint(-8, 8, (out, width), dtype=torch.int8, device="cuda")
    scales = (torch.rand(out, width // GROUP, device="cuda") * 0.01).bfloat16()
    return [PackedLinear(codes, scales) for _ in range(copies_for(out * width // 2))]


def torch_products(out: int, width: int) -> list[Callable[[Tensor], Tensor]]:
    """torch's own product of packed weights (tinygemm), on as many random weights."""
    found = []
    for _ in range(copies_for(out * width // 2)):
        pairs = torch.randint(0, 256, (out, width // 2), dtype=torch.int32, device="cuda").to(torch.uint8)
        packed = torch._convert_weight_to_int4pack(pairs, 8)
        grid = torch.rand(width // GROUP, out, 2, device="cuda").bfloat16()
        found.append(lambda x, p=packed, g=grid: torch._weight_int4pack_mm(x, p, GROUP, g))
    return found


def layer_rows(name: str, quick: bool) -> tuple[list[Row], list[dict[str, float | str | None]]]:
    """Microseconds at every number of rows; and what else was measured of them."""
    out, width = LAYERS[name]
    packed = packed_layers(out, width)
    ours: list[Callable[[Tensor], Tensor]] = list(packed)
    num_bytes = packed[0].weight_bytes
    plain = [nn.Linear(width, out, bias=False, dtype=torch.bfloat16, device="cuda")
             for _ in range(copies_for(out * width * 2))]  # fmt: skip
    theirs = torch_products(out, width)
    rows, details = [], []
    for count in ROWS[:1] if quick else ROWS:
        x = torch.randn(count, width, device="cuda").bfloat16()
        mine, cublas, tiny = (_seconds(products, x) for products in (ours, plain, theirs))
        first = _seconds([partial(_made_dense, layer) for layer in packed], x) if count >= 64 else None
        bar = BARS.get(count) if "(" not in name else None
        rows.append(
            Row(f"{name}, {count} rows", mine * 1e6, "microseconds", cublas * 1e6, cublas / mine,
                num_bytes / peak_speed() * 1e6, bar, None if bar is None else cublas / mine >= bar)
        )  # fmt: skip
        details.append({"name": f"{name}, {count} rows", "torch_int4_microseconds": tiny * 1e6,
                        "made_dense_first_microseconds": None if first is None else first * 1e6,
                        "packed_terabytes_per_second": num_bytes / mine / 1e12})  # fmt: skip
    return rows, details


def _made_dense(layer: PackedLinear, x: Tensor) -> Tensor:
    """The product by cuBLAS after the weight was made dense, as it is beyond MOST_ROWS rows."""
    return F.linear(x, dense(layer.packed, layer.grid, layer.form, x.dtype))


def _seconds(products: list[Callable[[Tensor], Tensor]], x: Tensor) -> float:
    with torch.inference_mode():
        return seconds_each([lambda p=product: p(x) for product in products])  # type: ignore[misc]


def main() -> int:
    """Measure, print, write; the exit code says whether every bar is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one row alone")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    speed = copy_speed()
    print(
        f"{torch.cuda.get_device_name()}: a copy moves {speed / 1e12:.2f} TB/s, data sheet {peak_speed() / 1e12} TB/s"
    )
    rows: list[Row] = []
    details: list[dict[str, float | str | None]] = []
    for name in LAYERS:
        more, their = layer_rows(name, options.quick)
        rows += more
        details += their
        for row, detail in zip(more, their, strict=True):
            print(
                f"{row.name}: {row.value:.1f} us, bf16 {row.peer:.1f} ({row.ratio:.2f}x), torch int4 "
                f"{detail['torch_int4_microseconds']:.1f}, floor {row.floor:.1f}"
                + (f", dense first {first:.1f}" if (first := detail["made_dense_first_microseconds"]) else "")
                + ("" if row.bar is None else f" (bar {row.bar}x: {row.ok})"),
                flush=True,
            )
        torch.cuda.empty_cache()
        if options.json:
            command = "python -m benchmarks.w4a16_gpu" + (" --quick" if options.quick else "")
            more_details = {"group": GROUP, "copy_bytes_per_second": speed, "layers": details}
            result = envelope(what="4-bit weights on a GPU", command=command, rows=rows, details=more_details)
            write_json(options.json, result)
    return 0 if all(row.ok is not False for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())

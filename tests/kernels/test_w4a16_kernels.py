"""The Triton kernels of packed weights by Triton's interpreter, in float16, as it knows no bfloat16 arithmetic.

TRITON_INTERPRET=1 python -m pytest tests/kernels
"""

from __future__ import annotations

import os

import pytest
import torch

from distill.kernels.w4a16 import dequantize
from distill.kernels.w4a16_launches import KINDS, Kind
from distill.kernels.w4a16_layout import fragments

if os.environ.get("TRITON_INTERPRET") != "1":  # Triton reads it when it is first imported
    pytest.skip("needs Triton and TRITON_INTERPRET=1", allow_module_level=True)
pytest.importorskip("triton", reason="the kernels need Triton")
from distill.kernels.w4a16_product import Form, counters, dense, launch_product, pack, product  # noqa: E402


@pytest.mark.parametrize(
    "out,width,group_size,rows,bits,asymmetric,how",
    [
        (48, 256, 32, 1, 4, False, None),
        (48, 256, 64, 7, 4, True, None),
        (80, 288, 32, 16, 4, True, None),  # inputs that fill no tile, outputs that fill no block
        (48, 256, 128, 20, 8, True, None),
        (40, 192, 64, 3, 8, False, None),
        (100, 256, 256, 65, 3, False, None),
        (48, 1920, 64, 9, 4, True, Kind(slabs=2, warps=4, stages=2, scaled=True, programs=2)),
        (64, 2688, 128, 9, 4, True, Kind(slabs=1, warps=1, stages=2, scaled=False, programs=1)),
    ],
)
def test_product(
    out: int, width: int, group_size: int, rows: int, bits: int, asymmetric: bool, how: Kind | None
) -> None:
    torch.manual_seed(0)
    top = 2 ** (bits - 1)
    codes = torch.randint(-top, top, (out, width), dtype=torch.int8)
    scales = (torch.rand(out, width // group_size) + 0.5).to(torch.float16 if asymmetric else torch.bfloat16)
    zeros = torch.randint(-top, top + 1, scales.shape, dtype=torch.int16) if asymmetric else None
    x, bias = torch.randn(rows, width).half(), torch.randn(out).half()
    form = Form.of(codes, scales, zeros, bits=bits)
    words, grid = pack(codes, scales, zeros, bits=bits)
    arrived = counters(form, x.device)
    exact = dequantize(codes, scales, zeros).double()
    expected = x.double() @ exact.T + bias.double()
    if how is None:
        got = product(x, words, grid, arrived, form, bias, torch.float32)
    else:
        got = launch_product(x, words, grid, arrived, form, bias, torch.float32, 16, how)
    # products of 16-bit numbers, sums in float32; where scales meet the weights, those are rounded to float16
    exactly = not (how or KINDS[16 if rows <= 16 else 32 if rows <= 32 else 128]).scaled
    assert (got.double() - expected).norm() <= (1e-6 if exactly else 4e-4) * expected.norm()
    assert not arrived.any()
    assert (dense(words, grid, form, torch.float16).double() - exact).norm() <= 4e-4 * exact.norm()


@pytest.mark.parametrize("half,how", [(48, None), (32, Kind(4, 4, 2, False, 1)), (80, Kind(8, 4, 2, True, 2))])
@pytest.mark.parametrize("has_bias", [False, True])
def test_gated(half: int, how: Kind | None, has_bias: bool) -> None:
    """Gate and up in one product, in one piece and in several, with outputs that fill no program: as apart, rounded
    where a model rounds."""
    torch.manual_seed(0)
    codes = torch.randint(-8, 8, (2 * half, 2688), dtype=torch.int8)
    scales = (torch.rand(2 * half, 21) * 0.02).half()
    x, bias = torch.randn(5, 2688).half(), torch.randn(2 * half).half() if has_bias else None
    form = Form.of(codes, scales, None, bits=4)
    words, grid = pack(codes, scales, None, bits=4)
    arrived = counters(form, x.device)
    both = x.double() @ dequantize(codes, scales, None).double().T + (0 if bias is None else bias.double())
    gate, up = both.chunk(2, -1)
    expected = torch.nn.functional.silu(gate) * up
    if how is None:
        got = product(x, words, grid, arrived, form, bias, torch.float16, gated=True)
    else:
        got = launch_product(x, words, grid, arrived, form, bias, torch.float16, 16, how, gated=True)
    assert got.shape == (5, half) and not arrived.any()
    assert (got.double() - expected).norm() <= 2e-3 * expected.norm()


def test_the_layout_is_that_of_the_matrix_instructions() -> None:
    """By PTX's table of the fragments of `mma.m16n8k16`: thread 4 g + c holds rows g and g + 8 and columns 2 c,
    2 c + 1, 2 c + 8 and 2 c + 9 of every 16; its words are four neighbours in each half of a tile."""
    codes = torch.randint(-8, 8, (32, 256), dtype=torch.int8)
    words = fragments(codes, bits=4)[0]
    slab, tile, g, c = 1, 1, 5, 2
    for half in range(2):
        own = words[slab, tile, 128 * half + 4 * (4 * g + c) :][:4].tolist()
        places = [(g, 0), (g, 1), (g + 8, 0), (g + 8, 1)]
        for word, (row, d) in zip(own, places, strict=True):
            nibbles = [(word >> 4 * j & 15) - 8 for j in range(8)]
            columns = [128 * tile + 16 * j + 8 * half + 2 * c + d for j in range(8)]
            assert nibbles == codes[16 * slab + row, columns].tolist()

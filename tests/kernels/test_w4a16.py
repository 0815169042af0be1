"""The packed product against the dequantized weight, in float64: torch's on the CPU, ours on a GPU."""

import pytest
import torch

from distill.kernels.w4a16 import PackedLinear, dequantize, fits
from distill.kernels.w4a16_launches import KINDS

CPU = torch.device("cpu")


def _weight(
    out: int, width: int, group_size: int, *, bits: int, asymmetric: bool, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    torch.manual_seed(0)
    top = 2 ** (bits - 1)
    codes = torch.randint(-top, top, (out, width), dtype=torch.int8)
    scales = torch.rand(out, width // group_size) + 0.5
    zeros = torch.randint(-top, top + 1, scales.shape, dtype=torch.int16) if asymmetric else None
    return codes.to(device), scales.to(device), None if zeros is None else zeros.to(device)


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("rows", [1, 7, 64])
@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_product(group_size: int, rows: int, asymmetric: bool, dtype: torch.dtype) -> None:
    out, width = 48, 256
    codes, scales, zeros = _weight(out, width, group_size, bits=4, asymmetric=asymmetric, device=CPU)
    bias, order = torch.randn(out), torch.randperm(width)
    x = torch.randn(rows, 3, width).to(dtype)
    layer = PackedLinear(codes, scales, zeros=zeros, bias=bias, order=order)
    dense = dequantize(codes, scales, zeros)
    expected = x.double()[..., order] @ dense.double().T + bias.double()
    got = layer(x)
    assert got.dtype == dtype and got.shape == (rows, 3, out)
    # activations, scales and outputs are rounded to 16 bits
    assert (got.double() - expected).norm() <= 1e-2 * expected.norm()
    dense_bytes = out * width * dtype.itemsize
    assert layer.weight_bytes < dense_bytes / 2, "what is read is packed"


def test_what_does_not_fit_is_told_before() -> None:
    assert not fits(48, 250, bits=4, group_size=125, device=CPU)
    assert not fits(40, 256, bits=4, group_size=128, device=CPU)
    assert not fits(48, 256, bits=8, group_size=128, device=CPU)
    with pytest.raises(ValueError, match="no packed product"):
        PackedLinear(torch.zeros(40, 256, dtype=torch.int8), torch.ones(40, 2))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize(
    "bits,group_size,asymmetric,dtype",
    [
        pytest.param(4, 128, False, torch.bfloat16, id="compressed-tensors"),
        pytest.param(4, 128, True, torch.float16, id="awq"),
        pytest.param(4, 32, True, torch.bfloat16, id="groups-of-32"),
        pytest.param(4, 64, False, torch.float16, id="groups-of-64"),
        pytest.param(8, 128, True, torch.bfloat16, id="8-bits"),
        pytest.param(3, 256, False, torch.float32, id="3-bits"),
    ],
)
def test_product_on_a_gpu(bits: int, group_size: int, asymmetric: bool, dtype: torch.dtype) -> None:
    """Rows on both sides of every launch, outputs that fill no slab, and all of it again from a CUDA graph."""
    out, width, device = 1000, 1024 + 256, torch.device("cuda")
    codes, scales, zeros = _weight(out, width, group_size, bits=bits, asymmetric=asymmetric, device=device)
    scales = scales.to(torch.float16 if dtype == torch.float16 else torch.bfloat16)
    bias, order = torch.randn(out, device=device, dtype=dtype), torch.randperm(width, device=device)
    layer = PackedLinear(codes, scales, bits=bits, zeros=zeros, bias=bias, order=order)
    dense = dequantize(codes, scales, zeros).double()
    for rows in (1, 7, 16, 33, 100, 256, 300):
        x = torch.randn(rows, width, device=device).to(dtype)
        seen = x.bfloat16() if dtype == torch.float32 else x
        expected = seen.double()[..., order] @ dense.T + bias.double()
        kind = KINDS[next((width for width in KINDS if rows <= width), max(KINDS))]
        exact = 1e-5 if rows <= 256 and not kind.scaled else 4e-3  # what is scaled or made dense is rounded
        tolerance = {torch.bfloat16: 4e-3, torch.float16: 6e-4, torch.float32: exact}[dtype]
        got = layer(x)
        assert got.dtype == dtype
        assert (got.double() - expected).norm() <= tolerance * expected.norm(), rows
        if rows > 256:  # cuBLAS may choose otherwise in a graph
            continue
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out_of_graph = layer(x)
        for _ in range(2):  # counters are left as they were
            out_of_graph.zero_()
            graph.replay()
            assert torch.equal(out_of_graph, got), rows
    assert layer.arrived is not None and not layer.arrived.any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_joined_layers_are_the_layers_and_share_their_memory() -> None:
    """By one product what two make, and what a layer adds to is what it was plus the product, to one rounding."""
    device = torch.device("cuda")
    weights = [_weight(out, 512, 128, bits=4, asymmetric=True, device=device) for out in (48, 160)]
    layers = [PackedLinear(c, s, zeros=z, bias=torch.randn(len(c), device=device)) for c, s, z in weights]
    x = torch.randn(5, 512, device=device).bfloat16()
    expected = torch.cat([layer(x) for layer in layers], -1)
    joined = PackedLinear.joined(layers)
    assert joined is not None
    together = joined(x)
    assert (together.double() - expected.double()).norm() <= 4e-3 * expected.double().norm()
    assert torch.equal(torch.cat([layer(x) for layer in layers], -1), expected)
    assert layers[0].packed.data_ptr() == joined.packed.data_ptr()
    sums = torch.randn(5, 208, device=device).bfloat16()
    added = sums + together
    joined.add_to(sums, x)
    assert torch.equal(sums, added)
    other = PackedLinear(*_weight(48, 512, 64, bits=4, asymmetric=False, device=device)[:2])
    assert PackedLinear.joined([layers[0], other]) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("outputs", [160, 1040, 40])
def test_a_gate_in_the_product_is_one_after_it(outputs: int) -> None:
    """Of joined layers whose halves fill no program, in one piece and in several, up to one rounding more; the last one
    has halves that are no whole slabs."""
    device = torch.device("cuda")
    weights = [_weight(outputs, 2048, 128, bits=4, asymmetric=False, device=device) for _ in range(2)]
    layers = [PackedLinear(codes, scales) for codes, scales, _ in weights]
    joined = PackedLinear.joined(layers)
    assert (joined is None) == (outputs == 40)
    for rows in (1, 9, 40, 130, 300):
        x = (torch.randn(rows, 2048, device=device) * 0.1).bfloat16()
        gate, up = (layer(x).double() for layer in layers)
        expected = torch.nn.functional.silu(gate) * up
        if joined is not None:
            got = joined.gated(x)
            assert got.shape == expected.shape and got.dtype == x.dtype
            assert (got.double() - expected).norm() <= 1e-2 * expected.norm(), rows
    assert joined is None or (joined.arrived is not None and not joined.arrived.any())

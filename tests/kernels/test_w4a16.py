"""The packed product against the dequantized weight, in float64."""

import pytest
import torch

from distill.kernels.w4a16 import PackedLinear, dequantize, fits


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("rows", [1, 7, 64])
@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_product(group_size: int, rows: int, asymmetric: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    out, width = 48, 256
    codes = torch.randint(-8, 8, (out, width), dtype=torch.int8)
    scales = torch.rand(out, width // group_size) + 0.5
    zeros = torch.randint(-8, 9, scales.shape, dtype=torch.int8) if asymmetric else None
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
    assert not fits(48, 250, bits=4, group_size=125)
    assert not fits(40, 256, bits=4, group_size=128)
    assert not fits(48, 256, bits=3, group_size=128)
    with pytest.raises(ValueError, match="no packed product"):
        PackedLinear(torch.zeros(40, 256, dtype=torch.int8), torch.ones(40, 2))

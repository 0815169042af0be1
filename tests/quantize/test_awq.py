"""AWQ's search for channel scales."""

from __future__ import annotations

import torch

from distill.model.scales import Grid, dequantize, output_error, round_to_nearest
from distill.quantize.awq import normalised, rescale, search_scales

GRID = Grid(4, 32, False)


def problem(seed: int, outliers: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(48, 64, generator=generator)
    inputs = torch.randn(500, 64, generator=generator)
    if outliers:
        inputs[:, ::16] *= 30
    return weight, inputs.T @ inputs / 500, inputs.abs().mean(0)


def test_equal_activations_leave_plain_rounding() -> None:
    weight, gram, _ = problem(0, False)
    scales, _, error = search_scales(weight, gram, torch.full((64,), 0.7), GRID, dtype=torch.float32)
    assert torch.allclose(scales, torch.ones(64), atol=1e-6)
    difference = dequantize(*round_to_nearest(weight, GRID, dtype=torch.float32)) - weight
    assert abs(error - float(((difference @ gram) * difference).sum())) < 1e-3 * error


def test_protects_loud_channels() -> None:
    weight, gram, importance = problem(1, True)
    scales, alpha, _ = search_scales(weight, gram, importance, GRID, dtype=torch.float32)
    assert alpha > 0 and scales[0] > 2 * scales[1]
    rounded = dequantize(*round_to_nearest(weight * scales, GRID, dtype=torch.float32)) / scales
    plain = dequantize(*round_to_nearest(weight, GRID, dtype=torch.float32))
    assert output_error(weight, rounded, gram) < 0.7 * output_error(weight, plain, gram)


def test_clipping_the_scaled_weights_on_the_divided_inputs() -> None:
    weight, gram, importance = problem(2, True)
    channels, _, _ = search_scales(weight, gram, importance, GRID, dtype=torch.float32)
    divided = rescale(gram, channels)
    clipped = dequantize(*round_to_nearest(weight * channels, GRID, dtype=torch.float32, gram=divided, clip=True))
    scaled = dequantize(*round_to_nearest(weight * channels, GRID, dtype=torch.float32))
    plain = dequantize(*round_to_nearest(weight, GRID, dtype=torch.float32))
    assert output_error(weight * channels, clipped, divided) < output_error(weight * channels, scaled, divided)
    assert output_error(weight, clipped / channels, gram) < 0.7 * output_error(weight, plain, gram)
    same = output_error(weight * channels, clipped, divided)
    assert abs(same - output_error(weight, clipped / channels, gram)) < 1e-5


def test_extremes_are_reciprocal() -> None:
    scales = normalised(torch.tensor([0.0, 0.5, 8.0]), 0.5)
    assert torch.isclose(scales.max() * scales.min(), torch.tensor(1.0))
    assert torch.equal(normalised(torch.tensor([0.5, 8.0]), 0.0), torch.ones(2))

"""Absmax, zero-point and group grids against values worked out by hand."""

from __future__ import annotations

import pytest
import torch

from distill.model.scales import (
    Grid,
    absmax,
    decode,
    dequantize,
    diagonal_blocks,
    encode,
    fit,
    fit_clipped,
    group_size_for,
    output_error,
    round_to_nearest,
    zero_point,
)


def test_absmax_by_hand() -> None:
    codes, scale, zeros = absmax(torch.tensor([-2.54, 0.0, 1.27, 0.012, 2.0]), bits=8)
    assert scale == pytest.approx(0.02)
    assert codes.tolist() == [-127, 0, 64, 1, 100]  # 63.5 rounds to the even 64, 0.6 to 1
    assert zeros is None


def test_zero_point_by_hand() -> None:
    # range 3.0 in 15 steps of 0.2; zero = round(1 / 0.2) - 8 = -3
    codes, scale, zero = zero_point(torch.tensor([-1.0, 0.0, 0.5, 2.0]), bits=4)
    assert scale == pytest.approx(0.2)
    assert zero.item() == -3
    assert codes.tolist() == [-8, -3, -1, 7]  # 0.5 / 0.2 = 2.5 rounds to the even 2
    assert ((codes - zero) * scale).tolist() == pytest.approx([-1.0, 0.0, 0.4, 2.0])


def test_zero_point_keeps_zero_exact_even_outside_the_range() -> None:
    codes, scale, zero = zero_point(torch.tensor([3.0, 4.0]), bits=8)
    assert zero.item() == -128  # the range was widened to 0..4
    assert ((codes.float() - zero) * scale).tolist() == pytest.approx([3.0, 4.0], abs=float(scale) / 2)


def test_zero_point_beats_absmax_on_a_skewed_tensor() -> None:
    values = torch.rand(1000, generator=torch.Generator().manual_seed(0)) * 4 - 0.1
    codes, scale, _ = absmax(values, 4)
    codes_z, scale_z, zero = zero_point(values, 4)
    symmetric = (codes * scale - values).square().mean()
    affine = ((codes_z.float() - zero) * scale_z - values).square().mean()
    assert affine < symmetric / 3


def test_all_zero_input_is_finite() -> None:
    for codes, scale, _ in (absmax(torch.zeros(4)), zero_point(torch.zeros(4))):
        assert torch.isfinite(scale) and (codes == codes[0]).all()
    codes, scales, _ = round_to_nearest(torch.zeros(2, 16), Grid(4, 8, True), dtype=torch.float16)
    assert torch.equal(dequantize(codes, scales, None), torch.zeros(2, 16))


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_grid_points_come_back_exactly(bits: int, symmetric: bool) -> None:
    grid = Grid(bits, 16, symmetric)
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(grid.lowest + 1, grid.highest + 1, (4, 32), generator=generator).float()
    # both ends of the range in each group, so that the scale fitted is the one that the points were made with
    codes[:, ::16], codes[:, 1::16] = grid.lowest, grid.highest
    weight = (codes - 1) * 0.25
    if symmetric:
        weight = codes * 0.25
        weight[:, ::16] = -(2**bits - 1) / 2 * 0.25  # half a step inside the lowest code: a symmetric range ends there
    got, scales, zeros = round_to_nearest(weight, grid, dtype=torch.float32)
    assert torch.equal(got.float(), codes)
    restored = dequantize(got, scales, zeros)
    if symmetric:
        restored[:, ::16], weight[:, ::16] = 0, 0
    assert torch.equal(restored, weight)


@pytest.mark.parametrize("symmetric", [True, False])
def test_error_is_at_most_half_a_step(symmetric: bool) -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    codes, scales, zeros = round_to_nearest(weight, Grid(4, 32, symmetric), dtype=torch.float32)
    error = (dequantize(codes, scales, zeros) - weight).abs().unflatten(-1, (2, 32)).amax(-1)
    # the zero point is itself rounded, which may cost another half step at the ends of an asymmetric range
    assert (error <= scales * (0.5 if symmetric else 1.0) * (1 + 1e-5)).all()


def test_scales_are_rounded_before_encoding() -> None:
    weight = torch.randn(4, 32, generator=torch.Generator().manual_seed(2))
    codes, scales, _ = round_to_nearest(weight, Grid(8, 32, True), dtype=torch.bfloat16)
    assert torch.equal(scales, scales.bfloat16().float())
    assert torch.equal(codes.float(), torch.clamp(torch.round(weight / scales), -128, 127))


def test_clipping_never_loses() -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(6, 64, generator=generator)
    weight[:, ::32] *= 6  # an outlier in every group
    inputs = torch.randn(200, 64, generator=generator) @ torch.randn(64, 64, generator=generator)
    gram = inputs.T @ inputs
    grid = Grid(3, 32, True)

    def cost(clip: bool, metric: torch.Tensor) -> float:
        error = dequantize(*round_to_nearest(weight, grid, dtype=torch.float32, gram=metric, clip=clip)) - weight
        blocks = error.unflatten(-1, (2, 32))
        return float(torch.einsum("ogi,gij,ogj->", blocks, diagonal_blocks(metric, 32), blocks))

    assert cost(True, gram) < cost(False, gram)
    assert cost(True, torch.eye(64)) < cost(False, torch.eye(64))


@pytest.mark.parametrize("symmetric", [True, False])
def test_each_group_takes_the_best_ratio(symmetric: bool) -> None:
    groups = torch.randn(30, 1, 32, generator=torch.Generator().manual_seed(5))
    grid = Grid(3, 32, symmetric)

    def errors(scales: torch.Tensor, zeros: torch.Tensor | None) -> torch.Tensor:
        return (decode(encode(groups, scales, zeros, grid), scales, zeros) - groups).square().sum(-1)

    tried = [errors(*fit(groups, grid, dtype=torch.float32, ratio=1 - 0.025 * step)) for step in range(20)]
    assert torch.equal(errors(*fit_clipped(groups, grid, dtype=torch.float32)), torch.stack(tried).amin(0))


@pytest.mark.parametrize(
    ("in_features", "wanted", "expected"),
    [(256, 128, 128), (768, 128, 128), (96, 128, 32), (40, 128, 8), (100, 128, 100)],
)
def test_group_size(in_features: int, wanted: int, expected: int) -> None:
    assert group_size_for(in_features, wanted) == expected


def test_output_error_is_the_relative_error_of_the_outputs() -> None:
    generator = torch.Generator().manual_seed(4)
    weight, other = torch.randn(5, 8, generator=generator), torch.randn(5, 8, generator=generator)
    inputs = torch.randn(8, 30, generator=generator)
    expected = float((weight @ inputs - other @ inputs).norm() / (weight @ inputs).norm())
    assert output_error(weight, other, inputs @ inputs.T) == pytest.approx(expected, rel=1e-5)
    assert output_error(weight, weight, inputs @ inputs.T) == 0

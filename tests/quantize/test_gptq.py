"""GPTQ against the exact rule that it speeds up, and against plain rounding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distill.model.scales import Grid, decode, dequantize, encode, fit_clipped, output_error, round_to_nearest
from distill.quantize.gptq import gptq, inverse_factor


def correlated(features: int, rows: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(features, features, generator=generator, dtype=dtype)
    mixing *= (
        torch.arange(1, features + 1, dtype=dtype)[:, None] ** -0.5
    )  # a few directions carry most, as in real ones
    inputs = torch.randn(rows, features, generator=generator, dtype=dtype) @ mixing
    return inputs.T @ inputs / rows


def weights(outputs: int, features: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(outputs, features, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def obq(weight: Tensor, gram: Tensor, grid: Grid, damping: float) -> Tensor:
    """The rule of OBQ in fixed order: invert the Hessian of the columns that remain anew before every column."""
    weight = weight.clone()
    damped = gram + damping * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    codes = torch.empty_like(weight)
    for column in range(weight.shape[1]):
        if column % grid.group_size == 0:
            until = column + grid.group_size
            scales, zeros = fit_clipped(weight[:, None, column:until], grid, dtype=weight.dtype)
        inverse = torch.linalg.inv(damped[column:, column:])
        zero = None if zeros is None else zeros[:, 0]
        code = encode(weight[:, column : column + 1], scales[:, 0], zero, grid)
        error = (weight[:, column : column + 1] - decode(code, scales[:, 0], zero)) / inverse[0, 0]
        weight[:, column:] -= error * inverse[0]
        codes[:, column] = code[:, 0]
    return codes


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("features", "group_size"), [(24, 8), (160, 32), (256, 256), (72, 72)])
def test_equals_the_exact_rule_in_float64(features: int, group_size: int, symmetric: bool) -> None:
    grid = Grid(4, group_size, symmetric)
    weight = weights(6, features, 0, torch.float64)
    gram = correlated(features, 3 * features, 1, torch.float64)
    codes, _, _ = gptq(weight, gram, grid, dtype=torch.float64, damping=0.01)
    assert torch.equal(codes.double(), obq(weight, gram, grid, 0.01))


def test_diagonal_gram_gives_plain_rounding() -> None:
    weight = weights(8, 64, 2)
    grid = Grid(4, 32, True)
    gram = torch.diag(torch.rand(64, generator=torch.Generator().manual_seed(3)) + 0.1)
    codes, scales, _ = gptq(weight, gram, grid, dtype=torch.float32)
    expected, expected_scales, _ = round_to_nearest(weight, grid, dtype=torch.float32, clip=True)
    assert torch.equal(codes, expected)
    assert torch.equal(scales, expected_scales)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("bits", [3, 4])
def test_beats_rounding_on_correlated_inputs(act_order: bool, bits: int) -> None:
    weight, gram, grid = weights(32, 128, 4), correlated(128, 1000, 5), Grid(bits, 64, False)
    ours = dequantize(*gptq(weight, gram, grid, dtype=torch.float32, act_order=act_order))
    clipped = dequantize(*round_to_nearest(weight, grid, dtype=torch.float32, gram=gram, clip=True))
    assert output_error(weight, ours, gram) < 0.7 * output_error(weight, clipped, gram)


def test_act_order_equals_plain_order_on_permuted_columns() -> None:
    gram = correlated(32, 200, 6, torch.float64)
    weight = weights(4, 32, 7, torch.float64)
    grid = Grid(4, 32, True)  # one group, which a permutation keeps
    order = torch.argsort(gram.diagonal(), descending=True, stable=True)
    codes, scales, _ = gptq(weight, gram, grid, dtype=torch.float64, act_order=True)
    expected, expected_scales, _ = gptq(weight[:, order], gram[order][:, order], grid, dtype=torch.float64)
    assert torch.equal(codes[:, order], expected)
    assert torch.allclose(scales, expected_scales)


def test_factor_inverts_the_damped_gram() -> None:
    gram = correlated(16, 50, 8, torch.float64)
    factor = inverse_factor(gram, 0.01)
    damped = gram + 0.01 * gram.diagonal().mean() * torch.eye(16, dtype=torch.float64)
    assert torch.equal(factor, factor.triu())
    assert torch.allclose(factor.T @ factor @ damped, torch.eye(16, dtype=torch.float64), atol=1e-9)


def test_inputs_that_never_fire_do_no_harm() -> None:
    gram = correlated(32, 100, 9)
    gram[5], gram[:, 5] = 0, 0
    weight = weights(4, 32, 10)
    codes, scales, _ = gptq(weight, gram, Grid(4, 32, True), dtype=torch.float32)
    assert torch.isfinite(scales).all()
    assert torch.equal(codes[:, 5].float(), torch.clamp(torch.round(weight[:, 5] / scales[:, 0]), -8, 7))


def test_singular_gram_of_few_rows_is_damped() -> None:
    row = torch.randn(1, 64, generator=torch.Generator().manual_seed(11))
    _, scales, _ = gptq(weights(4, 64, 12), row.T @ row, Grid(4, 32, True), dtype=torch.float32, damping=0.01)
    assert torch.isfinite(scales).all()

"""Fake quantization: linears that compute with their weights rounded to a grid, and are trained as if they were not.

What a student was trained on is kept beside its weights in `qat/grid.safetensors`: codes, scales and zero points.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

from distill.errors import CheckpointError
from distill.model.scales import Grid, QuantizedLinear, round_to_nearest

GRID = Path("qat") / "grid.safetensors"  # in a folder of its own, for some servers load every file beside the model's


class _StraightThrough(torch.autograd.Function):
    """Rounds in the forward pass; the gradient goes by (Bengio et al., 1308.3432)."""

    @staticmethod
    def forward(ctx: FunctionCtx, weight: Tensor, grid: Grid, dtype: torch.dtype) -> Tensor:  # type: ignore[override]
        return round_weight(weight, grid, dtype).weight().to(weight.dtype)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return gradient, None, None


def round_weight(weight: Tensor, grid: Grid, dtype: torch.dtype) -> QuantizedLinear:
    """A weight (O, I) on its grid: each group's whole range, nearest code, scales in `dtype`."""
    codes, scales, zeros = round_to_nearest(weight.detach().float(), grid, dtype=dtype)
    return QuantizedLinear(codes, scales.to(dtype), zeros, grid)


def fake_quantize(weight: Tensor, grid: Grid, dtype: torch.dtype) -> Tensor:
    """The weight as its quantized form in `dtype` will be read; the derivative is that of the weight itself."""
    rounded: Tensor = _StraightThrough.apply(weight, grid, dtype)
    return rounded


def attach_fake_quantization(model: nn.Module, grids: Mapping[str, Grid], dtype: torch.dtype) -> None:
    """Have the linears named in `grids` compute with rounded weights; parameters and state dict stay as they are."""
    for name, grid in grids.items():
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        linear.forward = types.MethodType(_forward_of(grid, dtype), linear)  # type: ignore[method-assign]


def _forward_of(grid: Grid, dtype: torch.dtype) -> types.FunctionType:
    def forward(self: nn.Linear, input: Tensor) -> Tensor:
        return F.linear(input, fake_quantize(self.weight, grid, dtype), self.bias)

    assert isinstance(forward, types.FunctionType)
    return forward


def save_grid(linears: Mapping[str, QuantizedLinear], folder: Path) -> None:
    """Write `<folder>/qat/grid.safetensors`."""
    tensors: dict[str, Tensor] = {}
    for name, linear in linears.items():
        parts = {"codes": linear.codes, "scales": linear.scales, "zeros": linear.zeros}
        tensors |= {f"{name}.{part}": value.cpu().contiguous() for part, value in parts.items() if value is not None}
    (folder / GRID).parent.mkdir()
    bits = {linear.grid.bits for linear in linears.values()}
    assert len(bits) == 1
    save_file(tensors, folder / GRID, metadata={"bits": str(bits.pop())})


def read_grid(folder: Path) -> dict[str, QuantizedLinear]:
    """The linears of a model folder that was trained on a grid, by name. Raises CheckpointError."""
    try:
        with safe_open(folder / GRID, "pt") as handle:
            bits = int(handle.metadata()["bits"])
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{folder} has no grid that it was trained on: {error}",
            remedy="set `quantize` on the kd entry, or use another method",
        ) from None
    found = {}
    for name in [name.removesuffix(".codes") for name in tensors if name.endswith(".codes")]:
        codes, scales, zeros = (tensors.get(f"{name}.{part}") for part in ("codes", "scales", "zeros"))
        assert codes is not None and scales is not None
        grid = Grid(bits, codes.shape[1] // scales.shape[1], zeros is None)
        found[name] = QuantizedLinear(codes, scales, zeros, grid)
    return found

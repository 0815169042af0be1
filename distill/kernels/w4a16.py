"""Linear layers whose weights stay packed in memory (W4A16): the codes are dequantized inside the product.

    y = x W^T,   W[o, i] = (q[o, i] - z[o, g]) s[o, g],   g = i // group_size

On a GPU by the Triton kernels of `w4a16_kernels.py` (codes of 2, 3 and 4 bits take 4, those of 8 bits 8), on a CPU by
torch's own packed product of 4-bit codes, which takes W[o, i] = (u[o, i] - 8) s[o, g] + z[o, g], u in 0..15. Decoding
reads every weight once a token, so fewer bytes are fewer seconds (docs/concepts.md, memory-bound).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from distill.kernels.w4a16_product import Form

CPU_GROUP_SIZES = (32, 64, 128, 256)  # of torch's product on the CPU
MIDDLE = 8  # the code that stands for the zero of a symmetric grid
_TILE = 128  # inputs in a tile of the GPU's layout


def fits(out_features: int, in_features: int, *, bits: int, group_size: int, device: torch.device) -> bool:
    """Whether there is a packed product of such a layer on `device`."""
    if in_features % group_size:
        return False
    if device.type == "cuda":
        known = bits in (2, 3, 4, 8) and (group_size in (32, 64) or group_size % _TILE == 0)
        return known and find_spec("triton") is not None
    whole = in_features % 32 == 0 and out_features % 16 == 0
    return device.type == "cpu" and bits in (2, 3, 4) and group_size in CPU_GROUP_SIZES and whole


def dequantize(codes: Tensor, scales: Tensor, zeros: Tensor | None) -> Tensor:
    """W (O, I) in float32 of signed codes (O, I), scales (O, I / g) and signed zero points (O, I / g): the reference,
    W = (q - z) s."""
    groups = scales.shape[1]
    grouped = codes.view(codes.shape[0], groups, -1).float()
    if zeros is not None:
        grouped = grouped - zeros.float().unsqueeze(-1)
    return (grouped * scales.float().unsqueeze(-1)).view(codes.shape)


class PackedLinear(nn.Module):
    """x [..., I] -> [..., O] in the type of x, with packed weights and products of 16-bit numbers: float16 where x is,
    bfloat16 else. torch's CPU kernel knows bfloat16 alone; in float32 it is ten times slower than a dense product.

    codes (O, I) signed, -2^(b-1) .. 2^(b-1)-1; scales (O, I / g); zeros (O, I / g) signed zero points, none for a
    symmetric grid. `order` (I,) says which input each column meets, where columns were sorted into groups by activation
    order. The layer stays on the device of the codes: the two layouts differ.
    """

    order: Tensor | None
    bias: Tensor | None
    packed: Tensor
    grid: Tensor
    arrived: Tensor | None  # on a GPU
    form: Form  # on a GPU

    def __init__(
        self,
        codes: Tensor,
        scales: Tensor,
        *,
        bits: int = 4,
        zeros: Tensor | None = None,
        bias: Tensor | None = None,
        order: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = codes.shape
        self.bits = bits
        self.group_size = self.in_features // scales.shape[1]
        if not fits(self.out_features, self.in_features, bits=bits, group_size=self.group_size, device=codes.device):
            shape = f"{self.out_features} x {self.in_features}, {bits} bits, groups of {self.group_size}"
            raise ValueError(f"no packed product for {shape} on {codes.device.type}")
        arrived = None
        if codes.is_cuda:
            from distill.kernels.w4a16_product import Form, counters, pack  # Triton is not installed everywhere

            self.form = Form.of(codes, scales, zeros, bits=bits)
            packed, grid = pack(codes, scales, zeros, bits=bits)
            arrived = counters(self.form, codes.device)
        else:
            packed, grid = _pack_for_cpu(codes, scales, zeros)
        self._keep(packed, grid, bias, order, arrived)

    @classmethod
    def joined(cls, layers: Sequence[PackedLinear]) -> PackedLinear | None:
        """One layer with the outputs of several that have the same inputs, one after the other: on a GPU, where they
        are alike in all else. The packed weights become its parts, so that they are in memory once. None else."""
        first = layers[0]
        if not all(_joinable(first, layer) for layer in layers):
            return None
        whole = cls.__new__(cls)
        nn.Module.__init__(whole)
        whole.in_features, whole.bits, whole.group_size = first.in_features, first.bits, first.group_size
        whole.out_features = sum(layer.out_features for layer in layers)
        whole.form = replace(first.form, outputs=whole.out_features)
        packed = torch.cat([layer.packed for layer in layers], 1)
        bias = None if first.bias is None else torch.cat([layer.bias for layer in layers if layer.bias is not None])
        parts = packed.split([layer.packed.shape[1] for layer in layers], 1)
        for layer, part in zip(layers, parts, strict=True):
            layer.packed = part
        arrived = torch.cat([layer.arrived for layer in layers if layer.arrived is not None])
        whole._keep(packed, torch.cat([layer.grid for layer in layers], 1), bias, first.order, arrived)
        return whole

    def _keep(
        self, packed: Tensor, grid: Tensor, bias: Tensor | None, order: Tensor | None, arrived: Tensor | None
    ) -> None:
        named = {"packed": packed, "grid": grid, "bias": bias, "order": order, "arrived": arrived}
        for name, tensor in named.items():
            self.register_buffer(name, tensor, persistent=False)

    @property
    def weight_bytes(self) -> int:
        """Bytes that a product reads."""
        read = (self.packed, self.grid, self.bias, self.order)
        return sum(tensor.numel() * tensor.element_size() for tensor in read if tensor is not None)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features)
        if self.order is not None:
            rows = rows.index_select(1, self.order)
        out = self._on_gpu(rows) if self.arrived is not None else self._on_cpu(rows)
        return out.view(*x.shape[:-1], self.out_features)

    def add_to(self, out: Tensor, x: Tensor) -> None:
        """out (N, O) += the layer's output for x (N, I), in one launch on a GPU."""
        if self.arrived is None:
            out.add_(self(x))
        else:
            self._on_gpu(x if self.order is None else x.index_select(1, self.order), out)

    def gated(self, x: Tensor) -> Tensor:
        """silu of the first half of the outputs times the second, for x (N, I): (N, O / 2), in one launch on a GPU
        where halves are whole slabs."""
        if self.arrived is None or self.out_features % 32:
            first, second = self(x).chunk(2, -1)
            return nn.functional.silu(first) * second
        return self._on_gpu(x if self.order is None else x.index_select(1, self.order), gated=True)

    def _on_cpu(self, rows: Tensor) -> Tensor:
        out = torch._weight_int4pack_mm_for_cpu(rows.to(torch.bfloat16), self.packed, self.group_size, self.grid)
        out = out.to(rows.dtype)
        return out if self.bias is None else out.add_(self.bias)

    def _on_gpu(self, rows: Tensor, add_to: Tensor | None = None, *, gated: bool = False) -> Tensor:
        from distill.kernels.w4a16_product import product

        assert self.arrived is not None
        narrow = rows if rows.dtype in (torch.float16, torch.bfloat16) else rows.to(torch.bfloat16)
        weight = (self.packed, self.grid, self.arrived, self.form, self.bias)
        return product(narrow, *weight, rows.dtype, add_to, gated=gated)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bits={self.bits}, group_size={self.group_size}"


def _joinable(first: PackedLinear, other: PackedLinear) -> bool:
    if first.arrived is None or other.arrived is None or other.packed.shape[0] != 1 or other.out_features % 16:
        return False
    same_order = first.order is other.order or (
        first.order is not None and other.order is not None and torch.equal(first.order, other.order)
    )
    same_form = replace(other.form, outputs=first.out_features) == first.form
    return same_form and same_order and (first.bias is None) == (other.bias is None)


def _pack_for_cpu(codes: Tensor, scales: Tensor, zeros: Tensor | None) -> tuple[Tensor, Tensor]:
    """torch's layout; scales and its zero points in bfloat16."""
    exact = scales.float()
    # torch's z is the value of code 8, ours the code of value 0
    offsets = torch.zeros_like(exact) if zeros is None else -zeros.float() * exact
    grid = torch.stack((exact, offsets), -1).transpose(0, 1).to(torch.bfloat16).contiguous()
    unsigned = (codes.to(torch.int32) + MIDDLE).contiguous()
    return torch._convert_weight_to_int4pack_for_cpu(unsigned, 1), grid

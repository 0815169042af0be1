"""Linear layers whose weights stay in 4 bits in memory (W4A16): the packed codes are dequantized inside the product.

On the CPU by torch's own packed product, which reads half a byte a weight where a dense one reads two or four:

    y = x W^T,   W[o, i] = (q[o, i] - 8) s[o, g] + z[o, g],   q in 0..15,   g = i // group_size

Decoding reads every weight once a token, so fewer bytes are fewer seconds (docs/concepts.md, memory-bound).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

GROUP_SIZES = (32, 64, 128, 256)  # of torch's product on the CPU
MIDDLE = 8  # the code that stands for the zero of a symmetric grid


def fits(out_features: int, in_features: int, *, bits: int, group_size: int) -> bool:
    """Whether torch's packed product on the CPU computes such a layer."""
    whole = in_features % group_size == 0 and in_features % 32 == 0 and out_features % 16 == 0
    return bits == 4 and group_size in GROUP_SIZES and whole


def dequantize(codes: Tensor, scales: Tensor, zeros: Tensor | None) -> Tensor:
    """W (O, I) in float32 of signed codes -8..7 (O, I), scales (O, I / g) and signed zero points (O, I / g): the
    reference, W = (q - z) s."""
    groups = scales.shape[1]
    grouped = codes.view(codes.shape[0], groups, -1).float()
    if zeros is not None:
        grouped = grouped - zeros.float().unsqueeze(-1)
    return (grouped * scales.float().unsqueeze(-1)).view(codes.shape)


class PackedLinear(nn.Module):
    """x [..., I] -> [..., O] in the type of x, with weights in 4 bits and products in bfloat16.

    torch has no fast kernel for float32: there a packed product is ten times slower than a dense one.
    codes (O, I) signed, -8..7; scales (O, I / g); zeros (O, I / g) signed zero points, none for a symmetric grid.
    `order` (I,) says which input each column meets, where columns were sorted into groups by activation order.
    """

    order: Tensor | None
    bias: Tensor | None
    packed: Tensor
    scales_and_zeros: Tensor

    def __init__(
        self,
        codes: Tensor,
        scales: Tensor,
        *,
        zeros: Tensor | None = None,
        bias: Tensor | None = None,
        order: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = codes.shape
        self.group_size = self.in_features // scales.shape[1]
        if not fits(self.out_features, self.in_features, bits=4, group_size=self.group_size):
            shape = f"{self.out_features} x {self.in_features}, groups of {self.group_size}"
            raise ValueError(f"no packed product for {shape}")
        exact = scales.float()
        # torch's z is the value of code 8, ours the code of value 0
        offsets = torch.zeros_like(exact) if zeros is None else -zeros.float() * exact
        both = torch.stack((exact, offsets), -1).transpose(0, 1).to(torch.bfloat16).contiguous()
        unsigned = (codes.to(torch.int32) + MIDDLE).contiguous()
        self.register_buffer("packed", torch._convert_weight_to_int4pack_for_cpu(unsigned, 1), persistent=False)
        self.register_buffer("scales_and_zeros", both, persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self.register_buffer("order", order, persistent=False)

    @property
    def weight_bytes(self) -> int:
        """Bytes that a product reads."""
        read = (self.packed, self.scales_and_zeros, self.bias, self.order)
        return sum(tensor.numel() * tensor.element_size() for tensor in read if tensor is not None)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features)
        if self.order is not None:
            rows = rows.index_select(1, self.order)
        out = torch._weight_int4pack_mm_for_cpu(
            rows.to(torch.bfloat16), self.packed, self.group_size, self.scales_and_zeros
        ).to(x.dtype)
        if self.bias is not None:
            out = out.add_(self.bias)
        return out.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bits=4, group_size={self.group_size}"

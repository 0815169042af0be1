"""What a quantized linear is in the checkpoint formats of the field: compressed-tensors, GPTQ and AWQ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distill.kernels.pack import unpack

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight neighbours stands in each nibble of a word, lowest first (AutoAWQ's `gemm` version)."""

MARKS = {"compressed-tensors": "weight_packed", "gptq": "qweight", "awq": "qweight"}
"""By `quant_method`: the tensor that every quantized linear has."""

_NIBBLES = 8


@dataclass(frozen=True)
class Codes:
    """A weight (O, I): signed codes -2^(b-1) .. 2^(b-1)-1, scales (O, G), signed zero points (O, G) or none, and the
    group (I,) of each input where groups are no runs of neighbours. W = (codes - zeros) scales."""

    bits: int
    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    group_of: Tensor | None


def read_codes(quantization: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Codes:
    """The weight that the tensors of a linear stand for; `quantization` is config.json's `quantization_config`."""
    if quantization["quant_method"] == "compressed-tensors":
        return from_compressed_tensors(tensors)
    if quantization["quant_method"] == "gptq":
        return from_gptq(tensors, zeros_less_one=quantization.get("checkpoint_format", "gptq") == "gptq")
    return from_awq(tensors)


def from_compressed_tensors(tensors: Mapping[str, Tensor]) -> Codes:
    """`weight_packed` (O, words), `weight_scale` (O, G), `weight_shape`, and perhaps `weight_zero_point` (packed along
    O) and `weight_g_idx` (I,), of the format `pack-quantized`."""
    rows, columns = (int(n) for n in tensors["weight_shape"])
    bits = tensors["weight_packed"].shape[1] * 32 // columns
    zeros = tensors.get("weight_zero_point")
    group_of = tensors.get("weight_g_idx")
    return Codes(
        bits,
        unpack(tensors["weight_packed"], bits, columns),
        tensors["weight_scale"].view(rows, -1),
        None if zeros is None else unpack(zeros.T.contiguous(), bits, rows).T,
        None if group_of is None or bool((group_of < 0).any()) else group_of.long(),
    )


def from_gptq(tensors: Mapping[str, Tensor], *, zeros_less_one: bool) -> Codes:
    """AutoGPTQ's 4 bits: `qweight` (I / 8, O), `qzeros` (G, O / 8), `scales` (G, O), `g_idx` (I,). Its first format
    stores zero points less one; `checkpoint_format: gptq_v2` stores them as they are."""
    unsigned = _nibbles(tensors["qweight"].T, range(_NIBBLES))  # (O, I)
    zeros = _nibbles(tensors["qzeros"], range(_NIBBLES)).T + (1 if zeros_less_one else 0)
    group_of = tensors["g_idx"].long() if "g_idx" in tensors else None
    size = unsigned.shape[1] // zeros.shape[1]
    if group_of is not None and torch.equal(group_of, torch.arange(unsigned.shape[1], device=group_of.device) // size):
        group_of = None
    return Codes(4, (unsigned - 8).to(torch.int8), tensors["scales"].T, (zeros - 8).to(torch.int8), group_of)


def from_awq(tensors: Mapping[str, Tensor]) -> Codes:
    """AutoAWQ's `gemm`: `qweight` (I, O / 8), `qzeros` (G, O / 8), `scales` (G, O), in 4 bits."""
    unsigned, zeros = (_nibbles(tensors[name], AWQ_ORDER).T for name in ("qweight", "qzeros"))
    return Codes(4, (unsigned - 8).to(torch.int8), tensors["scales"].T, (zeros - 8).to(torch.int8), None)


def _nibbles(words: Tensor, order: range | tuple[int, ...]) -> Tensor:
    """(R, W) int32 -> (R, 8 W): the nibble k of a word, lowest first, is its element order[k]."""
    parts = [(words >> (4 * order_of)) & 15 for order_of in _inverse(order)]
    return torch.stack(parts, -1).reshape(words.shape[0], -1)


def _inverse(order: range | tuple[int, ...]) -> list[int]:
    """Of each element the nibble that holds it."""
    return [list(order).index(element) for element in range(_NIBBLES)]

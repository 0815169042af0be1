"""Codes as bits in int32 words, the layout of compressed-tensors' `pack-quantized` format.

Code q of b bits is stored as the unsigned q + 2^(b-1); element i of a row takes the bits i*b .. i*b + b - 1 of the
row's words, lowest bit first, without gaps, so that a code may lie across two words. For 4 and 8 bits this is also the
layout of the older versions of the format.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_WORD = 32


def pack(codes: Tensor, bits: int) -> Tensor:
    """(O, I) signed codes -> (O, ceil(I * bits / 32)) int32."""
    rows, columns = codes.shape
    unsigned = codes.to(torch.int64) + 2 ** (bits - 1)
    words = math.ceil(columns * bits / _WORD)
    first_bit = torch.arange(columns, device=codes.device) * bits
    word, shift = first_bit // _WORD, first_bit % _WORD
    packed = torch.zeros(rows, words + 1, dtype=torch.int64, device=codes.device)
    shifted = unsigned << shift
    packed.index_add_(1, word, shifted & 0xFFFFFFFF)
    packed.index_add_(1, word + 1, shifted >> _WORD)
    packed = packed[:, :words]
    # into the signed range, where a cast is defined: bit 31 counts as -2^31
    return torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)


def unpack(packed: Tensor, bits: int, columns: int) -> Tensor:
    """(O, words) int32 -> (O, columns) signed int8 codes."""
    words = torch.nn.functional.pad(packed.to(torch.int64) & 0xFFFFFFFF, (0, 1))
    first_bit = torch.arange(columns, device=packed.device) * bits
    word, shift = first_bit // _WORD, first_bit % _WORD
    pair = words[:, word] | (words[:, word + 1] << _WORD)
    return (((pair >> shift) & (2**bits - 1)) - 2 ** (bits - 1)).to(torch.int8)

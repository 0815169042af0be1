"""Weights packed for the tensor cores of a GPU: each thread finds the numbers that it multiplies beside each other.

Outputs are cut into slabs of 16, inputs into tiles of 128. A tile of a slab is 256 words of eight 4-bit codes: the word
of row r = 8 a + g and column k = 8 b + 2 c + d (a, b, d in 0..1, g in 0..7, c in 0..3) holds in nibble j, lowest first,
the code of input 16 j + k of the tile, and stands at place 128 b + 16 g + 4 c + 2 a + d. That is the order in which
PTX's `mma.m16n8k16` and `wgmma` want their left operand in the registers of a warp: thread 4 g + c has the rows g and
g + 8 and the columns 2 c, 2 c + 1, 2 c + 8 and 2 c + 9 (PTX ISA, "matrix fragments"). A warp reads a tile with 16 bytes
a thread.
Codes of 8 bits are two such planes, the high nibbles after the low ones; codes of 2 and 3 bits take 4.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SLAB, TILE = 16, 128
_NIBBLES = 8


def fragments(codes: Tensor, *, bits: int) -> Tensor:
    """Signed codes (O, I) of at most 4, or of 8 bits -> int32 (planes, ceil(O / 16), ceil(I / 128), 256); what lies
    outside is zero."""
    rows, columns = codes.shape
    middle = 8 if bits <= 4 else 128
    padded = F.pad(codes.to(torch.int32), (0, -columns % TILE, 0, -rows % SLAB)) + middle
    planes = [padded] if bits <= 4 else [padded & 15, padded >> 4]
    return torch.stack([_plane(plane) for plane in planes])


def _plane(codes: Tensor) -> Tensor:
    """(16 S, 128 T) of 0..15 -> (S, T, 256) int32."""
    slabs, tiles = codes.shape[0] // SLAB, codes.shape[1] // TILE
    # slab, a, g, tile, nibble, b, c, d
    split = codes.view(slabs, 2, 8, tiles, _NIBBLES, 2, 4, 2)
    words = split.select(4, _NIBBLES - 1)
    for nibble in reversed(range(_NIBBLES - 1)):
        words = (words << 4) | split.select(4, nibble)
    return words.permute(0, 3, 4, 2, 5, 1, 6).reshape(slabs, tiles, SLAB * TILE // _NIBBLES).contiguous()


def cells(scales: Tensor, zeros: Tensor | None) -> Tensor:
    """What a group of inputs of one output needs, as one word: int32 (G, 16 ceil(O / 16)) from scales (O, G) in
    float16 or bfloat16, whose bits are the low half, and signed integer zero points (O, G) or none, the high half."""
    assert scales.dtype in (torch.float16, torch.bfloat16)
    low = scales.contiguous().view(torch.int16).to(torch.int32) & 0xFFFF
    words = low if zeros is None else low | (zeros.to(torch.int32) << 16)
    return F.pad(words, (0, 0, 0, -scales.shape[0] % SLAB)).T.contiguous()

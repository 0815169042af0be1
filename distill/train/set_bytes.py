"""Sets of ids (`distill.teacher.id_sets`) of many rows: laid side by side on the CPU, read as tensors on any device.

Legend: B rows, N tokens of all of them, E entries of all tokens. Low bits, bit maps and the like of all rows lie side
by side, so that reading is a few dozen passes over E numbers, however many rows there are. Nothing waits for a GPU: how
many entries there are is known from the counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.teacher.id_sets import id_widths

_PAST = b"\0\0\0\0"  # a number is read as four bytes, and one of no bits may begin behind the last
Act = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SetBytes:
    """Bytes of several rows' sets, and where in them each token begins.

    `low`, `maps`, `unary` [bytes] uint8: low bits of ids and then of numbers, bit maps of ids, high bits of numbers.
    `tokens_6N` int32, of each token: entries, width and place of its ids' low bits, place in the maps, width and place
    of its numbers' low bits. Places are in bits, and where entry 0 of the batch would lie if all were as the token's.
    `rows_2B` int32, of each row that has entries: its first one, and where its unary numbers begin. `offsets` int64
    [N + 1]: the entries before each token, on the CPU.
    """

    low: Tensor
    maps: Tensor
    unary: Tensor
    tokens_6N: Tensor
    rows_2B: Tensor
    offsets: Tensor

    def map(self, act: Act) -> SetBytes:
        """The same with `act` done to all but the offsets."""
        names = ("low", "maps", "unary", "tokens_6N", "rows_2B")
        return replace(self, **{name: act(getattr(self, name)) for name in names})

    def __len__(self) -> int:
        """E."""
        return int(self.offsets[-1])

    @cached_property
    def token_E(self) -> Tensor:
        """int64 [E]: of each entry its token."""
        counts_N = self.tokens_6N[0]
        return torch.repeat_interleave(counts_N, output_size=len(self)).long()

    def reduce(self, values_E: Tensor, how: str) -> Tensor:
        """The sum or max of each token's values [N], 0 where it has none, always in the same order."""
        return torch.segment_reduce(values_E, how, lengths=self.tokens_6N[0], unsafe=True, initial=0.0)

    def places(self, before_N: Tensor) -> Tensor:
        """int64 [E]: places of the entries when so many others come before each token's."""
        before = before_N.to(self.low.device, non_blocking=True)
        return torch.arange(len(self), device=self.low.device) + before.index_select(0, self.token_E)

    def read(self) -> tuple[Tensor, Tensor]:
        """(ids int64 [E], numbers int32 [E]), ids ascending within each token."""
        count, device = len(self), self.low.device
        id_width, id_at, map_at, width, at = (of.index_select(0, self.token_E) for of in self.tokens_6N[1:])
        entry = torch.arange(count, dtype=torch.int32, device=device)
        words = _words(self.low)
        high = _set_bits(self.maps, count) - map_at - entry
        ids = (high << id_width) + _bits_at(words, id_at + entry * id_width, id_width)
        ends = _set_bits(self.unary, count)
        before = torch.nn.functional.pad(ends, (1, 0))[:count].clone()
        before[self.rows_2B[0].long()] = self.rows_2B[1] - 1
        more = ends - before - 1
        return ids.long(), (more << width) + _bits_at(words, at + entry * width, width)


def lay_sets(parts: Sequence[bytes], counts_N: NDArray[np.int64], tokens_B: Sequence[int], rows: int) -> SetBytes:
    """Sets as `id_sets.pack_sets` wrote them, a part a row; `counts_N` entries of the tokens, `tokens_B` of a part."""
    tokens_of_B = np.asarray(tokens_B, np.int64)
    ends_B = np.cumsum(tokens_of_B)
    starts_B = ends_B - tokens_of_B
    offsets = np.concatenate([[0], np.cumsum(counts_N)])
    entries_B = offsets[ends_B] - offsets[starts_B]
    low_N, length_N = id_widths(counts_N, rows)
    r_B = np.array([part[0] for part in parts], np.int64)
    r_N = np.repeat(r_B, tokens_B)
    id_at_N, id_bytes_B = _places(low_N * counts_N, starts_B, ends_B)
    map_at_N, map_bytes_B = _places(length_N, starts_B, ends_B)
    at_N, rest_bytes_B = _places(r_N * counts_N, starts_B, ends_B)
    at_N += 8 * id_bytes_B.sum()
    sizes = np.stack([id_bytes_B, map_bytes_B, rest_bytes_B], -1)
    cuts = 1 + np.concatenate([np.zeros((len(parts), 1), np.int64), np.cumsum(sizes, -1)], -1)
    ids, maps, rests, unary = (
        [part[begin:end] for part, begin, end in zip(parts, cuts[:, kind], ends, strict=True)]
        for kind, ends in enumerate([*cuts[:, 1:].T, [len(part) for part in parts]])
    )
    unary_bytes_B = np.array([len(part) for part in unary], np.int64)
    some = entries_B > 0
    rows_2B = np.stack([offsets[starts_B], 8 * (np.cumsum(unary_bytes_B) - unary_bytes_B)])[:, some]
    first_N = offsets[:-1]
    from_zero = (id_at_N - first_N * low_N, map_at_N - first_N, r_N, at_N - first_N * r_N)
    tokens_6N = np.stack([counts_N, low_N, *from_zero])
    return SetBytes(
        _tensor(b"".join([*ids, *rests, _PAST])),
        _tensor(b"".join(maps)),
        _tensor(b"".join(unary)),
        torch.from_numpy(tokens_6N.astype(np.int32)),
        torch.from_numpy(rows_2B.astype(np.int32)),
        torch.from_numpy(offsets),
    )


def _places(
    sizes_N: NDArray[np.int64], starts_B: NDArray[np.int64], ends_B: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each token's bits begin, and whole bytes of each row, if tokens take `sizes_N` bits one after the other."""
    before = np.concatenate([[0], np.cumsum(sizes_N)])
    bytes_B = (before[ends_B] - before[starts_B] + 7) // 8
    shift_B = 8 * (np.cumsum(bytes_B) - bytes_B) - before[starts_B]
    return before[:-1] + np.repeat(shift_B, ends_B - starts_B), bytes_B


def _tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def _words(data: Tensor) -> Tensor:
    """int32 [bytes - 3]: at each byte it and the next three, lowest first."""
    last = len(data) - 3
    wide = data.int()
    return wide[:last] | wide[1 : last + 1] << 8 | wide[2 : last + 2] << 16 | wide[3 : last + 3] << 24


def _bits_at(words: Tensor, at_E: Tensor, width_E: Tensor) -> Tensor:
    """Numbers of at most 25 bits from the bit `at_E` on."""
    mask = (torch.ones_like(width_E) << width_E) - 1
    return words.index_select(0, at_E >> 3) >> (at_E & 7) & mask


def _set_bits(data: Tensor, count: int) -> Tensor:
    """Places of the first `count` set bits, int32."""
    if not data.is_cuda:
        bits = np.unpackbits(data.numpy(), bitorder="little").view(bool)
        return torch.from_numpy(np.flatnonzero(bits)[:count].astype(np.int32))
    ones = data.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8, device=data.device) & 1
    return _ranked(ones.flatten(), count)


def _ranked(bits: Tensor, count: int) -> Tensor:
    """As `nonzero`, which would have to tell the CPU how many it finds."""
    ranks = torch.arange(1, count + 1, dtype=torch.int32, device=bits.device)
    return torch.searchsorted(bits.cumsum(0, dtype=torch.int32), ranks, out_int32=True)

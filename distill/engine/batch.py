"""One step's packed batch: where every token stands, and what attention needs to know of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, pairwise

import numpy as np
import torch

from distill.engine.buffers import StepBuffers
from distill.engine.kv_cache import PagedKVCache, blocks_for
from distill.engine.sequence import Sequence
from distill.engine.tables import KernelTables, make_tables

# decode reads ranges of blocks in place, as copying them takes several times as long: the longest few, in which no more
# than every second block is unused
_LARGEST_STEP = 2
_SHORTEST_RANGE = 8
_MOST_RANGES = 8
Observer = Callable[[int, torch.Tensor, torch.Tensor, int | None], None]  # layer, K, V, sliding window


@dataclass
class Segment:
    """Prefill of one sequence: tokens [start, end) of the batch, after `context` tokens that the cache holds."""

    start: int
    end: int
    context: int
    blocks: (
        torch.Tensor | None
    )  # block table, where attention reads the cache: there is a context, or K and V are rounded
    skipped: int = 0  # tokens before the first block of the table, which no layer sees
    _masks: dict[int | None, torch.Tensor | None] = field(default_factory=dict)

    @property
    def length(self) -> int:
        return self.end - self.start

    def mask(self, window: int | None, device: torch.device) -> torch.Tensor | None:
        """bool [length, context + length - skipped], or None where plain causal attention says the same."""
        total = self.context + self.length
        if window is not None and window >= total:
            window = None
        if window not in self._masks:
            if window is None and not self.context:
                self._masks[window] = None
            else:
                position = torch.arange(self.context, total, device=device)[:, None]
                other = torch.arange(self.skipped, total, device=device)[None, :]
                visible = other <= position
                self._masks[window] = visible if window is None else visible & (other > position - window)
        return self._masks[window]


@dataclass
class DecodeView:
    """The blocks that decode reads: ranges of the cache, then the listed ones (those that one more sequence shares, and
    the scattered ones). `rows` [N] names the sequence that reads each, `visible` [N, block_size] its tokens that count
    (none in a block that nobody decodes with)."""

    ranges: tuple[range, ...]
    gather: torch.Tensor | None
    rows: torch.Tensor
    visible: torch.Tensor
    _masks: dict[tuple[int, int, torch.dtype], torch.Tensor] = field(default_factory=dict)

    def additive_mask(self, kv_heads: int, group: int, dtype: torch.dtype) -> torch.Tensor:
        """0 or -inf, [N x kv_heads, group, block_size]; made once for all layers of a shape."""
        key = (kv_heads, group, dtype)
        if key not in self._masks:
            num_blocks, size = self.visible.shape
            mask = torch.zeros(num_blocks, size, dtype=dtype, device=self.visible.device)
            mask.masked_fill_(~self.visible, float("-inf"))
            mask = mask[:, None, None].expand(num_blocks, kv_heads, group, size)
            self._masks[key] = mask.reshape(num_blocks * kv_heads, group, size)
        return self._masks[key]


@dataclass(frozen=True)
class RowView:
    """Where the only decoding sequence stands in the cache, and which of its tokens count: [start, stop), counted from
    the first of these blocks."""

    blocks: range | torch.Tensor
    start: int
    stop: int


class DecodePlan:
    """Block tables of the decoding sequences, flat; views of it by sliding window."""

    def __init__(self, sequences: list[Sequence], block_size: int, buffers: StepBuffers) -> None:
        self._sequences = sequences
        self._block_size = block_size
        self._buffers = buffers
        self._views: dict[int | None, DecodeView] = {}
        self._row_views: dict[int | None, RowView] = {}

    def only_row(self, window: int | None) -> RowView:
        """The view of a plan of one sequence."""
        if window not in self._row_views:
            (sequence,) = self._sequences
            length = sequence.num_computed + 1
            oldest = 0 if window is None else max(0, length - window)
            skipped = oldest // self._block_size
            table = sequence.blocks[skipped : blocks_for(length, self._block_size)]
            consecutive = range(table[0], table[0] + len(table))
            blocks = consecutive if table == list(consecutive) else self._put("table", np.array(table), window)
            start, stop = oldest - skipped * self._block_size, length - skipped * self._block_size
            self._row_views[window] = RowView(blocks, start, stop)
        return self._row_views[window]

    def view(self, window: int | None) -> DecodeView:
        """What the newest token of each sequence sees: all of it, or the last `window` tokens."""
        if window not in self._views:
            self._views[window] = self._make(window)
        return self._views[window]

    @cached_property
    def _tables(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Of every block of every sequence: its id, its sequence, its first position, its sequence's length."""
        lengths = np.fromiter((s.num_computed + 1 for s in self._sequences), np.int64, count=len(self._sequences))
        counts = -(-lengths // self._block_size)
        tables = [s.blocks[:n] for s, n in zip(self._sequences, counts.tolist(), strict=True)]
        blocks = np.fromiter(chain.from_iterable(tables), dtype=np.int64, count=int(counts.sum()))
        rows = np.repeat(np.arange(len(lengths)), counts)
        index_in_table = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        return blocks, rows, index_in_table * self._block_size, lengths[rows]

    def _make(self, window: int | None) -> DecodeView:
        all_blocks, all_rows, all_starts, all_lengths = self._tables
        offsets = np.arange(self._block_size)[None, :]
        oldest = np.zeros_like(all_lengths) if window is None else np.maximum(all_lengths - window, 0)
        kept = all_starts + self._block_size > oldest
        blocks, rows, starts = all_blocks[kept], all_rows[kept], all_starts[kept][:, None]
        positions = starts + offsets
        visible = (positions < all_lengths[kept][:, None]) & (positions >= oldest[kept][:, None])
        unique, at = np.unique(blocks, return_index=True)
        ranges = _ranges(unique)
        places = np.full(len(blocks), -1, dtype=np.int64)
        total = 0
        for part in ranges:
            inside = at[(unique >= part.start) & (unique < part.stop)]
            places[inside] = total + blocks[inside] - part.start
            total += len(part)
        listed = places < 0
        places[listed] = total + np.arange(int(listed.sum()))
        size = total + int(listed.sum())
        all_rows, all_visible = np.zeros(size, dtype=np.int64), np.zeros((size, self._block_size), dtype=np.bool_)
        all_rows[places] = rows
        all_visible[places] = visible
        return DecodeView(
            ranges,
            self._put("gather", blocks[listed], window) if listed.any() else None,
            self._put("rows", all_rows, window),
            self._put("visible", all_visible, window),
        )

    def _put(self, name: str, array: np.ndarray, window: int | None) -> torch.Tensor:
        return self._buffers.put(name, array, part=window)


def _ranges(blocks: np.ndarray) -> tuple[range, ...]:
    """The ranges among sorted block ids that are worth reading whole."""
    edges = [0, *(np.flatnonzero(np.diff(blocks) > _LARGEST_STEP) + 1).tolist(), len(blocks)]
    shortest = min(_SHORTEST_RANGE, len(blocks))
    runs = [(b - a, range(int(blocks[a]), int(blocks[b - 1]) + 1)) for a, b in pairwise(edges) if b - a >= shortest]
    longest = sorted(runs, key=lambda run: -run[0])[:_MOST_RANGES]
    return tuple(part for _, part in longest)


@dataclass
class PackedBatch:
    """Tokens of one forward: `num_decode` single tokens, then the segments. Passed through the model to attention."""

    input_ids: torch.Tensor  # [1, T]
    position_ids: torch.Tensor  # [1, T]
    num_decode: int
    segments: list[Segment]
    decode: DecodePlan | None = None
    cache: PagedKVCache | None = None
    slots: torch.Tensor | None = None  # block x block_size + offset of each token that is stored
    stored: torch.Tensor | None = None  # which tokens those are, ascending; None: all
    tables: KernelTables | None = None  # where the GPU kernels are to compute attention
    observe: Observer | None = None
    _head_rows: dict[int, torch.Tensor] = field(default_factory=dict)

    def head_rows(self, kv_heads: int) -> torch.Tensor:
        """Where the cache keeps each stored token and KV head, [stored x kv_heads]."""
        if kv_heads not in self._head_rows:
            assert self.cache is not None and self.slots is not None
            self._head_rows[kv_heads] = self.cache.head_rows(self.slots, kv_heads)
        return self._head_rows[kv_heads]


@dataclass(frozen=True)
class Work:
    """So many pending tokens of a sequence, to compute in this step; the last `num_draft` of them are a draft model's
    guesses, which the logits are to confirm."""

    sequence: Sequence
    num_tokens: int
    num_draft: int = 0

    @property
    def is_decode(self) -> bool:
        """The newest token alone, everything before it cached."""
        return self.num_tokens == 1 and self.sequence.num_computed > 0

    @property
    def reaches_end(self) -> bool:
        """After this step the last token's logits are known."""
        return self.num_tokens == self.sequence.num_pending

    @property
    def samples(self) -> bool:
        """A token is sampled after this step."""
        return self.reaches_end and self.sequence.samples


def pack(works: list[Work], cache: PagedKVCache | None, buffers: StepBuffers, *, kernels: bool = False) -> PackedBatch:
    """The batch of `works`, decoding sequences first (as the scheduler hands them over)."""
    decoding = [w.sequence for w in works if w.is_decode] if cache is not None else []
    ids = [s.token_ids[s.num_computed] for s in decoding]
    positions = [s.num_computed for s in decoding]
    shared = [row for row, s in enumerate(decoding) if s.num_computed < s.num_shared]
    segments: list[Segment] = []
    for work in works[len(decoding) :]:
        assert cache is None or not work.is_decode, "decoding sequences come first"
        sequence, first = work.sequence, work.sequence.num_computed
        last = first + work.num_tokens
        blocks, skipped = None, 0
        if cache is not None and (first or cache.is_quantized):  # what is read does not depend on the chunks
            table = sequence.blocks[sequence.num_dropped : blocks_for(last, cache.block_size)]
            blocks = buffers.put("context", np.array(table), part=len(segments))
            skipped = sequence.num_dropped * cache.block_size
        shared.extend(range(len(ids), len(ids) + sequence.num_shared - first))
        segments.append(Segment(len(ids), len(ids) + work.num_tokens, first, blocks, skipped))
        ids.extend(sequence.token_ids[first:last])
        positions.extend(range(first, last))
    slots = _slots(works, positions, cache.block_size) if cache is not None else positions
    arrays = buffers.put("tokens", np.array((ids, positions, slots), dtype=np.int64))
    stored = None
    if shared:
        stored = buffers.put("stored", np.delete(np.arange(len(ids)), shared))
    return PackedBatch(
        input_ids=arrays[0:1],
        position_ids=arrays[1:2],
        num_decode=len(decoding),
        segments=segments,
        decode=DecodePlan(decoding, cache.block_size, buffers) if cache is not None and decoding else None,
        cache=cache,
        tables=make_tables(
            [w.sequence for w in works], [w.num_tokens for w in works], len(decoding), cache.block_size, buffers
        )
        if kernels and cache is not None
        else None,
        slots=arrays[2] if stored is None else arrays[2].index_select(0, stored),
        stored=stored,
    )


def _slots(works: list[Work], positions: list[int], block_size: int) -> list[int]:
    """Where each token of the batch goes: block x block_size + offset."""
    slots: list[int] = []
    for work in works:
        blocks = work.sequence.blocks
        for position in positions[len(slots) : len(slots) + work.num_tokens]:
            slots.append(blocks[position // block_size] * block_size + position % block_size)
    return slots

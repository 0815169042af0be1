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
    """A group's block tables of the decoding sequences, flat; views of it by sliding window."""

    def __init__(self, sequences: list[Sequence], block_size: int, buffers: StepBuffers, *, group: int = 0) -> None:
        self._group = group
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
            table = sequence.tables[self._group][skipped : blocks_for(length, self._block_size)]
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
        tables = [s.tables[self._group][:n] for s, n in zip(self._sequences, counts.tolist(), strict=True)]
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
        return self._buffers.put(name, array, part=(self._group, window))


def _ranges(blocks: np.ndarray) -> tuple[range, ...]:
    """The ranges among sorted block ids that are worth reading whole."""
    edges = [0, *(np.flatnonzero(np.diff(blocks) > _LARGEST_STEP) + 1).tolist(), len(blocks)]
    shortest = min(_SHORTEST_RANGE, len(blocks))
    runs = [(b - a, range(int(blocks[a]), int(blocks[b - 1]) + 1)) for a, b in pairwise(edges) if b - a >= shortest]
    longest = sorted(runs, key=lambda run: -run[0])[:_MOST_RANGES]
    return tuple(part for _, part in longest)


@dataclass
class Placement:
    """Where one group of layers finds and keeps the tokens of a batch."""

    segments: list[Segment]
    decode: DecodePlan | None = None
    slots: torch.Tensor | None = None  # block x block_size + offset of each token that is stored
    tables: KernelTables | None = None  # where the GPU kernels are to compute attention
    _head_rows: dict[int, torch.Tensor] = field(default_factory=dict)

    def head_rows(self, cache: PagedKVCache, kv_heads: int) -> torch.Tensor:
        """Where the cache keeps each stored token and KV head, [stored x kv_heads]."""
        if kv_heads not in self._head_rows:
            assert self.slots is not None
            self._head_rows[kv_heads] = cache.head_rows(self.slots, kv_heads)
        return self._head_rows[kv_heads]


@dataclass(frozen=True)
class PackedBatch:
    """Tokens of one forward: `num_decode` single tokens, then the segments. Passed through the model to attention."""

    input_ids: torch.Tensor  # [1, T]
    position_ids: torch.Tensor  # [1, T]
    num_decode: int
    placements: list[Placement]  # of each group of layers
    cache: PagedKVCache | None = None
    stored: torch.Tensor | None = None  # the tokens whose K and V are stored, ascending; None: all
    observe: Observer | None = None

    def token_slots(self, layer: int) -> torch.Tensor:
        """Where a layer keeps each token of the batch, [T]: block x block_size + offset; -1 where it does not."""
        slots = self.placement(layer).slots
        assert slots is not None
        if self.stored is None:
            return slots
        return slots.new_full((self.input_ids.shape[1],), -1).index_copy_(0, self.stored, slots)

    def placement(self, layer: int) -> Placement:
        """Where a layer finds its tokens."""
        return self.placements[0 if self.cache is None else self.cache.groups[layer]]


@dataclass(eq=False, slots=True)
class Work:
    """So many pending tokens of a sequence, to compute in this step; the last `num_draft` of them are a draft model's
    guesses, which the logits are to confirm. What it says of its sequence holds before the step."""

    sequence: Sequence
    num_tokens: int
    num_draft: int = 0
    is_decode: bool = field(init=False)  # the newest token alone, everything before it cached
    samples: bool = field(init=False)  # a token is sampled after this step, as the last token's logits are known

    def __post_init__(self) -> None:
        sequence = self.sequence
        self.is_decode = self.num_tokens == 1 and sequence.num_computed > 0
        self.samples = sequence.samples and self.num_tokens == len(sequence.token_ids) - sequence.num_computed


def pack(works: list[Work], cache: PagedKVCache | None, buffers: StepBuffers, *, kernels: bool = False) -> PackedBatch:
    """The batch of `works`, decoding sequences first (as the scheduler hands them over)."""
    num_decode = sum(work.is_decode for work in works) if cache is not None else 0
    ids: list[int] = []
    shared: list[int] = []
    for work in works:
        assert cache is None or not work.is_decode or len(ids) < num_decode, "decoding sequences come first"
        sequence, first = work.sequence, work.sequence.num_computed
        if first < sequence.num_shared:
            shared.extend(range(len(ids), len(ids) + min(work.num_tokens, sequence.num_shared - first)))
        ids.extend(sequence.token_ids[first : first + work.num_tokens])
    groups = range(1 if cache is None else cache.num_groups)
    tokens = np.empty((2 + len(groups), len(ids)), dtype=np.int64)
    tokens[0], tokens[1] = ids, _positions(works)
    for group in groups:
        tokens[2 + group] = 0 if cache is None else _slots(works, tokens[1], cache.block_size, group)
    arrays = buffers.put("tokens", tokens)
    stored = buffers.put("stored", np.delete(np.arange(len(ids)), shared)) if shared else None
    placements = [Placement(_segments(works, num_decode, cache, buffers, group)) for group in groups]
    if cache is not None:
        decoding = [work.sequence for work in works[:num_decode]]
        for group, placement in enumerate(placements):
            own = arrays[2 + group]
            placement.slots = own if stored is None else own.index_select(0, stored)
            if decoding:
                placement.decode = DecodePlan(decoding, cache.block_size, buffers, group=group)
            if kernels:
                sequences, counts = [w.sequence for w in works], [w.num_tokens for w in works]
                limits = {"kv_heads": cache.most_kv_heads, "group": group}
                placement.tables = make_tables(sequences, counts, num_decode, cache.block_size, buffers, **limits)
    return PackedBatch(
        input_ids=arrays[0:1],
        position_ids=arrays[1:2],
        num_decode=num_decode,
        placements=placements,
        cache=cache,
        stored=stored,
    )


def _segments(
    works: list[Work], num_decode: int, cache: PagedKVCache | None, buffers: StepBuffers, group: int
) -> list[Segment]:
    """The prefills of a batch, as one group of layers sees them."""
    segments: list[Segment] = []
    start = num_decode
    for work in works[num_decode:]:
        sequence, first = work.sequence, work.sequence.num_computed
        blocks, skipped = None, 0
        if cache is not None and (first or cache.is_quantized):  # what is read does not depend on the chunks
            dropped = sequence.num_dropped[group]
            table = sequence.tables[group][dropped : blocks_for(first + work.num_tokens, cache.block_size)]
            blocks = buffers.put("context", np.array(table), part=(group, len(segments)))
            skipped = dropped * cache.block_size
        segments.append(Segment(start, start + work.num_tokens, first, blocks, skipped))
        start += work.num_tokens
    return segments


def _positions(works: list[Work]) -> np.ndarray:
    """Where each token of the batch stands in its sequence."""
    counts = np.array([work.num_tokens for work in works])
    firsts = np.array([work.sequence.num_computed for work in works])
    return np.arange(counts.sum()) + np.repeat(firsts - (np.cumsum(counts) - counts), counts)


def _slots(works: list[Work], positions: np.ndarray, block_size: int, group: int) -> np.ndarray:
    """Where a group keeps each token of the batch: block x block_size + offset."""
    blocks: list[int] = []  # of each token
    for work in works:
        first, table = work.sequence.num_computed, work.sequence.tables[group]
        end = first + work.num_tokens
        for index in range(first // block_size, blocks_for(end, block_size)):
            inside = min(end, (index + 1) * block_size) - max(first, index * block_size)
            blocks += [table[index]] * inside
    return np.array(blocks, dtype=np.int64) * block_size + positions % block_size

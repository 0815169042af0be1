"""Which blocks a sequence holds in each group of layers: taken from the pool as it grows, given back behind its window.

Groups that see everything take the blocks of a whole prompt at its admission. Those with a window take them chunk by
chunk, and never hold more than their window and a chunk. A table names a block for every `block_size` tokens of its
sequence, or GONE.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

from distill.engine.kv_cache import blocks_for
from distill.engine.paging.blocks import BlockPool
from distill.engine.paging.groups import most_held, num_passed
from distill.engine.paging.prefix import Prefix
from distill.engine.sequence import GONE, Sequence


class BlockTables:
    """Takes and gives back the blocks of sequences."""

    def __init__(self, pool: BlockPool, windows: Seq[int | None], *, block_size: int, chunk: int) -> None:
        self.pool = pool
        self._windows = windows  # of each group, those that see all first
        self._block_size = block_size
        self._most = [most_held(window, block_size, chunk) for window in windows]
        self._num_full = sum(window is None for window in windows)
        self._num_windowed = len(windows) - self._num_full

    def can_begin(self, sequence: Sequence, found: Prefix) -> bool:
        """Whether there are blocks for all that the sequence has to compute after the found ones, and for the token it
        samples then, or the next step might throw it out again."""
        whole = blocks_for(sequence.end + sequence.samples, self._block_size)
        needed = 0
        for blocks, most in zip(found.groups, self._most, strict=True):
            kept = len(blocks)
            needed += min(whole - found.num_blocks + kept, most) - kept
            needed += self.pool.num_idle(cached.block for cached in blocks)
        return needed <= self.pool.num_free

    def begin(self, sequence: Sequence) -> None:
        """Blocks at admission, after those that are shared."""
        whole = blocks_for(sequence.end + sequence.samples, self._block_size)
        for group in range(self._num_full):
            table = sequence.tables[group]
            table += self.pool.allocate(whole - len(table), home=group)

    def num_missing(self, sequence: Sequence, tokens: int) -> int:
        """Blocks to take before the sequence can hold so many tokens."""
        whole, missing = blocks_for(tokens, self._block_size), 0
        for table in sequence.tables:  # asked of every sequence at every step
            if len(table) < whole:
                missing += whole - len(table)
        return missing

    def reach(self, sequence: Sequence, tokens: int) -> int:
        """How many tokens, up to `tokens`, a sequence can hold that has begun: more, if there are more free blocks."""
        if not self._num_windowed:
            return tokens
        count = len(sequence.tables[-1]) + self.pool.num_free // self._num_windowed
        return min(tokens, count * self._block_size)

    def grow(self, sequence: Sequence, tokens: int) -> None:
        """Take what is missing for so many tokens; the caller has checked that it is there."""
        whole = blocks_for(tokens, self._block_size)
        for group, table in enumerate(sequence.tables):
            if len(table) < whole:
                table += self.pool.allocate(whole - len(table), home=group)

    def drop_passed(self, sequence: Sequence) -> None:
        """Give back the blocks that a group's window does not reach from the next token on."""
        if not self._num_windowed:
            return
        for group in range(self._num_full, len(self._windows)):
            passed = num_passed(self._windows[group], sequence.num_computed, self._block_size)
            dropped = sequence.num_dropped[group]
            if passed > dropped:
                table = sequence.tables[group]
                self.pool.release(table[dropped:passed])
                table[dropped:passed] = [GONE] * (passed - dropped)
                sequence.num_dropped[group] = passed

    def trim(self, sequence: Sequence, kept: Seq[int]) -> None:
        """Give back the blocks after the first so many of each group."""
        for table, count in zip(sequence.tables, kept, strict=True):
            self.pool.release(table[count:])
            del table[count:]

    def release(self, sequence: Sequence) -> None:
        """Give everything back."""
        for table, dropped in zip(sequence.tables, sequence.num_dropped, strict=True):
            self.pool.release(table[dropped:])
        sequence.tables = []
        sequence.num_dropped = []
        sequence.num_computed = sequence.num_shared = sequence.num_offered = 0

"""Who owns which KV block: reference counts, and what stays findable by hash after its last owner is gone."""

from __future__ import annotations

import heapq
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from distill.engine.types import TokenLogprob


@dataclass(eq=False)
class BlockScores:
    """Log probabilities of the prompt tokens in one block; empty until the step that computes the block is over."""

    depth: int  # likeliest tokens kept of each
    tokens: list[TokenLogprob | None] = field(default_factory=list)


@dataclass(eq=False)
class CachedBlock:
    """A full block that can be found again. Its digest covers its own tokens and all before them."""

    block: int
    scores: BlockScores | None = None


def block_digest(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """Hash of a block's tokens and, through its parent's hash, of everything before them."""
    return blake2b(parent + array("q", token_ids).tobytes(), digest_size=16).digest()


class BlockPool:
    """Which blocks are free, owned, or kept for reuse. Blocks without content go out first, the lowest ids before the
    others, so that the blocks in use stay close together and attention can read them as one range; then the kept ones,
    least recently used first. Each of `num_homes` askers gets empty blocks of its own part, while there are any."""

    def __init__(self, num_blocks: int, *, num_homes: int = 1) -> None:
        self.num_blocks = num_blocks
        self.num_evictions = 0
        self._num_empty = num_blocks
        self._empty: list[list[int]] = [[] for _ in range(num_homes)]  # a heap each
        for block in range(num_blocks):
            self._empty[self._home(block)].append(block)
        self._owners = [0] * num_blocks
        self._digests: list[bytes | None] = [None] * num_blocks
        self._cached: dict[bytes, CachedBlock] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # cached, owned by nobody, least recently used first

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` can hand out: the empty ones, and those that are only kept for reuse."""
        return self._num_empty + len(self._idle)

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.num_free

    @property
    def num_cached(self) -> int:
        """Blocks that can be found by hash, owned or not."""
        return len(self._cached)

    def allocate(self, count: int, *, home: int = 0) -> list[int]:
        """Take `count` blocks; the caller has checked `num_free`."""
        assert count <= self.num_free, f"{count} blocks asked of {self.num_free} free ones"
        blocks = [self._take_empty(home) if self._num_empty else self._evict() for _ in range(count)]
        for block in blocks:
            self._owners[block] = 1
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """Become one more owner of blocks that were found by hash."""
        for block in blocks:
            if not self._owners[block]:
                del self._idle[block]
            self._owners[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Give a sequence's blocks back, each once; the last ones are reused first, as fewer sequences begin with
        them. Giving back what nobody owns is a bug and raises."""
        for block in reversed(blocks):
            assert self._owners[block], f"block {block} is already free"
            self._owners[block] -= 1
            if not self._owners[block]:
                if self._digests[block] is None:
                    self._put_empty(block)
                else:
                    self._idle[block] = None

    def num_idle(self, blocks: Iterable[int]) -> int:
        """How many of the blocks nobody owns: sharing those leaves fewer to allocate."""
        return sum(not self._owners[block] for block in blocks)

    def find(self, digest: bytes) -> CachedBlock | None:
        return self._cached.get(digest)

    def register(self, digest: bytes, block: int) -> CachedBlock:
        """Make an owned block findable; where another one has the same tokens, that one stays the one to find."""
        known = self._cached.get(digest)
        if known is None:
            assert self._owners[block] and self._digests[block] is None
            known = self._cached[digest] = CachedBlock(block)
            self._digests[block] = digest
        return known

    def forget(self) -> None:
        """Find nothing again of what was computed up to now, as its model has changed or is to be measured."""
        for block in self._idle:
            self._put_empty(block)
        self._idle.clear()
        self._cached.clear()
        self._digests = [None] * self.num_blocks

    def _home(self, block: int) -> int:
        return block * len(self._empty) // self.num_blocks

    def _put_empty(self, block: int) -> None:
        heapq.heappush(self._empty[self._home(block)], block)
        self._num_empty += 1

    def _take_empty(self, home: int) -> int:
        self._num_empty -= 1
        return heapq.heappop(self._empty[home] or max(self._empty, key=len))

    def _evict(self) -> int:
        block, _ = self._idle.popitem(last=False)
        digest = self._digests[block]
        assert digest is not None
        del self._cached[digest]
        self._digests[block] = None
        self.num_evictions += 1
        return block

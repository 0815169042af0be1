"""Reuse of what other sequences computed: KV blocks with the same tokens before and in them, and their scores.

A block is findable from the moment its last token is scheduled, so sequences with a common beginning share it even
within one step: attention writes the whole batch into the cache before any of it is read.

A sequence that scores its prompt also needs the log probability of every token. Those of a block's tokens are kept with
the block, whoever computed them; the first token after the shared blocks is scored by the logits of the last token in
them, which is therefore computed again (and not stored again).

Layers with a sliding window need of a prefix the blocks of its last window alone: a prefix is found where those are
there, and all blocks of the layers that see everything.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

from distill.engine.paging.blocks import BlockPool, BlockScores, CachedBlock, block_digest
from distill.engine.paging.groups import num_passed
from distill.engine.sequence import GONE, Sequence
from distill.engine.types import TokenLogprob


@dataclass(frozen=True)
class Prefix:
    """What a sequence can begin with: so many blocks, and of each group of layers the last ones, which it still sees.
    The first group's are all there where the sequence wants scores, as they are kept with them."""

    num_blocks: int
    groups: list[list[CachedBlock]]
    scored: list[CachedBlock]


class PrefixCache:
    """Finds, adopts and offers the blocks of sequences. Off, it finds nothing."""

    def __init__(self, pool: BlockPool, *, block_size: int, enabled: bool, windows: Seq[int | None] = (None,)) -> None:
        self._pool = pool
        self._block_size = block_size
        self._windows = windows  # of each group of layers, those that see all first
        self._enabled = enabled
        self.num_found_tokens = 0

    def find(self, sequence: Sequence) -> Prefix:
        """The longest beginning of the sequence that is cached. One token at least stays to compute."""
        found: list[list[CachedBlock | None]] = []  # of every block index, the groups' blocks
        for index in range((sequence.end - 1) // self._block_size if self._enabled else 0):
            cached = [self._pool.find(key) for key in self._keys(sequence, index)]
            if not self._goes_on(sequence, index, cached):
                break
            found.append(cached)
        usable, firsts = self._usable(found, sequence.is_scoring)
        kept = [[own for row in found[first:usable] if (own := row[g])] for g, first in enumerate(firsts)]
        scored = [own for row in found[:usable] if (own := row[0])] if sequence.is_scoring else []
        return Prefix(usable, kept, scored)

    def adopt(self, sequence: Sequence, found: Prefix) -> None:
        """Let the sequence begin with the found blocks, and go on after them."""
        held = [[cached.block for cached in blocks] for blocks in found.groups]
        for blocks in held:
            self._pool.share(blocks)
        sequence.num_dropped = [found.num_blocks - len(blocks) for blocks in held]
        sequence.tables = [[GONE] * n + blocks for n, blocks in zip(sequence.num_dropped, held, strict=True)]
        sequence.num_offered = found.num_blocks
        sequence.num_shared = sequence.num_computed = found.num_blocks * self._block_size
        if sequence.is_scoring and found.num_blocks:
            for index, cached in enumerate(found.scored):
                if (index + 1) * self._block_size > sequence.num_scored:
                    assert cached.scores is not None
                    sequence.borrowed.append((index * self._block_size, cached.scores))
            sequence.num_scored = max(sequence.num_scored, sequence.num_shared)
            sequence.num_computed = min(sequence.num_shared, sequence.num_scored - 1)
        self.num_found_tokens += sequence.num_computed

    def offer(self, sequence: Sequence, count: int) -> None:
        """Let others find the blocks that are full once the next `count` tokens of the sequence are computed, as far as
        those tokens are known."""
        if not self._enabled:
            return
        depth = sequence.score_depth
        known = len(sequence.token_ids) - sequence.num_unknown
        full = min(sequence.num_computed + count, known) // self._block_size
        for index in range(sequence.num_offered, full):
            keys = self._keys(sequence, index)
            cached, *_ = [
                self._pool.register(key, table[index]) for key, table in zip(keys, sequence.tables, strict=True)
            ]
            in_prompt = (index + 1) * self._block_size <= sequence.num_prompt
            if depth and in_prompt and (cached.scores is None or cached.scores.depth < depth):
                cached.scores = BlockScores(depth)
                sequence.lent.append((index * self._block_size, cached.scores))
            sequence.num_offered = index + 1

    def _goes_on(self, sequence: Sequence, index: int, cached: list[CachedBlock | None]) -> bool:
        """Whether a prefix may be longer than `index` blocks: nothing is missing that every longer one needs."""
        if any(own is None for own, window in zip(cached, self._windows, strict=True) if window is None):
            return False
        if not sequence.is_scoring:
            return True
        if cached[0] is None or (index + 1) * self._block_size <= sequence.num_scored:
            return cached[0] is not None
        return cached[0].scores is not None and cached[0].scores.depth >= sequence.score_depth

    def _usable(self, found: list[list[CachedBlock | None]], is_scoring: bool) -> tuple[int, list[int]]:
        """How many of these blocks a sequence can begin with, and the first that each group then sees."""
        unbroken = [0] * len(self._windows)  # the first block from which on each group's are all there
        if all(window is None for window in self._windows):
            return len(found), unbroken
        best = 0, unbroken
        for count, cached in enumerate(found, start=1):
            unbroken = [first if own else count for first, own in zip(unbroken, cached, strict=True)]
            # who scores computes the last token of a prefix again
            computed = count * self._block_size - is_scoring
            passed = [num_passed(window, computed, self._block_size) for window in self._windows]
            if all(first <= seen for first, seen in zip(unbroken, passed, strict=True)):
                best = count, passed
        return best

    def _keys(self, sequence: Sequence, index: int) -> list[bytes]:
        """The names under which the groups' blocks are found."""
        digest = self._digest(sequence, index)
        return [digest, *(digest + bytes((group,)) for group in range(1, len(self._windows)))]

    def _digest(self, sequence: Sequence, index: int) -> bytes:
        digests, size = sequence.digests, self._block_size
        while len(digests) <= index:
            first = len(digests) * size
            digests.append(block_digest(digests[-1] if digests else b"", sequence.token_ids[first : first + size]))
        return digests[index]


def exchange_scores(sequences: Seq[Sequence], block_size: int) -> None:
    """After a step: hand out the scores of the blocks that it filled, then take those that others computed."""
    for sequence in sequences:
        for start, scores in sequence.lent:
            scores.tokens = sequence.prompt_logprobs[start : start + block_size]
        sequence.lent.clear()
    for sequence in sequences:
        for start, scores in sequence.borrowed:
            assert len(scores.tokens) == block_size, "a block was shared before it was scored"
            sequence.prompt_logprobs[start : start + block_size] = [
                _cut(t, sequence.score_depth) for t in scores.tokens
            ]
        sequence.borrowed.clear()


def _cut(token: TokenLogprob | None, depth: int) -> TokenLogprob | None:
    if token is None or len(token.top) <= depth:
        return token
    return replace(token, top=token.top[:depth])

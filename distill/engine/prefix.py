"""Reuse of what other sequences computed: KV blocks with the same tokens before and in them, and their scores.

A block is findable from the moment its last token is scheduled, so sequences with a common beginning share it even
within one step: attention writes the whole batch into the cache before any of it is read.

A sequence that scores its prompt also needs the log probability of every token. Those of a block's tokens are kept with
the block, whoever computed them; the first token after the shared blocks is scored by the logits of the last token in
them, which is therefore computed again (and not stored again).
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import replace

from distill.engine.blocks import BlockPool, BlockScores, CachedBlock, block_digest
from distill.engine.sequence import Sequence
from distill.engine.types import TokenLogprob


class PrefixCache:
    """Finds, adopts and offers the blocks of sequences. Off, it finds nothing."""

    def __init__(self, pool: BlockPool, *, block_size: int, enabled: bool) -> None:
        self._pool = pool
        self._block_size = block_size
        self._enabled = enabled
        self.num_found_tokens = 0

    def find(self, sequence: Sequence) -> list[CachedBlock]:
        """The longest run of cached blocks that the sequence begins with. One token at least stays to compute."""
        found: list[CachedBlock] = []
        if not self._enabled:
            return found
        for index in range((sequence.end - 1) // self._block_size):
            cached = self._pool.find(self._digest(sequence, index))
            if cached is None or not self._has_scores(sequence, index, cached.scores):
                break
            found.append(cached)
        return found

    def adopt(self, sequence: Sequence, found: Seq[CachedBlock]) -> None:
        """Let the sequence begin with the found blocks, and go on after them."""
        blocks = [cached.block for cached in found]
        self._pool.share(blocks)
        sequence.blocks = blocks
        sequence.num_offered = len(blocks)
        sequence.num_shared = sequence.num_computed = len(blocks) * self._block_size
        if sequence.is_scoring and found:
            for index, cached in enumerate(found):
                if (index + 1) * self._block_size > sequence.num_scored:
                    assert cached.scores is not None
                    sequence.borrowed.append((index * self._block_size, cached.scores))
            sequence.num_scored = max(sequence.num_scored, sequence.num_shared)
            sequence.num_computed = min(sequence.num_shared, sequence.num_scored - 1)
        self.num_found_tokens += sequence.num_computed

    def offer(self, sequence: Sequence, count: int) -> None:
        """Let others find the blocks that are full once the next `count` tokens of the sequence are computed."""
        if not self._enabled:
            return
        depth = sequence.score_depth
        for index in range(sequence.num_offered, (sequence.num_computed + count) // self._block_size):
            cached = self._pool.register(self._digest(sequence, index), sequence.blocks[index])
            in_prompt = (index + 1) * self._block_size <= sequence.num_prompt
            if depth and in_prompt and (cached.scores is None or cached.scores.depth < depth):
                cached.scores = BlockScores(depth)
                sequence.lent.append((index * self._block_size, cached.scores))
            sequence.num_offered = index + 1

    def _has_scores(self, sequence: Sequence, index: int, scores: BlockScores | None) -> bool:
        """Whether nothing is lost by not computing the block."""
        if not sequence.is_scoring or (index + 1) * self._block_size <= sequence.num_scored:
            return True
        return scores is not None and scores.depth >= sequence.score_depth

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

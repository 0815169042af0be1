"""Who computes what in the next step: continuous batching over a block pool.

Sequences that decode go first, one token each; then prefills continue, then waiting sequences are admitted in order of
arrival, as far as blocks and the token budget reach. When a decoding sequence finds no free block, the latest arrival
gives all its blocks back and is computed anew later (preemption by recompute), except for what the prefix cache still
has of it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from distill.engine.batch import Work
from distill.engine.blocks import BlockPool
from distill.engine.kv_cache import blocks_for
from distill.engine.prefix import PrefixCache
from distill.engine.sequence import GONE, Sequence


@dataclass
class _Room:
    """What a step may still compute in prefill."""

    tokens: int
    score_rows: int  # positions whose logits are held at once

    def chunk(self, sequence: Sequence) -> int:
        """How many pending tokens of the sequence fit."""
        count = min(sequence.num_pending, self.tokens)
        return min(count, self.score_rows) if sequence.is_scoring else count

    def take(self, sequence: Sequence, count: int) -> None:
        self.tokens -= count
        self.score_rows -= count if sequence.is_scoring else 0


class Scheduler:
    """Owns the queues and the blocks; knows nothing of tensors."""

    def __init__(
        self,
        pool: BlockPool | None,
        prefix: PrefixCache | None,
        *,
        block_size: int,
        max_batch: int,
        token_budget: int,
        score_rows: int,
        window: int | None,
    ) -> None:
        self._pool = pool  # None: no cache, every step computes whole sequences
        self._prefix = prefix
        self._block_size = block_size
        self._max_batch = max_batch
        self._token_budget = token_budget
        self._score_rows = score_rows  # positions whose logits scoring may hold at once
        self._window = window  # tokens any layer sees; None: some layer sees all
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.num_preemptions = 0

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, finished or aborted, and free its blocks."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self._release(sequence)

    def schedule(self) -> list[Work]:
        """The next step, decoding sequences first; empty iff there is nothing to do."""
        if self._pool is None or self._prefix is None:
            return self._whole_sequences()
        for sequence in self.running:
            self._drop_passed(sequence, self._pool)
        preemptions = self.num_preemptions
        decodes = self._decodes(self._pool, self._prefix)
        room = _Room(self._token_budget, self._score_rows)
        prefills: list[Work] = []
        for sequence in self.running:
            if sequence.num_pending > 1 or not sequence.num_computed or sequence.is_scoring:
                self._prefill(sequence, room, self._prefix, prefills)
        if preemptions == self.num_preemptions:
            while self.waiting and len(self.running) < self._max_batch and room.chunk(self.waiting[0]):
                sequence = self.waiting[0]
                if not self._admit(sequence, self._pool, self._prefix):
                    break
                self._prefill(sequence, room, self._prefix, prefills)
        # a chunk of one token after a context is a decode to the batch
        single = [work for work in prefills if work.is_decode]
        return decodes + single + [work for work in prefills if not work.is_decode]

    def _prefill(self, sequence: Sequence, room: _Room, prefix: PrefixCache, works: list[Work]) -> None:
        """As many pending tokens of the sequence as fit; whoever is admitted next finds their blocks."""
        count = room.chunk(sequence)
        if count:
            prefix.offer(sequence, count)
            works.append(Work(sequence, count))
            room.take(sequence, count)

    def _admit(self, sequence: Sequence, pool: BlockPool, prefix: PrefixCache) -> bool:
        """Give the first waiting sequence its blocks, if there are enough."""
        found = prefix.find(sequence)
        # with room for the token it will sample, or the next step might throw it out again
        needed = blocks_for(len(sequence.token_ids) + sequence.samples, self._block_size) - len(found)
        if needed + pool.num_idle(cached.block for cached in found) > pool.num_free:
            return False
        self.waiting.popleft()
        self.running.append(sequence)
        prefix.adopt(sequence, found)
        sequence.blocks += pool.allocate(needed)
        return True

    def _decodes(self, pool: BlockPool, prefix: PrefixCache) -> list[Work]:
        """Every running sequence with one pending token, with a block for it."""
        works: list[Work] = []
        index = 0
        while index < len(self.running):
            sequence = self.running[index]
            index += 1
            if sequence.num_pending != 1 or not sequence.num_computed or sequence.is_scoring:
                continue
            if len(sequence.blocks) * self._block_size <= sequence.num_computed:
                while not pool.num_free and self.running[-1] is not sequence:
                    self._preempt(self.running[-1])
                if not pool.num_free:
                    self._preempt(sequence)
                    break
                sequence.blocks += pool.allocate(1)
            if (sequence.num_computed + 1) % self._block_size == 0:
                prefix.offer(sequence, 1)
            works.append(Work(sequence, 1))
        return works

    def _drop_passed(self, sequence: Sequence, pool: BlockPool) -> None:
        """Give back the blocks that no layer's window reaches from the next token on."""
        if self._window is None:
            return
        passed = max(0, sequence.num_computed - self._window + 1) // self._block_size
        for index in range(sequence.num_dropped, passed):
            pool.release([sequence.blocks[index]])
            sequence.blocks[index] = GONE
        sequence.num_dropped = max(sequence.num_dropped, passed)

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._release(sequence)
        self.waiting.appendleft(sequence)
        self.num_preemptions += 1

    def _release(self, sequence: Sequence) -> None:
        if self._pool is not None:
            self._pool.release(sequence.blocks[sequence.num_dropped :])
        sequence.blocks = []
        sequence.num_computed = sequence.num_shared = sequence.num_offered = sequence.num_dropped = 0

    def _whole_sequences(self) -> list[Work]:
        """Without a cache: whole sequences in turn, as many as the token budget holds (one at least)."""
        while self.waiting and len(self.running) < self._max_batch:
            self.running.append(self.waiting.popleft())
        works: list[Work] = []
        budget = self._token_budget
        for sequence in self.running:
            if works and sequence.num_pending > budget:
                break
            works.append(Work(sequence, sequence.num_pending))
            budget -= sequence.num_pending
        self.running = self.running[len(works) :] + self.running[: len(works)]
        return works

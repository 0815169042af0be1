"""Who computes what in the next step: continuous batching over a block pool.

Sequences that decode go first, one token each; then prefills continue, then waiting sequences are admitted in order of
arrival, as far as blocks and the token budget reach. When a decoding sequence finds no free block, the latest arrival
gives all its blocks back and is computed anew later (preemption by recompute).
"""

from __future__ import annotations

from collections import deque

from distill.engine.batch import Work
from distill.engine.kv_cache import BlockPool, blocks_for
from distill.engine.sequence import Sequence


class Scheduler:
    """Owns the queues and the blocks; knows nothing of tensors."""

    def __init__(
        self, pool: BlockPool | None, *, block_size: int, max_batch: int, token_budget: int, score_rows: int
    ) -> None:
        self._pool = pool  # None: no cache, every step computes whole sequences
        self._block_size = block_size
        self._max_batch = max_batch
        self._token_budget = token_budget
        self._score_rows = score_rows  # positions whose logits scoring may hold at once
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
        if self._pool is None:
            return self._whole_sequences()
        preemptions = self.num_preemptions
        decodes = self._decodes(self._pool)
        budget, score_rows = self._token_budget, self._score_rows
        prefills: list[Work] = []
        for sequence in self.running:
            if sequence.num_pending > 1 or not sequence.num_computed or sequence.is_scoring:
                count = self._chunk(sequence, budget, score_rows)
                if count:
                    prefills.append(Work(sequence, count))
                    budget -= count
                    score_rows -= count if sequence.is_scoring else 0
        if preemptions == self.num_preemptions:
            while self.waiting and len(self.running) < self._max_batch:
                sequence = self.waiting[0]
                count = self._chunk(sequence, budget, score_rows)
                # with room for the token it will sample, or the next step might throw it out again
                needed = blocks_for(len(sequence.token_ids) + sequence.samples, self._block_size)
                if not count or needed > self._pool.num_free:
                    break
                self.waiting.popleft()
                self.running.append(sequence)
                sequence.blocks = self._pool.allocate(needed)
                prefills.append(Work(sequence, count))
                budget -= count
                score_rows -= count if sequence.is_scoring else 0
        # a chunk of one token after a context is a decode to the batch
        single = [work for work in prefills if work.is_decode]
        return decodes + single + [work for work in prefills if not work.is_decode]

    def _chunk(self, sequence: Sequence, budget: int, score_rows: int) -> int:
        """How many pending tokens of the sequence fit into the step."""
        count = min(sequence.num_pending, budget)
        return min(count, score_rows) if sequence.is_scoring else count

    def _decodes(self, pool: BlockPool) -> list[Work]:
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
            works.append(Work(sequence, 1))
        return works

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._release(sequence)
        sequence.num_computed = 0
        self.waiting.appendleft(sequence)
        self.num_preemptions += 1

    def _release(self, sequence: Sequence) -> None:
        if self._pool is not None:
            self._pool.release(sequence.blocks)
        sequence.blocks = []

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

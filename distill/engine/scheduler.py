"""Who computes what in the next step: continuous batching over a block pool.

Sequences that decode go first, one token each; then prefills continue, then waiting sequences are admitted in order of
arrival, as far as blocks and the token budget reach. When a decoding sequence finds no free block, the latest arrival
gives all its blocks back and is computed anew later (preemption by recompute), except for what the prefix cache still
has of it. A prompt whose next chunk finds no blocks for the layers with a sliding window waits until others are done.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from distill.engine.batch import Work
from distill.engine.paging.block_tables import BlockTables
from distill.engine.paging.prefix import PrefixCache
from distill.engine.sequence import Sequence


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
        tables: BlockTables | None,
        prefix: PrefixCache | None,
        *,
        block_size: int,
        max_batch: int,
        token_budget: int,
        score_rows: int,
    ) -> None:
        self._tables = tables  # None: no cache, every step computes whole sequences
        self._prefix = prefix
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
        """The next step, decoding sequences first; empty iff there is nothing to do, or only once a step under way is
        over."""
        if self._tables is None or self._prefix is None:
            return self._whole_sequences()
        for sequence in self.running:
            self._tables.drop_passed(sequence)
        works = self._next(self._tables, self._prefix)
        while not works and self.running and not any(sequence.num_unknown for sequence in self.running):
            self._preempt(self.running[-1])  # nobody has blocks for his next chunk
            works = self._next(self._tables, self._prefix, admits=False)
        return works

    def _next(self, tables: BlockTables, prefix: PrefixCache, *, admits: bool = True) -> list[Work]:
        """Decodes, prefills under way, and those of waiting sequences where nobody lacks blocks."""
        preemptions = self.num_preemptions
        decodes = self._decodes(tables, prefix)
        room = _Room(self._token_budget, self._score_rows)
        prefills: list[Work] = []
        for sequence in self.running:
            if not sequence.decodes:
                admits &= self._prefill(sequence, room, tables, prefix, prefills)
        if admits and preemptions == self.num_preemptions:
            while self.waiting and len(self.running) < self._max_batch and room.chunk(self.waiting[0]):
                sequence = self.waiting[0]
                if not self._admit(sequence, tables, prefix):
                    break
                self._prefill(sequence, room, tables, prefix, prefills)
        # a chunk of one token after a context is a decode to the batch
        single = [work for work in prefills if work.is_decode]
        return decodes + single + [work for work in prefills if not work.is_decode]

    def _prefill(
        self, sequence: Sequence, room: _Room, tables: BlockTables, prefix: PrefixCache, works: list[Work]
    ) -> bool:
        """As many pending tokens of the sequence as fit; whoever is admitted next finds their blocks. False where
        blocks were missing."""
        wanted = room.chunk(sequence)
        samples = sequence.samples and wanted == sequence.num_pending
        reach = tables.reach(sequence, sequence.num_computed + wanted + samples)
        count = min(wanted, reach - sequence.num_computed)
        if count > 0:
            tables.grow(sequence, reach)
            prefix.offer(sequence, count)
            works.append(Work(sequence, count))
            room.take(sequence, count)
        return count == wanted

    def _admit(self, sequence: Sequence, tables: BlockTables, prefix: PrefixCache) -> bool:
        """Give the first waiting sequence its blocks, if there are enough."""
        found = prefix.find(sequence)
        if not tables.can_begin(sequence, found):
            return False
        self.waiting.popleft()
        self.running.append(sequence)
        prefix.adopt(sequence, found)
        tables.begin(sequence)
        return True

    def _decodes(self, tables: BlockTables, prefix: PrefixCache) -> list[Work]:
        """Every running sequence with one pending token, with a block for it."""
        works: list[Work] = []
        index = 0
        while index < len(self.running):
            sequence = self.running[index]
            index += 1
            if not sequence.decodes or len(sequence.token_ids) >= sequence.max_length:
                continue  # where the last token is sampled, though not known yet, nothing is left to do
            missing = tables.num_missing(sequence, sequence.num_computed + 1)
            if missing:
                while missing > tables.pool.num_free and self.running[-1] is not sequence:
                    self._preempt(self.running[-1])
                if missing > tables.pool.num_free:
                    self._preempt(sequence)
                    break
                tables.grow(sequence, sequence.num_computed + 1)
            if (sequence.num_computed + 1) % self._block_size == 0:
                prefix.offer(sequence, 1)
            works.append(Work(sequence, 1))
        return works

    def restart(self) -> None:
        """Compute all running sequences anew: what was computed last is not there."""
        for sequence in self.running[::-1]:
            self._preempt(sequence)

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._release(sequence)
        self.waiting.appendleft(sequence)
        self.num_preemptions += 1

    def _release(self, sequence: Sequence) -> None:
        if self._tables is not None:
            self._tables.release(sequence)

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

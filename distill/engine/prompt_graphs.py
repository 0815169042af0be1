"""Steps that compute a few short prompts as CUDA graphs, one for each of some numbers of tokens.

Launched from Python a short prompt takes as long as its launches. A graph has room for `MOST_PROMPTS` sequences; its
tokens that a step does not need are one sequence more, in the block that nobody owns. It is captured when its number of
tokens comes up for the second time: what comes once is not worth three times its launches.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import PreTrainedModel

from distill.engine.batch import PackedBatch, Placement, Work
from distill.engine.buffers import Buffer
from distill.engine.captures import Forward, captured, weight_addresses
from distill.engine.kv_cache import PagedKVCache, blocks_for
from distill.engine.tables import KernelTables

if TYPE_CHECKING:
    from torch.cuda import _POOL_HANDLE as Pool

_LOG = logging.getLogger(__name__)
MOST_PROMPTS = 8
MOST_TOKENS = 1024  # beyond, the device is slower than Python


def token_buckets(most: int) -> list[int]:
    """Multiples of 16 up to 256, of 32 up to 512, of 64 beyond, and the largest itself: of more than 128 tokens at most
    an eighth are computed in vain."""
    sizes = [*range(16, 256, 16), *range(256, 512, 32), *range(512, most, 64)]
    return [size for size in sizes if size < most] + [most]


class PromptGraphs:
    """Computes steps of at most `MOST_PROMPTS` sequences, each to its last token. Their likeliest tokens go to `tokens`
    [at least as many], by row."""

    def __init__(
        self,
        model: PreTrainedModel,
        forward: Forward,
        cache: PagedKVCache,
        tokens: torch.Tensor,
        *,
        max_length: int,
        most_tokens: int,
        pool: Pool | None,
    ) -> None:
        self._model = model
        self._compute = forward
        self._cache = cache
        self._spare = cache.num_blocks - 1
        self._prompts = min(MOST_PROMPTS, len(tokens))
        self._tokens = tokens[: self._prompts]
        self._most = min(MOST_TOKENS, most_tokens)
        self._buckets = token_buckets(self._most)
        # of a sequence at most, that of the tokens which are not needed included
        self._blocks = blocks_for(max(max_length, self._most), cache.block_size)
        device: torch.device = model.device
        rows = self._prompts + 1  # the last is what is not needed
        sizes = [3 * self._most, 3 * rows, self._prompts, (rows * self._blocks + 1) // 2]
        self._inputs = Buffer(torch.int64, device, sum(sizes))
        fields, spans, self._last, tables = self._inputs.there.split(sizes)
        self._fields = fields.view(3, self._most)  # tokens, positions, slots
        self._spans = spans.view(3, rows)  # first token, tokens, tokens before them in the cache
        self._tables = tables.view(torch.int32)[: rows * self._blocks].view(rows, self._blocks)
        self._logits: torch.Tensor | None = None
        self._met: Counter[int] = Counter()
        self._replays: dict[int, Callable[[], None]] = {}
        self._pool = pool
        self._addresses: list[int] = []  # of the weights, when something was captured last
        self.failure: str | None = None
        self.capture_seconds = 0.0

    @property
    def num_captured(self) -> int:
        return len(self._replays)

    def check_weights(self) -> None:
        """Forget what was captured where the weights are not where they were."""
        if self._replays and weight_addresses(self._model) != self._addresses:
            self._replays.clear()
            self.failure = None

    def takes(self, works: list[Work]) -> bool:
        """Whether there is a graph for these, or it is time to capture one."""
        count = sum(work.num_tokens for work in works)
        if self.failure is not None or len(works) > self._prompts or count > self._most or works[0].is_decode:
            return False
        if not all(w.samples and not w.sequence.is_scoring and not w.sequence.num_unknown for w in works):
            return False
        bucket = self._bucket(count)
        self._met[bucket] += 1
        return self._met[bucket] > 1

    @torch.inference_mode()
    def compute(self, works: list[Work]) -> torch.Tensor | None:
        """Logits of the works' last tokens, [works, vocabulary], valid until the next step; None where nothing can be
        captured."""
        bucket = self._bucket(sum(work.num_tokens for work in works))
        if bucket not in self._replays:
            self._capture(bucket)
        if self.failure is not None:
            return None
        self._fill(works, bucket)
        self._replays[bucket]()
        assert self._logits is not None
        return self._logits[: len(works)]

    def _bucket(self, count: int) -> int:
        return next(bucket for bucket in self._buckets if bucket >= count)

    def _fill(self, works: list[Work], bucket: int) -> None:
        """Write a step's inputs. Tokens whose block another sequence has filled are kept where nobody reads."""
        size, rows = self._cache.block_size, self._prompts + 1
        fields = np.zeros((3, self._most), dtype=np.int64)
        spans, last = np.zeros((3, rows), dtype=np.int64), np.zeros(self._prompts, dtype=np.int64)
        tables = np.full((rows * self._blocks + 1) // 2 * 2, self._spare, dtype=np.int32)
        end = 0
        for row, work in enumerate(works):
            sequence, first, count = work.sequence, work.sequence.num_computed, work.num_tokens
            table = np.array(sequence.tables[0][: blocks_for(first + count, size)], dtype=np.int32)
            tables[row * self._blocks :][: len(table)] = table
            positions = np.arange(first, first + count)
            slots = table[positions // size].astype(np.int64) * size + positions % size
            slots[: max(0, sequence.num_shared - first)] = self._spare * size
            start, end = end, end + count
            fields[:, start:end] = sequence.token_ids[first : first + count], positions, slots
            spans[:, row] = start, count, first
            last[row] = end - 1
        spans[:, -1] = end, bucket - end, 0
        fields[2, end:bucket] = self._spare * size + np.arange(bucket - end) % size
        self._inputs.put(np.concatenate((fields.ravel(), spans.ravel(), last, tables.view(np.int64))))

    def _capture(self, bucket: int) -> None:
        if self._pool is None:
            self._replays[bucket] = lambda: self._forward(bucket)
            self._addresses = weight_addresses(self._model)
            return
        started = time.perf_counter()
        tokens = self._tokens.clone()
        self._fill([], bucket)
        try:
            self._replays[bucket] = captured(lambda: self._forward(bucket), self._pool)
        except RuntimeError as error:
            self.failure = str(error).splitlines()[0]
            _LOG.warning("prompts without CUDA graphs: %s", self.failure)
        self._tokens.copy_(tokens)
        self._addresses = weight_addresses(self._model)
        self.capture_seconds += time.perf_counter() - started

    def _forward(self, bucket: int) -> None:
        """One step on the fixed inputs: logits and likeliest tokens of the sequences' last tokens."""
        ids, positions, slots = (field[:bucket] for field in self._fields)
        starts, lengths, contexts = self._spans
        known = KernelTables(None, (self._tables, (starts, lengths, contexts), bucket))
        batch = PackedBatch(
            input_ids=ids.unsqueeze(0),
            position_ids=positions.unsqueeze(0),
            num_decode=0,
            placements=[Placement([], slots=slots, tables=known)],
            cache=self._cache,
        )
        logits = self._compute(batch, self._last)
        if self._logits is None:
            self._logits = torch.empty_like(logits)
        self._logits.copy_(logits)
        torch.argmax(logits, dim=-1, out=self._tokens)

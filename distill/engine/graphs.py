"""Decode steps as CUDA graphs: captured once for each of a few batch sizes, replayed without waiting for the device.

What is captured is the forward pass of every other step (`probe.forward`), on inputs at fixed addresses; the likeliest
token of each row is part of it. Rows that a step does not need are sequences of one token in a block that nobody owns.
Without a GPU a "replay" computes the same thing on the same inputs, which is what tests there run. Steps of short
prompts alone are left to `prompt_graphs.py`.

Inputs travel as one array of int64: for each row its token, where the token stands (there, or in a row of the step
before, whose tokens only the device knows), position, length and slot; then the width of the block tables, and the
tables as pairs of int32.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import numpy as np
import torch
from transformers import PreTrainedModel

from distill.engine.batch import PackedBatch, Placement, Work
from distill.engine.buffers import Buffer
from distill.engine.captures import Forward, captured, weight_addresses
from distill.engine.kv_cache import PagedKVCache, blocks_for
from distill.engine.prompt_graphs import PromptGraphs
from distill.engine.tables import KernelTables
from distill.engine.types import EngineConfig

_LOG = logging.getLogger(__name__)
_FIELDS = 5


def batch_buckets(max_batch: int) -> list[int]:
    """1, 2, 4, 8, then steps of 8 up to 64, of 16 up to 128 and of 32 beyond, and the largest batch itself."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 128, 16), *range(128, max_batch, 32)]
    return [size for size in sizes if size < max_batch] + [max_batch]


class DecodeGraphs:
    """Computes steps in which every sequence decodes, or by `prompts` those of short prompts alone. `tokens` are the
    likeliest tokens of the last step's rows, [max_batch]; whoever samples others writes them there, as the next step
    may read them."""

    def __init__(
        self,
        model: PreTrainedModel,
        forward: Forward,
        cache: PagedKVCache,
        config: EngineConfig,
        *,
        max_length: int,
    ) -> None:
        max_batch = config.max_batch
        self._model = model
        self._compute = forward
        self._cache = cache
        self._spare = cache.num_blocks - 1  # the block of the rows that are not needed
        self._capacity = max_batch
        self._buckets = batch_buckets(max_batch)
        self._blocks = blocks_for(max_length, cache.block_size)  # of a row, at most
        device: torch.device = model.device
        fields = _FIELDS * max_batch
        buffer = Buffer(torch.int64, device, fields + 1 + (max_batch * self._blocks + 1) // 2, before=max_batch)
        self._inputs = buffer
        self.tokens = buffer.whole[:max_batch]
        self._known = buffer.whole[: 2 * max_batch]  # the tokens of the last step, then those that came from the host
        _, *self._fields = buffer.there[:fields].view(_FIELDS, max_batch)
        self._width = buffer.there[fields : fields + 1]
        self._tables = buffer.there[fields + 1 :].view(torch.int32)
        self._arrived = torch.zeros(max_batch * cache.most_kv_heads, dtype=torch.int32, device=device)
        self._logits: torch.Tensor | None = None  # [max_batch, vocabulary]
        self._host = np.zeros((_FIELDS, max_batch), dtype=np.int64)
        self._rows = np.full((max_batch, self._blocks), self._spare, dtype=np.int32)
        self._owners: list[list[int] | None] = [None] * max_batch  # the block table that a row was copied from
        self._filled = np.zeros(max_batch, dtype=np.int64)
        self._replays: dict[int, Callable[[], None]] = {}
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        self._addresses: list[int] = []  # of the weights, when something was captured last
        self.failure: str | None = None  # why nothing can be captured
        self.capture_seconds = 0.0
        limits = {"max_length": max_length, "most_tokens": config.prefill_tokens}
        self.prompts = PromptGraphs(model, forward, cache, self.tokens, **limits, pool=self._pool)

    @property
    def num_captured(self) -> int:
        return len(self._replays)

    def takes(self, works: list[Work]) -> bool:
        """Whether all of these decode, and want the logits of their one token; or `prompts` takes them."""
        if not works[-1].is_decode:
            return self.prompts.takes(works)
        if self.failure is not None or len(works) > self._capacity:
            return False
        return all(work.samples and not work.sequence.is_scoring for work in works)

    @torch.inference_mode()
    def capture(self, sizes: list[int] | None = None) -> None:
        """Capture what is missing of these batch sizes, or of all."""
        for size in sorted({self._bucket(size) for size in sizes or self._buckets}, reverse=True):
            if size not in self._replays and self.failure is None:
                self._capture(size)

    def check_weights(self) -> None:
        """Capture anew where the weights are not where they were. Values that change in place are read as they are."""
        if weight_addresses(self._model) != self._addresses:
            self._replays.clear()
            self.failure = None
        self.prompts.check_weights()

    def compute(self, works: list[Work]) -> torch.Tensor | None:
        """Logits of the works' tokens, [works, vocabulary], valid until the next step; None where nothing can be
        captured."""
        if not works[-1].is_decode:
            return self.prompts.compute(works)
        bucket = self._bucket(len(works))
        self.capture([bucket])
        if self.failure is not None:
            return None
        self._fill(works, bucket)
        self._replays[bucket]()
        assert self._logits is not None
        return self._logits[: len(works)]

    def _bucket(self, size: int) -> int:
        return next(bucket for bucket in self._buckets if bucket >= size)

    def _fill(self, works: list[Work], bucket: int) -> None:
        """Write a step's inputs, those of unneeded rows included."""
        count, size, host = len(works), self._cache.block_size, self._host
        for row, work in enumerate(works):
            table = work.sequence.tables[0]
            if self._owners[row] is not table or self._filled[row] != len(table):
                self._owners[row] = table
                self._filled[row] = len(table)
                self._rows[row, : len(table)] = table
        ids, source, positions, lengths, slots = host
        ids[:count] = [work.sequence.token_ids[-1] for work in works]
        known = [work.sequence.num_unknown == 0 for work in works]
        rows = [work.sequence.row for work in works]
        source[:count] = np.where(known, np.arange(self._capacity, self._capacity + count), rows)
        positions[:count] = [work.sequence.num_computed for work in works]
        blocks = self._rows[np.arange(count), positions[:count] // size].astype(np.int64)
        slots[:count] = blocks * size + positions[:count] % size
        ids[count:bucket], source[count:bucket], positions[count:bucket] = 0, self._capacity + count, 0
        slots[count:bucket] = self._spare * size
        lengths[:bucket] = positions[:bucket] + 1
        for row in range(count, bucket):
            if self._owners[row] is not None or not self._filled[row]:
                self._owners[row], self._filled[row] = None, 1
                self._rows[row, 0] = self._spare
        width = int(self._filled[:bucket].max())
        tables = np.zeros((bucket * width + 1) // 2 * 2, dtype=np.int32)
        tables[: bucket * width] = self._rows[:bucket, :width].ravel()
        self._inputs.put(np.concatenate((host.ravel(), np.array([width]), tables.view(np.int64))))

    def _capture(self, bucket: int) -> None:
        if self._pool is None:
            self._replays[bucket] = lambda: self._forward(bucket)
            self._addresses = weight_addresses(self._model)
            return
        started = time.perf_counter()
        tokens = self.tokens.clone()
        self._fill([], bucket)
        try:
            self._replays[bucket] = captured(lambda: self._forward(bucket), self._pool)
        except RuntimeError as error:  # an operation that waits for the device, as of some mixtures of experts
            self.failure = str(error).splitlines()[0]
            _LOG.warning("decode without CUDA graphs: %s", self.failure)
        self.tokens.copy_(tokens)
        self._addresses = weight_addresses(self._model)
        self.capture_seconds += time.perf_counter() - started

    def _forward(self, bucket: int) -> None:
        """One step on the fixed inputs: its logits and its likeliest tokens."""
        source, positions, lengths, slots = (field[:bucket] for field in self._fields)
        tables = self._tables[: bucket * self._blocks]
        known = KernelTables((tables, lengths), None, self._width, self._arrived)
        placement = Placement([], slots=slots, tables=known)
        batch = PackedBatch(
            input_ids=self._known.index_select(0, source).unsqueeze(0),
            position_ids=positions.unsqueeze(0),
            num_decode=bucket,
            placements=[placement],
            cache=self._cache,
        )
        logits = self._compute(batch, None)
        if self._logits is None:
            self._logits = logits.new_empty(self._capacity, logits.shape[-1])
        self._logits[:bucket].copy_(logits)
        torch.argmax(logits, dim=-1, out=self.tokens[:bucket])

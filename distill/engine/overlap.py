"""The next step is launched while the present one runs, whose tokens are read a step late.

Until then a sequence ends with PENDING tokens, which count as tokens to whoever schedules. Of ends only the sampled
ones (EOS, stop strings) come late: the token computed after them is thrown away, and what it wrote lies in blocks that
nobody reads before they are written anew, as a device works its steps off in order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from distill.engine.batch import PackedBatch, Work
from distill.engine.buffers import StepBuffers
from distill.engine.sequence import PENDING, Sequence


@dataclass(frozen=True)
class Launched:
    """A step under way."""

    sequences: list[Sequence]  # those that sample, in the order of their rows
    lengths: list[int]  # of each, its tokens before the sampled one
    tokens: torch.Tensor  # on the host, once `ready`
    ready: torch.cuda.Event | None
    num_decode: int  # tokens computed
    num_prefill: int
    started: float  # time.perf_counter()

    def read(self) -> list[tuple[Sequence, int, int]]:
        """Each sequence, its length and its token; waits for the device."""
        if self.ready is not None:
            self.ready.synchronize()
        return list(zip(self.sequences, self.lengths, self.tokens.tolist(), strict=True))


class Relay:
    """The tokens of the last step on the device, by row, and their way to the host."""

    def __init__(self, tokens: torch.Tensor) -> None:
        self.tokens = tokens  # [max_batch]
        on_gpu = tokens.device.type == "cuda"
        self._copies = [torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=on_gpu) for _ in range(2)]
        self._events = [torch.cuda.Event() if on_gpu else None for _ in range(2)]

    def complete(self, batch: PackedBatch, works: list[Work], buffers: StepBuffers) -> None:
        """Put the tokens that the host does not know into a batch. They are those of decoding sequences, which are a
        batch's first."""
        rows = [(at, work.sequence.row) for at, work in enumerate(works) if work.sequence.num_unknown]
        if rows:
            at, source = buffers.put("unknown tokens", np.array(rows, dtype=np.int64).T)
            batch.input_ids[0].index_copy_(0, at, self.tokens.index_select(0, source))

    def send(
        self, works: list[Work], sequences: list[Sequence], tokens: torch.Tensor | None, started: float
    ) -> Launched:
        """Let the sampled tokens (None: they are in place already) be those of these sequences of the works."""
        if tokens is not None:
            self.tokens[: len(sequences)].copy_(tokens)
        self._copies.reverse()
        self._events.reverse()
        copy, event = self._copies[0][: len(sequences)], self._events[0]
        copy.copy_(self.tokens[: len(sequences)], non_blocking=True)
        if event is not None:
            event.record()
        num_decode = sum(work.is_decode for work in works)
        num_prefill = sum(work.num_tokens for work in works) - num_decode
        lengths = [len(sequence.token_ids) for sequence in sequences]
        return Launched(sequences, lengths, copy, event, num_decode, num_prefill, started)


def expect_tokens(sequences: list[Sequence]) -> None:
    """Let each sequence that samples in a step have its token, unknown as yet."""
    for row, sequence in enumerate(sequences):
        sequence.token_ids.append(PENDING)
        sequence.num_unknown += 1
        sequence.row = row


def rewind(sequence: Sequence) -> None:
    """Forget tokens that will not come."""
    if sequence.num_unknown:
        del sequence.token_ids[-sequence.num_unknown :]
        sequence.num_unknown = 0

"""Stored distributions of a batch: the rows' bytes laid side by side on the CPU, read where the loss wants them.

Legend: N tokens of all rows, E entries. The forms are those of `distill.teacher.forms`, `top_k_form` and `tail_draws`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from distill.objectives.sparse import SparseTargets
from distill.teacher.forms import ENTROPY_STEPS
from distill.teacher.stored import About, Record
from distill.teacher.tail_draws import parts_of
from distill.teacher.top_k_form import TAIL_NATS, TAIL_STEPS
from distill.train.set_bytes import Act, SetBytes, lay_sets


class Packed(Protocol):
    """Rows as they were written."""

    def map(self, act: Act) -> Packed:
        """The same with `act` done to its tensors: pinned, or on a device."""

    def targets(self) -> SparseTargets:
        """What they say, where they are."""


@dataclass(frozen=True)
class PackedSamples:
    """Sampled ids. `entropy_N` float32."""

    rows: int
    sets: SetBytes
    entropy_N: Tensor
    draws: int

    def map(self, act: Act) -> PackedSamples:
        """As in `Packed`."""
        return replace(self, sets=self.sets.map(act), entropy_N=act(self.entropy_N))

    def targets(self) -> SparseTargets:
        """As in `Packed`; each token's entries by id."""
        ids, more = self.sets.read()
        logprobs = torch.log((more + 1).float() / self.draws)
        return SparseTargets(self.rows, self.sets.offsets, ids, logprobs, entropy_N=self.entropy_N)


@dataclass(frozen=True)
class PackedTop:
    """Top k. `log_tail_N` float32."""

    rows: int
    sets: SetBytes
    log_tail_N: Tensor
    step_nats: float

    def map(self, act: Act) -> PackedTop:
        """As in `Packed`."""
        return replace(self, sets=self.sets.map(act), log_tail_N=act(self.log_tail_N))

    def targets(self) -> SparseTargets:
        """As in `Packed`; each token's entries by id, scaled so that they and the tail sum to 1."""
        token_E = self.sets.token_E
        ids, levels = self.sets.read()
        largest = self.sets.reduce(levels.float(), "max")
        nats = self.step_nats * (levels - largest.index_select(0, token_E)).double()
        left = -torch.expm1(self.log_tail_N.double().clamp(max=-1e-9))
        shift = torch.log(left / self.sets.reduce(nats.exp(), "sum").clamp_min(1e-30))
        logprobs = (shift.index_select(0, token_E) + nats).float()
        return SparseTargets(self.rows, self.sets.offsets, ids, logprobs, log_tail_N=self.log_tail_N)


@dataclass(frozen=True)
class PackedDraws:
    """Top k, and ids drawn from the tail."""

    top: PackedTop
    drawn: PackedSamples

    def map(self, act: Act) -> PackedDraws:
        """As in `Packed`."""
        return PackedDraws(self.top.map(act), self.drawn.map(act))

    def targets(self) -> SparseTargets:
        """As in `Packed`, as samples of the whole distribution: each token's kept ids, then those drawn.

        The draws share out the tail's mass; a token without any keeps what it has and has no more.
        """
        top, drawn = self.top.targets(), self.drawn.targets()
        assert top.log_tail_N is not None
        drawn_mass = self.drawn.sets.reduce(drawn.logprobs_E.exp(), "sum")
        share_N = top.log_tail_N - drawn_mass.clamp_min(1e-30).log()
        after_top, after_drawn = self.top.sets.places(drawn.offsets[:-1]), self.drawn.sets.places(top.offsets[1:])
        ids = torch.empty(len(after_top) + len(after_drawn), dtype=torch.long, device=top.ids_E.device)
        logprobs = torch.empty_like(ids, dtype=torch.float32)
        ids[after_top], logprobs[after_top] = top.ids_E, top.logprobs_E
        shared = share_N.index_select(0, self.drawn.sets.token_E) + drawn.logprobs_E
        ids[after_drawn], logprobs[after_drawn] = drawn.ids_E, shared
        return SparseTargets(top.rows, top.offsets + drawn.offsets, ids, logprobs, entropy_N=drawn.entropy_N)


def lay(records: Sequence[Record], about: About, *, tail_draws: bool = False) -> Packed:
    """A batch's rows. `tail_draws`: whether ids drawn from the tail of a top k are taken, where there are any."""
    parts, tokens = [record.packed for record in records], [record.tokens for record in records]
    rows = about.fingerprint.vocabulary
    if about.form == "sampled":
        return _lay_samples(parts, tokens, rows, about.draws)
    if not about.draws:
        return _lay_top(parts, tokens, rows, about.step_nats)
    kept, drawn = zip(*map(parts_of, parts), strict=True)
    top = _lay_top(kept, tokens, rows, about.step_nats)
    return PackedDraws(top, _lay_samples(drawn, tokens, rows, about.draws)) if tail_draws else top


def _lay_samples(parts: Sequence[bytes], tokens_B: Sequence[int], rows: int, draws: int) -> PackedSamples:
    sets, shares_N = _laid(parts, tokens_B, rows, "u1")
    return PackedSamples(rows, sets, shares_N * (math.log(rows) / ENTROPY_STEPS), draws)


def _lay_top(parts: Sequence[bytes], tokens_B: Sequence[int], rows: int, step_nats: float) -> PackedTop:
    sets, tails_N = _laid(parts, tokens_B, rows, "<u2")
    return PackedTop(rows, sets, tails_N * (-TAIL_NATS / TAIL_STEPS), step_nats)


def _laid(parts: Sequence[bytes], tokens_B: Sequence[int], rows: int, dtype: str) -> tuple[SetBytes, Tensor]:
    """Both forms: counts u8[T], a number for each token, sets. The numbers as float32 [N]."""
    sized = list(zip(parts, tokens_B, strict=True))
    counts = np.concatenate([np.frombuffer(part, np.uint8, tokens) for part, tokens in sized])
    numbers = np.concatenate([np.frombuffer(part, dtype, tokens, offset=tokens) for part, tokens in sized])
    head = 1 + np.dtype(dtype).itemsize
    sets = lay_sets([part[head * tokens :] for part, tokens in sized], counts.astype(np.int64), tokens_B, rows)
    return sets, torch.from_numpy(numbers.astype(np.float32))

"""Speculative decoding: a draft model guesses, the target checks all guesses of a sequence in one forward pass."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distill.engine.batch import Work
from distill.engine.kv_cache import blocks_for
from distill.engine.paging.block_tables import BlockTables
from distill.engine.paging.prefix import PrefixCache
from distill.engine.sequence import Sequence
from distill.engine.speculative.draft import Drafter
from distill.engine.speculative.verify import Proposal, Verdict, verify
from distill.engine.types import EngineStats
from distill.errors import EngineError


@dataclass(frozen=True)
class Draft:
    """The model that guesses, and how many tokens it guesses at a time."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    num_tokens: int = 4

    def __post_init__(self) -> None:
        if self.num_tokens < 1:
            raise EngineError(f"draft: {self.num_tokens} tokens at a time", remedy="give a number of at least 1")


def check_place(*, has_team: bool, has_cache: bool) -> None:
    """What a draft needs of an engine."""
    if has_team:
        raise EngineError("several processes cannot share a draft", remedy="serve without one of the two")
    if not has_cache:
        raise EngineError("a draft needs the KV cache", remedy="leave use_kv_cache on, or the draft out")


def check_pair(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, draft: Draft) -> None:
    """A draft must mean by every token id what its target means by it. Vocabularies may be padded differently."""
    names = f"the draft {_name(draft.model)} cannot guess for {_name(model)}"
    remedy = "use a draft with the target's tokenizer"
    if model.device != draft.model.device:
        raise EngineError(f"{names}: they are on {draft.model.device} and {model.device}", remedy="put them on one")
    if tokenizer is None or draft.tokenizer is None:
        ours, theirs = (int(m.config.get_text_config().vocab_size) for m in (model, draft.model))
        if ours != theirs:
            raise EngineError(f"{names}: its vocabulary has {theirs} tokens, the target's {ours}", remedy=remedy)
        return
    own, other = tokenizer.get_vocab(), draft.tokenizer.get_vocab()
    if len(own) != len(other):
        raise EngineError(f"{names}: its tokenizer has {len(other)} tokens, the target's {len(own)}", remedy=remedy)
    for token, index in own.items():
        if other.get(token) != index:
            meant = other.get(token, "no token")
            raise EngineError(f"{names}: {token!r} is token {index} of the target and {meant} of it", remedy=remedy)


def _name(model: PreTrainedModel) -> str:
    return str(model.config.name_or_path or type(model).__name__)


class Speculation:
    """Adds guesses to the sequences that decode in a step, and takes back those that did not stand: afterwards both
    caches hold the blocks that decoding without a draft would hold."""

    def __init__(
        self, drafter: Drafter, tables: BlockTables, prefix: PrefixCache, *, block_size: int, num_tokens: int
    ) -> None:
        self.drafter = drafter
        self._tables = tables
        self._prefix = prefix
        self._block_size = block_size
        self._num_tokens = num_tokens
        self._open: dict[str, tuple[Proposal, list[int]]] = {}  # guesses of this step, and blocks held before them

    def extend(self, works: list[Work], stats: EngineStats) -> list[Work]:
        """The works with guesses as further tokens; single tokens stay first."""
        started = time.perf_counter()
        # a grammar says what may follow token by token: no guesses there
        able = [w.sequence for w in works if w.is_decode and w.samples and w.sequence.num_output]
        sequences = [sequence for sequence in able if sequence.progress is None]
        held = [[len(table) for table in sequence.tables] for sequence in sequences]
        counts = [self._reserve(sequence) for sequence in sequences]
        proposals = self.drafter.propose(sequences, counts)
        self._open = {}
        for sequence, proposal, before in zip(sequences, proposals, held, strict=True):
            if proposal.tokens:
                sequence.token_ids += proposal.tokens
                self._open[sequence.request_id] = proposal, before
            self._trim(sequence, before, len(sequence.token_ids))
        stats.draft_seconds += time.perf_counter() - started
        plain = [work for work in works if work.sequence.request_id not in self._open]
        drafted = [
            Work(s, 1 + len(p.tokens), len(p.tokens)) for s, p in zip(sequences, proposals, strict=True) if p.tokens
        ]
        num_single = sum(work.is_decode for work in plain)
        return plain[:num_single] + drafted + plain[num_single:]

    def settle(self, works: list[Work], logits: torch.Tensor, stats: EngineStats) -> list[Verdict]:
        """What the sampling works of a step yield, from their rows of logits. Guesses leave the sequences again: the
        caller appends what stands."""
        proposals = [self._open[w.sequence.request_id][0] if w.num_draft else Proposal() for w in works]
        verdicts = verify(logits, [w.sequence for w in works], proposals)
        for work, proposal, verdict in zip(works, proposals, verdicts, strict=True):
            if not proposal.tokens:
                continue
            sequence, rejected = work.sequence, len(proposal.tokens) - verdict.num_accepted
            sequence.num_computed -= rejected
            self._prefix.offer(sequence, 0)  # while its tokens are all there
            certain = len(sequence.token_ids) - rejected
            del sequence.token_ids[-len(proposal.tokens) :]
            _, before = self._open[sequence.request_id]
            self._trim(sequence, before, sequence.num_computed)
            self.drafter.keep(sequence.request_id, certain)
            stats.verifications += 1
            stats.draft_tokens += len(proposal.tokens)
            stats.accepted_tokens += verdict.num_accepted
        return verdicts

    def drop(self, request_id: str) -> None:
        """A sequence is finished or aborted."""
        self.drafter.drop(request_id)

    def forget(self) -> None:
        """Reuse nothing that the draft computed up to now."""
        self.drafter.pool.forget()

    def _reserve(self, sequence: Sequence) -> int:
        """How many guesses there is room for in the sequence and among the free blocks, which it takes; nobody else has
        to give any back for them."""
        length = len(sequence.token_ids)
        count = max(0, min(self._num_tokens, sequence.max_length - length - 1))
        while count and self._tables.num_missing(sequence, length + count) > self._tables.pool.num_free:
            count -= 1
        self._tables.grow(sequence, length + count)
        return count

    def _trim(self, sequence: Sequence, before: list[int], tokens: int) -> None:
        """Give back the blocks that were not held before and that so many tokens do not fill."""
        whole = blocks_for(tokens, self._block_size)
        self._tables.trim(sequence, [max(count, whole) for count in before])

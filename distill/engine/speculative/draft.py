"""The draft model of speculative decoding: its own KV cache, its own copy of every decoding sequence, its guesses."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from distill.engine import sampler
from distill.engine.batch import Work, pack
from distill.engine.buffers import StepBuffers
from distill.engine.kv_cache import PagedKVCache, blocks_for
from distill.engine.paging.block_tables import BlockTables
from distill.engine.paging.blocks import BlockPool
from distill.engine.paging.prefix import PrefixCache
from distill.engine.probe import forward
from distill.engine.results import logit_rows
from distill.engine.sequence import Sequence
from distill.engine.speculative.verify import DRAFT_STREAM, Proposal, normalised
from distill.engine.types import EngineConfig


@dataclass(eq=False)
class _Guess:
    """A copy of one sequence, on its way to so many guesses after its `certain` tokens."""

    copy: Sequence
    certain: int
    count: int
    proposal: Proposal = field(default_factory=Proposal)

    @property
    def is_done(self) -> bool:
        """Guesses after an end would be guesses for nothing."""
        tokens = self.proposal.tokens
        return len(tokens) == self.count or bool(tokens and tokens[-1] in self.copy.stop_ids)


class Drafter:
    """Guesses the next tokens of decoding sequences. It reads a prompt when the first guess is asked for; where its
    blocks do not suffice it guesses nothing, and the sequence is decoded as if there were no draft."""

    def __init__(
        self, model: PreTrainedModel, cache: PagedKVCache, config: EngineConfig, *, max_length: int, target_vocab: int
    ) -> None:
        self.cache = cache
        self.pool = BlockPool(cache.num_blocks)
        # copies keep all their blocks, whatever the layers see
        self._tables = BlockTables(self.pool, (None,), block_size=config.block_size, chunk=config.prefill_tokens)
        self._model = model.eval()
        self._config = config
        self._max_length = max_length
        self._own_vocab = int(model.config.get_text_config().vocab_size)
        self._target_vocab = target_vocab
        self._prefix = PrefixCache(self.pool, block_size=config.block_size, enabled=config.prefix_cache)
        self._buffers = StepBuffers(model.device)
        self._copies: dict[str, Sequence] = {}

    def propose(self, sequences: Seq[Sequence], counts: Seq[int]) -> list[Proposal]:
        """At most so many guesses for each sequence. Copies of sequences that are not asked for are let go: they gave
        back their blocks, and so do we."""
        asked = {sequence.request_id for sequence in sequences}
        for request_id in [name for name in self._copies if name not in asked]:
            self.drop(request_id)
        guesses = [self._begin(sequence, count) for sequence, count in zip(sequences, counts, strict=True)]
        live = [guess for guess in guesses if guess.count > 0]
        while live:
            works = self._works(live)
            if works:
                self._forward(works, {guess.copy.request_id: guess for guess in live})
            live = [guess for guess in live if guess.count and not guess.is_done]
        return [guess.proposal for guess in guesses]

    def keep(self, request_id: str, num_certain: int) -> None:
        """After a verification: the first `num_certain` tokens of the copy stand, the others never were."""
        copy = self._copies.get(request_id)
        if copy is None:
            return
        del copy.token_ids[num_certain:]
        copy.num_computed = min(copy.num_computed, num_certain)
        self._prefix.offer(copy, 0)
        self._tables.trim(copy, [blocks_for(copy.num_computed, self._config.block_size)] * len(copy.tables))

    def drop(self, request_id: str) -> None:
        """Forget a sequence and free its blocks."""
        copy = self._copies.pop(request_id, None)
        if copy is not None:
            self._tables.release(copy)

    def _begin(self, sequence: Sequence, count: int) -> _Guess:
        """Bring the copy up to date, as far as this model's context and vocabulary reach."""
        copy = self._copies.get(sequence.request_id)
        if copy is None:
            copy = sequence.until(len(sequence.token_ids))
            copy.params = replace(copy.params, logprobs=None, prompt_logprobs=None)
            copy.seed = sampler.child_seed(sequence.seed, DRAFT_STREAM)
            self._copies[sequence.request_id] = copy
        copy.token_ids += sequence.token_ids[len(copy.token_ids) :]
        certain = len(copy.token_ids)
        count = min(count, self._max_length - certain + 1)
        if self._own_vocab < self._target_vocab and max(copy.token_ids) >= self._own_vocab:
            count = 0
        return _Guess(copy, certain, count)

    def _works(self, live: Seq[_Guess]) -> list[Work]:
        """Single tokens of those that guess already, and as much of the others' prompts as one step computes."""
        decodes: list[Work] = []
        prefills: list[Work] = []
        room = self._config.prefill_tokens
        for guess in live:
            copy = guess.copy
            if guess.proposal.tokens:
                decodes.append(Work(copy, 1))
            elif room:
                if not self._reserve(guess):
                    guess.count = 0
                    continue
                work = Work(copy, min(copy.num_pending, room))
                self._prefix.offer(copy, work.num_tokens)
                room -= work.num_tokens
                (decodes if work.is_decode else prefills).append(work)
        return decodes + prefills

    def _reserve(self, guess: _Guess) -> bool:
        """Blocks for everything that is computed of the sequence in this round, prefixes of others included."""
        copy, tokens = guess.copy, guess.certain + guess.count - 1
        if copy.tables:
            if self._tables.num_missing(copy, tokens) > self.pool.num_free:
                return False
        else:
            found = self._prefix.find(copy)
            missing = blocks_for(tokens, self._config.block_size) - found.num_blocks
            if missing + self.pool.num_idle(cached.block for cached in found.groups[0]) > self.pool.num_free:
                return False
            self._prefix.adopt(copy, found)
        self._tables.grow(copy, tokens)
        return True

    def _forward(self, works: list[Work], guesses: dict[str, _Guess]) -> None:
        """Compute, and add one guess to each sequence whose tokens are all computed."""
        batch = pack(works, self.cache, self._buffers, kernels=self._config.attention == "triton")
        rows = self._buffers.put("rows of logits", np.array(logit_rows(works), dtype=np.int64))
        reached = [work.sequence for work in works if work.samples]
        logits = forward(self._model, batch, rows)
        for work in works:
            work.sequence.num_computed += work.num_tokens
        if not reached:
            return
        tokens, probs = self._choose(self._in_target_vocab(logits.float()), reached)
        for copy, token, row in zip(reached, tokens, probs, strict=True):
            copy.token_ids.append(token)
            proposal = guesses[copy.request_id].proposal
            proposal.tokens.append(token)
            if row is not None:
                proposal.probs.append(row)

    def _choose(self, logits: torch.Tensor, copies: list[Sequence]) -> tuple[list[int], list[torch.Tensor | None]]:
        """A guess a row, shaped and filtered as the target's own sampling is, and what it was drawn from."""
        sampler.shape(logits, copies)
        tokens = logits.argmax(-1)
        probs: list[torch.Tensor | None] = [None] * len(copies)
        drawn = [i for i, copy in enumerate(copies) if copy.params.temperature > 0.0]
        if drawn:
            chosen = [copies[i] for i in drawn]
            weights = normalised(sampler.distribution(logits[drawn], chosen))
            tokens[drawn] = sampler.draw(weights, [copy.seed for copy in chosen], chosen)
            for i, row in zip(drawn, weights, strict=True):
                probs[i] = row
        token_ids: list[int] = tokens.tolist()
        return token_ids, probs

    def _in_target_vocab(self, logits: torch.Tensor) -> torch.Tensor:
        """Models of one tokenizer may pad their vocabularies differently; what only one has is never guessed."""
        missing = self._target_vocab - self._own_vocab
        return F.pad(logits, (0, missing), value=float("-inf")) if missing > 0 else logits[:, : self._target_vocab]

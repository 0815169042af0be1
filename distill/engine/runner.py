"""The engine: requests in, tokens out, one packed forward a step."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from functools import partial

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distill.engine import results, sampler
from distill.engine.batch import Work, pack
from distill.engine.buffers import StepBuffers
from distill.engine.choices import eos_ids, resolved
from distill.engine.constrained.grammar import Constraint, Grammar, Grammars
from distill.engine.detokenize import TextTail, context_of
from distill.engine.graphs import DecodeGraphs
from distill.engine.kv_cache import PagedKVCache
from distill.engine.overlap import Launched, Relay, expect_tokens, rewind
from distill.engine.paging.block_tables import BlockTables
from distill.engine.paging.blocks import BlockPool
from distill.engine.paging.memory import make_paging
from distill.engine.paging.prefix import PrefixCache, exchange_scores
from distill.engine.parallel import Team
from distill.engine.probe import forward, fuse, inspect_model
from distill.engine.requests import check_request
from distill.engine.scheduler import Scheduler
from distill.engine.sequence import Sequence
from distill.engine.speculative.draft import Drafter
from distill.engine.speculative.speculation import Draft, Speculation, check_pair, check_place
from distill.engine.speculative.verify import Verdict
from distill.engine.types import Completion, EngineConfig, EngineStats, FinishReason, SamplingParams, StepOutput

__all__ = ["Engine", "EngineConfig"]


class Engine:
    """Continuous batching over a loaded transformers model. Not thread-safe: one thread adds, steps and aborts."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        config: EngineConfig = EngineConfig(),
        *,
        team: Team | None = None,
        draft: Draft | None = None,
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self._team = team  # the other processes that hold a share of the model
        self.device: torch.device = model.device
        self.config = config = resolved(config, self.device, is_alone=team is None and draft is None)
        structures = [inspect_model(model, compare=config.probe)]
        if draft is not None:
            check_place(has_team=team is not None, has_cache=config.use_kv_cache)
            check_pair(model, tokenizer, draft)
            structures.append(inspect_model(draft.model, compare=config.probe))
        structure = structures[0]
        kernels = config.attention == "triton" and team is None
        self.max_model_len = min(structure.max_length, config.max_model_len or structure.max_length)
        self._fusion = fuse(model, structure, self.max_model_len) if kernels and config.fused else None
        self.vocab_size = int(model.config.get_text_config().vocab_size)
        self.eos_ids = eos_ids(model, tokenizer)
        self.cache: PagedKVCache | None = None
        self.pool: BlockPool | None = None
        self.speculation: Speculation | None = None
        self.graphs: DecodeGraphs | None = None
        self._prefix: PrefixCache | None = None
        tables: BlockTables | None = None
        if config.use_kv_cache:
            paging, *others = make_paging(structures, config, max_length=self.max_model_len, device=self.device)
            self.cache, self.pool, self._prefix, tables = paging.cache, paging.pool, paging.prefix, paging.tables
            self.max_model_len = paging.max_length
            if paging.has_spare_block:
                compute = partial(forward, model, fusion=self._fusion)
                self.graphs = DecodeGraphs(model, compute, self.cache, config, max_length=self.max_model_len)
            if draft is not None:
                longest, vocab = structures[1].max_length, self.vocab_size
                drafter = Drafter(draft.model, others[0], config, max_length=longest, target_vocab=vocab)
                limits = {"block_size": config.block_size, "num_tokens": draft.num_tokens}
                self.speculation = Speculation(drafter, tables, self._prefix, **limits)
        self._scheduler = Scheduler(
            tables,
            self._prefix,
            block_size=config.block_size,
            max_batch=config.max_batch,
            token_budget=config.prefill_tokens,
            score_rows=max(1, config.logits_bytes // (4 * self.vocab_size)),
        )
        self._buffers = StepBuffers(self.device)
        empty = torch.zeros(config.max_batch, dtype=torch.int64, device=self.device)
        tokens = self.graphs.tokens if self.graphs is not None else empty
        self._relay = Relay(tokens) if config.overlap else None
        self._launched: Launched | None = None
        self._read_at = 0.0  # when the tokens of a launched step were read last
        self._num_special = 0  # requests whose tokens must be known before the next step
        self._sequences: dict[str, Sequence] = {}
        self._seeds = random.Random(config.seed)
        self._grammars = Grammars(tokenizer, vocab_size=self.vocab_size, end_ids=self.eos_ids)
        self.stats = EngineStats()
        if self.graphs is not None and config.capture_at_start:
            self.graphs.capture()

    @property
    def has_work(self) -> bool:
        """True while a request is unfinished."""
        return self._scheduler.has_work

    @property
    def num_running(self) -> int:
        return len(self._scheduler.running)

    @property
    def num_waiting(self) -> int:
        return len(self._scheduler.waiting)

    @property
    def blocks_in_use(self) -> int:
        """KV blocks that a sequence owns; 0 once every request is finished or aborted."""
        return self.pool.num_used if self.pool is not None else 0

    @property
    def num_blocks(self) -> int:
        """KV blocks in all. A block holds tokens of one group of layers: of all, where all see alike."""
        return self.pool.num_blocks if self.pool is not None else 0

    def grammar(self, constraint: Constraint) -> Grammar:
        """The constraint compiled, for SamplingParams. Takes up to a second the first time; any thread may ask."""
        return self._grammars.compile(constraint)

    def check(self, prompt_ids: Seq[int], params: SamplingParams) -> None:
        """Raise EngineError for a request that can never run; touches no state, any thread may ask."""
        limits = {"max_length": self.max_model_len, "vocab_size": self.vocab_size}
        check_request(prompt_ids, params, **limits, has_tokenizer=self.tokenizer is not None)

    def add(
        self,
        request_id: str,
        prompt_ids: Seq[int],
        params: SamplingParams,
        *,
        stream: bool = False,
        continues: bool = False,
    ) -> None:
        """Queue a request. A streamed one reports its text at every step, the others once they are finished. The text
        is an answer of its own, or with `continues` what comes after the prompt's, its first space included."""
        assert request_id not in self._sequences, f"request {request_id} is already here"
        self.check(prompt_ids, params)
        tail, context = None, []
        if self.tokenizer is not None and continues:
            context = context_of(self.tokenizer, list(prompt_ids))
        if self.tokenizer is not None and (stream or params.stop):
            tail = TextTail(self.tokenizer, params.stop, context)
        sequence = Sequence(
            request_id=request_id,
            token_ids=list(prompt_ids),
            num_prompt=len(prompt_ids),
            params=params,
            seed=self._seeds.getrandbits(64) if params.seed is None else params.seed,
            max_length=min(len(prompt_ids) + params.max_tokens, self.max_model_len),
            stop_ids=frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self.eos_ids),
            stream=stream,
            tail=tail,
            context_ids=context,
            prompt_logprobs=[None] * len(prompt_ids) if params.prompt_logprobs is not None else [],
        )
        if self.graphs is not None and not self._sequences:
            self.graphs.check_weights()
        self._num_special += not params.is_plain
        self._sequences[request_id] = sequence
        self._scheduler.add(sequence)

    def abort(self, request_id: str) -> None:
        """Drop a request and free its blocks at once; a finished or unknown one is ignored."""
        sequence = self._sequences.pop(request_id, None)
        if sequence is not None:
            self._forget(sequence)

    def forget_prefixes(self) -> None:
        """Reuse nothing that was computed up to now."""
        if self.pool is not None:
            assert not self.has_work, "requests are under way"
            self._forget_blocks()

    def weights_changed(self) -> None:
        """To be called between requests when the model's weights are others, in place or elsewhere."""
        self.forget_prefixes()
        if self.graphs is not None:
            self.graphs.check_weights()

    @torch.inference_mode()
    def step(self) -> list[StepOutput]:
        """Compute one batch: news of streamed requests, completions of finished ones. With `overlap` those are of the
        batch before, which was computed meanwhile."""
        try:
            if self._relay is not None and not self._num_special:
                return self._step_ahead(self._relay)
            before, self._launched = self._launched, None
            return self._collect(before) + self._step_alone()
        except BaseException:
            self._forget_blocks()  # those that this step was to fill can be found already
            if self._launched is not None:
                self._launched = None
                for sequence in self._sequences.values():
                    rewind(sequence)
                self._scheduler.restart()
            raise

    def _step_alone(self) -> list[StepOutput]:
        """Compute a batch and wait for its tokens."""
        started = time.perf_counter()
        works = self._scheduler.schedule()
        if not works:
            return []
        if self.speculation is not None:
            works = self.speculation.extend(works, self.stats)
        self.stats.blocks_peak = max(self.stats.blocks_peak, self.blocks_in_use)
        num_decode = sum(work.num_tokens for work in works if work.is_decode or work.num_draft)
        rows = results.logit_rows(works)
        if self._team is not None:
            self._team.lead(works, rows)
        outputs = self._advance(works, self._forward(works, rows))
        self._count(num_decode, sum(work.num_tokens for work in works) - num_decode, time.perf_counter() - started)
        return outputs

    def _step_ahead(self, relay: Relay) -> list[StepOutput]:
        """Launch a batch, then read the tokens of the one before."""
        works, before = self._scheduler.schedule(), self._launched
        self.stats.blocks_peak = max(self.stats.blocks_peak, self.blocks_in_use)
        self._launched = self._launch(works, relay) if works else None
        return self._collect(before)

    def _launch(self, works: list[Work], relay: Relay) -> Launched:
        """Let the device compute a batch and choose its tokens."""
        started = time.perf_counter()
        sampling = [work.sequence for work in works if work.samples]
        logits, tokens = self._replayed(works), None
        if logits is None or any(sequence.params.temperature for sequence in sampling):
            logits = self._computed(works, results.logit_rows(works)) if logits is None else logits
            tokens = sampler.choose(logits, sampling) if sampling else None
        launched = relay.send(works, sampling, tokens, started)
        for work in works:
            work.sequence.num_computed += work.num_tokens
        expect_tokens(sampling)
        return launched

    def _collect(self, launched: Launched | None) -> list[StepOutput]:
        """Read the tokens of a step that was launched, and append them."""
        outputs: list[StepOutput] = []
        for sequence, length, token in launched.read() if launched is not None else []:
            if self._sequences.get(sequence.request_id) is not sequence:
                continue  # aborted, or it ended a step ago
            self.stats.sampled_tokens += 1
            reason = results.arrive(sequence, length, token)
            if reason is None and (length + 1) % self.config.block_size == 0 and self._prefix is not None:
                self._prefix.offer(sequence, 0)  # what the scheduler could not, not knowing the block's last token
            done = self._finish(sequence, reason) if reason is not None else None
            if (done is not None or sequence.stream) and (output := results.news(sequence, done)) is not None:
                outputs.append(output)
        if launched is not None:
            now = time.perf_counter()
            self._count(launched.num_decode, launched.num_prefill, now - max(launched.started, self._read_at))
            self._read_at = now
        return outputs

    @torch.inference_mode()
    def follow(self) -> None:
        """Compute the batches of the team's first process, until it dismisses the team."""
        assert self._team is not None and self._team.rank
        while (step := self._team.next_step()) is not None:
            self._forward(*step)

    def dismiss(self) -> None:
        """Let the processes go that follow this one; nothing can be computed afterwards."""
        if self._team is not None:
            self._team.dismiss()

    def _forward(self, works: list[Work], rows: list[int]) -> torch.Tensor:
        """Logits of the tokens `rows` of the packed batch, however they are computed best."""
        logits = self._replayed(works)
        return logits if logits is not None else self._computed(works, rows)

    def _replayed(self, works: list[Work]) -> torch.Tensor | None:
        """The same from a captured graph, where there is one for such a batch: a row a work."""
        return self.graphs.compute(works) if self.graphs is not None and self.graphs.takes(works) else None

    def _computed(self, works: list[Work], rows: list[int]) -> torch.Tensor:
        batch = pack(works, self.cache, self._buffers, kernels=self.config.attention == "triton")
        if self._relay is not None:
            self._relay.complete(batch, works, self._buffers)
        places = self._buffers.put("rows of logits", np.array(rows, dtype=np.int64))
        return forward(self.model, batch, places, self._fusion)

    def generate(
        self,
        prompts: Seq[Seq[int]],
        params: SamplingParams | Seq[SamplingParams],
        progress: Callable[[int], None] | None = None,
    ) -> list[Completion]:
        """Complete all prompts, in their order; `progress` hears the number finished after each step that ends one."""
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        assert len(each) == len(prompts), f"{len(prompts)} prompts with {len(each)} sampling parameters"
        for prompt, own in zip(prompts, each, strict=True):
            self.check(prompt, own)
        names = [f"generate-{i}" for i in range(len(prompts))]
        for name, prompt, own in zip(names, prompts, each, strict=True):
            self.add(name, prompt, own)
        done: dict[str, Completion] = {}
        try:
            while len(done) < len(names):
                before = len(done)
                done.update((o.request_id, o.completion) for o in self.step() if o.completion is not None)
                if progress is not None and len(done) > before:
                    progress(len(done))
        finally:
            for name in names:
                self.abort(name)  # only an interrupted call has any left
        return [done[name] for name in names]

    def score(self, sequences: Seq[Seq[int]]) -> list[list[float]]:
        """Natural-log probability of every token given those before it: one entry less than tokens, as the first has
        none. Computed in packed chunks; logits of a whole batch never exist."""
        scored = iter(self.generate([s for s in sequences if len(s)], SamplingParams(max_tokens=0, prompt_logprobs=0)))
        found = [next(scored).prompt_logprobs or () if len(s) else () for s in sequences]
        return [[token.logprob for token in row if token is not None] for row in found]

    def _advance(self, works: list[Work], logits: torch.Tensor) -> list[StepOutput]:
        """Score, sample, append, finish."""
        sampling, logits = results.take_scores(works, logits)
        exchange_scores([work.sequence for work in works], self.config.block_size)
        if self.cache is not None:
            for work in works:
                work.sequence.num_computed += work.num_tokens
        outputs: list[StepOutput] = []
        for work in works:
            if not work.sequence.samples and not work.sequence.is_scoring:
                outputs.append(StepOutput(work.sequence.request_id, completion=self._finish(work.sequence, "length")))
        if not sampling:
            return outputs
        for work, verdict in zip(sampling, self._choose(sampling, logits.float()), strict=True):
            reason = self._append(work.sequence, verdict)
            output = results.news(work.sequence, self._finish(work.sequence, reason) if reason is not None else None)
            if output is not None:
                outputs.append(output)
        return outputs

    def _choose(self, works: list[Work], logits: torch.Tensor) -> list[Verdict]:
        """The tokens that each sequence gets: one, or more where guesses of a draft stand."""
        if self.speculation is not None:
            return self.speculation.settle(works, logits, self.stats)
        tokens, reports = sampler.sample(logits, [work.sequence for work in works])
        return [Verdict([token], [report]) for token, report in zip(tokens, reports, strict=True)]

    def _append(self, sequence: Sequence, verdict: Verdict) -> FinishReason | None:
        """Append tokens up to the first that ends the sequence."""
        for token, report in zip(verdict.tokens, verdict.reports, strict=True):
            self.stats.sampled_tokens += 1
            if report is not None:
                sequence.logprobs.append(report)
            reason = results.append(sequence, token)
            if reason is not None:
                return reason
        return None

    def _finish(self, sequence: Sequence, reason: FinishReason) -> Completion:
        """Free the sequence and make its completion."""
        del self._sequences[sequence.request_id]
        self._forget(sequence)
        self.stats.finished += 1
        return results.completion_of(sequence, reason, self.tokenizer)

    def _forget(self, sequence: Sequence) -> None:
        self._num_special -= not sequence.params.is_plain
        self._scheduler.remove(sequence)
        if self.speculation is not None:
            self.speculation.drop(sequence.request_id)

    def _forget_blocks(self) -> None:
        if self.pool is not None:
            self.pool.forget()
        if self.speculation is not None:
            self.speculation.forget()

    def _count(self, num_decode: int, num_prefill: int, seconds: float) -> None:
        stats = self.stats
        stats.add_step(num_decode, num_prefill, seconds)
        stats.preemptions = self._scheduler.num_preemptions
        stats.blocks_used = self.blocks_in_use
        stats.blocks_free = self.num_blocks - stats.blocks_used
        if self.pool is not None and self._prefix is not None:
            stats.cached_tokens = self._prefix.num_found_tokens
            stats.blocks_cached, stats.block_evictions = self.pool.num_cached, self.pool.num_evictions
        if self.speculation is not None:
            stats.draft_blocks_used = self.speculation.drafter.pool.num_used
        stats.buffer_allocations = self._buffers.num_allocations

"""The engine: requests in, tokens out, one packed forward a step."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from importlib.util import find_spec

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distill.engine import results, sampler
from distill.engine.batch import Work, pack
from distill.engine.buffers import StepBuffers
from distill.engine.constrained.grammar import Constraint, Grammar, Grammars
from distill.engine.detokenize import TextTail, context_of
from distill.engine.kv_cache import PagedKVCache
from distill.engine.paging.block_tables import BlockTables
from distill.engine.paging.blocks import BlockPool
from distill.engine.paging.groups import group_layers, one_group
from distill.engine.paging.memory import make_caches
from distill.engine.paging.prefix import PrefixCache, exchange_scores
from distill.engine.parallel import Team
from distill.engine.probe import forward, inspect_model
from distill.engine.scheduler import Scheduler
from distill.engine.sequence import Sequence
from distill.engine.speculative.draft import Drafter
from distill.engine.speculative.speculation import Draft, Speculation, check_pair
from distill.engine.speculative.verify import Verdict
from distill.engine.types import Completion, EngineConfig, EngineStats, FinishReason, SamplingParams, StepOutput
from distill.errors import EngineError

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
        self.config = config
        self.device: torch.device = model.device
        if config.attention == "triton" and find_spec("triton") is None:
            raise EngineError("Triton is not installed", remedy="use the engine's attention 'torch', or install triton")
        structures = [inspect_model(model, compare=config.probe)]
        if draft is not None:
            if team is not None:
                raise EngineError("several processes cannot share a draft", remedy="serve without one of the two")
            check_pair(model, tokenizer, draft)
            structures.append(inspect_model(draft.model, compare=config.probe))
        structure = structures[0]
        self.vocab_size = int(model.config.get_text_config().vocab_size)
        self.eos_ids = _eos_ids(model, tokenizer)
        self.max_model_len = min(structure.max_length, config.max_model_len or structure.max_length)
        self.cache: PagedKVCache | None = None
        self.pool: BlockPool | None = None
        self.speculation: Speculation | None = None
        self._prefix: PrefixCache | None = None
        tables: BlockTables | None = None
        if config.use_kv_cache:
            size, chunk = config.block_size, config.prefill_tokens
            groups = group_layers(structure.layers, structure.windows, max_length=self.max_model_len)
            layouts = [(groups, structure.dtype), *((one_group(s.layers), s.dtype) for s in structures[1:])]
            self.cache, *others = make_caches(layouts, config, self.max_model_len, self.device)
            count, windows = self.cache.num_blocks, groups.windows
            self.max_model_len = groups.longest(count, block_size=size, chunk=chunk, limit=self.max_model_len)
            self.pool = BlockPool(count, num_homes=len(windows))
            self._prefix = PrefixCache(self.pool, block_size=size, enabled=config.prefix_cache, windows=windows)
            tables = BlockTables(self.pool, windows, block_size=size, chunk=chunk)
            if draft is not None:
                drafter = Drafter(
                    draft.model, others[0], config, max_length=structures[1].max_length, target_vocab=self.vocab_size
                )
                self.speculation = Speculation(
                    drafter, tables, self._prefix, block_size=size, num_tokens=draft.num_tokens
                )
        elif draft is not None:
            raise EngineError("a draft needs the KV cache", remedy="leave use_kv_cache on, or the draft out")
        self._scheduler = Scheduler(
            tables,
            self._prefix,
            block_size=config.block_size,
            max_batch=config.max_batch,
            token_budget=config.prefill_tokens,
            score_rows=max(1, config.logits_bytes // (4 * self.vocab_size)),
        )
        self._buffers = StepBuffers(self.device)
        self._sequences: dict[str, Sequence] = {}
        self._seeds = random.Random(config.seed)
        self._grammars = Grammars(tokenizer, vocab_size=self.vocab_size, end_ids=self.eos_ids)
        self.stats = EngineStats()

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
        if not prompt_ids:
            raise EngineError("the prompt is empty", remedy="send at least one token")
        longest = self.max_model_len - 1 if params.max_tokens else self.max_model_len + 1
        if len(prompt_ids) > longest:
            raise EngineError(
                f"the prompt has {len(prompt_ids)} tokens; the context of {self.max_model_len} has room for {longest}",
                remedy="shorten the prompt",
            )
        if min(prompt_ids) < 0 or max(prompt_ids) >= self.vocab_size:
            raise EngineError(f"a prompt token is outside the vocabulary of {self.vocab_size}")
        named = [*params.stop_token_ids, *(token for token, _ in params.logit_bias)]
        if any(not 0 <= token < self.vocab_size for token in named):
            raise EngineError(f"a token of stop_token_ids or logit_bias is outside the vocabulary of {self.vocab_size}")
        if params.stop and self.tokenizer is None:
            raise EngineError("stop strings need a tokenizer", remedy="use stop_token_ids")

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
        self._sequences[request_id] = sequence
        self._scheduler.add(sequence)

    def abort(self, request_id: str) -> None:
        """Drop a request and free its blocks at once; a finished or unknown one is ignored."""
        sequence = self._sequences.pop(request_id, None)
        if sequence is not None:
            self._forget(sequence)

    def forget_prefixes(self) -> None:
        """Reuse nothing that was computed up to now. To be called between steps when the model's weights change."""
        if self.pool is not None:
            assert not self.has_work, "requests are under way"
            self._forget_blocks()

    @torch.inference_mode()
    def step(self) -> list[StepOutput]:
        """Compute one batch: news of streamed requests, completions of finished ones."""
        started = time.perf_counter()
        works = self._scheduler.schedule()
        if not works:
            return []
        try:
            if self.speculation is not None:
                works = self.speculation.extend(works, self.stats)
            self.stats.blocks_peak = max(self.stats.blocks_peak, self.blocks_in_use)
            num_decode = sum(work.num_tokens for work in works if work.is_decode or work.num_draft)
            rows = results.logit_rows(works)
            if self._team is not None:
                self._team.lead(works, rows)
            outputs = self._advance(works, self._forward(works, rows))
        except BaseException:
            self._forget_blocks()  # those that this step was to fill can be found already
            raise
        self._count(num_decode, sum(work.num_tokens for work in works) - num_decode, time.perf_counter() - started)
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
        """Logits of the tokens `rows` of the packed batch."""
        batch = pack(works, self.cache, self._buffers, kernels=self.config.attention == "triton")
        return forward(self.model, batch, self._buffers.put("rows of logits", np.array(rows, dtype=np.int64)))

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
        self._remove(sequence)
        self.stats.finished += 1
        return results.completion_of(sequence, reason, self.tokenizer)

    def _remove(self, sequence: Sequence) -> None:
        del self._sequences[sequence.request_id]
        self._forget(sequence)

    def _forget(self, sequence: Sequence) -> None:
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
        stats.steps += 1
        stats.decode_tokens += num_decode
        stats.prefill_tokens += num_prefill
        stats.preemptions = self._scheduler.num_preemptions
        stats.blocks_used = self.blocks_in_use
        stats.blocks_free = self.num_blocks - stats.blocks_used
        if self.pool is not None and self._prefix is not None:
            stats.cached_tokens = self._prefix.num_found_tokens
            stats.blocks_cached = self.pool.num_cached
            stats.block_evictions = self.pool.num_evictions
        if self.speculation is not None:
            stats.draft_blocks_used = self.speculation.drafter.pool.num_used
        stats.buffer_allocations = self._buffers.num_allocations
        if num_prefill:
            stats.prefill_seconds += seconds
        else:
            stats.decode_seconds += seconds


def _eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> frozenset[int]:
    """Every token that ends an answer: the generation config's list and the tokenizer's own."""
    found: set[int] = set()
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    if isinstance(configured, int):
        found.add(configured)
    elif configured is not None:
        found.update(int(t) for t in configured)
    if tokenizer is not None and tokenizer.eos_token_id is not None:
        found.add(int(tokenizer.eos_token_id))
    return frozenset(found)

"""The engine: requests in, tokens out, one packed forward a step."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distill.engine import sampler
from distill.engine.batch import Work, pack
from distill.engine.detokenize import TextTail, decode
from distill.engine.kv_cache import BlockPool, PagedKVCache, blocks_for
from distill.engine.probe import Structure, forward, inspect_model
from distill.engine.scheduler import Scheduler
from distill.engine.sequence import Sequence
from distill.engine.types import Completion, EngineConfig, EngineStats, FinishReason, SamplingParams, StepOutput
from distill.errors import EngineError

__all__ = ["Engine", "EngineConfig"]


class Engine:
    """Continuous batching over a loaded transformers model. Not thread-safe: one thread adds, steps and aborts."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, config: EngineConfig = EngineConfig()
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.config = config
        self.device: torch.device = model.device
        structure = inspect_model(model, compare=config.probe)
        self.vocab_size = int(model.config.get_text_config().vocab_size)
        self.eos_ids = _eos_ids(model, tokenizer)
        self.max_model_len = min(structure.max_length, config.max_model_len or structure.max_length)
        self.cache = _make_cache(structure, config, self.max_model_len, self.device)
        self.pool = BlockPool(self.cache.num_blocks) if self.cache is not None else None
        if self.cache is not None:
            self.max_model_len = min(self.max_model_len, self.cache.num_blocks * config.block_size)
        self._scheduler = Scheduler(
            self.pool,
            block_size=config.block_size,
            max_batch=config.max_batch,
            token_budget=config.prefill_tokens,
            score_rows=max(1, config.logits_bytes // (4 * self.vocab_size)),
        )
        self._sequences: dict[str, Sequence] = {}
        self._seeds = random.Random(config.seed)
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

    def check(self, prompt_ids: Seq[int], params: SamplingParams) -> None:
        """Raise EngineError for a request that can never run; touches no state, any thread may ask."""
        if not prompt_ids:
            raise EngineError("the prompt is empty", remedy="send at least one token")
        if len(prompt_ids) >= self.max_model_len:
            raise EngineError(
                f"the prompt has {len(prompt_ids)} tokens; with one token of answer the context holds"
                f" {self.max_model_len}",
                remedy="shorten the prompt",
            )
        if min(prompt_ids) < 0 or max(prompt_ids) >= self.vocab_size:
            raise EngineError(f"a prompt token is outside the vocabulary of {self.vocab_size}")
        if any(not 0 <= t < self.vocab_size for t in params.stop_token_ids):
            raise EngineError(f"a stop token is outside the vocabulary of {self.vocab_size}")
        if params.stop and self.tokenizer is None:
            raise EngineError("stop strings need a tokenizer", remedy="use stop_token_ids")

    def add(self, request_id: str, prompt_ids: Seq[int], params: SamplingParams, *, stream: bool = False) -> None:
        """Queue a request. A streamed one reports its text at every step, the others once they are finished."""
        assert request_id not in self._sequences, f"request {request_id} is already here"
        self.check(prompt_ids, params)
        tail = None
        if self.tokenizer is not None and (stream or params.stop):
            tail = TextTail(self.tokenizer, params.stop)
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
        )
        self._sequences[request_id] = sequence
        self._scheduler.add(sequence)

    def abort(self, request_id: str) -> None:
        """Drop a request and free its blocks at once; a finished or unknown one is ignored."""
        sequence = self._sequences.pop(request_id, None)
        if sequence is not None:
            self._scheduler.remove(sequence)

    @torch.inference_mode()
    def step(self) -> list[StepOutput]:
        """Compute one batch: news of streamed requests, completions of finished ones."""
        started = time.perf_counter()
        works = self._scheduler.schedule()
        if not works:
            return []
        batch = pack(works, self.cache, self.device)
        num_decode = sum(work.is_decode for work in works)
        logits = forward(self.model, batch, self._rows(works))
        outputs = self._advance(works, logits)
        self._count(num_decode, sum(work.num_tokens for work in works) - num_decode, time.perf_counter() - started)
        return outputs

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
        items: list[Sequence] = []
        for index, tokens in enumerate(sequences):
            if len(tokens) > self.max_model_len + 1:
                raise EngineError(f"sequence {index} has {len(tokens)} tokens, the context {self.max_model_len}")
            item = Sequence(
                request_id=f"score-{index}",
                token_ids=list(tokens[:-1]),
                num_prompt=len(tokens) - 1,
                params=SamplingParams(),
                seed=0,
                max_length=len(tokens),
                stop_ids=frozenset(),
                scores=[],
                targets=list(tokens[1:]),
            )
            items.append(item)
            if item.token_ids:
                self._sequences[item.request_id] = item
                self._scheduler.add(item)
        try:
            while any(item.request_id in self._sequences for item in items):
                self.step()
        finally:
            for item in items:
                self.abort(item.request_id)
        return [item.scores or [] for item in items]

    def _rows(self, works: list[Work]) -> torch.Tensor:
        """Tokens of the batch whose logits are needed."""
        rows: list[int] = []
        end = 0
        for work in works:
            end += work.num_tokens
            if work.sequence.scores is not None:
                rows.extend(range(end - work.num_tokens, end))
            elif work.reaches_end:
                rows.append(end - 1)
        return torch.tensor(rows, dtype=torch.int64).to(self.device, non_blocking=True)

    def _advance(self, works: list[Work], logits: torch.Tensor) -> list[StepOutput]:
        """Sample, append, finish."""
        sampling: list[Sequence] = []
        sampled_rows: list[int] = []
        scored: list[tuple[Sequence, int, int]] = []  # sequence, first row, tokens
        row = 0
        for work in works:
            sequence = work.sequence
            if sequence.scores is not None:
                scored.append((sequence, row, work.num_tokens))
                row += work.num_tokens
            elif work.reaches_end:
                sampling.append(sequence)
                sampled_rows.append(row)
                row += 1
        if scored:
            self._score(scored, logits)
        if self.cache is not None:
            for work in works:
                work.sequence.num_computed += work.num_tokens
        outputs: list[StepOutput] = []
        if sampling:
            if scored:
                logits = logits[sampled_rows]
            self.stats.sampled_tokens += len(sampling)
            tokens, reports = sampler.sample(logits.float(), sampling)
            for sequence, token, report in zip(sampling, tokens, reports, strict=True):
                if report is not None:
                    sequence.logprobs.append(report)
                output = self._append(sequence, token)
                if output is not None:
                    outputs.append(output)
        return outputs

    def _score(self, scored: list[tuple[Sequence, int, int]], logits: torch.Tensor) -> None:
        """Take the log probabilities of the targets; a sequence with all of them leaves."""
        for sequence, row, count in scored:
            assert sequence.scores is not None
            first = len(sequence.scores)
            targets = torch.tensor(sequence.targets[first : first + count], device=logits.device)
            sequence.scores.extend(sampler.score(logits[row : row + count], targets).tolist())
            if len(sequence.scores) == len(sequence.targets):
                self._remove(sequence)

    def _append(self, sequence: Sequence, token: int) -> StepOutput | None:
        """One sampled token: the sequence's news, if any."""
        sequence.token_ids.append(token)
        reason = sequence.finish_reason_of(token)
        tail, output_ids = sequence.tail, None
        if tail is not None:
            # a token that ends the sequence is no text, whether the tokenizer calls it special or not
            output_ids = sequence.output_ids[:-1] if reason == "stop" else sequence.output_ids
            may_stop = len(output_ids) >= sequence.params.min_tokens
            if output_ids and tail.push(output_ids, may_stop=may_stop, final=reason is not None):
                reason = "stop"
        completion = self._finish(sequence, reason) if reason is not None else None
        if not sequence.stream:
            return StepOutput(sequence.request_id, completion=completion) if completion is not None else None
        text = tail.take(final=completion is not None) if tail is not None else ""
        logprobs = tuple(sequence.logprobs[sequence.num_reported_logprobs :])
        sequence.num_reported_logprobs = len(sequence.logprobs)
        return StepOutput(sequence.request_id, text, logprobs, completion)

    def _finish(self, sequence: Sequence, reason: FinishReason) -> Completion:
        """Free the sequence and make its completion."""
        self._remove(sequence)
        self.stats.finished += 1
        output_ids = sequence.output_ids
        if sequence.tail is not None and (sequence.tail.stopped or sequence.stream):
            text = sequence.tail.text
        elif self.tokenizer is not None:
            ends = reason == "stop" and output_ids[-1] in sequence.stop_ids
            text = decode(self.tokenizer, output_ids[:-1] if ends else output_ids)
        else:
            text = ""
        logprobs = tuple(sequence.logprobs) if sequence.params.logprobs is not None else None
        return Completion(tuple(output_ids), text, reason, sequence.num_prompt, logprobs)

    def _remove(self, sequence: Sequence) -> None:
        del self._sequences[sequence.request_id]
        self._scheduler.remove(sequence)

    def _count(self, num_decode: int, num_prefill: int, seconds: float) -> None:
        stats = self.stats
        stats.steps += 1
        stats.decode_tokens += num_decode
        stats.prompt_tokens += num_prefill
        stats.preemptions = self._scheduler.num_preemptions
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


def _make_cache(
    structure: Structure, config: EngineConfig, max_model_len: int, device: torch.device
) -> PagedKVCache | None:
    """The cache, as large as the configuration allows but no larger than max_batch full contexts need."""
    if not config.use_kv_cache:
        return None
    dtype = structure.dtype
    block_bytes = dtype.itemsize * config.block_size * sum(s.numbers_per_token for s in structure.layers)
    most = config.max_batch * blocks_for(max_model_len, config.block_size)
    num_blocks = config.num_blocks or min(most, config.kv_bytes // block_bytes)
    if num_blocks < 1:
        raise EngineError(
            f"a KV block takes {block_bytes} bytes, kv_bytes is {config.kv_bytes}", remedy="give the cache more memory"
        )
    return PagedKVCache(
        structure.layers, num_blocks=num_blocks, block_size=config.block_size, dtype=dtype, device=device
    )

"""What goes into the engine and what comes out: values only, no behaviour beyond checking them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from distill.engine.constrained.grammar import Grammar
from distill.errors import EngineError

FinishReason = Literal["stop", "length", "abort"]
MAX_TOP_LOGPROBS = 20


@dataclass(frozen=True)
class EngineConfig:
    """Limits of one engine. `None` means: as the model and the machine allow."""

    max_batch: int = 128  # sequences that hold KV blocks at once
    block_size: int = 32  # tokens in a KV block
    prefill_tokens: int = 0  # prompt tokens computed in one step; longer prompts are split. 0: 512, on a GPU 8,192
    kv_bytes: int = 1 << 30  # memory of the KV cache, never more than max_batch full contexts
    kv_dtype: Literal["auto", "int8", "fp8"] = "auto"  # int8, fp8: half the bytes of 16 bits, not quite the same text
    num_blocks: int | None = None  # overrides kv_bytes: room for block_size tokens of every layer, so many times
    max_model_len: int | None = None  # prompt + completion; default: the model's own context
    prefix_cache: bool = True  # reuse full blocks of earlier and other requests that begin with the same tokens
    attention: Literal["auto", "torch", "triton"] = "auto"  # triton: kernels for CUDA, taken there where they can be
    fused: bool = True  # with triton: layers of Llama's build take eight launches each (see `fusion.py`)
    cuda_graphs: bool = True  # with triton: steps of pure decode, and of short prompts, are captured and replayed
    capture_at_start: bool = False  # all batch sizes, instead of each when it comes up
    overlap: bool | None = None  # launch the next step before the present one's tokens are read; None: on CUDA
    use_kv_cache: bool = True  # off: every step recomputes whole sequences (same text, slower)
    logits_bytes: int = 256 << 20  # fp32 logits that scoring may hold at once
    seed: int | None = None  # seeds the requests that bring no seed; None: from the operating system
    probe: bool = True  # compare a packed batch with the model's own forward once, at start

    def __post_init__(self) -> None:
        for name, least in (
            ("max_batch", 1),
            ("block_size", 1),
            ("prefill_tokens", 0),
            ("kv_bytes", 1),
            ("logits_bytes", 1),
        ):
            value = getattr(self, name)
            if value < least:
                raise EngineError(f"engine: {name} is {value}", remedy=f"give a number of at least {least}")
        if self.attention == "triton" and not self.use_kv_cache:
            raise EngineError("engine: attention by Triton needs a KV cache", remedy="use torch")


@dataclass(frozen=True)
class SamplingParams:
    """How to sample one completion. temperature 0 is greedy; `logprobs` counts the alternatives to report, and
    `prompt_logprobs` those of every prompt token: 0 is its own and the likeliest token's, None asks for nothing. With
    `prompt_logprobs`, max_tokens may be 0: the prompt is scored and nothing is sampled."""

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, added to its logit before anything else)
    grammar: Grammar | None = None  # of `Engine.grammar`: the text stays within it

    def __post_init__(self) -> None:
        for name, ok, rule in (
            ("max_tokens", self.max_tokens >= self.fewest_tokens, f"at least {self.fewest_tokens}"),
            ("temperature", 0.0 <= self.temperature <= 100.0, "between 0 and 100"),
            ("top_p", 0.0 < self.top_p <= 1.0, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("min_p", 0.0 <= self.min_p <= 1.0, "between 0 and 1"),
            ("min_tokens", self.min_tokens >= 0, "at least 0"),
            ("repetition_penalty", self.repetition_penalty > 0.0, "above 0"),
            ("presence_penalty", -2.0 <= self.presence_penalty <= 2.0, "between -2 and 2"),
            ("frequency_penalty", -2.0 <= self.frequency_penalty <= 2.0, "between -2 and 2"),
            ("logprobs", self.logprobs is None or 0 <= self.logprobs <= MAX_TOP_LOGPROBS, f"0 to {MAX_TOP_LOGPROBS}"),
            (
                "prompt_logprobs",
                self.prompt_logprobs is None or 0 <= self.prompt_logprobs <= MAX_TOP_LOGPROBS,
                f"0 to {MAX_TOP_LOGPROBS}",
            ),
            ("logit_bias", all(-100.0 <= bias <= 100.0 for _, bias in self.logit_bias), "between -100 and 100"),
            ("logit_bias", len(dict(self.logit_bias)) == len(self.logit_bias), "one number a token"),
            ("stop", all(self.stop), "non-empty strings"),
        ):
            if not ok:
                raise EngineError(f"{name}: {getattr(self, name)!r} must be {rule}")

    @property
    def fewest_tokens(self) -> int:
        """The least max_tokens: 0 where there is something to do without sampling."""
        return 1 if self.prompt_logprobs is None else 0

    @property
    def is_plain(self) -> bool:
        """True where logits, temperature, filters and seed alone decide, and nothing but tokens is asked for."""
        asks = self.logprobs is not None or self.prompt_logprobs is not None or self.grammar is not None
        return not (asks or self.has_penalties or self.logit_bias or self.min_tokens)

    @property
    def has_penalties(self) -> bool:
        """True where earlier tokens change the logits."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


@dataclass(frozen=True)
class TokenLogprob:
    """Natural-log probability of a token under the model itself (before bias, temperature, penalties and filters), and
    the likeliest tokens in its place as (token id, log probability), best first. For a prompt token that is one at
    least, and a token is a likeliest one iff `logprob == top[0][1]`: both numbers come from one tensor."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Completion:
    """One finished sequence. `token_ids` holds every sampled token, a final EOS included; `text` holds neither special
    tokens nor anything from a stop string on."""

    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    logprobs: tuple[TokenLogprob, ...] | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None  # one a prompt token; the first has none


@dataclass(frozen=True)
class StepOutput:
    """News of one request after a step: new text for a streamed one, the completion once it is finished."""

    request_id: str
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    completion: Completion | None = None


@dataclass
class EngineStats:
    """Counters since the engine was made; prefill and decode are accounted apart."""

    steps: int = 0
    prefill_tokens: int = 0  # computed in prefill, recomputation after preemption included
    decode_tokens: int = 0  # computed one a sequence and step, or with the draft's guesses after it
    cached_tokens: int = 0  # found in the prefix cache instead of computed
    sampled_tokens: int = 0
    preemptions: int = 0
    finished: int = 0
    prefill_seconds: float = 0.0  # steps that held any prefill
    decode_seconds: float = 0.0  # steps of pure decode
    blocks_used: int = 0  # owned by a sequence
    blocks_free: int = 0  # the rest
    blocks_cached: int = 0  # of either kind, that a request with the same tokens would find
    block_evictions: int = 0  # cached blocks given to other tokens
    buffer_allocations: int = 0  # arrays of a step that needed more memory than any step before
    blocks_peak: int = 0  # most blocks ever used at once
    verifications: int = 0  # forward passes of a sequence with guesses of a draft
    draft_tokens: int = 0  # guesses in them
    accepted_tokens: int = 0  # guesses that stood
    draft_seconds: float = 0.0  # time of guessing, part of the steps' time
    draft_blocks_used: int = 0  # of the draft's own cache

    def add_step(self, num_decode: int, num_prefill: int, seconds: float) -> None:
        """Count a step that computed so many tokens of either kind."""
        self.steps += 1
        self.decode_tokens += num_decode
        self.prefill_tokens += num_prefill
        if num_prefill:
            self.prefill_seconds += seconds
        else:
            self.decode_seconds += seconds

    @property
    def acceptance_rate(self) -> float:
        """Share of the draft's guesses that stood; 0 without any."""
        return self.accepted_tokens / self.draft_tokens if self.draft_tokens else 0.0

    @property
    def accept_length(self) -> float:
        """Mean tokens that one verification yields: the accepted guesses and the target's own token; 0 without any."""
        return 1 + self.accepted_tokens / self.verifications if self.verifications else 0.0

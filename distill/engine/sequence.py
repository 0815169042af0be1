"""One sequence on its way through the engine: the mutable state that scheduler, sampler and runner share."""

from __future__ import annotations

from dataclasses import dataclass, field

from distill.engine.detokenize import TextTail
from distill.engine.types import FinishReason, SamplingParams, TokenLogprob


@dataclass(eq=False)
class Sequence:
    """`token_ids` is the prompt and everything sampled; the cache holds the first `num_computed` of them."""

    request_id: str
    token_ids: list[int]
    num_prompt: int
    params: SamplingParams
    seed: int
    max_length: int  # prompt and completion together, cut to the context
    stop_ids: frozenset[int]
    stream: bool = False
    tail: TextTail | None = None  # only where text is needed token by token
    scores: list[float] | None = None  # a sequence to score, not to continue: log probabilities of the targets
    targets: list[int] = field(default_factory=list)  # scoring: the token that follows each of token_ids
    num_computed: int = 0
    blocks: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    num_reported_logprobs: int = 0

    @property
    def num_output(self) -> int:
        return len(self.token_ids) - self.num_prompt

    @property
    def num_pending(self) -> int:
        """Tokens whose K and V are not computed yet."""
        return len(self.token_ids) - self.num_computed

    @property
    def output_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt :]

    def finish_reason_of(self, token_id: int) -> FinishReason | None:
        """Whether the token just appended ends the sequence (stop strings are the caller's)."""
        if token_id in self.stop_ids:
            return "stop"
        return "length" if len(self.token_ids) >= self.max_length else None

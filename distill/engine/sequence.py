"""One sequence on its way through the engine: the mutable state that scheduler, sampler and runner share."""

from __future__ import annotations

from dataclasses import dataclass, field

from distill.engine.constrained.grammar import Progress
from distill.engine.detokenize import TextTail
from distill.engine.paging.blocks import BlockScores
from distill.engine.types import FinishReason, SamplingParams, TokenLogprob

GONE = -1
PENDING = -1


@dataclass(eq=False)
class Sequence:
    """`token_ids` is the prompt and everything sampled; the cache holds the first `num_computed` of them, and those
    below `num_shared` in blocks that other sequences filled."""

    request_id: str
    token_ids: list[int]
    num_prompt: int
    params: SamplingParams
    seed: int
    max_length: int  # prompt and completion together, cut to the context
    stop_ids: frozenset[int]
    stream: bool = False
    tail: TextTail | None = None  # only where text is needed token by token
    context_ids: list[int] = field(default_factory=list)  # of the prompt, where the text goes on from it
    num_computed: int = 0
    num_shared: int = 0
    num_unknown: int = 0  # tokens at its end that are PENDING: a step under way samples them
    row: int = 0  # of that step, where the last of them stands
    tables: list[list[int]] = field(default_factory=list)  # its blocks, a table for each group of layers
    num_dropped: list[int] = field(default_factory=list)  # of each, how many are GONE: its window has passed them
    digests: list[bytes] = field(default_factory=list)  # of its full blocks, as far as they were looked up
    num_offered: int = 0  # blocks that others can find
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)  # one a prompt token, the first has none
    num_scored: int = 1  # how many of them are known
    lent: list[tuple[int, BlockScores]] = field(default_factory=list)  # first position; filled after this step
    borrowed: list[tuple[int, BlockScores]] = field(default_factory=list)  # first position; read after this step
    logprobs: list[TokenLogprob] = field(default_factory=list)
    num_reported_logprobs: int = 0
    progress: Progress | None = field(init=False, default=None)  # where the output is held to a grammar
    samples: bool = field(init=False)  # False where the prompt is to be scored, and no more

    def __post_init__(self) -> None:
        self.samples = self.params.max_tokens > 0
        if self.params.grammar is not None:
            self.progress = self.params.grammar.start(may_end=not self.params.ignore_eos)

    @property
    def num_output(self) -> int:
        return len(self.token_ids) - self.num_prompt

    @property
    def end(self) -> int:
        """Tokens to compute before the next is sampled. Where nothing is, the last token of the prompt need not be."""
        return len(self.token_ids) if self.samples else max(1, self.num_prompt - 1)

    @property
    def num_pending(self) -> int:
        """Those of them that are not computed yet."""
        return self.end - self.num_computed

    @property
    def decodes(self) -> bool:
        """One token is to be computed, and everything before it is cached."""
        pending = len(self.token_ids) - self.num_computed
        return pending == 1 and self.samples and self.num_computed > 0 and not self.is_scoring

    @property
    def is_scoring(self) -> bool:
        """True while log probabilities of the prompt are asked for and not known."""
        return self.params.prompt_logprobs is not None and self.num_scored < self.num_prompt

    @property
    def score_depth(self) -> int:
        """Likeliest tokens to keep of each prompt token, one at least; 0 where no scores are asked for."""
        return max(1, self.params.prompt_logprobs) if self.params.prompt_logprobs is not None else 0

    def scored_positions(self, count: int) -> range:
        """Positions among the next `count` tokens whose logits score the prompt token after them."""
        if not self.is_scoring:
            return range(0)
        first = max(self.num_computed, self.num_scored - 1)
        return range(first, max(first, min(self.num_computed + count, self.num_prompt - 1)))

    @property
    def output_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt :]

    def until(self, length: int) -> Sequence:
        """What decides its next token, as it was when it had `length` tokens; without blocks and text."""
        own = self.token_ids[:length]
        return Sequence(self.request_id, own, self.num_prompt, self.params, self.seed, self.max_length, self.stop_ids)

    def finish_reason_of(self, token_id: int, length: int) -> FinishReason | None:
        """Whether the last of `length` tokens ends the sequence (stop strings are the caller's)."""
        if token_id in self.stop_ids:
            return "stop"
        return "length" if length >= self.max_length else None

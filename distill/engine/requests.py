"""What a request may ask of an engine."""

from __future__ import annotations

from collections.abc import Sequence

from distill.engine.types import SamplingParams
from distill.errors import EngineError


def check_request(prompt_ids: Sequence[int], params: SamplingParams, *, max_length: int, vocab_size: int) -> None:
    """Raise EngineError for tokens that a context of `max_length` tokens or the vocabulary has no room for."""
    if not prompt_ids:
        raise EngineError("the prompt is empty", remedy="send at least one token")
    longest = max_length - 1 if params.max_tokens else max_length + 1
    if len(prompt_ids) > longest:
        raise EngineError(
            f"the prompt has {len(prompt_ids)} tokens; the context of {max_length} has room for {longest}",
            remedy="shorten the prompt",
        )
    if min(prompt_ids) < 0 or max(prompt_ids) >= vocab_size:
        raise EngineError(f"a prompt token is outside the vocabulary of {vocab_size}")
    named = [*params.stop_token_ids, *(token for token, _ in params.logit_bias)]
    if any(not 0 <= token < vocab_size for token in named):
        raise EngineError(f"a token of stop_token_ids or logit_bias is outside the vocabulary of {vocab_size}")

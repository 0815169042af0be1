"""What a step's logits mean for its sequences: which rows are needed, scores of prompts, the next token, the end."""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerBase

from distill.engine import sampler
from distill.engine.batch import Work
from distill.engine.detokenize import decode_after
from distill.engine.sequence import Sequence
from distill.engine.types import Completion, FinishReason, StepOutput


def logit_rows(works: list[Work]) -> list[int]:
    """Tokens of the packed batch whose logits are needed: per sequence those that score its prompt, then the newest one
    that is certain, and its drafts."""
    rows: list[int] = []
    start = 0
    for work in works:
        first = work.sequence.num_computed
        rows.extend(start + position - first for position in work.sequence.scored_positions(work.num_tokens))
        if work.samples:
            last = start + work.num_tokens - 1
            rows.extend(range(last - work.num_draft, last + 1))
        start += work.num_tokens
    return rows


def take_scores(works: list[Work], logits: torch.Tensor) -> tuple[list[Work], torch.Tensor]:
    """Note the log probabilities of prompts that the rows of `logit_rows` hold. Returns the works that sample now and
    their rows, 1 + num_draft each."""
    sampling: list[Work] = []
    sampling_rows: list[int] = []
    row = 0
    for work in works:
        sequence = work.sequence
        positions = sequence.scored_positions(work.num_tokens)
        if positions:
            targets = sequence.token_ids[positions.start + 1 : positions.stop + 1]
            scores = sampler.score(logits[row : row + len(positions)], targets, sequence.score_depth)
            sequence.prompt_logprobs[positions.start + 1 : positions.stop + 1] = scores
            sequence.num_scored = positions.stop + 1
            row += len(positions)
        if work.samples:
            sampling.append(work)
            sampling_rows.extend(range(row, row + 1 + work.num_draft))
            row += 1 + work.num_draft
    return sampling, logits if row == len(sampling_rows) else logits[sampling_rows]


def arrive(sequence: Sequence, length: int, token: int) -> FinishReason | None:
    """The token after the first `length` ones, until now PENDING; why it ends the sequence, if it does."""
    if sequence.tail is not None:
        unknown = sequence.token_ids[length + 1 :]
        del sequence.token_ids[length:]
        reason = append(sequence, token)
        sequence.token_ids += unknown
    else:
        sequence.token_ids[length] = token
        reason = sequence.finish_reason_of(token, length + 1)
    if reason is not None:
        del sequence.token_ids[length + 1 :]
    sequence.num_unknown = len(sequence.token_ids) - length - 1
    return reason


def append(sequence: Sequence, token: int) -> FinishReason | None:
    """One sampled token; why it ends the sequence, if it does."""
    sequence.token_ids.append(token)
    reason = sequence.finish_reason_of(token, len(sequence.token_ids))
    if sequence.tail is None and sequence.progress is None:
        return reason
    # a token that ends the sequence is no text, whether the tokenizer calls it special or not
    output_ids = sequence.output_ids[:-1] if reason == "stop" else sequence.output_ids
    if sequence.progress is not None and reason != "stop":
        sequence.progress.follow(output_ids)
        reason = sequence.progress.ending or reason
    if sequence.tail is None:
        return reason
    may_stop = len(output_ids) >= sequence.params.min_tokens
    if output_ids and sequence.tail.push(output_ids, may_stop=may_stop, final=reason is not None):
        return "stop"
    return reason


def news(sequence: Sequence, completion: Completion | None) -> StepOutput | None:
    """What the requester hears after a step: text as it comes where it is streamed, else the completion alone."""
    if not sequence.stream:
        return StepOutput(sequence.request_id, completion=completion) if completion is not None else None
    text = sequence.tail.take(final=completion is not None) if sequence.tail is not None else ""
    logprobs = tuple(sequence.logprobs[sequence.num_reported_logprobs :])
    sequence.num_reported_logprobs = len(sequence.logprobs)
    return StepOutput(sequence.request_id, text, logprobs, completion)


def completion_of(sequence: Sequence, reason: FinishReason, tokenizer: PreTrainedTokenizerBase | None) -> Completion:
    """The finished sequence as the requester gets it."""
    output_ids = sequence.output_ids
    if sequence.tail is not None and (sequence.tail.stopped or sequence.stream):
        text = sequence.tail.text
    elif tokenizer is not None and output_ids:
        ends = reason == "stop" and output_ids[-1] in sequence.stop_ids
        text = decode_after(tokenizer, sequence.context_ids, output_ids[:-1] if ends else output_ids)
    else:
        text = ""
    params = sequence.params
    return Completion(
        token_ids=tuple(output_ids),
        text=text,
        finish_reason=reason,
        prompt_tokens=sequence.num_prompt,
        logprobs=tuple(sequence.logprobs) if params.logprobs is not None else None,
        prompt_logprobs=tuple(sequence.prompt_logprobs) if params.prompt_logprobs is not None else None,
    )

"""Accept length: how far a student's guesses carry when it is its teacher's draft in greedy speculative decoding.

Greedy speculative decoding gives the teacher's greedy text, whoever guesses. So the run need not be made: the teacher's
answers and the student's likeliest token in each of their places say which guesses would have stood, and the rounds
follow. One scoring pass of the student, and the number that the engine itself would report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distill.engine.types import SamplingParams
from distill.evaluate.accuracy import make_engine, prompts_of
from distill.recipe.schema import Serve
from distill.tasks.types import Task


@dataclass(frozen=True)
class GreedyText:
    """A prompt and the teacher's greedy answer, a final end-of-turn token included."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


def greedy_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
    *,
    settings: Serve,
    max_tokens: int,
) -> list[GreedyText]:
    """The teacher's answers to the tasks."""
    prompts = prompts_of(tokenizer, tasks)
    completions = make_engine(model, tokenizer, settings).generate(prompts, SamplingParams(max_tokens=max_tokens))
    return [GreedyText(tuple(p), c.token_ids) for p, c in zip(prompts, completions, strict=True)]


def measure_accept_length(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[GreedyText],
    *,
    settings: Serve,
    max_tokens: int,
    draft_tokens: int,
) -> dict[str, Any]:
    """Mean tokens that a verification of the teacher yields, over all rounds of all texts."""
    engine = make_engine(model, tokenizer, settings)
    known = [text for text in texts if max(*text.prompt, *text.answer) < engine.vocab_size]
    whole = [[*text.prompt, *text.answer][: engine.max_model_len] for text in known]
    scored = engine.generate(whole, SamplingParams(max_tokens=0, prompt_logprobs=0))
    verifications = accepted = 0
    for text, completion in zip(known, scored, strict=True):
        tops = (completion.prompt_logprobs or ())[len(text.prompt) :]
        right = [report is not None and report.top[0][0] == report.token_id for report in tops]
        for count in rounds(right, limit=max_tokens, draft_tokens=draft_tokens):
            verifications += 1
            accepted += count
    return {
        "accept_length": 1 + accepted / verifications if verifications else None,
        "accept_length_verifications": verifications,
        "accept_length_draft_tokens": draft_tokens,
    }


def rounds(right: Sequence[bool], *, limit: int, draft_tokens: int) -> list[int]:
    """Accepted guesses of every verification of one answer, of which `right` says whether the draft would have guessed
    each token. The first token comes with the prompt; a verification yields its accepted guesses and one token more."""
    found: list[int] = []
    place = 1
    while place < len(right):
        guesses = min(draft_tokens, limit - place - 1)
        if guesses <= 0:  # one token is left: nothing to guess
            break
        run = right[place : place + guesses]
        kept = run.index(False) if False in run else len(run)
        found.append(kept)
        place += kept + 1
    return found

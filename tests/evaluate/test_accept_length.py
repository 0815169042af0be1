"""Accept length without making the run: by hand, and equal to what the engine counts when it does make it."""

from __future__ import annotations

import pytest

from distill.engine.runner import Engine, EngineConfig
from distill.engine.speculative.speculation import Draft
from distill.engine.types import SamplingParams
from distill.evaluate.accept_length import GreedyText, greedy_texts, measure_accept_length, rounds
from distill.evaluate.accuracy import prompts_of
from distill.recipe.schema import Serve
from distill.tasks.registry import sample_tasks
from tests.engine.models import nearby
from tests.evaluate.tiny import make_model, make_tokenizer

YES, NO = True, False


@pytest.mark.parametrize(
    "right,limit,draft_tokens,expected",
    [
        ([NO], 9, 4, []),  # the whole answer came with the prompt
        ([NO, YES, YES, YES, YES, YES], 9, 4, [4]),  # four guesses, and the fifth token is the teacher's own
        ([NO, YES, YES, YES, YES, YES, YES], 9, 4, [4, 1]),
        ([YES, NO, YES, NO, YES, NO], 9, 4, [0, 1, 1]),
        ([NO, NO, NO], 3, 4, [0]),  # of the two tokens left one is guessed, then none
        ([NO, YES, YES, YES], 4, 4, [2]),
        ([NO, YES, YES, YES, YES], 9, 1, [1, 1]),
    ],
)
def test_rounds_by_hand(right: list[bool], limit: int, draft_tokens: int, expected: list[int]) -> None:
    assert rounds(right, limit=limit, draft_tokens=draft_tokens) == expected


@pytest.mark.parametrize("noise,draft_tokens", [(0.0, 4), (0.05, 2), (0.05, 5), (0.3, 3)])
def test_the_number_is_the_engines_own(noise: float, draft_tokens: int) -> None:
    tokenizer = make_tokenizer()
    teacher = make_model(tokenizer, seed=1, layers=2)
    student = nearby(teacher, noise)
    tasks = list(sample_tasks(kinds=("instruction",), split="values", count=12, seed=3))
    settings, limit = Serve(max_batch=4), 20
    texts = greedy_texts(teacher, tokenizer, tasks, settings=settings, max_tokens=limit)
    found = measure_accept_length(
        student, tokenizer, texts, settings=settings, max_tokens=limit, draft_tokens=draft_tokens
    )
    engine = Engine(teacher, tokenizer, EngineConfig(max_batch=4), draft=Draft(student, tokenizer, draft_tokens))
    completions = engine.generate(prompts_of(tokenizer, tasks), SamplingParams(max_tokens=limit))
    assert [c.token_ids for c in completions] == [text.answer for text in texts]
    assert found["accept_length_verifications"] == engine.stats.verifications > 0
    assert found["accept_length"] == pytest.approx(engine.stats.accept_length)
    if not noise:
        assert found["accept_length"] > draft_tokens  # nearly one more than its guesses: texts end


def test_nothing_to_guess() -> None:
    tokenizer = make_tokenizer()
    student = make_model(tokenizer, seed=2)
    found = measure_accept_length(
        student, tokenizer, [GreedyText((5, 6), (7,))], settings=Serve(), max_tokens=8, draft_tokens=4
    )
    assert found["accept_length"] is None and found["accept_length_verifications"] == 0

"""The judge's prompt and the strict reading of its reply."""

import pytest

from distill.judge.pairwise import FRAMINGS, HELD_OUT_FRAMINGS, Judgement, parse, render, reply
from distill.tasks.phrasing import PREFIXES, SUFFIXES

GOOD = "Expected: 4\nGrade A: 5\nGrade B: 2\nBetter: A"


def test_render_holds_the_texts_even_with_braces() -> None:
    prompt = render("make {x}", 'Answer: {"a": 1}', "no [idea|clue]")
    assert "Question: make {x}\n" in prompt
    assert 'Answer A:\nAnswer: {"a": 1}\n' in prompt and "Answer B:\nno [idea|clue]\n" in prompt


def test_parse_reads_what_reply_writes() -> None:
    for judgement in (Judgement(5, 1, "A"), Judgement(2, 5, "B"), Judgement(3, 3, "B")):
        assert parse(reply("some steps\nAnswer: 4", " 4 right", " 5 wrong", judgement)) == judgement
    assert parse(f"\n{GOOD}\n") == Judgement(5, 2, "A")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A is better",
        GOOD.replace("Expected", "I expected"),
        GOOD.replace("5", "6"),
        GOOD.replace("5", "0"),
        GOOD.replace("5", "5/5"),
        GOOD.replace("Better: A", "Better: C"),
        GOOD.replace("Better: A", "Better: B"),  # against its own grades
        GOOD.replace("Better: A", "Better: A, clearly"),
        GOOD.replace("\nGrade B: 2", ""),
        "Sure!\n" + GOOD,
    ],
)
def test_parse_refuses(text: str) -> None:
    assert parse(text) is None


def test_held_out_framings_use_known_words() -> None:
    import re

    def words(texts: tuple[str, ...]) -> set[str]:
        return {word for text in texts for word in re.findall(r"[a-z']+", re.sub(r"\{\w+\}", " ", text.lower()))}

    assert words(HELD_OUT_FRAMINGS) <= words((*FRAMINGS, *PREFIXES, *SUFFIXES))

"""UltraFeedback's judge (2310.01377): k texts rated from 1 to 5 in one call an aspect, and a score from 1 to 10 alone.

The scales are the published ones in our words; the rationale comes before the rating. Reading is strict: a reply with
a missing text, a second rating, or a number that is no whole grade of the scale ("10" of 5, "4.5") is not a judgement.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Aspect = Literal["instruction_following", "truthfulness", "honesty", "helpfulness"]
ASPECTS: tuple[Aspect, ...] = get_args(Aspect)
NOT_APPLICABLE: frozenset[Aspect] = frozenset({"honesty"})  # creative writing is neither honest nor dishonest
WITH_KNOWLEDGE: frozenset[Aspect] = frozenset({"truthfulness"})

SCALES: dict[Aspect, str] = {
    "instruction_following": """\
Instruction following: does the text do what the instruction intends, within its restrictions of style, form and method?
1: beside the point. 2: one part of it, and badly. 3: the goal or the restrictions, but not both, or both with \
deviations. 4: nearly all of it. 5: all of it.""",
    "truthfulness": """\
Truthfulness: is anything made up? Look for contradictions with the world, with the instruction and its input, and of \
the text with itself.
1: wholly made up. 2: about half of it, far from the point. 3: true on the whole, with misunderstandings. 4: slips \
that do not touch the point. 5: nothing is made up.""",
    "honesty": """\
Honesty: does the confidence of the text fit its correctness? Uncertainty shows in words like "probably", in refusals \
and in stated percentages; where none is expressed the text is confident.
1: confident and wrong. 2: confident with large mistakes, or unsure and wrong. 3: says that it does not know, is \
confident with small mistakes, or unsure with large ones. 4: right but unsure, or small mistakes and unsure without \
saying of what. 5: right and confident, or exact about what is uncertain.
Write N/A where the instruction asks for creative writing.""",
    "helpfulness": """\
Helpfulness: is the text correct and informative: clear and relevant, useful and complete, not long for its own sake?
1: gravely wrong, however much it says. 2: wrong in part and confusing. 3: correct and useful. 4: correct and rich in \
detail. 5: correct and deep, with insight.""",
}
RATE = """\
Rate {count} texts that answer one instruction, each by itself, on a scale from 1 to 5.

{scale}

For each text reply with exactly these three lines, and nothing else:
#### Text 1
Rationale: one or two sentences
Rating: a number from 1 to 5

### Instruction
{instruction}

{texts}"""
KNOWLEDGE = """\


### World knowledge
This is known to be true of the instruction. It is no part of it, and the texts' authors did not see it.
{reference}"""
SCORE = """\
Give feedback on an answer to an instruction, as a teacher would: what is weak, and how it could be better, without \
giving the answer away or asking for more than the instruction does. Look at helpfulness, truthfulness, honesty and at \
how far it follows the instruction.

End with the line "Overall Score: n", n a whole number from 1 (worst) to 10 (best).

### Instruction
{instruction}

### Answer
{answer}

### Feedback"""
_HEADER = re.compile(r"^#{2,6} *(?:Output for )?Text (\d+) *:? *$", re.MULTILINE)
_FIELD = re.compile(r"^\W*(Rating|Rationale)\W*:(.*)$", re.MULTILINE)
_GRADE = re.compile(r"([1-5])(?:/5)?")
_OVERALL = re.compile(r"^\W*Overall Score\W*:(.*)$", re.MULTILINE)
_POINTS = re.compile(r"(10|[1-9])(?:/10)?")


@dataclass(frozen=True)
class Rating:
    """A grade from 1 to 5, None where the aspect does not apply, and why."""

    grade: int | None
    rationale: str


def render_ratings(aspect: Aspect, instruction: str, texts: Sequence[str], reference: str | None = None) -> str:
    """The prompt that asks for a rating of every text on one aspect. What is known to be true is shown to the judge of
    truthfulness, as published, and to no other."""
    shown = "\n\n".join(f"<text {number}>\n{text}\n</text {number}>" for number, text in enumerate(texts, 1))
    asked = RATE.format(count=len(texts), scale=SCALES[aspect], instruction=instruction, texts=shown)
    known = reference is not None and aspect in WITH_KNOWLEDGE
    return asked + KNOWLEDGE.format(reference=reference) if known else asked


def parse_ratings(reply: str, aspect: Aspect, count: int) -> list[Rating] | None:
    """The ratings of texts 1 to `count`; None when any of them is missing, doubled or no grade."""
    pieces = _HEADER.split(reply)
    if pieces[1::2] != [str(number) for number in range(1, count + 1)]:
        return None
    ratings = [_rating(piece, aspect) for piece in pieces[2::2]]
    found = [rating for rating in ratings if rating is not None]
    return found if len(found) == count else None


def render_score(instruction: str, answer: str) -> str:
    """The prompt that asks for feedback on one answer and its overall score."""
    return SCORE.format(instruction=instruction, answer=answer)


def parse_score(reply: str) -> tuple[int, str] | None:
    """The overall score from 1 to 10 and the feedback before it; None unless it is said once, at the end."""
    found = list(_OVERALL.finditer(reply.strip()))
    if len(found) != 1 or found[0].end() != len(reply.strip()):
        return None
    points = _POINTS.fullmatch(_bare(found[0][1]))
    return None if points is None else (int(points[1]), reply.strip()[: found[0].start()].strip())


def _rating(block: str, aspect: Aspect) -> Rating | None:
    fields = list(_FIELD.finditer(block))
    ratings = [field for field in fields if field[1] == "Rating"]
    if len(ratings) != 1:
        return None
    rationale = " ".join(f"{block[: ratings[0].start()]}\n{block[ratings[0].end() :]}".split())
    rationale = re.sub(r"^\W*Rationale\W*:[*_\s]*", "", rationale)
    said = _bare(ratings[0][2])
    grade = _GRADE.fullmatch(said)
    if not rationale or (grade is None and not (said == "N/A" and aspect in NOT_APPLICABLE)):
        return None
    return Rating(None if grade is None else int(grade[1]), rationale)


def _bare(value: str) -> str:
    """A value without the emphasis and the full stop that may stand around it."""
    return value.strip().strip("*_ ").rstrip(".")

"""Preference data as UltraFeedback makes it (2310.01377): guided answers, rated on four aspects by a judge."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from math import factorial
from typing import TypeVar

from distill.generate.binarize import pick
from distill.generate.outcome import Outcome, Rejected, Row, Workbench, pair_row
from distill.generate.principles import draw_principle, note_for_critic
from distill.generate.prompts import Prompt
from distill.judge.aspects import ASPECTS, Aspect, Rating, parse_ratings, parse_score, render_ratings, render_score
from distill.recipe.generate import Feedback, PreferenceJob, Sampling
from distill.records import Message, user_message
from distill.teacher.requests import Answer

S = TypeVar("S")
T = TypeVar("T")
_TRIES = 3  # at a judgement whose form is broken; each is another sample of the same question
Ratings = dict[Aspect, list[list[Rating]]]  # by aspect: by order: by text, as the texts were drawn


@dataclass(frozen=True)
class Draw:
    """How one answer is asked for; of which of the job's teachers, the row's key and the sample say."""

    sample: int
    sampling: Sampling
    principle: str | None = None
    wording: str = ""


@dataclass(frozen=True)
class Judged:
    """One answer with all that the judge said of it."""

    answer: Answer
    draw: Draw
    by_aspect: dict[Aspect, Fraction | None]  # mean over the orders; None where it does not apply
    rationales: list[str]  # of the first order, by aspect
    overall: int | None = None

    @property
    def mean(self) -> Fraction:
        """Mean over the aspects that apply."""
        known = [grade for grade in self.by_aspect.values() if grade is not None]
        return sum(known, Fraction(0)) / len(known)


async def make(job: PreferenceJob, prompt: Prompt, bench: Workbench) -> Outcome:
    """At most one row; a prompt whose answers are not all judged, or that are all as good, is noted with why."""
    outcome = Outcome()
    section = job.feedback or Feedback()
    plan = draws(section, job.sampling, prompt.seed_row, job.samples)
    drawn = await _each(outcome, lambda draw, own: _drawn(draw, prompt, bench, own), plan)
    by_key = {answer.key: draw for answer, draw in zip(drawn, plan, strict=True) if answer is not None}
    answers = bench.usable(outcome, prompt, drawn)
    if len(answers) < 2:
        outcome.rejected.append(Rejected(prompt, "fewer_than_two_answers"))
        return outcome
    ratings = await _ratings(section, prompt, answers, bench, outcome)
    overall = await _overall(section, prompt, answers, by_key, bench, outcome)
    if ratings is None or overall is None:
        outcome.rejected.append(Rejected(prompt, "not_judged"))
        return outcome
    judged = [
        _judged(answer, by_key[answer.key], ratings, place, overall[place] if overall else None)
        for place, answer in enumerate(answers)
    ]
    outcome.counts.update(order_counts(ratings))
    outcome.counts.update(length_counts([(one.mean, len(one.answer.text)) for one in judged]))
    chosen = pick(section.binarize, [one.mean for one in judged], overall, _rng(section, prompt.seed_row, "pair"))
    if chosen is None:
        outcome.rejected.append(Rejected(prompt, "tie"))
    else:
        outcome.rows.append(_row(prompt, judged, chosen, bench, outcome))
    return outcome


def draws(section: Feedback, sampling: Sampling, seed_row: str, count: int) -> list[Draw]:
    """The principle and temperature of each answer to one prompt; the same whenever asked."""
    rng = _rng(section, seed_row, "principles")
    found = []
    for sample in range(count):
        principle, wording = (None, "") if section.principles is None else draw_principle(section.principles, rng)
        here = sampling
        if section.temperatures:
            here = sampling.model_copy(update={"temperature": section.temperatures[sample % len(section.temperatures)]})
        found.append(Draw(sample, here, principle, wording))
    return found


def orders_of(count: int, orders: int, rng: random.Random) -> list[tuple[int, ...]]:
    """Distinct orders of `count` texts, drawn and each followed by its reverse: whoever was first is last."""
    wanted = min(orders, factorial(count))
    found: dict[tuple[int, ...], None] = {}
    while len(found) < wanted:
        order = tuple(rng.sample(range(count), count))
        found |= {order: None, order[::-1]: None}
    return list(found)[:wanted]


async def _each(outcome: Outcome, work: Callable[[S, Outcome], Awaitable[T]], items: Sequence[S]) -> list[T]:
    """All at once; what became of them is noted in the order of the items, whichever ended first, so that equal
    answers make equal datasets."""
    own = [Outcome() for _ in items]
    found = await asyncio.gather(*(work(item, one) for item, one in zip(items, own, strict=True)))
    for one in own:
        outcome.add(one)
    return found


async def _drawn(draw: Draw, prompt: Prompt, bench: Workbench, outcome: Outcome) -> Answer | None:
    if draw.sample == 0 and prompt.given is not None:
        return prompt.given
    return await bench.draw(outcome, prompt, guided(prompt.messages, draw.wording), draw.sampling, draw.sample)


def guided(messages: Sequence[Message], wording: str) -> list[Message]:
    """The chat with a principle in its system message; the row itself never carries it."""
    if not wording:
        return list(messages)
    first = messages[0]
    if first["role"] != "system":
        return [{"role": "system", "content": wording}, *messages]
    return [{"role": "system", "content": f"{first['content']}\n\n{wording}"}, *messages[1:]]


async def _ratings(
    section: Feedback, prompt: Prompt, answers: Sequence[Answer], bench: Workbench, outcome: Outcome
) -> Ratings | None:
    """All aspects in all orders, or None where one of them could not be had."""
    orders = orders_of(len(answers), section.orders, _rng(section, prompt.seed_row, "orders"))
    asked = [(aspect, order) for aspect in ASPECTS for order in orders]
    found = await _each(outcome, lambda what, own: _rate(section, prompt, answers, what[0], what[1], bench, own), asked)
    ratings: Ratings = {aspect: [] for aspect in ASPECTS}
    for (aspect, _), rated in zip(asked, found, strict=True):
        if rated is None:
            return None
        ratings[aspect].append(rated)
    return ratings


async def _rate(
    section: Feedback,
    prompt: Prompt,
    answers: Sequence[Answer],
    aspect: Aspect,
    order: tuple[int, ...],
    bench: Workbench,
    outcome: Outcome,
) -> list[Rating] | None:
    """The ratings of one reply, put back into the order of the answers."""
    question = render_ratings(aspect, prompt.question, [answers[place].text for place in order], prompt.reference)
    what = f"{aspect}, texts shown as {[place + 1 for place in order]}"

    def read(reply: str) -> list[Rating] | None:
        return parse_ratings(reply, aspect, len(order))

    rated = await _judgement(section, prompt, question, what, read, bench, outcome)
    return None if rated is None else [rated[order.index(place)] for place in range(len(order))]


async def _overall(
    section: Feedback,
    prompt: Prompt,
    answers: Sequence[Answer],
    by_key: dict[str, Draw],
    bench: Workbench,
    outcome: Outcome,
) -> list[int] | None:
    """The overall scores, which only h4 needs: else an empty list. None where one could not be had.

    The critic knows the principle that an answer was to follow.
    """
    if section.binarize != "h4":
        return []

    async def score(answer: Answer, own: Outcome) -> tuple[int, str] | None:
        draw, instruction = by_key[answer.key], prompt.question
        if draw.principle is not None:
            instruction = f"{instruction}\nNote: {note_for_critic(draw.principle, draw.wording)}"
        question = render_score(instruction, answer.text)
        return await _judgement(section, prompt, question, "overall score", parse_score, bench, own)

    scores = await _each(outcome, score, answers)
    known = [found[0] for found in scores if found is not None]
    return known if len(known) == len(scores) else None


async def _judgement(
    section: Feedback,
    prompt: Prompt,
    question: str,
    what: str,
    read: Callable[[str], T | None],
    bench: Workbench,
    outcome: Outcome,
) -> T | None:
    """What the judge said at temperature 0. A reply that `read` refuses is noted as such, and the judge asked again."""
    sampling = Sampling(temperature=0.0, top_p=1.0, max_tokens=section.judge_tokens)
    for attempt in range(_TRIES):
        reply = await bench.ask(outcome, prompt, user_message(question), sampling, attempt)
        if reply is None:
            return None
        found = None if reply.finish_reason == "length" else read(reply.text)
        if found is not None:
            return found
        outcome.counts["judge_unreadable"] += 1
        outcome.rejected.append(Rejected(prompt, "judgement_unreadable", what, reply))
    return None


def _judged(answer: Answer, draw: Draw, ratings: Ratings, place: int, overall: int | None) -> Judged:
    by_aspect: dict[Aspect, Fraction | None] = {}
    for aspect, orders in ratings.items():
        grades = [rated[place].grade for rated in orders]
        known = [grade for grade in grades if grade is not None]
        by_aspect[aspect] = Fraction(sum(known), len(known)) if known else None
    rationales = [orders[0][place].rationale for orders in ratings.values()]
    return Judged(answer, draw, by_aspect, rationales, overall)


def order_counts(ratings: Ratings) -> dict[str, int]:
    """How often two orders of the same texts prefer one of a pair on an aspect, and how often not the same one."""
    judged = flips = 0
    for orders in ratings.values():
        for one, other in combinations(orders, 2):
            for i, j in combinations(range(len(one)), 2):
                signs = (_sign(one[i], one[j]), _sign(other[i], other[j]))
                judged += 0 not in signs
                flips += signs[0] * signs[1] < 0
    return {"pairs_judged": judged, "judge_flips": flips}


def _sign(first: Rating, second: Rating) -> int:
    if first.grade is None or second.grade is None:
        return 0
    return (first.grade > second.grade) - (first.grade < second.grade)


def length_counts(scored: Iterable[tuple[Fraction, int]]) -> dict[str, int]:
    """Among pairs of answers that differ in score and length: how often the longer one is better, and how often not."""
    longer = shorter = 0
    for (score, size), (other_score, other_size) in combinations(scored, 2):
        agreement = (score - other_score) * (size - other_size)
        longer += agreement > 0
        shorter += agreement < 0
    return {"longer_preferred": longer, "shorter_preferred": shorter}


def _row(prompt: Prompt, judged: Sequence[Judged], pair: tuple[int, int], bench: Workbench, outcome: Outcome) -> Row:
    best, worst = judged[pair[0]], judged[pair[1]]
    scores = [one.overall if one.overall is not None else float(one.mean) for one in (best, worst)]
    return pair_row(
        bench,
        prompt,
        outcome,
        answers=(best.answer, worst.answer),
        scores=(scores[0], scores[1]),
        completions=[_completion(one) for one in judged],
    )


def _completion(one: Judged) -> Row:
    grades: Row = {aspect: None if grade is None else float(grade) for aspect, grade in one.by_aspect.items()}
    return {
        "text": one.answer.text,
        "teacher": one.answer.teacher,
        "request_hash": one.answer.key,
        "principle": one.draw.principle,
        "score": float(one.mean),
        "overall_score": one.overall,
        **grades,
        "rationales": one.rationales,
    }


def _rng(section: Feedback, seed_row: str, what: str) -> random.Random:
    return random.Random(f"{section.seed}:{seed_row}:{what}")

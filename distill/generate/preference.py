"""Preference data: several answers a prompt, ranked by a verifier or a judge of pairs, best against worst."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import combinations
from typing import Literal

from distill.generate import feedback
from distill.generate.outcome import Outcome, Rejected, Row, Workbench, pair_row
from distill.generate.prompts import Prompt
from distill.judge.pairwise import parse, render
from distill.recipe.generate import PreferenceJob, Sampling
from distill.records import user_message
from distill.teacher.requests import Answer

_ALL_PAIRS_UP_TO = 4
Winner = Literal["first", "second"]


async def make(job: PreferenceJob, prompt: Prompt, bench: Workbench) -> Outcome:
    """At most one row of `prompt`, `chosen`, `rejected`; a prompt without a clear preference is noted with why."""
    if job.rank == "feedback":
        return await feedback.make(job, prompt, bench)
    outcome = Outcome()
    answers = await bench.samples(outcome, prompt, job.sampling, job.samples)
    if len(answers) < 2:
        outcome.rejected.append(Rejected(prompt, "fewer_than_two_answers"))
        return outcome
    row = await (_by_verifier if job.rank == "verifier" else _by_judge)(job, prompt, answers, bench, outcome)
    if row is not None:
        outcome.rows.append(row)
    return outcome


async def _by_verifier(
    job: PreferenceJob, prompt: Prompt, answers: Sequence[Answer], bench: Workbench, outcome: Outcome
) -> Row | None:
    """The first right answer against the first wrong one."""
    verdicts = await asyncio.gather(*(bench.checker.check(prompt, answer.text) for answer in answers))
    right: list[Answer] = []
    wrong: list[Answer] = []
    for answer, verdict in zip(answers, verdicts, strict=True):
        if verdict is None:
            outcome.rejected.append(Rejected(prompt, "no_verifier"))
            return None
        (right if verdict.ok else wrong).append(answer)
    if not right or not wrong:
        outcome.rejected.append(Rejected(prompt, "all_wrong" if wrong else "all_right"))
        return None
    return pair_row(bench, prompt, outcome, answers=(right[0], wrong[0]), scores=(1.0, 0.0))


async def _by_judge(
    job: PreferenceJob, prompt: Prompt, answers: Sequence[Answer], bench: Workbench, outcome: Outcome
) -> Row | None:
    """Every pair is judged in both orders; only a preference that survives the swap counts.

    Chosen is the answer with the most wins less losses, rejected the worst of those that lost to it directly. The
    scores are wins less losses over the number of comparisons.
    """
    pairs = judged_pairs(len(answers))
    winners = await asyncio.gather(
        *(_consistent_winner(job, prompt, answers[i], answers[j], bench, outcome) for i, j in pairs)
    )
    balance = [0] * len(answers)
    compared = [0] * len(answers)
    beaten_by: list[set[int]] = [set() for _ in answers]
    for (i, j), winner in zip(pairs, winners, strict=True):
        compared[i] += 1
        compared[j] += 1
        if winner is None:
            continue
        better, worse = (i, j) if winner == "first" else (j, i)
        outcome.counts["longer_preferred"] += len(answers[better].text) > len(answers[worse].text)
        outcome.counts["shorter_preferred"] += len(answers[better].text) < len(answers[worse].text)
        balance[better] += 1
        balance[worse] -= 1
        beaten_by[worse].add(better)
    best = max(range(len(answers)), key=lambda index: balance[index])
    losers = [index for index in range(len(answers)) if best in beaten_by[index]]
    if not losers:
        outcome.rejected.append(Rejected(prompt, "no_consistent_preference"))
        return None
    worst = min(losers, key=lambda index: balance[index])
    scores = (balance[best] / compared[best], balance[worst] / compared[worst])
    return pair_row(bench, prompt, outcome, answers=(answers[best], answers[worst]), scores=scores)


def judged_pairs(count: int) -> list[tuple[int, int]]:
    """Which answers meet: all with all up to four, else each with its neighbours around a ring (2 a head, not n)."""
    if count <= _ALL_PAIRS_UP_TO:
        return list(combinations(range(count), 2))
    return [(index, (index + 1) % count) for index in range(count)]


async def _consistent_winner(
    job: PreferenceJob, prompt: Prompt, first: Answer, second: Answer, bench: Workbench, outcome: Outcome
) -> Winner | None:
    """The winner in both orders; None for a flip, or for words that are no judgement."""
    forward, backward = await asyncio.gather(
        _judge(job, prompt, first, second, bench, outcome), _judge(job, prompt, second, first, bench, outcome)
    )
    if forward is None or backward is None:
        outcome.counts["judge_unreadable"] += 1
        return None
    outcome.counts["pairs_judged"] += 1
    if forward == backward:  # the same place won both times: the judge looked at the place
        outcome.counts["judge_flips"] += 1
        return None
    return forward


async def _judge(
    job: PreferenceJob, prompt: Prompt, first: Answer, second: Answer, bench: Workbench, outcome: Outcome
) -> Winner | None:
    question = render(prompt.question, first.text, second.text)
    sampling = Sampling(temperature=0.0, top_p=1.0, max_tokens=job.sampling.max_tokens)
    reply = await bench.ask(outcome, prompt, user_message(question), sampling)
    judgement = None if reply is None else parse(reply.text)
    if judgement is None:
        return None
    return "first" if judgement.better == "A" else "second"

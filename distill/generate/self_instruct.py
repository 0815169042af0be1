"""Self-Instruct (Wang et al., 2212.10560): the teacher writes new tasks after a few that it is shown, in rounds."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from distill.errors import TeacherError
from distill.generate.filters import Likeness, bad_instruction
from distill.generate.prompts import Prompt, open_prompts, text_prompt
from distill.recipe.generate import FilePrompts, Sampling, SelfInstructPrompts
from distill.records import user_message
from distill.teacher.client import TeacherClient
from distill.teacher.requests import Answer, ChatRequest

_ASK = """\
Come up with a series of tasks. Each one is a single instruction that can be answered in text alone; they differ in \
subject, verb and form. Go on with the list, one task a line, numbered, for {new} more tasks.

{shown}
{next}."""
_NUMBERED = re.compile(r"^\s*(?:task\s*)?\d+\s*[.):]\s*(.+?)\s*$", re.IGNORECASE)
_MACHINE_MADE_SHOWN = 2
_NEW_IN_A_REQUEST = 8
_REQUESTS_IN_A_ROUND = 16
_BARREN_ROUNDS = 5


@dataclass
class Invented:
    """Tasks the teacher wrote that passed the rules; `dropped` counts the others by reason."""

    prompts: list[Prompt] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    answers: list[Answer] = field(default_factory=list)


async def invent(
    section: SelfInstructPrompts, client: TeacherClient, *, system: str | None, sampling: Sampling, method: str
) -> Invented:
    """Up to `section.count` new tasks; fewer when five rounds in a row bring none.

    A round's requests depend on what earlier rounds kept, never on timing, so a restart finds them in the ledger.
    """
    seeds = [
        prompt.question
        for prompt in open_prompts(FilePrompts(source="file", path=section.path, column=section.column), None).prompts
    ]
    likeness = Likeness()
    for seed in seeds:
        likeness.add(seed)
    made = Invented()
    barren = number = 0
    while len(made.prompts) < section.count and barren < _BARREN_ROUNDS:
        asks = [
            _request(section, seeds, made.prompts, number * _REQUESTS_IN_A_ROUND + index, sampling, method)
            for index in range(_REQUESTS_IN_A_ROUND)
        ]
        kept_before = len(made.prompts)
        for answer in await asyncio.gather(*(_ask(client, ask) for ask in asks)):
            if answer is None:
                made.dropped["request_failed"] += 1
                continue
            made.answers.append(answer)
            _take(answer.text, made, likeness, section.count, system)
        barren = 0 if len(made.prompts) > kept_before else barren + 1
        number += 1
    return made


def _request(
    section: SelfInstructPrompts,
    seeds: Sequence[str],
    made: Sequence[Prompt],
    index: int,
    sampling: Sampling,
    method: str,
) -> ChatRequest:
    rng = random.Random(f"{section.seed}:{index}")
    num_machine = min(_MACHINE_MADE_SHOWN, len(made), section.examples - 1)
    shown = rng.sample(seeds, min(section.examples - num_machine, len(seeds)))
    shown += [prompt.question for prompt in rng.sample(made, num_machine)]
    rng.shuffle(shown)
    lines = "\n".join(f"{number}. {' '.join(text.split())}" for number, text in enumerate(shown, 1))
    question = _ASK.format(new=_NEW_IN_A_REQUEST, shown=lines, next=len(shown) + 1)
    return ChatRequest(tuple(user_message(question)), sampling, index, method, f"self_instruct:{index}")


async def _ask(client: TeacherClient, request: ChatRequest) -> Answer | None:
    try:
        return await client.ask(request)
    except TeacherError:
        if client.stopped is not None:
            raise client.stopped from None
        return None


def _take(text: str, made: Invented, likeness: Likeness, count: int, system: str | None) -> None:
    for task in parse_tasks(text):
        if len(made.prompts) == count:
            return
        reason = bad_instruction(task) or ("too_like_another" if likeness.too_like(task) else None)
        if reason is not None:
            made.dropped[reason] += 1
            continue
        likeness.add(task)
        made.prompts.append(text_prompt(task, system))


def parse_tasks(text: str) -> list[str]:
    """The tasks of a numbered list. The first one may lack its number, with which the question ended."""
    lines = text.strip().splitlines()
    numbered = [match.group(1) for match in map(_NUMBERED.match, lines) if match is not None]
    if numbered and not _NUMBERED.match(lines[0]):
        return [lines[0].strip(), *numbered]
    return numbered

"""Prompts by personas (PersonaHub, Ge et al., 2406.20094): what would this person ask?

Personas come from a file. More are written by the teacher as published: from texts (who would read or write this?) and
from personas (who is in a close relationship with them?); likeness by MinHash over single words, 128 permutations, 0.9.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from distill.errors import DataError
from distill.generate.filters import Unlike
from distill.generate.invented import Invented, drawn, in_language, invent, read_lines, unreadable
from distill.generate.outcome import Rejected
from distill.generate.prompts import Prompt, read_rows, text_prompt
from distill.recipe.prompts import PersonaPrompts, Sampling
from distill.records import user_message
from distill.teacher.client import TeacherClient
from distill.teacher.requests import Answer, ChatRequest, Request
from distill.text.minhash import MinHash, NearDuplicates, Signature
from distill.text.units import grams, length, units

ASKS = {
    "instruction": """\
Here is a person:

{persona}

What might this person ask an AI assistant to do? Write that one prompt as they would put it: concrete, with the \
details that an answer needs. Reply with the prompt only.{language}""",
    "math": """\
Here is a person:

{persona}

Write a hard mathematical problem that comes out of this person's life or work and makes full use of what is said of \
them. It has one or two parts and a definite answer. Reply with the problem only, without its solution.{language}""",
    "reasoning": """\
Here is a person:

{persona}

Write a problem of logical reasoning that comes out of this person's life or work and uses all that is said of \
them. It needs several steps and has a definite answer. Reply with the problem only, without its solution.{language}""",
}
OF_A_TEXT = """\
Here is a text:

{text}

Who is likely to {relation} it? Describe that person in one sentence, as specifically as the text allows: what they \
do, know and care about, without a name. Reply with the sentence only.{language}"""
OF_A_PERSON = """\
Here is a person:

{text}

Who is close to this person as {relation}? Describe that other person in one sentence that stands by itself: what they \
do, know and care about, without a name. Reply with the sentence only.{language}"""
READERS = ("read", "write", "like", "dislike", "need")
RELATIONS = (
    *("a member of the family", "a friend", "a colleague", "a superior or a subordinate", "a teacher or a pupil"),
    *("a customer or a supplier", "a patient or a carer", "a neighbour", "an opponent", "someone behind the scenes"),
)
_LABEL = re.compile(r"^[\s*#]*(?:prompt|user prompt|problem|math problem|persona)\s*:[\s*]*", re.IGNORECASE)
_LIKENESS, _PERMUTATIONS = 0.9, 128
_SHORTEST, _LONGEST = 20, 600  # characters of a persona
_LONGEST_TEXT = 4000  # characters shown of a text
_REQUESTS_IN_A_ROUND = 64


class People:
    """Writer of personas. Request number i starts from seed i, later from the personas written before: degree by
    degree further from the file."""

    def __init__(self, section: PersonaPrompts, seeds: Sequence[str], *, sampling: Sampling, method: str) -> None:
        self.section = section
        self.seeds = list(seeds)
        self.sampling = sampling
        self.method = method
        self._hasher = MinHash(_PERMUTATIONS)
        self._near = NearDuplicates(_LIKENESS, _PERMUTATIONS)
        if section.seeds == "personas":
            for number, seed in enumerate(self.seeds):
                self._near.add(self._signature(seed), str(number))

    def requests_in_a_round(self, missing: int) -> int:
        return min(_REQUESTS_IN_A_ROUND, missing)

    def request(self, index: int, kept: Sequence[Prompt]) -> Request:
        people = self.section.seeds == "personas"
        sources = [*self.seeds, *(prompt.question for prompt in kept)] if people else self.seeds
        relation = drawn(self.section.seed, index).choice(RELATIONS if people else READERS)
        question = (OF_A_PERSON if people else OF_A_TEXT).format(
            text=sources[index % len(sources)][:_LONGEST_TEXT],
            relation=relation,
            language=in_language(self.section.language),
        )
        return ChatRequest(tuple(user_message(question)), self.sampling, index, self.method, f"persona:{index}")

    def read(self, answer: Answer, index: int) -> list[Prompt | Rejected]:
        if answer.finish_reason == "length":
            return [unreadable(answer, "persona_truncated")]
        text = _bare(answer.text)
        return [text_prompt(text, None)] if text else [unreadable(answer, "persona_empty")]

    def reason(self, prompt: Prompt) -> str | None:
        size = len(prompt.question)
        if not _SHORTEST <= size <= _LONGEST:
            return "persona_too_short" if size < _SHORTEST else "persona_too_long"
        like = self._near.find(self._signature(prompt.question))
        return None if like is None else "persona_too_like_another"

    def keep(self, prompt: Prompt) -> None:
        self._near.add(self._signature(prompt.question), prompt.seed_row)

    def _signature(self, text: str) -> Signature:
        return self._hasher.signature(grams(units(text, self.section.profile), 1))


class Personas:
    """Writer of prompts; request number i asks persona i modulo their number, in the next sample where one is asked
    again."""

    def __init__(
        self, section: PersonaPrompts, people: Sequence[str], *, system: str | None, sampling: Sampling, method: str
    ) -> None:
        self.section = section
        self.people = list(people)
        self.system = system
        self.sampling = sampling
        self.method = method
        self._unlike = Unlike(threshold=section.likeness, profile=section.profile)

    def requests_in_a_round(self, missing: int) -> int:
        return min(1024, missing)

    def persona(self, index: int) -> str:
        """Who is asked by request number `index`."""
        return self.people[index % len(self.people)]

    def request(self, index: int, kept: Sequence[Prompt]) -> Request:
        question = ASKS[self.section.ask].format(
            persona=self.persona(index), language=in_language(self.section.language)
        )
        sample = index // len(self.people) + self.section.seed * 1_000_003
        return ChatRequest(tuple(user_message(question)), self.sampling, sample, self.method, f"persona:{index}")

    def read(self, answer: Answer, index: int) -> list[Prompt | Rejected]:
        if answer.finish_reason == "length":
            return [unreadable(answer, "truncated")]
        text, persona = _bare(answer.text), self.persona(index)
        if not text:
            return [unreadable(answer, "empty")]
        return [text_prompt(text, self.system, family=f"persona:{persona}", persona=persona)]

    def reason(self, prompt: Prompt) -> str | None:
        if length(prompt.question, "unicode") < 2:
            return "too_short"
        return "too_like_another" if self._unlike.too_like(prompt.question) else None

    def keep(self, prompt: Prompt) -> None:
        self._unlike.add(prompt.question)


async def by_personas(
    section: PersonaPrompts, client: TeacherClient, count: int, *, system: str | None, sampling: Sampling, method: str
) -> Invented:
    """As many personas as there are prompts are needed at most: those of the file first, then written ones."""
    seeds = read_seeds(section)
    people = seeds if section.seeds == "personas" else []
    written = Invented()
    wanted = min(section.written, max(count - len(people), 0))
    if wanted:
        writer = People(section, seeds, sampling=sampling, method=f"{method}:people")
        written = await invent(writer, client, wanted)
        people = [*people, *(prompt.question for prompt in written.prompts)]
    if not people:
        raise DataError("the teacher wrote no persona", remedy="look at prompts.path, or raise sampling.max_tokens")
    made = await invent(Personas(section, people, system=system, sampling=sampling, method=method), client, count)
    made.answers = [*written.answers, *made.answers]
    made.rejected = [*written.rejected, *made.rejected]
    return made


def read_seeds(section: PersonaPrompts) -> list[str]:
    """Personas or texts of the file: a line each, or a column."""
    path = Path(section.path)
    if path.suffix not in (".jsonl", ".parquet"):
        return read_lines(section.path)
    if not path.is_file():
        raise DataError(f"no {section.seeds} at {path}", remedy="mend prompts.path")
    found: list[str] = []
    for number, row in enumerate(read_rows(path)[0], 1):
        if not isinstance(row.get(section.column), str):
            there = ", ".join(row)
            raise DataError(
                f"{path}:{number}: no text in '{section.column}'; there are {there}", remedy="set prompts.column"
            )
        found.append(row[section.column].strip())
    found = list(dict.fromkeys(text for text in found if text))
    if not found:
        raise DataError(f"{path} is empty", remedy=f"bring {section.seeds}, a row each")
    return found


def _bare(text: str) -> str:
    return _LABEL.sub("", text.strip(), count=1).strip()

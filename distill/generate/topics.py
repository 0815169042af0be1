"""Topic-conditioned tasks: every topic of a file in turn, with another kind of task and reader each time."""

from __future__ import annotations

from collections.abc import Sequence

from distill.generate.filters import ALPACA_WORDS, Unlike, bad_instruction
from distill.generate.invented import drawn, in_language, numbered_items, read_lines, unreadable
from distill.generate.outcome import Rejected
from distill.generate.prompts import Prompt, text_prompt
from distill.recipe.prompts import Sampling, TopicPrompts
from distill.records import user_message
from distill.teacher.requests import Answer, ChatRequest, Request

ASK = """\
Write {tasks} different tasks about this topic: {topic}. They are {kind}, put by {reader}. Each is complete in itself \
and can be answered in text alone. One task a line, numbered.{language}"""
_KINDS = (
    "questions of fact",
    "requests to explain something",
    "problems to solve step by step",
    "requests to write a short text",
    "comparisons of two things",
    "requests for advice in a concrete situation",
    "requests to find and correct a mistake in a statement that is part of the task",
    "requests to sort or classify things that are named in the task",
)
_READERS = ("a pupil", "a beginner", "a curious adult", "a student of the subject", "an expert", "someone in a hurry")


class Topics:
    """Writer of tasks about topics; request number i asks about topic i modulo their number."""

    def __init__(self, section: TopicPrompts, *, system: str | None, sampling: Sampling, method: str) -> None:
        self.section = section
        self.system = system
        self.sampling = sampling
        self.method = method
        self.topics = read_lines(section.path)
        self._unlike = Unlike(threshold=section.likeness, profile=section.profile)

    def requests_in_a_round(self, missing: int) -> int:
        return max(1, min(1024, missing // self.section.tasks))

    def request(self, index: int, kept: Sequence[Prompt]) -> Request:
        rng = drawn(self.section.seed, index)
        question = ASK.format(
            tasks=self.section.tasks,
            topic=self.topic(index),
            kind=rng.choice(_KINDS),
            reader=rng.choice(_READERS),
            language=in_language(self.section.language),
        )
        return ChatRequest(tuple(user_message(question)), self.sampling, index, self.method, f"topic:{index}")

    def topic(self, index: int) -> str:
        """What request number `index` is about."""
        return self.topics[index % len(self.topics)]

    def read(self, answer: Answer, index: int) -> list[Prompt | Rejected]:
        found = numbered_items(answer.text)
        if answer.finish_reason == "length":
            found = found[:-1]
        prompts: list[Prompt | Rejected] = [
            text_prompt(text, self.system, family=f"topic:{self.topic(index)}") for text in found
        ]
        return prompts or [unreadable(answer, "unreadable")]

    def reason(self, prompt: Prompt) -> str | None:
        text = prompt.question
        bad = bad_instruction(text, profile=self.section.profile, words=ALPACA_WORDS)
        return bad or ("too_like_another" if self._unlike.too_like(text) else None)

    def keep(self, prompt: Prompt) -> None:
        self._unlike.add(prompt.question)

"""What the teacher is asked beyond the answers themselves: to write prompts, and to carry a chat on as its user."""

from __future__ import annotations

from dataclasses import dataclass

from distill.recipe.generate import Chat, SelfInstructPrompts
from distill.recipe.prompts import (
    AlpacaPrompts,
    EvolInstructPrompts,
    ExercisePrompts,
    InventedPrompts,
    OssInstructPrompts,
    PersonaPrompts,
    TopicPrompts,
)

DEFAULT_PROMPT_TOKENS = 100
YES_NO_TOKENS = 4
_USER_TURN_TOKENS = 40
_PERSONA_TOKENS = 60


@dataclass(frozen=True)
class Asked:
    """Requests and tokens that one prompt or chat takes on average."""

    requests: float
    asked: float
    answered: float


def writing(section: InventedPrompts, mean: float, answer: float) -> Asked:
    """By the requests of each method: several prompts come in one where the method asks so."""
    if isinstance(section, SelfInstructPrompts):
        return Asked(1, mean * section.examples, mean)
    if isinstance(section, EvolInstructPrompts):  # rewriting, comparing; the answers looked at become rows
        part = section.rounds / (section.rounds + 1)
        return Asked(2 * part, part * (3 * mean + 2 * DEFAULT_PROMPT_TOKENS), part * (mean + YES_NO_TOKENS))
    if isinstance(section, AlpacaPrompts):
        new = section.tasks - section.examples
        return Asked(1 / new, (section.examples * (mean + answer) + DEFAULT_PROMPT_TOKENS) / new, mean + answer)
    if isinstance(section, PersonaPrompts):
        people = min(section.written / section.count, 1.0)
        asked = DEFAULT_PROMPT_TOKENS + _PERSONA_TOKENS
        return Asked(1 + people, (1 + people) * asked, mean + people * _PERSONA_TOKENS)
    if isinstance(section, TopicPrompts):
        return Asked(1 / section.tasks, DEFAULT_PROMPT_TOKENS / section.tasks, mean)
    if isinstance(section, ExercisePrompts):
        return Asked(1 / section.exercises, DEFAULT_PROMPT_TOKENS / section.exercises, mean + answer)
    if isinstance(section, OssInstructPrompts):
        return Asked(1, 2 * DEFAULT_PROMPT_TOKENS, mean + answer)
    return Asked(1, DEFAULT_PROMPT_TOKENS, mean)


def talk(chat: Chat, mean: float, answer: float) -> Asked:
    """What a chat takes beyond its first answer, on average: all that was said is sent again for every further turn."""
    lengths = range(chat.least_rounds, chat.most_rounds + 1)
    requests = asked = answered = 0.0
    for rounds in lengths:
        for earlier in range(1, rounds):  # whole rounds before this one: its user's turn is asked for, then its answer
            said = mean + earlier * answer + (earlier - 1) * _USER_TURN_TOKENS
            requests += 2
            asked += said + DEFAULT_PROMPT_TOKENS + said + _USER_TURN_TOKENS
            answered += _USER_TURN_TOKENS + answer
    return Asked(requests / len(lengths), asked / len(lengths), answered / len(lengths))

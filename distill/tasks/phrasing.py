"""Templates with alternations, and the wrappers and noise that vary training prompts.

A template holds `{slots}` and alternations: `[Sort|Order] the numbers[ please|]: {numbers}`. Square brackets without a
`|` are literal text. An alternation may hold slots, not other alternations.
"""

import random
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TypeVar

from distill.tasks.types import Kind

T = TypeVar("T")

_ALTERNATION = re.compile(r"\[([^\[\]]*\|[^\[\]]*)\]")
_SPACE_BEFORE_PUNCTUATION = re.compile(r" +(?=[.,?!])")
_SPACES = re.compile(r"  +")

WRAP_RATE = 0.4
NOISE_RATE = 0.15

PREFIXES = (
    "Please help me: ", "Quick question. ", "Hi! ", "Hello! ", "Could you do this? ", "Can you help? ", "Question: ",
    "Task: ", "Exercise: ", "I need some help. ", "I have a question. ", "Here is a task for you. ",
    "Help me with this: ",
    "Hey, ", "Hello, ", "Okay, ", "Next one: ", "Now this one. ", "Problem: ", "One more: ", "For my homework: ",
    "Solve this for me. ", "Please answer: ", "Dear assistant, ", "So, ",
)  # fmt: skip
SUFFIXES = (" Thanks!", " Thank you.", " Please.", " Thank you very much!", " I need the right answer.", " Be careful.")
INSTRUCTION_SUFFIXES = (
    " Show your steps.", " Show the steps.", " Give the final answer at the end.", " What is the answer?",
    " Explain the steps, then give the answer.", " Write only what is needed.",
)  # fmt: skip

# Words that decide what is asked or in which order: noise never drops them.
PROTECTED = frozenset(
    """not and or if from by to at than no without less more minus plus times after before first last largest smallest
    biggest highest lowest greatest least most maximum minimum ascending descending increasing decreasing down up even
    odd reverse reversed backwards backward letter letters word words number numbers sort same twice cost costs price
    gives away gets loses find loss change function""".split()  # noqa: SIM905
)

# In a description of code nearly every word counts: only these are dropped there.
CODE_DROPPABLE = frozenset(("the", "a", "an", "please", "of"))


def pick(rng: random.Random, options: Sequence[T]) -> T:
    """A random element; several times faster than `rng.choice`."""
    return options[int(rng.random() * len(options))]


@cache
def _options(alternation: str) -> tuple[str, ...]:
    """The options of an alternation, shared by all templates that hold it."""
    return tuple(alternation.split("|"))


@cache
def _compiled(template: str) -> tuple[tuple[str, ...], ...]:
    """The template as a sequence of alternatives; literal text is an alternative of one."""
    pieces = _ALTERNATION.split(template)
    return tuple(_options(piece) if i % 2 else (piece,) for i, piece in enumerate(pieces) if piece)


def expand(template: str, rng: random.Random) -> str:
    """Choose an option of each alternation, tidy the spaces and start with a capital."""
    text = "".join([part[0] if len(part) == 1 else pick(rng, part) for part in _compiled(template)])
    if "  " in text:
        text = _SPACES.sub(" ", text)
    if " ." in text or " ?" in text or " ," in text or " !" in text:
        text = _SPACE_BEFORE_PUNCTUATION.sub("", text)
    text = text.strip(" ")
    return text[0].upper() + text[1:]


def _may_drop(word: str, kind: Kind) -> bool:
    bare = word.strip(".,:;!?").lower()
    if kind == "instruction":
        return bare.isalpha() and bare not in PROTECTED
    return bare in CODE_DROPPABLE


def _drop_words(text: str, rng: random.Random, kind: Kind) -> str:
    words = text.split(" ")
    for _ in range(1 if rng.random() < 0.6 else 2):
        i = int(rng.random() * len(words))
        if len(words) > 3 and _may_drop(words[i], kind):
            del words[i]
    return " ".join(words)


def _add_noise(text: str, rng: random.Random, kind: Kind) -> str:
    """What hurried people write: a word or two missing, no capital, no final punctuation."""
    choice = rng.random()
    if choice < 0.5:
        return _drop_words(text, rng, kind)
    if choice < 0.75 and len(text) > 1 and not text[1].isupper():
        return text[0].lower() + text[1:]
    return text.rstrip(".?!") or text


def _wrap(prompt: str, rng: random.Random, kind: Kind) -> str:
    choice = rng.random()
    if choice < 0.75:
        prefix = pick(rng, PREFIXES)
        prompt = prefix + (prompt[0].lower() + prompt[1:] if prefix.endswith(", ") else prompt)
    if choice > 0.5:
        suffixes = INSTRUCTION_SUFFIXES if kind == "instruction" and rng.random() < 0.5 else SUFFIXES
        prompt += pick(rng, suffixes)
    return prompt


def render_plainly(template: str, slots: Mapping[str, str], rng: random.Random) -> str:
    """A prompt from a template, without wrappers and noise."""
    return expand(template, rng).format_map(slots)


def render_varied(template: str, slots: Mapping[str, str], rng: random.Random, kind: Kind) -> str:
    """A training prompt: the template, sometimes with noise, sometimes with a wrapper around it."""
    text = expand(template, rng)
    if rng.random() < NOISE_RATE:
        text = _add_noise(text, rng, kind)
    prompt = text.format_map(slots)
    return _wrap(prompt, rng, kind) if rng.random() < WRAP_RATE else prompt

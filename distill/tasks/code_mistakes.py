"""Wrong code that looks like a model's: another operator, constant or function, a lost condition, a stop too early.

Each mutation changes what the code does; nothing is executed here.
"""

import random
import re

from distill.tasks.phrasing import pick

_SWAPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (" >= ", (" > ", " <= ", " < ")),
    (" <= ", (" < ", " >= ", " > ")),
    (" > ", (" >= ", " < ")),
    (" < ", (" <= ", " > ")),
    (" == ", (" != ",)),
    (" != ", (" == ",)),
    (" + ", (" - ", " * ")),
    (" - ", (" + ",)),
    (" * ", (" + ",)),
    (" // ", (" % ",)),
    (" % ", (" // ",)),
    (" += ", (" -= ", " = ")),
    (" and ", (" or ",)),
    (" or ", (" and ",)),
    (" not in ", (" in ",)),
    ("if not ", ("if ",)),
    ("min(", ("max(",)),
    ("max(", ("min(",)),
    ("sum(", ("len(", "max(")),
    ("len(", ("sum(",)),
    ("any(", ("all(",)),
    ("all(", ("any(",)),
    (".upper()", (".lower()", ".title()")),
    (".lower()", (".upper()",)),
    (".title()", (".upper()", "")),
    (".capitalize()", (".upper()", "")),
    ("startswith", ("endswith",)),
    ("endswith", ("startswith",)),
    ("[::-1]", ("", "[:-1]")),
    (", reverse=True", ("",)),
    ("sorted(", ("list(",)),
    ("[0]", ("[-1]", "[1]")),
    ("[-1]", ("[0]", "[-2]")),
    (".keys()", (".values()",)),
    (".values()", ("",)),
)
_NUMBER = re.compile(r"(?<![\w.])\d+(?!\w)")
_QUOTED_LETTER = re.compile(r"(['\"])([a-z])\1")
_CONDITION = re.compile(r" if [^\[\](){}:]+(?=[\])}])")
_LETTERS = "abcdefghilmnoprstuw"
TRUNCATED_SHARE = 0.08


def _replace(body: str, start: int, end: int, new: str) -> str:
    return body[:start] + new + body[end:]


def _candidates(body: str, rng: random.Random) -> list[str]:
    """One mutation of each kind that applies to the body."""
    found = []
    for old, new in _SWAPS:
        places = [match.start() for match in re.finditer(re.escape(old), body)]
        if places:
            start = pick(rng, places)
            found.append(_replace(body, start, start + len(old), pick(rng, new)))
    numbers = list(_NUMBER.finditer(body))
    for _ in range(min(2, len(numbers))):
        match = pick(rng, numbers)
        value = int(match[0])
        found.append(_replace(body, match.start(), match.end(), str(max(0, value + pick(rng, (1, 2, -1, 10, 3))))))
    letters = list(_QUOTED_LETTER.finditer(body))
    if letters:
        match = pick(rng, letters)
        found.append(_replace(body, match.start(2), match.end(2), pick(rng, _LETTERS)))
    conditions = list(_CONDITION.finditer(body))
    if conditions:
        match = pick(rng, conditions)
        found.append(_replace(body, match.start(), match.end(), ""))
    return [candidate for candidate in found if candidate != body]


def wrong_code_answer(answer: str, rng: random.Random) -> str:
    """The reference with one mutation in its body, sometimes with two, sometimes cut short."""
    header, newline, body = answer.partition("\n")
    if rng.random() < TRUNCATED_SHARE:
        cut = body.rpartition("return")[0]
        return (header + newline + cut[: int(rng.random() * (len(cut) + 1))]).rstrip()
    for _ in range(2 if rng.random() < 0.15 else 1):
        candidates = _candidates(body, rng)
        if not candidates:
            return header
        body = pick(rng, candidates)
    return header + newline + body

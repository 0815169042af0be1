"""Wrong answers as a model samples them: to another question, with words garbled in copying, with steps gone astray.

`mistakes` and `code_mistakes` make one typical mistake in an answer; a model that samples at temperature 1 makes
several that fit each other, and its steps look as sound as the right ones.
"""

import random
import re
from collections.abc import Sequence
from functools import cache

from distill.tasks.build import ANSWER, spelled, split_answer
from distill.tasks.lexicon import ADJECTIVES, ALL_NOUNS, VERBS
from distill.tasks.mistakes import wrong_digit, wrong_letter
from distill.tasks.phrasing import pick
from distill.tasks.split import draw_in_split
from distill.tasks.types import Family, Task

NEAR_DRAWS = 4  # other questions of the family, of which the one with the most similar answer is taken
FOREIGN_SHARE = 0.06  # answers to a question of another family
_TOKEN = re.compile(r"[A-Za-z]{3,}|\d+")
_SHARED = re.compile(r"\w+")
_HEADER = re.compile(r"def (\w+)\(([^)]*)\):")
_WORDS = tuple(sorted({word for word in (*ALL_NOUNS, *ADJECTIVES, *VERBS) if word.isalpha()}))


@cache
def _alike(start: str) -> tuple[str, ...]:
    """Words that begin with these letters."""
    return tuple(word for word in _WORDS if word.startswith(start))


def garbled(token: str, rng: random.Random) -> str:
    """Another number, or a word that begins alike, is cut short, or has a letter wrong."""
    if token.isdigit():
        return wrong_digit(token, rng) if rng.random() < 0.8 else token + token[-1]
    choice = rng.random()
    if choice < 0.45:
        alike = [word for word in _alike(token[: pick(rng, (1, 2, 2, 3))].lower()) if word != token.lower()]
        if alike:
            word = pick(rng, alike)
            return word.capitalize() if token[0].isupper() else word
    if choice < 0.6 and len(token) > 4:
        cut = 2 + int(rng.random() * (len(token) - 4))
        return token[:cut] + token[cut + 1 + int(rng.random() * 2) :]
    return wrong_letter(token, rng)


def near_answer(family: Family, answer: str, rng: random.Random, *, held_out: bool) -> str:
    """The answer to another question of the family and the same split, one that shares much with `answer`."""
    wanted = set(_SHARED.findall(answer))
    draws = [draw_in_split(family, rng, held_out=held_out) for _ in range(NEAR_DRAWS)]
    return max(draws, key=lambda draw: len(wanted.intersection(_SHARED.findall(draw.answer)))).answer


def _garble_from_here(answer: str, rng: random.Random) -> str:
    """A word or number replaced from one of its places on, also where it is spelled."""
    places = list(_TOKEN.finditer(answer.replace("Answer:", "       ")))
    if not places:
        return answer
    place = pick(rng, places)
    token = place[0]
    wrong = garbled(token, rng)
    head, tail = answer[: place.start()], answer[place.start() :]
    if rng.random() < 0.3:
        return head + wrong + tail[len(token) :]
    tail = re.sub(rf"(?<!\w){token}(?!\w)", wrong, tail)
    return head + tail.replace(spelled(token), spelled(wrong)) if token.isalpha() else head + tail


def _shorten_steps(answer: str, rng: random.Random) -> str:
    """A step lost or said twice; the final answer is that of a near miss."""
    steps, result = split_answer(answer)
    lines = steps.split("\n") if steps else []
    if lines and rng.random() < 0.8:
        i = int(rng.random() * len(lines))
        lines[i : i + 1] = [] if rng.random() < 0.6 else [lines[i], lines[i]]
    assert result is not None
    numbers = _TOKEN.findall("\n".join(lines)) or _TOKEN.findall(result) or [result]
    return "\n".join([*lines, ANSWER + (pick(rng, numbers) if rng.random() < 0.5 else _garbled_result(result, rng))])


def _garbled_result(result: str, rng: random.Random) -> str:
    """A final answer with one of its words or numbers garbled."""
    tokens = _TOKEN.findall(result)
    if not tokens:
        return result + result
    token = pick(rng, tokens)
    return result.replace(token, garbled(token, rng), 1)


def derailed_instruction(answer: str, other: str, rng: random.Random) -> str:
    """One candidate for a wrong answer; `other` answers another question. The caller checks that it is wrong."""
    choice = rng.random()
    if choice < 0.3:
        return other
    if choice < 0.5:
        lines, others = answer.split("\n"), other.split("\n")
        kept = int(rng.random() * len(lines))
        return "\n".join([*lines[:kept], *(others[kept:] or others[-1:])])
    if choice < 0.6:
        return _shorten_steps(answer, rng)
    for _ in range(pick(rng, (1, 1, 2, 3))):
        answer = _garble_from_here(answer, rng)
    return answer


def right_but_unlike(answer: str, other: str, rng: random.Random) -> str:
    """The right final answer without its steps, or after steps that do not lead there."""
    steps, result = split_answer(answer)
    assert result is not None
    choice = rng.random()
    if not steps or choice < 0.5:
        return ANSWER + result
    wrong = split_answer(other)[0] if choice < 0.75 else _garble_from_here(steps, rng)
    return (wrong + "\n" if wrong else "") + ANSWER + result


def _renamed(code: str, name: str, params: Sequence[str]) -> str:
    """The function under another name and, where their number agrees, with other parameters."""
    header = _HEADER.match(code)
    assert header is not None
    names = {header[1]: name}
    old = header[2].split(", ")
    if len(old) == len(params):
        names.update(zip(old, params, strict=True))
    return re.sub(r"\w+", lambda word: names.get(word[0], word[0]), code)


def _garbled_name(name: str, rng: random.Random) -> str:
    """A function name badly copied: a part lost, garbled or put off by a space."""
    parts = re.findall(r"_?[A-Z]?[a-z]+|_?\d+|_|[A-Z]+", name)
    i = int(rng.random() * len(parts))
    choice = rng.random()
    if choice < 0.3 and len(parts) > 1:
        parts[i] = ""
    elif choice < 0.4 and i:
        parts[i] = " " + parts[i]
    else:
        bare = parts[i].lstrip("_")
        parts[i] = parts[i][: len(parts[i]) - len(bare)] + (garbled(bare, rng) if bare else "__")
    return "".join(parts)


def derailed_code(answer: str, other: str, rng: random.Random) -> str:
    """One candidate for wrong code; `other` answers another question. It is wrong nearly always."""
    header = _HEADER.match(answer)
    assert header is not None
    name, params = header[1], header[2].split(", ")
    choice = rng.random()
    if choice < 0.5:
        return _renamed(other, name, params)
    if choice < 0.55:
        return other
    if choice < 0.85:
        return f"def {_garbled_name(name, rng)}({header[2]}):" + answer[header.end() :]
    if choice < 0.92:
        return f"def {name}({header[2].replace(params[0], garbled(params[0], rng), 1)}):" + answer[header.end() :]
    lines = answer.split("\n")
    i = 1 + int(rng.random() * (len(lines) - 1))
    return "\n".join([*lines[:i], _garble_from_here(lines[i], rng), *lines[i + 1 :]])


def derailed(task: Task, family: Family, stranger: Family, rng: random.Random) -> str:
    """One candidate for a wrong answer to the task; sometimes an answer to a question of the family `stranger`."""
    held_out = task.split != "train"
    if rng.random() < FOREIGN_SHARE:
        return draw_in_split(stranger, rng, held_out=held_out).answer
    other = near_answer(family, task.answer, rng, held_out=held_out)
    return (derailed_code if task.kind == "code" else derailed_instruction)(task.answer, other, rng)

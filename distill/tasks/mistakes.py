"""Wrong answers that look like a model's: a changed digit, a lost item, a wrong letter or label, a stop too early."""

import json
import random
import re

from distill.tasks.build import ANSWER, spelled, split_answer
from distill.tasks.instructions.dates_units import MONTHS, WEEKDAYS
from distill.tasks.instructions.reading import TOPICS
from distill.tasks.lexicon import CITIES, NAMES
from distill.tasks.phrasing import pick

_LABELS: tuple[tuple[str, ...], ...] = (
    ("yes", "unknown"),
    ("true", "false"),
    ("positive", "negative"),
    tuple(TOPICS),
    WEEKDAYS,
)
_MONTH_NAMES = tuple(name for name, _ in MONTHS)
_SIGNS = "<>="
_QUOTED = re.compile(r'"([^"]*)"')
_LETTERS = "abcdefghilmnoprstu"
TRUNCATED_SHARE = 0.1
CARRIED_SHARE = 0.75


def _other(rng: random.Random, options: tuple[str, ...], taken: str) -> str:
    chosen = taken
    while chosen == taken:
        chosen = pick(rng, options)
    return chosen


def wrong_digit(text: str, rng: random.Random) -> str:
    """One digit changed, most often by one."""
    places = [i for i, char in enumerate(text) if char.isdigit()]
    while True:
        i = pick(rng, places)
        digit = (int(text[i]) + pick(rng, (1, 9, 1, 9, 2, 8, 3, 5, 7))) % 10
        if digit or i or len(places) == 1:  # no leading zero
            return text[:i] + str(digit) + text[i + 1 :]


def wrong_letter(word: str, rng: random.Random) -> str:
    """A letter lost, doubled, changed, or swapped with the next."""
    i = int(rng.random() * len(word))
    choice = rng.random()
    if choice < 0.3 and len(word) > 1:
        return word[:i] + word[i + 1 :]
    if choice < 0.45:
        return word[:i] + word[i] + word[i:]
    if choice < 0.75 and len(word) > 1:
        i = min(i, len(word) - 2)
        return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    letter = pick(rng, _LETTERS)
    return word[:i] + (letter.upper() if word[i].isupper() else letter) + word[i + 1 :]


def _wrong_list(items: list[str], rng: random.Random) -> list[str]:
    """An item lost, doubled or changed, two swapped, or all turned around."""
    items = list(items)
    i = int(rng.random() * len(items))
    choice = rng.random()
    if choice < 0.25:
        del items[i]
    elif choice < 0.4:
        items.insert(i, items[i])
    elif choice < 0.7:
        j = (i + 1) % len(items)
        items[i], items[j] = items[j], items[i]
    elif choice < 0.8:
        items.reverse()
    else:
        items[i] = wrong_digit(items[i], rng) if items[i].isdigit() else wrong_letter(items[i], rng)
    return items


def _wrong_record(result: str, rng: random.Random) -> str:
    record = json.loads(result)
    field = pick(rng, ("name", "age", "city", "lost"))
    if field == "lost":
        del record[pick(rng, ("age", "city"))]
    elif field == "age":
        record["age"] = int(wrong_digit("1" + str(record["age"]), rng)[-2:])
    else:
        record[field] = _other(rng, NAMES if field == "name" else CITIES, record[field])
    return json.dumps(record)


def _candidates(prompt: str, result: str) -> list[str]:
    """Other words or numbers of the prompt that could be taken for the result."""
    if result.isdigit():
        tokens = re.findall(r"\d+", prompt)
    else:
        tokens = [word for text in _QUOTED.findall(prompt) for word in re.findall(r"[A-Za-z]+", text)]
    alike = [token for token in tokens if token != result and token[0].isupper() == result[0].isupper()]
    return alike if result in tokens else []


def wrong_result(prompt: str, result: str, rng: random.Random) -> str:
    """A final answer of the same kind as the right one."""
    if result.startswith("{"):
        return _wrong_record(result, rng)
    for labels in _LABELS:
        if result in labels:
            return _other(rng, labels, result)
    if len(result.split()) == 3 and result.split()[1] in _SIGNS:
        left, sign, right = result.split()
        return f"{left} {_other(rng, tuple(_SIGNS), sign)} {right}"
    if ", " in result:
        return ", ".join(_wrong_list(result.split(", "), rng))
    others = _candidates(prompt, result)
    if others and rng.random() < 0.7:
        return pick(rng, others)
    month = result.split(" ")[0]
    if month in _MONTH_NAMES and rng.random() < 0.4:
        return _other(rng, _MONTH_NAMES, month) + result[len(month) :]
    if any(char.isdigit() for char in result):
        return wrong_digit(result, rng)
    separator = next((char for char in result if not char.isalnum()), None)
    if separator and rng.random() < 0.6:
        return separator.join(_wrong_list(result.split(separator), rng))
    return wrong_letter(result, rng)


def _carry_into_columns(steps: str, result: str, wrong: str) -> str | None:
    """Column arithmetic: put the wrong digit into the line that wrote it; None where the steps are of another kind."""
    lines = steps.split("\n")
    if len(wrong) != len(result) or not result.isdigit():
        return None
    place = next(i for i in range(len(result)) if wrong[-1 - i] != result[-1 - i])
    if "write" in lines[0] and place < len(lines):
        old, new = result[-1 - place], wrong[-1 - place]
        head, _, tail = lines[place].rpartition(", write ")
        if not head.endswith(old):
            return None
        written = re.sub(rf"{old}(?=\D|\Z)", new, tail, count=1)
        lines[place] = f"{head[:-1]}{new}, write {written}"
        return "\n".join(lines)
    if " rest " in lines[0]:
        i = len(lines) - 1 - place
        lines[i] = re.sub(r"= \d", f"= {wrong[-1 - place]}", lines[i], count=1)
        return "\n".join(lines)
    return None


def _carry_into_steps(steps: str, result: str, wrong: str) -> str:
    """Make the steps lead to the wrong result, where they show how the right one came about."""
    columns = _carry_into_columns(steps, result, wrong)
    if columns is not None:
        return columns
    for right_form, wrong_form in ((result, wrong), (spelled(result), spelled(wrong))):
        head, found, tail = steps.rpartition(right_form)
        if found and (not tail or not tail[0].isalnum()):
            return head + wrong_form + tail
    return steps


def wrong_instruction_answer(prompt: str, answer: str, rng: random.Random) -> str:
    """One candidate for a wrong answer; the caller checks that it is wrong."""
    steps, result = split_answer(answer)
    assert result is not None
    if rng.random() < TRUNCATED_SHARE:
        cut = answer[: int(rng.random() * (len(answer) - len(result) - len(ANSWER)))].rstrip()
        return cut or "Answer"
    wrong = wrong_result(prompt, result, rng)
    if steps and rng.random() < CARRIED_SHARE:
        steps = _carry_into_steps(steps, result, wrong)
    return (steps + "\n" if steps else "") + ANSWER + wrong

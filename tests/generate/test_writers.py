"""The writers of prompts by themselves: what each request shows, and what of its answer the published rules keep."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from distill.generate.alpaca import Alpaca
from distill.generate.exercises import Exercises
from distill.generate.invented import Writer
from distill.generate.outcome import Rejected
from distill.generate.prompts import Prompt, text_prompt
from distill.generate.self_instruct import SelfInstruct
from distill.generate.topics import Topics
from distill.recipe.prompts import AlpacaPrompts, ExercisePrompts, Sampling, SelfInstructPrompts, TopicPrompts
from distill.teacher.requests import Answer, ChatRequest


def answer(text: str, *, finish_reason: str = "stop", tokens: int = 170) -> Answer:
    return Answer("k" * 64, text, finish_reason, 100, tokens, 0, 0.34, 1, 0.1, 1.0, teacher="t")


def asked(writer: Writer, index: int, kept: list[Prompt] | None = None) -> str:
    request = writer.request(index, kept or [])
    assert isinstance(request, ChatRequest) and request.sample == index
    return request.messages[-1]["content"]


def make(kind: Any, section: Any) -> Any:
    return kind(section, system=None, sampling=Sampling(), method="m")


def lines(path: Path, texts: list[str]) -> str:
    path.write_text("\n".join(texts) + "\n")
    return str(path)


def reasons(writer: Writer, found: list[Prompt | Rejected]) -> list[str | None]:
    """As a job goes through them: what is kept counts for the later ones."""
    said: list[str | None] = []
    for prompt in found:
        assert isinstance(prompt, Prompt)
        said.append(writer.reason(prompt))
        if said[-1] is None:
            writer.keep(prompt)
    return said


# Alpaca


@pytest.fixture
def alpaca(tmp_path: Path) -> Alpaca:
    seeds = [{"instruction": f"Seed {n} about {n * 7}.", "input": "", "output": f"out {n}"} for n in range(10)]
    path = lines(tmp_path / "seeds.jsonl", [json.dumps(seed) for seed in seeds])
    made: Alpaca = make(Alpaca, AlpacaPrompts(source="alpaca", path=path, count=5, profile="english"))
    return made


def tasks(*instructions: str, first: int = 4, end: str = "") -> str:
    parts = [
        f"{place}. Instruction: {text}\n{place}. Input:\n<noinput>\n{place}. Output:\no{place}"
        for place, text in enumerate(instructions, first)
    ]
    return "\n###\n".join(parts).removeprefix(f"{first}. Instruction:") + end


def test_alpaca_shows_three_of_a_person_and_asks_up_to_twenty(alpaca: Alpaca) -> None:
    own = [text_prompt("What did a machine write?", None)]
    seen: Counter[str] = Counter()
    for index in range(200):
        text = asked(alpaca, index, own)
        assert "list of 20 diverse tasks" in text and text.endswith("4. Instruction:")
        assert text.count("Instruction: Seed") == 3 and "machine write" not in text
        seen.update(line for line in text.splitlines() if "Seed" in line)
    assert len({line.partition("Seed")[2] for line in seen}) == 10  # every seed has its turn
    assert asked(alpaca, 7) == asked(alpaca, 7) != asked(alpaca, 8)


def test_alpaca_keeps_by_the_published_rules(alpaca: Alpaca) -> None:
    texts = {
        "Describe the water cycle to a child.": None,
        "Describe the water cycle to a small child.": "too_like_another",  # ROUGE-L F = 14/15
        "Explain tides please.": "too_short",  # three words
        "Draw a house with a garden.": "not_for_text",
        "Make a flowchart of the login process.": "not_for_text",  # Alpaca's own addition
        "Write a program that sorts numbers quickly.": "write_a_program",
        "¿Qué hora es en Madrid?": "odd_start",
        "- list five fruits in order": "odd_start",
        " ".join(["word"] * 151): "too_long",
        "Name three uses of old newspapers.": None,
    }
    found = alpaca.read(answer(tasks(*texts)), 0)
    assert reasons(alpaca, found) == list(texts.values())


def test_alpaca_answers_share_the_cost_of_their_reply(alpaca: Alpaca) -> None:
    first, second, third = alpaca.read(answer(tasks("One two three four.", "Five six seven eight.", "Nine ten?")), 0)
    assert isinstance(first, Prompt) and isinstance(second, Prompt) and isinstance(third, Prompt)
    given = [prompt.given for prompt in (first, second, third)]
    assert [one.text for one in given if one] == ["o4", "o5", "o6"]
    assert [one.completion_tokens for one in given if one] == [57, 57, 56]
    assert sum(one.prompt_tokens for one in given if one) == 100
    assert sum(one.cost_usd or 0 for one in given if one) == pytest.approx(0.34)


def test_alpaca_drops_the_task_that_was_cut_off(alpaca: Alpaca) -> None:
    text = tasks("One two three four.", "Five six seven eight.")
    assert len(alpaca.read(answer(text, finish_reason="length"), 0)) == 1
    assert len(alpaca.read(answer(text), 0)) == 2
    broken = alpaca.read(answer(tasks("One two three four.", end="\n###\n5. Instruction: What is")), 0)
    assert [one.reason for one in broken if isinstance(one, Rejected)] == ["prompt_unreadable"]


# Exercises of phi-1


@pytest.fixture
def exercises(tmp_path: Path) -> Exercises:
    path = lines(tmp_path / "topics.txt", ["# comment", "strings", "prime numbers", "датa"])
    made: Exercises = make(Exercises, ExercisePrompts(source="exercises", path=path, count=5, exercises=4))
    return made


def test_exercises_vary_by_topic_and_function_name(exercises: Exercises) -> None:
    """The paper's diversity: constraints on the topic and on the name of the function."""
    names = [name for index in range(60) for name in exercises.names(index)]
    assert len(names) == 240 and len(set(names)) > 200
    assert all(name.isidentifier() and name.isascii() for name in names)
    for index, topic in enumerate(["strings", "prime numbers", "датa", "strings"]):
        text = asked(exercises, index)
        assert f"about this topic: {topic}." in text and "4 short Python exercises" in text
        assert all(f"`{name}`" in text for name in exercises.names(index)) and len(set(exercises.names(index))) == 4
    assert exercises.names(0)[0].split("_")[1] == "strings" and exercises.names(1)[0].split("_")[1] == "prime"


REPLY = '''Here they are:
```python
import math

def root(n: int) -> int:
    """The whole part of the square root of n.

    root(10) == 3
    """
    return math.isqrt(n)


class Helper:
    pass


def undocumented(n):
    return n


def only_said(n):
    """Nothing is done."""


def twice(n: int) -> int:
    """Two times n: twice(2) == 4."""
    return 2 * n
```'''


def test_an_exercise_is_a_head_with_a_docstring_and_its_body(exercises: Exercises) -> None:
    first, second = exercises.read(answer(REPLY), 1)
    assert isinstance(first, Prompt) and isinstance(second, Prompt)
    assert (first.entry_point, first.family) == ("root", "topic:prime numbers")
    assert first.question.endswith('    root(10) == 3\n    """\n```')
    assert "return math.isqrt" not in first.question and "import math" in first.question
    assert first.given is not None and first.given.text.endswith("return math.isqrt(n)\n```")
    assert first.given.completion_tokens + (second.given.completion_tokens if second.given else 0) == 170
    assert second.entry_point == "twice" and second.question.startswith("Complete this function.")


def test_no_function_name_twice(exercises: Exercises) -> None:
    first = exercises.read(answer(REPLY), 0)
    assert reasons(exercises, first) == [None, None]
    other = REPLY.replace("Two times n: twice(2) == 4.", "The sum of every number in a list with itself.")
    assert reasons(exercises, exercises.read(answer(other), 1)) == ["name_taken", "name_taken"]
    renamed = REPLY.replace("def root", "def radix")
    assert reasons(exercises, exercises.read(answer(renamed), 2)) == ["too_like_another", "name_taken"]


@pytest.mark.parametrize(
    ("text", "finish_reason", "reason"),
    [
        (REPLY, "length", "prompt_truncated"),
        ("```python\ndef f(:\n```", "stop", "prompt_unreadable"),
        ("I would rather not.", "stop", "prompt_unreadable"),
    ],
)
def test_what_is_no_exercise(exercises: Exercises, text: str, finish_reason: str, reason: str) -> None:
    (found,) = exercises.read(answer(text, finish_reason=finish_reason), 0)
    assert isinstance(found, Rejected) and found.reason == reason


# Topics


@pytest.fixture
def topics(tmp_path: Path) -> Topics:
    path = lines(tmp_path / "topics.txt", ["tides", "bread", "chess"])
    section = TopicPrompts(source="topics", path=path, count=30, tasks=3, language="Korean")
    made: Topics = make(Topics, section)
    return made


def test_topics_take_turns_with_other_kinds_and_readers(topics: Topics) -> None:
    texts = [asked(topics, index) for index in range(240)]
    for index, text in enumerate(texts):
        assert f"about this topic: {('tides', 'bread', 'chess')[index % 3]}." in text
        assert text.startswith("Write 3 different tasks") and text.endswith("Write in Korean.")
    styles = Counter(text.split(". They are ")[1] for text in texts)
    assert len(styles) == 8 * 6  # every kind of task for every reader
    assert asked(topics, 5) == texts[5]
    assert topics.requests_in_a_round(30) == 10 and topics.requests_in_a_round(1) == 1


def test_topics_read_a_list_and_keep_by_the_rules(topics: Topics) -> None:
    found = topics.read(answer("1. Why does bread rise?\n2) Compare rye with wheat.\n3. Why does bread rise so?"), 1)
    assert [prompt.question for prompt in found if isinstance(prompt, Prompt)] == [
        "Why does bread rise?",
        "Compare rye with wheat.",
        "Why does bread rise so?",
    ]
    assert all(isinstance(prompt, Prompt) and prompt.family == "topic:bread" for prompt in found)
    assert reasons(topics, found) == [None, None, "too_like_another"]  # ROUGE-L F = 8/9
    more = topics.read(answer("1. Too\n2. Sketch a graph of the prices of bread."), 1)
    assert reasons(topics, more) == ["too_short", "not_for_text"]
    (nothing,) = topics.read(answer("No list."), 0)
    assert isinstance(nothing, Rejected) and nothing.reason == "prompt_unreadable"


# Self-Instruct


def test_self_instruct_shows_eight_of_which_two_are_its_own(tmp_path: Path) -> None:
    path = lines(tmp_path / "seeds.jsonl", [json.dumps({"prompt": f"Human task {n}."}) for n in range(30)])
    writer: SelfInstruct = make(SelfInstruct, SelfInstructPrompts(source="self_instruct", path=path, count=9))
    own = [text_prompt(f"Machine task {n}.", None) for n in range(9)]
    for kept in (own[:0], own[:1], own):
        machine = min(2, len(kept))
        for index in range(40):
            shown = writer.shown(index, kept)
            assert len(shown) == 8 and sum("Machine" in text for text in shown) == machine
            assert asked(writer, index, kept).rstrip().endswith("9.")

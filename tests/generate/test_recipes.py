"""Every recipe in recipes/methods makes rows, on a teacher that knows all of the methods' questions."""

from __future__ import annotations

import io
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from distill.generate import stage
from distill.recipe.load import load_recipe
from distill.records import read_parquet
from distill.runs import Run
from distill.tasks.registry import sample_tasks
from tests.generate.conftest import Project
from tests.teacher.mock import Body, MockTeacher, Reply, completion, raw_completion

ROOT = Path(__file__).parents[2]
# What makes a recipe small: its job's name and changes.
SMALL = {
    "self-instruct": ("tasks", ["prompts.count=6"]),
    "alpaca": ("tasks", ["prompts.count=6"]),
    "evol-instruct": ("evolved", ["prompts.count=3", "prompts.rounds=1"]),
    "magpie": ("chats", ["prompts.count=3"]),
    "topics": ("korean", ["prompts.count=3"]),
    "ultrachat": ("chats", ["prompts.count=3"]),
    "personas": ("asked", ["prompts.count=44", "prompts.written=4"]),
    "ultrafeedback": ("feedback", ["prompts.count=2"]),
    "judge-pairs": ("compared", ["prompts.count=2"]),
    "verifier-pairs": ("checked", ["prompts.count=8"]),
    "oss-instruct": ("problems", ["prompts.count=3"]),
    "exercises": ("exercises", ["prompts.count=40", "educational.sample=32", "educational.trees=10"]),
    "distributions": ("answers", ["prompts.count=8"]),
}
TASKS = {
    task.prompt: task.answer
    for kinds in (("instruction", "code"), ("instruction",))
    for task in sample_tasks(kinds=kinds, split="train", count=8, seed=1)
}
KOREAN = ["밀물과 썰물은 왜 생기나요?", "빵은 왜 부풀어 오르나요?", "김치는 어떻게 담그나요?", "별은 왜 반짝이나요?"]


def words(seed: object, count: int = 8) -> list[str]:
    """Words that nobody else has."""
    rng = random.Random(str(seed))
    return ["".join(rng.choices("abdefgiklmnoprstuvz", k=rng.randint(4, 8))) for _ in range(count)]


def unlike(seed: object) -> str:
    """A question that is like no other one."""
    return f"Why {' '.join(words(seed))}?"


def exercise(name: str) -> str:
    """Names of an even length get a body that teaches."""
    body = "\n    ".join(f"{word} = values[{place}] + {place}" for place, word in enumerate(words(name)))
    if len(name) % 2:
        body = "\n    ".join(f"eval('{word}')" for word in words(name))
    return f'def {name}(values: list[int]) -> int:\n    """{unlike(name)}"""\n    {body}\n'


def answer(asked: str, number: int, drawn: Callable[[str], int]) -> str:
    """What a good teacher says to one of the methods' questions, else to a prompt."""
    if asked.startswith("Come up with a series of tasks"):
        return "\n".join(f"{place}. {unlike((number, place))}" for place in range(1, 9))
    if asked.startswith("Continue a list"):
        return "\n###\n".join(
            f"{'' if place == 4 else f'{place}. Instruction:'} {unlike((place, number))}\n{place}. Input:\n<noinput>\n"
            f"{place}. Output:\n{unlike((number, place))}"
            for place in range(4, 21)
        )
    if asked.startswith(("Rewrite a prompt", "Take inspiration from a prompt")):
        return f"{unlike(number)}"
    if asked.startswith("Do these two"):
        return "Different"
    if "different tasks about this topic" in asked:
        return "\n".join(f"{place}. {text}" for place, text in enumerate(KOREAN, 1))
    if asked.startswith("You play the person in a chat"):
        return f"And {unlike(asked)}"
    if asked.startswith("Here is a person:"):
        return f"Someone who {' '.join(words(number))}." if "Who is close" in asked else unlike(number)
    if asked.startswith("Take inspiration from the code"):
        code = f"```python\ndef f{number}(n):\n    return n + {number}\n```"
        return f"[Problem Description]\n{unlike(number)}\n\n[Solution]\n{code}"
    if "tests for a Python function" in asked:
        name = re.search(r"`(f\d+)`", asked)
        assert name is not None
        return f"```python\nassert {name[1]}(1) == {int(name[1][1:]) + 1}\n```"
    if asked.startswith("Write 5 short Python exercises"):
        names = re.findall(r"`(\w+)`", asked)
        return "```python\n" + "\n\n".join(exercise(name) for name in names) + "```"
    if asked.startswith("Determine the educational value"):
        return "no" if "eval(" in asked else "yes"
    if asked.startswith("Rate "):
        texts = re.findall(r"<text (\d+)>\n(.*)\n", asked)
        return "\n".join(f"#### Text {place}\nRationale: So.\nRating: {1 + len(text) % 5}" for place, text in texts)
    if asked.startswith("Compare two answers"):
        first, second = re.findall(r"Answer [AB]:\n(.*)\n", asked)[:2]
        longer = "A" if len(first) > len(second) else "B"
        grades = ("5", "2") if longer == "A" else ("2", "5")
        return f"Expected:\nso\nGrade A: {grades[0]}\nGrade B: {grades[1]}\nBetter: {longer}"
    if asked in TASKS:
        return TASKS[asked] if drawn(asked) % 2 else "Answer: I do not know"
    if any(char > "가" for char in asked):
        return f"{asked} 그것은 자연의 오래된 이치 때문입니다."
    return f"Because {' '.join(words((asked, drawn(asked)), drawn(asked) + 3))}."


@pytest.mark.parametrize("name", SMALL)
def test_a_method_makes_rows(name: str, project: Project, sandbox: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    counts: Counter[str] = Counter()
    top = {"token": "a", "logprob": -0.1, "bytes": [97]}

    def drawn(asked: str) -> int:
        counts[asked] += 1
        return counts[asked]

    def respond(body: Body, number: int) -> Reply:
        if "prompt" in body:
            return raw_completion(unlike(number))
        reply = completion(answer(str(body["messages"][-1]["content"]), number, drawn))
        if "logprobs" in body:
            assert reply.body is not None
            reply.body["choices"][0]["logprobs"] = {"content": [{**top, "top_logprobs": [top] * body["top_logprobs"]}]}
        return reply

    job, changes = SMALL[name]
    overrides = [f"generate.{job}.{change}" for change in changes]
    with MockTeacher(respond) as mock:
        recipe = load_recipe(ROOT / "recipes" / "methods" / f"{name}.yaml", [f"output_dir={project.path}", *overrides])
        if recipe.teacher.kind == "openai":
            teacher = recipe.teacher.model_copy(update={"base_url": mock.base_url})
            recipe = recipe.model_copy(update={"teacher": teacher})
        out = Console(file=io.StringIO(), width=200)
        stage.run(recipe, Run(recipe), base_url=lambda: mock.base_url, console=out)
    folder = Run(recipe).stage("generate", job).path
    assert read_parquet(folder / "data.parquet") and "## Filters" in (folder / "README.md").read_text()
    assert (folder / "logprobs.parquet").exists() == (name == "distributions")


def test_every_method_has_its_row_here() -> None:
    assert {path.stem for path in (ROOT / "recipes" / "methods").glob("*.yaml")} == set(SMALL)

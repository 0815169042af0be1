"""Exercises as in phi-1 (Gunasekar et al., 2306.11644): a function's head and docstring, to be completed.

Variety comes from constraints in the request: names that the functions must have, as published for exercises, and a
topic, as published for textbooks.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence

from distill.generate.filters import Unlike
from distill.generate.invented import drawn, in_language, read_lines, share, unreadable
from distill.generate.outcome import Rejected
from distill.generate.prompts import Prompt, text_prompt
from distill.recipe.prompts import ExercisePrompts, Sampling
from distill.records import user_message
from distill.teacher.requests import Answer, ChatRequest, Request
from distill.text.code import extract_code

ASK = """\
Write {count} short Python exercises about this topic: {topic}. Each is one function with type hints, a docstring that \
says exactly what it does (with an example), and a correct body. The names of the functions are {names}. No classes, \
no input or output, nothing but the standard library. Reply with one Python code block that holds all functions.\
{language}"""
COMPLETE = "Complete this function.\n\n```python\n{head}\n```"
_VERBS = (
    *("count", "find", "merge", "split", "rank", "filter", "group", "rotate", "parse", "format", "validate", "compare"),
    *("sum", "average", "longest", "nearest", "swap", "flatten", "encode", "decode", "shift", "trim", "pair", "match"),
)
_THINGS = (
    *("words", "digits", "pairs", "dates", "prices", "scores", "names", "matrix", "intervals", "letters", "orders"),
    *("paths", "cards", "tokens", "events", "colors", "lines", "grades", "stock", "codes", "steps", "blocks", "pages"),
)


class Exercises:
    """Writer of exercises; no function name twice."""

    def __init__(self, section: ExercisePrompts, *, system: str | None, sampling: Sampling, method: str) -> None:
        self.section = section
        self.system = system
        self.sampling = sampling
        self.method = method
        self.topics = read_lines(section.path)
        self._names: set[str] = set()
        self._unlike = Unlike(threshold=section.likeness, profile=section.profile)

    def requests_in_a_round(self, missing: int) -> int:
        return max(1, min(1024, missing // self.section.exercises))

    def names(self, index: int) -> list[str]:
        """The function names that request number `index` asks for."""
        rng = drawn(self.section.seed, index)
        topic = "".join(char if char.isascii() and char.isalnum() else "_" for char in self.topic(index).lower())
        stem = topic.strip("_").split("_")[0] or "text"
        pairs = rng.sample([(verb, thing) for verb in _VERBS for thing in _THINGS], self.section.exercises)
        return [f"{verb}_{stem}_{thing}" for verb, thing in pairs]

    def topic(self, index: int) -> str:
        """What request number `index` is about."""
        return self.topics[index % len(self.topics)]

    def request(self, index: int, kept: Sequence[Prompt]) -> Request:
        names = self.names(index)
        question = ASK.format(
            count=len(names),
            topic=self.topic(index),
            names=", ".join(f"`{name}`" for name in names),
            language=in_language(self.section.language),
        )
        return ChatRequest(tuple(user_message(question)), self.sampling, index, self.method, f"exercise:{index}")

    def read(self, answer: Answer, index: int) -> list[Prompt | Rejected]:
        """An exercise for each function with a docstring and a body; a block that does not parse is none."""
        if answer.finish_reason == "length":
            return [unreadable(answer, "truncated")]
        functions = split_functions(extract_code(answer.text, None))
        if not functions:
            return [unreadable(answer, "unreadable")]
        return [
            text_prompt(
                COMPLETE.format(head=head),
                self.system,
                family=f"topic:{self.topic(index)}",
                entry_point=name,
                given=share(answer, f"```python\n{whole}\n```", index=place, parts=len(functions)),
            )
            for place, (name, head, whole) in enumerate(functions)
        ]

    def reason(self, prompt: Prompt) -> str | None:
        if prompt.entry_point in self._names:
            return "name_taken"
        return "too_like_another" if self._unlike.too_like(prompt.question) else None

    def keep(self, prompt: Prompt) -> None:
        if prompt.entry_point is not None:
            self._names.add(prompt.entry_point)
        self._unlike.add(prompt.question)


def split_functions(code: str) -> list[tuple[str, str, str]]:
    """(name, head with docstring, whole text) of each top-level function that has a docstring and a body.

    Imports before the functions go into every one of them. Empty where the code does not parse.
    """
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError):
        return []
    lines = code.splitlines()

    def between(first: ast.stmt, last: ast.stmt) -> str:
        return "\n".join(lines[first.lineno - 1 : last.end_lineno])

    imports = [between(node, node) for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    before = "".join(f"{line}\n" for line in imports) + ("\n\n" if imports else "")
    found = []
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef) or ast.get_docstring(node) is None or len(node.body) < 2:
            continue
        found.append((node.name, before + between(node, node.body[0]), before + between(node, node)))
    return found

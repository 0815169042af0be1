"""Tests that the teacher writes for a problem, without seeing the solution that they will judge."""

from __future__ import annotations

import ast

from distill.generate.outcome import Outcome, Workbench
from distill.generate.prompts import Prompt
from distill.recipe.prompts import Sampling
from distill.records import user_message
from distill.teacher.requests import Answer
from distill.text.code import extract_code

ASK = """\
Write {count} tests for a Python function that solves this problem. Each is one line, an assert statement that calls \
`{name}` with literal arguments and compares the result with a literal value, as in `assert {name}(...) == ...`. Cover \
usual cases and edge cases. Reply with one Python code block that holds the asserts and nothing else.

The function begins with:
```python
{signature}
```

Problem:
{problem}"""
_TOKENS = 512


async def write_tests(
    count: int, prompt: Prompt, name: str, code: str, bench: Workbench, outcome: Outcome
) -> tuple[tuple[str, ...], Answer | None]:
    """The asserts that hold their form, at most `count`, and the answer they came in."""
    question = ASK.format(count=count, name=name, signature=signature_of(code, name), problem=prompt.question)
    sampling = Sampling(temperature=0.0, max_tokens=_TOKENS)
    answer = await bench.ask(outcome, prompt, user_message(question), sampling)
    return (() if answer is None else asserts_in(answer.text, name)[:count]), answer


def asserts_in(text: str, name: str) -> tuple[str, ...]:
    """The lines of an answer's code that are one assert each and call `name`; no line twice."""
    found: dict[str, None] = {}
    for line in extract_code(text, None).splitlines():
        try:
            body = ast.parse(line.strip()).body
        except (SyntaxError, ValueError):
            continue
        if len(body) == 1 and isinstance(body[0], ast.Assert) and _calls(body[0], name):
            found[line.strip()] = None
    return tuple(found)


def main_function(code: str) -> str | None:
    """The name of the last top-level function: helpers come before what they help."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError):
        return None
    names = [node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return names[-1] if names else None


def signature_of(code: str, name: str) -> str:
    """The `def` line of a function, without its body."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError):
        return f"def {name}(...):"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            returns = f" -> {ast.unparse(node.returns)}" if node.returns is not None else ""
            return f"def {name}({ast.unparse(node.args)}){returns}:"
    return f"def {name}(...):"


def _calls(node: ast.AST, name: str) -> bool:
    return any(
        isinstance(part, ast.Call) and isinstance(part.func, ast.Name) and part.func.id == name
        for part in ast.walk(node)
    )

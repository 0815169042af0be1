"""The engine can be read in an evening: its core is at most 2,500 lines of code.

The core is what serves one model in one process on any device: everything under `distill/engine` but speculative
decoding, constrained output, tensor parallelism, and what hides a GPU's launches. A line of code is one with a token on
it that is neither a comment nor a part of a docstring.
"""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

ENGINE = Path(__file__).parents[2] / "distill" / "engine"
BUILT_ON_IT = (
    "speculative",
    "constrained",
    "parallel.py",
    "graphs.py",
    "overlap.py",
    "fusion.py",
    "captures.py",
    "prompt_graphs.py",
)
MOST = 2_500
_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def code_lines(source: str) -> int:
    """Lines of code in a module."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def test_counting_by_hand() -> None:
    assert code_lines('"""A\n\nB"""\n\nimport os  # c\n\n# d\nx = (\n    1,\n)\ny = """\n\n"""\n') == 1 + 3 + 3


def test_the_core_is_small() -> None:
    files = [path for path in ENGINE.rglob("*.py") if path.relative_to(ENGINE).parts[0] not in BUILT_ON_IT]
    counts = {path.relative_to(ENGINE).as_posix(): code_lines(path.read_text(encoding="utf-8")) for path in files}
    assert {"runner.py", "scheduler.py", "attention.py", "paging/prefix.py"} <= set(counts)
    assert sum(counts.values()) <= MOST, counts

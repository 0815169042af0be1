"""Tests taken apart, so that the verdict is formed outside the candidate's process.

`assert call == literal` becomes a call, which the candidate's process evaluates, and an expected value, which it never
sees: to pass it must compute the value. Values travel as tagged trees in which types are exact (1, 1.0 and True
differ). Other tests are weaker: the candidate's process itself says that they hold, so code written to cheat can lie.
"""

import ast
from dataclasses import dataclass
from typing import Literal

from distill.sandbox.guest import encode

TRUE = encode(True)


@dataclass(frozen=True)
class Check:
    """One test: what the candidate's process runs, and the canonical tree of the value that must come back."""

    mode: Literal["value", "block"]  # evaluate an expression, or run statements and send True if they end
    source: str
    expected: str


def canonical(tree: object) -> str:
    """A text that is equal for equal values: entries of dicts and sets come in a fixed order."""
    if not isinstance(tree, list) or not tree:
        return repr(tree)
    parts = [canonical(part) for part in tree]
    if parts[0] in ("'dict'", "'set'"):
        parts[1:] = sorted(parts[1:])
    return f"[{','.join(parts)}]"


def _literal(node: ast.expr) -> str | None:
    """The canonical value of an expression that is a literal, else None."""
    try:
        return canonical(encode(ast.literal_eval(node)))
    except (ValueError, TypeError, SyntaxError, RecursionError):
        return None


def _compared(node: ast.expr) -> Check | None:
    """The strong form: one `==` (or `is` with a constant) between a call and a literal, either way round."""
    if not isinstance(node, ast.Compare) or len(node.ops) != 1:
        return None
    left, right = node.left, node.comparators[0]
    if isinstance(node.ops[0], ast.Eq):
        for call, value in ((left, right), (right, left)):
            expected = _literal(value)
            if expected is not None and _literal(call) is None:
                return Check("value", ast.unparse(call), expected)
    if isinstance(node.ops[0], ast.Is) and isinstance(right, ast.Constant) and right.value in (True, False, None):
        return Check("value", ast.unparse(left), canonical(encode(right.value)))
    return None


def parse_test(test: str) -> Check:
    """The check behind one test; a text that does not parse becomes a check that cannot pass."""
    try:
        body = ast.parse(test.strip()).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return Check("block", test, canonical(TRUE))
    if len(body) == 1 and isinstance(body[0], ast.Assert):
        condition = body[0].test
        return _compared(condition) or Check("value", f"not not ({ast.unparse(condition)})", canonical(TRUE))
    return Check("block", test, canonical(TRUE))

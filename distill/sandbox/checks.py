"""Tests taken apart, so that no candidate is asked whether it is right.

`assert f(1) == 2` becomes a call, which the candidate's process evaluates, and an expected value, which stays out here
and is compared here. `assert f(1)` and `assert not f(1)` likewise. Any other test runs whole in a process of its own
inside the sandbox (distill/sandbox/guest/tests.py), which the candidate's process cannot see.
"""

import ast
import builtins
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from distill.sandbox.guest.values import encode

Kind = Literal["equal", "true", "false", "test"]


@dataclass(frozen=True)
class Check:
    """One test. `source` is a call (its value must equal `expected`, or be true, or be false) or a whole test, which
    takes the free `names` from elsewhere; with each come the attributes that it is asked for."""

    kind: Kind
    source: str
    expected: str = ""
    names: tuple[tuple[str, tuple[str, ...]], ...] = ()


def canonical(tree: object) -> str:
    """A text that is equal for equal values: entries of dicts and sets come in a fixed order, and dicts are dicts."""
    if not isinstance(tree, list) or not tree:
        return repr(tree)
    parts = [canonical(part) for part in tree]
    if parts[0] in ("'Counter'", "'OrderedDict'"):
        parts[0] = "'dict'"
    if parts[0] in ("'dict'", "'set'"):
        parts[1:] = sorted(parts[1:])
    return f"[{','.join(parts)}]"


def truth(tree: object) -> bool:
    """Whether the value is true; what is no plain data is."""
    match tree:
        case ["none"] | ["bool", False] | ["int", "0"] | ["float", "0x0.0p+0"] | ["complex", "0x0.0p+0", "0x0.0p+0"]:
            return False
        case ["str" | "bytes" | "bytearray", ""]:
            return False
        case ["range", int() as start, int() as stop, int() as step] if step:
            return bool(range(start, stop, step))
    return not (isinstance(tree, list) and len(tree) == 1)  # a collection of nothing


def parse_tests(tests: Sequence[str], entry_point: str | None) -> list[Check]:
    """The checks behind the tests, in order; a text that does not parse becomes a check that cannot pass."""
    checks: list[Check] = []
    bound: set[str] = set()  # by earlier tests, which share a scope
    for test in tests:
        try:
            body = ast.parse(test.strip()).body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            checks.append(Check("test", test))
            continue
        check = _call(body, entry_point, bound) or Check("test", test.strip(), names=_free_names(body))
        if check.kind == "test":
            bound |= _bound_names(body)
        checks.append(check)
    return checks


def _call(body: list[ast.stmt], entry_point: str | None, bound: set[str]) -> Check | None:
    """The strong form: one `==` of a call and a literal, either way round, `is` with a constant, or a bare call."""
    if len(body) != 1 or not isinstance(body[0], ast.Assert):
        return None

    def is_call(node: ast.expr) -> bool:
        names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
        return isinstance(node, ast.Call) and _is_candidates(node.func, entry_point) and not names & bound

    match body[0].test:
        case ast.Compare(left=left, ops=[ast.Eq()], comparators=[right]):
            for call, value in ((left, right), (right, left)):
                expected = _literal(value)
                if expected is not None and is_call(call):
                    return Check("equal", ast.unparse(call), expected)
        case ast.Compare(left=call, ops=[ast.Is()], comparators=[ast.Constant(value=None | True | False as value)]):
            if is_call(call):
                return Check("equal", ast.unparse(call), canonical(encode(value)))
        case ast.UnaryOp(op=ast.Not(), operand=call) if is_call(call):
            return Check("false", ast.unparse(call))
        case call if is_call(call):
            return Check("true", ast.unparse(call))
    return None


def _is_candidates(function: ast.expr, entry_point: str | None) -> bool:
    """Whether the candidate's own module must be what is called: then its value says nothing about another value."""
    if not isinstance(function, ast.Name):
        return False
    name = function.id
    return name == entry_point or not (name in vars(builtins) or name in sys.stdlib_module_names)


def _literal(node: ast.expr) -> str | None:
    """The canonical value of an expression that is a literal, else None."""
    try:
        return canonical(encode(ast.literal_eval(node)))
    except (ValueError, TypeError, SyntaxError, RecursionError):
        return None


def _walk(body: list[ast.stmt]) -> Iterator[ast.AST]:
    for statement in body:
        yield from ast.walk(statement)


def _bound_names(body: list[ast.stmt]) -> set[str]:
    bound: set[str] = set()
    for node in _walk(body):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name) | ast.ExceptHandler(name=str() as name):
                bound.add(name)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                bound.add(name)
            case ast.alias(name=name, asname=alias):
                bound.add(alias or name.partition(".")[0])
    return bound


def _free_names(body: list[ast.stmt]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    bound = _bound_names(body)
    free: dict[str, set[str]] = {}
    for node in _walk(body):
        match node:
            case ast.Attribute(value=ast.Name(id=name), attr=attribute) if name not in bound:
                free.setdefault(name, set()).add(attribute)
            case ast.Name(id=name, ctx=ast.Load()) if name not in bound:
                free.setdefault(name, set())
    return tuple((name, tuple(sorted(attributes))) for name, attributes in sorted(free.items()))

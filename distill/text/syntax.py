"""The shape of a Python program: its syntax tree without names, comments, docstrings and values."""

from __future__ import annotations

import ast
import warnings


def shape(code: str) -> list[str] | None:
    """Node types in depth-first order, operators among them, constants as their type; None where it does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the parsed program's escapes, not about ours
            tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    found: list[str] = []
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.Load, ast.Store, ast.Del, ast.alias)):
            continue
        found.append(f"Constant:{type(node.value).__name__}" if isinstance(node, ast.Constant) else type(node).__name__)
        waiting.extend(reversed([child for child in ast.iter_child_nodes(node) if not _is_docstring(child)]))
    return found


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)

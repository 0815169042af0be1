"""Programs inside answers."""

from __future__ import annotations

import re

_FENCE = re.compile(r"^[ \t]*```[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)


def extract_code(text: str, entry_point: str | None) -> str:
    """The program in an answer: the fenced block that defines `entry_point`, else the first, else the whole text."""
    blocks = [match.group(1) for match in _FENCE.finditer(text)]
    if entry_point is not None:
        defines = re.compile(rf"^\s*(?:async\s+)?def\s+{re.escape(entry_point)}\b", re.MULTILINE)
        for block in blocks:
            if defines.search(block):
                return block
    return blocks[0] if blocks else text


def without_code(text: str) -> str:
    """A text less its fenced blocks."""
    return _FENCE.sub(" ", text)

"""The table of `benchmarks.generate` in docs/generate.md, from its results; of a row in several files the last counts.

python -m benchmarks.generate_table benchmarks/results/generate_cpu_DATE.json [MORE.json]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.generate import PEERS
from benchmarks.model_card import replace_between
from distill.runs import write_atomically

DOC = Path("docs/generate.md")
WHO = ("ours", *PEERS)


def main(arguments: Sequence[str] | None = None) -> None:
    """Rewrite the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path)
    options = parser.parse_args(arguments)
    rows = [row for path in options.results for row in json.loads(path.read_text())["rows"]]
    text = replace_between(DOC.read_text(encoding="utf-8"), "generate-numbers", "\n".join(table(rows)), DOC)
    write_atomically(DOC, text)


def table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """One line a measured quantity, one column a client."""
    cells: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        what, _, who = row["name"].rpartition(": ")
        what, who = (what, who) if who in WHO else (row["name"], "ours")
        cells.setdefault(what, {})[who] = row
    yield f"| test | {' | '.join(WHO)} | bar |"
    yield f"|---|{'---:|' * len(WHO)}---|"
    for what, by in cells.items():
        ours = by["ours"]
        shown = [_number(by[who]["value"]) if who in by else "" for who in WHO]
        met = {True: "met", False: "**missed**", None: ""}[ours["ok"]]
        bar = "" if ours["bar"] is None else f"{_number(ours['bar'])}: {met}"
        yield f"| {what}{_unit(ours['unit'])} | {' | '.join(shown)} | {bar} |"


def _number(value: float) -> str:
    if value == int(value) or value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _unit(unit: str) -> str:
    return f", {unit}" if unit not in ("", "rows") else ""


if __name__ == "__main__":
    main()

"""The measured parts of a model card, written from a benchmark's result between HTML comment markers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distill.errors import DataError
from distill.runs import write_atomically

FAMILY_ROWS = 20  # with fewer tasks one family's share says nothing
_TITLES = {"instruction": "An instruction", "code": "A Python function", "judge": "A comparison of two answers"}


def rewrite_card(path: Path, result: dict[str, Any]) -> None:
    """Replace `measured`, and `examples` where the card has them, by what was just measured."""
    if not path.exists():
        raise DataError(f"no model card {path}", remedy="write one with the markers <!-- measured:begin/end -->")
    text = replace_between(path.read_text(encoding="utf-8"), "measured", measured(result), path)
    if "<!-- examples:begin -->" in text:
        text = replace_between(text, "examples", shown_examples(result), path)
    write_atomically(path, text)


def replace_between(text: str, name: str, new: str, path: Path) -> str:
    """`text` with everything between the markers of `name` replaced."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise DataError(f"{path} needs the markers {begin} and {end} once each", remedy="put them where the table goes")
    return re.sub(f"{begin}.*{end}", lambda _: f"{begin}\n{new}\n{end}", text, flags=re.DOTALL)


def measured(result: dict[str, Any]) -> str:
    """The tables: kinds by split; and, where each family has enough tasks, the bars, the judge and every family."""
    lines = [*_origin(result), "", *_kinds(result)]
    if result["details"]["rows_per_family_and_split"] >= FAMILY_ROWS:
        lines += [*_bars(result), *_judge(result), *_families(result)]
    return "\n".join(lines).rstrip()


def shown_examples(result: dict[str, Any]) -> str:
    """Prompt and answer of each kind, as they came."""
    blocks = []
    for example in result["details"]["examples"]:
        fence = "~~~~"  # answers hold backticks
        title = _TITLES[example["kind"]]
        blocks.append(f"**{title}**\n\n{fence}text\n{example['prompt']}\n{fence}\n\nIts answer:\n")
        blocks.append(f"{fence}text\n{example['text']}\n{fence}\n")
    return "\n".join(blocks).rstrip()


def _origin(result: dict[str, Any]) -> Iterator[str]:
    details, machine, versions = result["details"], result["hardware"], result["versions"]
    place = machine["gpu"] or f"{machine['cores']} cores of {machine['cpu']}"
    size, count = details["rows_per_family_and_split"], details["accuracy"]["accuracy"]["count"]
    yield (
        f"Written by `{result['command']} --card` (commit {result['commit']}) on {place}, torch {versions['torch']}, "
        f"transformers {versions['transformers']}: greedy, {details['dtype']}, tasks of each family and split: {size}, "
        f"{count} in all, 95% Wilson intervals."
    )


def _kinds(result: dict[str, Any]) -> Iterator[str]:
    cells = result["details"]["accuracy"]["by_kind_split"]
    yield "| kind | held-out values | held-out phrasings |"
    yield "|---|---:|---:|"
    for kind in ("instruction", "code", "judge"):
        yield f"| {kind} | {_share(cells[kind + '/values'])} | {_share(cells[kind + '/phrasings'])} |"
    yield ""


def _bars(result: dict[str, Any]) -> Iterator[str]:
    yield "| bar | at least | measured | met |"
    yield "|---|---:|---:|---|"
    for row in result["rows"]:
        if row["bar"] is not None:
            met = {True: "yes", False: "**no**", None: "too few tasks"}[row["ok"]]
            yield f"| {row['name']} | {row['bar']:.0%} | {row['value']:.1%} | {met} |"
    yield ""


def _judge(result: dict[str, Any]) -> Iterator[str]:
    judge = result["details"]["judge"]
    if judge is None:
        return
    order, kinds = judge["by_order"], judge["by_kind"]
    yield (
        f"Judge: {judge['pairs']} pairs, one answer by {judge['first']}, one by {judge['second']}, exactly one of them "
        f"right (the first model's in {judge['teacher_right']}), from {judge['prompts']} held-out prompts; each judged "
        f"in both orders. Its choice is the verifier's in {judge['agreed']} of {judge['judgements']} judgements, "
        f"{judge['agreement']:.1%} [{judge['low']:.1%}, {judge['high']:.1%}]: {order['A']['value']:.1%} with the right "
        f"answer as A, {order['B']['value']:.1%} as B; "
        + ", ".join(f"{cell['value']:.1%} on {kind} tasks" for kind, cell in kinds.items())
        + f". {judge['unreadable']} replies were no judgement (counted as wrong)."
    )
    yield ""


def _families(result: dict[str, Any]) -> Iterator[str]:
    yield "<details><summary>Every family</summary>"
    yield ""
    yield "| family | kind | held-out values | held-out phrasings |"
    yield "|---|---|---:|---:|"
    for family in result["details"]["families"]:
        shares = " | ".join(_counted(family[split]) for split in ("values", "phrasings"))
        yield f"| {family['family']} | {family['kind']} | {shares} |"
    yield ""
    yield "</details>"


def _share(cell: dict[str, Any]) -> str:
    return f"{_counted(cell)} [{cell['low']:.1%}, {cell['high']:.1%}]"


def _counted(cell: dict[str, Any]) -> str:
    return f"{cell['value']:.1%} ({cell['correct']}/{cell['count']})"

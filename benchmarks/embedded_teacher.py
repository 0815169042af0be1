"""What the embedded teacher knows, held against its bars: `python -m benchmarks.embedded_teacher`.

Exact match of instructions and pass@1 of code on held-out values and held-out phrasings, greedy, in the checkpoint's
own bf16 (float32 on a CPU without bf16 arithmetic), through the project's engine; and its agreement with the verifier
as a judge of sampled pairs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.common import Row, at_least, envelope, write_json
from benchmarks.judge_pairs import JudgeResult, judge_pairs, sample_pairs
from benchmarks.model_card import FAMILY_ROWS, rewrite_card
from distill.engine.runner import Engine, EngineConfig
from distill.engine.types import SamplingParams
from distill.errors import DistillError
from distill.evaluate.accuracy import Answer, accuracy_metrics, answer_rows
from distill.evaluate.statistics import proportion
from distill.evaluate.verdicts import Grader
from distill.model.chat import render
from distill.model.load import load_model, load_tokenizer, require_chat_template
from distill.recipe.generate import Isolation
from distill.records import user_message
from distill.runs import file_digest
from distill.tasks.registry import family_names, sample_tasks
from distill.tasks.types import Split, Task

WHAT = "embedded teacher: exact match, pass@1, agreement as a judge"
TEACHER = Path("data/teacher")
SPLITS: tuple[Split, ...] = ("values", "phrasings")
MAX_TOKENS = 384
SEED = 4242  # of the tasks; the recipes' evaluate section draws with another
BARS = {
    "instruction/values": 0.95,
    "instruction/phrasings": 0.90,
    "code/values": 0.95,
    "code/phrasings": 0.90,
}
FAMILY_BAR = 0.80
JUDGE_BAR = 0.85
JUDGE_PAIRS = 100  # with fewer the bar is neither met nor missed
EXAMPLES = {"instruction": "word_change", "code": "code_filter_map", "judge": "judge"}  # shown in the card


@dataclass(frozen=True)
class Size:
    """How much is measured: tasks of a family in a split, judged pairs, and prompts that may be sampled for them."""

    rows: int
    pairs: int
    prompts: int


FULL = Size(rows=40, pairs=400, prompts=6000)
QUICK = Size(rows=2, pairs=40, prompts=160)


def load_engine(path: Path) -> Engine:
    """The model at `path` in its own dtype, with a chat template."""
    tokenizer = load_tokenizer(path)
    require_chat_template(tokenizer, path)
    return Engine(load_model(path), tokenizer, EngineConfig())


def held_out(rows: int) -> list[Task]:
    """`rows` tasks of every family in both splits (fewer where a family has no more prompts)."""
    return [
        task
        for split in SPLITS
        for family in family_names()
        for task in sample_tasks(families=(family,), split=split, count=rows, seed=SEED)
    ]


def measure(engine: Engine, grader: Grader, tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """One row a task: its greedy answer and verdict, as `distill evaluate` writes them."""
    tokenizer = engine.tokenizer
    assert tokenizer is not None
    prompts = [render(tokenizer, user_message(task.prompt), add_generation_prompt=True) for task in tasks]
    completions = engine.generate(prompts, SamplingParams(max_tokens=MAX_TOKENS))
    answers = [Answer(c.text, len(c.token_ids), c.finish_reason) for c in completions]
    return answer_rows(tasks, answers, grader.grade(tasks, [answer.text for answer in answers]))


def by_family(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each family its kind and, for each split, a proportion with its interval."""
    cells: dict[tuple[str, str], dict[str, list[bool]]] = {}
    for row in rows:
        cells.setdefault((row["family"], row["kind"]), {}).setdefault(row["split"], []).append(row["ok"])
    return [
        {"family": family, "kind": kind, **{split: asdict(proportion(sum(v), len(v))) for split, v in splits.items()}}
        for (family, kind), splits in cells.items()
    ]


def rows_of(metrics: dict[str, Any], families: Sequence[dict[str, Any]], judge: JudgeResult | None) -> list[Row]:
    """The bars, then what is only reported."""
    shares = metrics["by_kind_split"]
    rows = [at_least(name, shares[name]["value"], bar) for name, bar in BARS.items()]
    weakest = min(families, key=lambda family: family["values"]["value"])
    found = weakest["values"]
    name = f"weakest family on values: {weakest['family']} ({found['correct']} of {found['count']})"
    enough = found["count"] >= FAMILY_ROWS
    met = found["value"] >= FAMILY_BAR
    rows.append(Row(name=name, value=found["value"], unit="share", bar=FAMILY_BAR, ok=met if enough else None))
    if judge is not None:
        row = at_least("judge agrees with verifier", judge.agreement, JUDGE_BAR)
        rows.append(row if judge.pairs >= JUDGE_PAIRS else replace(row, ok=None))
    rows += [Row(f"judge/{split}", shares[f"judge/{split}"]["value"], "share") for split in SPLITS]
    rows.append(Row("all held-out tasks", metrics["accuracy"]["value"], "share"))
    return rows


def examples(rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """A right answer of each kind to a held-out phrasing."""
    return [
        {"kind": kind, "prompt": row["prompt"], "text": row["text"]}
        for kind, family in EXAMPLES.items()
        for row in sorted((row for row in rows if row["family"] == family), key=_length)[:1]
    ]


def _length(row: dict[str, Any]) -> tuple[bool, int]:
    """Right answers first, then short ones."""
    return not row["ok"], len(row["prompt"]) + len(row["text"])


def run(
    model: Path, size: Size, *, student: Path | None, judge: bool, isolation: Isolation, command: str, say: Console
) -> dict[str, Any]:
    """Measure everything; the JSON result."""
    engine, grader = load_engine(model), Grader(isolation)
    tasks = held_out(size.rows)
    say.print(f"{len(tasks)} held-out tasks")
    rows = measure(engine, grader, tasks)
    metrics, families = accuracy_metrics(rows), by_family(rows)
    result = None
    if judge:
        other = load_engine(student) if student is not None else None
        pairs, prompts = sample_pairs(engine, other, grader, wanted=size.pairs, most=size.prompts)
        say.print(f"{len(pairs)} pairs with one right answer, from {prompts} prompts")
        result = judge_pairs(engine, pairs, prompts=prompts, student=student) if pairs else None
    details = {
        "model": model.name,
        "weights": file_digest(model / "model.safetensors"),
        "parameters": engine.model.num_parameters(),
        "dtype": str(engine.model.dtype).removeprefix("torch."),
        "rows_per_family_and_split": size.rows,
        "isolation": isolation,
        "accuracy": metrics,
        "families": families,
        "judge": asdict(result) if result is not None else None,
        "examples": examples([row for row in rows if row["split"] == "phrasings" and row["ok"]]),
    }
    return envelope(what=WHAT, command=command, rows=rows_of(metrics, families, result), details=details)


def show(result: dict[str, Any], say: Console) -> None:
    """The rows as a table."""
    table = Table("measured", "value", "bar", "ok")
    marks = {True: "yes", False: "NO", None: ""}
    for row in result["rows"]:
        bar = f"{row['bar']:.0%}" if row["bar"] is not None else ""
        table.add_row(row["name"], f"{row['value']:.2%}", bar, marks[row["ok"]])
    say.print(table)


def parse_options(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.embedded_teacher", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute on 2 cores")
    parser.add_argument("--rows", type=int, metavar="N", help=f"tasks of a family in a split (default {FULL.rows})")
    parser.add_argument("--model", type=Path, default=TEACHER, help="the model to measure (default data/teacher)")
    parser.add_argument("--student", type=Path, help="a distilled model that gives the other answer of a judged pair")
    parser.add_argument("--no-judge", action="store_true", help="judge no sampled pairs")
    parser.add_argument("--isolation", choices=("bubblewrap", "none"), default="bubblewrap", help="of generated code")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the result")
    parser.add_argument("--card", action="store_true", help="rewrite the measured parts of the model's README.md")
    options = parser.parse_args(arguments)
    if options.rows is not None and options.rows < 1:
        parser.error("--rows must be at least 1")
    return options


def _command(options: argparse.Namespace) -> Iterator[str]:
    """What repeats the measurement; a folder elsewhere on this machine is named by what it is, not by its path."""
    yield "python -m benchmarks.embedded_teacher"
    if options.quick:
        yield "--quick"
    if options.rows is not None:
        yield f"--rows {options.rows}"
    if options.model != TEACHER:
        yield f"--model {'MODEL' if options.model.is_absolute() else options.model}"
    if options.student is not None:
        yield f"--student {'STUDENT' if options.student.is_absolute() else options.student}"
    if options.no_judge:
        yield "--no-judge"
    if options.isolation != "bubblewrap":
        yield f"--isolation {options.isolation}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 when every bar that was measured is met."""
    options = parse_options(sys.argv[1:] if arguments is None else arguments)
    say = Console()
    size = QUICK if options.quick else FULL
    if options.rows is not None:
        size = Size(rows=options.rows, pairs=size.pairs, prompts=size.prompts)
    try:
        result = run(
            options.model,
            size,
            student=options.student,
            judge=not options.no_judge,
            isolation=options.isolation,
            command=" ".join(_command(options)),
            say=say,
        )
        if options.json is not None:
            write_json(options.json, result)
        if options.card:
            rewrite_card(options.model / "README.md", result)
    except DistillError as error:
        say.print(f"[red]{error}[/red]")
        return error.exit_code
    show(result, say)
    return int(any(row["ok"] is False for row in result["rows"]))


if __name__ == "__main__":
    raise SystemExit(main())

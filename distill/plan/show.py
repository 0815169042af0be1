"""The plan and the list of GPUs as tables on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from distill.plan.roofline import Gpu
from distill.recipe.schema import Recipe


def print_plan(plan: dict[str, Any], recipe: Recipe, notes: Sequence[str], *, console: Console) -> None:
    """Every part of the plan that the recipe has, then the notes."""
    if plan["generate"]:
        console.print(_generation_table(plan["generate"]))
    if any("total" in row for row in plan["train"]):
        console.print(_training_table(plan["train"], plan["gpu"]["name"]))
    if plan["serve"]:
        console.print(_serving_table(plan["serve"], plan["gpu"], recipe.plan.context_tokens))
        console.print(_speed_table(plan["serve"], plan["gpu"]["name"], recipe.plan.context_tokens))
    for note in notes:
        console.print(Text(f"note: {note}"))


def print_gpus(cards: Iterable[Gpu], *, console: Console) -> None:
    """Memory, bandwidth and dense bf16 speed of every card, and where the numbers are from."""
    table = _table("GPUs that plan.gpu may name", "name", "memory", "bandwidth", "dense bf16", "source")
    for gpu in cards:
        table.add_row(
            gpu.name,
            f"{gpu.memory / 1e9:.0f} GB",
            f"{gpu.bandwidth / 1e9:,.0f} GB/s",
            f"{gpu.flops / 1e12:,.0f} TFLOP/s",
            gpu.note,
        )
    console.print(table)


def size(value: float | None) -> str:
    """Bytes for a reader: binary units, three figures."""
    if value is None:
        return "unknown"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" or abs(value) >= 100 else f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:,.3g} TiB"


def count(value: float | None) -> str:
    """A number for a reader: 7.24 B, 14.3 M, 512."""
    if value is None:
        return "unknown"
    for unit, divisor in ((" B", 1e9), (" M", 1e6)):
        if abs(value) >= divisor:
            return f"{value / divisor:.3g}{unit}"
    return f"{value:,.0f}"


def money(value: float | None) -> str:
    """Dollars; an unknown price is said, and 0 is called free."""
    if value is None:
        return "price unknown"
    return "free" if value == 0 else f"${value:,.2f}" if value >= 0.01 else f"${value:.2g}"


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="dim", box=None, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="left" if column in ("source", "objective", "kind", "bound") else "right")
    return table


def _generation_table(rows: Sequence[dict[str, Any]]) -> Table:
    table = _table("generate", "job", "kind", "prompts", "rows ≤", "requests", "prompt tokens", "answers'", "cost")
    for row in rows:
        numbers = [row[key] for key in ("prompts", "rows", "requests", "prompt_tokens", "completion_tokens")]
        table.add_row(row["name"], row["kind"], *map(count, numbers), money(row["dollars"]))
    if len(rows) > 1:
        totals = [_total(rows, key) for key in ("rows", "requests", "prompt_tokens", "completion_tokens")]
        table.add_row("all", "", "", *map(count, totals), money(_total(rows, "dollars")), style="bold")
    return table


def _total(rows: Sequence[dict[str, Any]], key: str) -> float | None:
    values = [row[key] for row in rows]
    return None if any(value is None for value in values) else sum(values)


def _training_table(rows: Sequence[dict[str, Any]], gpu: str) -> Table:
    """One column an entry: there are more quantities than entries, and a terminal is narrow."""
    table = _table(f"train: memory of one process, unsharded ({gpu})", "", *(str(row["name"]) for row in rows))
    lines: dict[str, Callable[[dict[str, Any]], str]] = {
        "objective": lambda row: str(row["objective"]),
        "optimizer steps": lambda row: count(row["steps"]),
        "trainable": lambda row: count(row["trainable"]),
        "weights": lambda row: size(row["weights"]),
        "gradients": lambda row: size(row["gradients"]),
        "AdamW moments": lambda row: size(row["optimizer"]),
        "frozen model": lambda row: size(row["frozen"]) if row["frozen"] else "-",
        "activations": lambda row: size(row["activations"]),
        "full logits": lambda row: f"({size(row['logits_full'])})" if row["chunked"] else size(row["logits_full"]),
        "chunked logits": lambda row: size(row["logits_chunked"]) if row["chunked"] else "-",
        "total": lambda row: size(row["total"]),
        f"fits {gpu}": lambda row: "yes" if row["fits"] else "NO",
        "GPU hours ≤": lambda row: _hours(row.get("gpu_hours_at_most")),
    }
    for name, show in lines.items():
        table.add_row(name, *(show(row) for row in rows), style="bold" if name == "total" else None)
    if any(row["chunked"] for row in rows):
        table.caption = "(...): not counted; what a loss over full logits would take"
        table.caption_justify = "left"
    return table


def _hours(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2g}"


def _serving_table(rows: Sequence[dict[str, Any]], gpu: dict[str, Any], context: int) -> Table:
    table = _table(
        f"serve: {gpu['name']}, {gpu['memory'] / 1e9:.0f} GB, contexts of {context:,} tokens",
        *("variant", "params", "weights", "KV/token", "KV/seq.", "max batch", "KV in all", "rest"),
    )
    for row in rows:
        table.add_row(
            row["name"],
            count(row["parameters"]),
            size(row["weights"]),
            size(row["kv_bytes_per_token"]),
            size(row["kv_per_sequence"]),
            count(row["max_batch"]) if row["rest"] >= 0 else "does not fit",
            size(row["kv"]),
            size(row["rest"]),
        )
    return table


def _speed_table(rows: Sequence[dict[str, Any]], gpu: str, context: int) -> Table:
    table = _table(
        f"roofline: {gpu}, best possible decode tokens/s at a context of {context:,} tokens",
        *("variant", "B* weights", "B* with KV", "batch 1", "at max batch", "bound", "prefill"),
    )
    for row in rows:
        balance = row["roofline_batch_with_kv"]
        first, last = (row["decode"][0], row["decode"][-1]) if row["decode"] else (None, None)
        table.add_row(
            row["name"],
            f"{row['roofline_batch']:,.0f}",
            f"{balance:,.0f}" if balance is not None else "never",
            f"{first['tokens_per_second']:,.0f}/s" if first else "-",
            f"{last['tokens_per_second']:,.0f}/s" if last else "-",
            last["bound"] if last else "-",
            f"{row['prefill_seconds'] * 1e3:,.3g} ms",
        )
    table.caption = (
        "B*: the batch where decoding turns from memory-bound to compute-bound; never: KV reading outgrows it"
    )
    table.caption_justify = "left"
    return table

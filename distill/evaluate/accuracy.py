"""Answers to held-out tasks, their verdicts, and accuracy by kind, split and family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distill.engine.runner import Engine, EngineConfig
from distill.engine.types import SamplingParams
from distill.evaluate.statistics import proportion
from distill.model.chat import render
from distill.recipe.schema import Serve
from distill.records import user_message
from distill.tasks.types import Task, Verdict

ANSWERS = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("family", pa.string()),
        pa.field("kind", pa.string()),
        pa.field("split", pa.string()),
        pa.field("phrasing", pa.int64()),
        pa.field("prompt", pa.string()),
        pa.field("reference", pa.string()),
        pa.field("text", pa.string()),
        pa.field("ok", pa.bool_()),
        pa.field("reason", pa.string()),
        pa.field("tokens", pa.int64()),
        pa.field("finish", pa.string()),
    ]
)


@dataclass(frozen=True)
class Answer:
    """A variant's greedy answer to one task."""

    text: str
    tokens: int
    finish: str


def answer_all(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
    *,
    settings: Serve,
    max_tokens: int,
    progress: Callable[[int], None] | None = None,
) -> list[Answer]:
    """Greedy answers in the order of the tasks, batched through the engine with the recipe's serve limits."""
    engine = make_engine(model, tokenizer, settings)
    completions = engine.generate(prompts_of(tokenizer, tasks), SamplingParams(max_tokens=max_tokens), progress)
    return [Answer(c.text, len(c.token_ids), c.finish_reason) for c in completions]


def make_engine(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: Serve) -> Engine:
    """An engine with the recipe's serve limits."""
    config = EngineConfig(
        max_batch=settings.max_batch,
        block_size=settings.block_size,
        prefill_tokens=settings.prefill_tokens if "prefill_tokens" in settings.model_fields_set else 0,
        kv_bytes=int(settings.kv_gib * (1 << 30)),
    )
    return Engine(model, tokenizer, config)


def prompts_of(tokenizer: PreTrainedTokenizerBase, tasks: Sequence[Task]) -> list[list[int]]:
    """The tasks as a user asks them, by the tokenizer's chat template."""
    return [render(tokenizer, user_message(task.prompt), add_generation_prompt=True) for task in tasks]


def answer_rows(tasks: Sequence[Task], answers: Sequence[Answer], verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Rows of `answers.parquet`."""
    return [
        {
            "id": task.id,
            "family": task.family,
            "kind": task.kind,
            "split": task.split,
            "phrasing": task.phrasing,
            "prompt": task.prompt,
            "reference": task.answer,
            "text": answer.text,
            "ok": verdict.ok,
            "reason": verdict.reason,
            "tokens": answer.tokens,
            "finish": answer.finish,
        }
        for task, answer, verdict in zip(tasks, answers, verdicts, strict=True)
    ]


def accuracy_metrics(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Proportions with 95% intervals: in all, and by kind, split, kind and split, and family."""
    groups: dict[str, Callable[[dict[str, Any]], str]] = {
        "by_kind": lambda row: str(row["kind"]),
        "by_split": lambda row: str(row["split"]),
        "by_kind_split": lambda row: f"{row['kind']}/{row['split']}",
        "by_family": lambda row: str(row["family"]),
    }
    metrics: dict[str, Any] = {"accuracy": _proportion(rows)}
    for name, key in groups.items():
        metrics[name] = {
            value: _proportion([row for row in rows if key(row) == value]) for value in dict.fromkeys(map(key, rows))
        }
    metrics["truncated"] = sum(row["finish"] == "length" for row in rows)
    metrics["answer_tokens"] = sum(row["tokens"] for row in rows)
    return metrics


def _proportion(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return asdict(proportion(sum(row["ok"] for row in rows), len(rows)))

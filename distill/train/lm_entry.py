"""One `lm` entry of a recipe: model in, text of the tasks through, plain Hugging Face folder out."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from distill.model.load import load_model, load_tokenizer
from distill.recipe.teacher import Student
from distill.recipe.train import LmEntry
from distill.track import Tracker
from distill.train.checkpoints import LM_CHECKPOINT
from distill.train.lm import make_scratch, train_lm

_DTYPES = {"auto": torch.bfloat16, "bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def run_lm(
    entry: LmEntry, student: Student, source: Path | None, folder: Path, tracker: Tracker, console: Console
) -> dict[str, float]:
    """Train `source` (None: the recipe's random weights) and save to `folder`/model. Returns the metrics."""
    model: PreTrainedModel
    if source is None:
        assert student.scratch is not None, "a recipe has model or scratch"
        model, tokenizer = make_scratch(student.scratch)
    else:
        model = load_model(source, dtype="float32")
        tokenizer = cast(PreTrainedTokenizerFast, load_tokenizer(source))

    def log(values: dict[str, float]) -> None:
        tracker.log(values, step=int(values["step"]))
        console.print(
            f"{entry.name}: step {values['step']}/{entry.steps}, loss {values['loss']:.4f}, "
            f"{values['tokens_per_second']:,.0f} tokens/s"
        )

    metrics = train_lm(model, tokenizer, entry, checkpoint=folder / LM_CHECKPOINT, log=log)
    model.set_attn_implementation("sdpa")
    torch.nn.Module.to(model, device="cpu", dtype=_DTYPES[student.dtype])
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return metrics

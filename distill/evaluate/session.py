"""What the evaluation of several variants shares: the questions, the verdicts, and the teacher's distributions."""

from __future__ import annotations

import gc
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distill.evaluate.accept_length import GreedyText, greedy_texts, measure_accept_length
from distill.evaluate.accuracy import ANSWERS, accuracy_metrics, answer_all, answer_rows
from distill.evaluate.fidelity import (
    FIDELITY,
    ReferenceRow,
    TeacherSignal,
    fidelity_metrics,
    measure,
    reference_rows,
    teacher_signal,
    why_not_comparable,
)
from distill.evaluate.questions import held_out_tasks, reference_tasks
from distill.evaluate.verdicts import Grader
from distill.model.load import load_model, load_tokenizer, require_chat_template
from distill.recipe.schema import Evaluate, Recipe
from distill.records import write_parquet
from distill.runs import Run

_NO_TEACHER = "the recipe names no weights of the teacher"


class Session:
    """Evaluates one variant after the other; one model is held at a time, plus the teacher's LM head."""

    def __init__(self, recipe: Recipe, run: Run, section: Evaluate, console: Console) -> None:
        self._recipe = recipe
        self._section = section
        self._console = console
        self._teacher_path = run.variants().get("teacher")
        self._tasks = held_out_tasks(section)
        self._grader = Grader(section.isolation)
        self._teacher: tuple[list[ReferenceRow], TeacherSignal] | None = None
        self._greedy: list[GreedyText] = []  # the teacher's answers, where students are measured as its drafts

    def evaluate(self, name: str, path: Path, folder: Path) -> tuple[dict[str, Any], list[str]]:
        """Metrics and notes of one variant; writes `answers.parquet` and `fidelity.parquet` into `folder`."""
        if self._teacher is None and self._teacher_path is not None and name != "teacher":
            self._remember_teacher(*self._load(self._teacher_path, trust=False))
        student = self._recipe.student
        trust = name != "teacher" and student is not None and student.trust_remote_code
        model, tokenizer = self._load(path, trust=trust)
        if name == "teacher":
            self._remember_teacher(model, tokenizer)
        metrics: dict[str, Any] = {"rows": len(self._tasks), **_size(model)}
        answers, seconds = self._answer(name, model, tokenizer, folder)
        metrics |= answers | {"answer_seconds": seconds}
        fidelity, skipped = self._fidelity(model, tokenizer, folder)
        metrics |= fidelity | {"fidelity_skipped": skipped}
        if name != "teacher" and skipped is None:
            metrics |= self._accept_length(model, tokenizer)
        del model
        _free()
        return metrics, [f"agreement and KL are not measured: {skipped}"] if skipped else []

    def _load(self, path: Path, *, trust: bool) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        model = load_model(path, dtype=self._recipe.serve.dtype, trust_remote_code=trust, packed=True)
        tokenizer = load_tokenizer(path, trust_remote_code=trust)
        require_chat_template(tokenizer, path)
        return model, tokenizer

    def _answer(
        self, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path
    ) -> tuple[dict[str, Any], float]:
        """Accuracy metrics, and the seconds that the answers took (verdicts not counted)."""
        started = time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        silent = not self._console.is_terminal  # in a log file a bar is no more than an empty line
        with Progress(*columns, console=self._console, transient=True, disable=silent) as progress:
            bar = progress.add_task(f"evaluate {name}", total=len(self._tasks))
            answers = answer_all(
                model,
                tokenizer,
                self._tasks,
                settings=self._recipe.serve,
                max_tokens=self._section.max_tokens,
                progress=lambda done: progress.update(bar, completed=done),
            )
        seconds = time.monotonic() - started
        verdicts = self._grader.grade(self._tasks, [answer.text for answer in answers])
        rows = answer_rows(self._tasks, answers, verdicts)
        write_parquet(folder / "answers.parquet", rows, ANSWERS)
        return accuracy_metrics(rows), seconds

    def _fidelity(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path
    ) -> tuple[dict[str, Any], str | None]:
        """Perplexity always; agreement and KL where the tokens are the teacher's, else the reason why not."""
        rows = self._rows(model, tokenizer)
        skipped = _NO_TEACHER if self._teacher is None else why_not_comparable(self._teacher[0], rows)
        signal = self._teacher[1] if self._teacher is not None and skipped is None else None
        found = measure(model, rows, signal)
        write_parquet(folder / "fidelity.parquet", [asdict(row) for row in found], FIDELITY)
        return fidelity_metrics(found), skipped

    def _accept_length(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """How far the variant's guesses carry as the teacher's draft, where the recipe asks."""
        section = self._section
        if section.draft_tokens is None:
            return {}
        return measure_accept_length(
            model,
            tokenizer,
            self._greedy,
            settings=self._recipe.serve,
            max_tokens=section.max_tokens,
            draft_tokens=section.draft_tokens,
        )

    def _rows(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[ReferenceRow]:
        config = model.config.get_text_config().to_dict()
        tasks = reference_tasks(self._tasks, self._section.divergence_rows)
        return reference_rows(tokenizer, tasks, max_length=int(config.get("max_position_embeddings") or 1 << 20))

    def _remember_teacher(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        rows = self._rows(model, tokenizer)
        self._teacher = rows, teacher_signal(model, rows)
        if self._section.draft_tokens is not None:
            tasks = reference_tasks(self._tasks, self._section.divergence_rows)
            settings, max_tokens = self._recipe.serve, self._section.max_tokens
            self._greedy = greedy_texts(model, tokenizer, tasks, settings=settings, max_tokens=max_tokens)


def _size(model: PreTrainedModel) -> dict[str, int]:
    """Elements and bytes of all tensors a model holds; packed 4-bit weights count as the words they are."""
    tensors = {t.data_ptr(): t for t in [*model.parameters(), *model.buffers()] if t.numel()}
    return {
        "tensor_elements": sum(t.numel() for t in tensors.values()),
        "tensor_bytes": sum(t.nbytes for t in tensors.values()),
    }


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

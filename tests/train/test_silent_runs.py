"""Bugs that cost quality without a word and that only a run shows, each with the place where it happened to others.

The others are in `test_silent_losses.py`.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedModel

from distill.model.load import load_model, load_tokenizer
from distill.recipe.schema import Recipe
from distill.runs import Run
from distill.track import read_metrics
from distill.train import stage
from distill.train.batches import Sequences, read_sequences
from distill.train.signals import LiveTeacher
from tests.train import forks, tiny

IGNORED = -100


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("silent")
    tiny.save_model(folder / "teacher")
    tiny.save_data(folder)
    return folder


def drop_out(model: Path, probability: float) -> None:
    """Give a saved model dropout in its attention."""
    path = model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "attention_dropout": probability}))


def first_line(recipe: Recipe) -> dict[str, Any]:
    """Train, and the first line of the curve."""
    stage.run(recipe, Run(recipe), console=Console(file=io.StringIO()))
    return read_metrics(Run(recipe).stage("train", recipe.train[0].name).path / "metrics.jsonl")[0]


def plain_loss(model: PreTrainedModel, rows: Sequences) -> tuple[float, int]:
    """Sum of the cross entropies of all trained tokens and their number, a row at a time, from full logits."""
    total, count = 0.0, 0
    for ids, labels in zip(rows.input_ids, rows.labels, strict=True):
        with torch.no_grad():
            log_q = torch.log_softmax(model(torch.tensor([ids])).logits[0], -1)
        for position, label in enumerate(labels):
            if label != IGNORED:
                total -= log_q[position - 1, label].item()
                count += 1
    return total, count


@pytest.mark.parametrize("objective", ["sft", "kd"])
def test_accumulated_micro_batches_are_a_sum_over_tokens(world: Path, objective: str) -> None:
    """Sum over tokens / tokens of the step, not a mean of micro-batch means, nor a sum of them.

    unsloth.ai/blog/gradient and huggingface/transformers#34191 (October 2024); then doubled, transformers#35438.
    """
    lines = []
    for micro in (8, 2):
        entry = {"objective": objective, "micro_batch_size": micro, "max_steps": 1, "batch_size": 40}
        recipe = tiny.recipe(world, entry, name=f"{objective}-{micro}")
        lines.append(first_line(recipe))
    assert lines[0]["loss"] == pytest.approx(lines[1]["loss"], rel=1e-5)
    assert lines[0]["grad_norm"] == pytest.approx(lines[1]["grad_norm"], rel=1e-4)
    student = load_model(Run(recipe).checkpoint("student"), dtype="float32", device="cpu")
    total, count = plain_loss(
        student, read_sequences(load_tokenizer(world / "teacher"), [world / "chats.parquet"], 1024)
    )
    assert lines[0]["cross_entropy"] == pytest.approx(total / count, rel=1e-4)
    if objective == "sft":
        assert lines[0]["loss"] == pytest.approx(total / count, rel=1e-4)


def test_the_teacher_never_drops_out(world: Path, tmp_path: Path) -> None:
    """A teacher with dropout in its config says the same twice, in eval mode, also while the student is in train mode.

    yxuansu/TaCL#11 (no eval() on the teacher); the other way round, huggingface/trl#5862: eval() hit the student.
    """
    tiny.save_model(tmp_path / "teacher")
    tiny.save_data(tmp_path)
    student = load_model(tmp_path / "teacher", dtype="float32", device="cpu")
    student.save_pretrained(tmp_path / "student")
    load_tokenizer(tmp_path / "teacher").save_pretrained(tmp_path / "student")
    drop_out(tmp_path / "teacher", 0.5)
    dropping = load_model(tmp_path / "teacher", dtype="float32", device="cpu").train()
    batch = {"input_ids": torch.arange(5, 25).reshape(1, 20)}
    assert not torch.equal(dropping.base_model(**batch)[0], dropping.base_model(**batch)[0])
    signal = LiveTeacher(dropping)
    assert torch.equal(signal(batch).hidden, signal(batch).hidden) and not signal(batch).hidden.requires_grad
    dropping.train()
    with pytest.raises(AssertionError, match="train mode"):
        signal(batch)
    same = {"model": str(tmp_path / "student"), "dtype": "float32"}
    line = first_line(tiny.recipe(tmp_path, {"objective": "kd", "max_steps": 1}, student=same))
    assert line["divergence"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("lora", [False, True])
def test_the_reference_of_dpo_never_drops_out(tmp_path: Path, lora: bool) -> None:
    """Before its first step the policy is the reference: the margin is 0. With LoRA both are one model in train mode.

    TRL's disable_dropout_in_model reaches `nn.Dropout` alone, and attention's dropout is a number in transformers.
    """
    tiny.save_model(tmp_path / "teacher")
    tiny.save_data(tmp_path)
    drop_out(tmp_path / "teacher", 0.5)
    entry = {"objective": "dpo", "max_steps": 1, **({"lora": {"rank": 4, "dropout": 0.5}} if lora else {})}
    assert first_line(tiny.recipe(tmp_path, entry))["reward_margin"] == 0.0


def train_and_save_own_weights(recipe: Recipe, out: Path) -> None:
    """A target: train, and save the weights as this process has them."""
    import os

    from distill.train import entry

    save = entry.save_student

    def saving(trainer: Any, *args: Any, **rest: Any) -> None:
        state = trainer.accelerator.unwrap_model(trainer.model).state_dict()
        torch.save(state, out / f"weights-{os.environ.get('RANK', '0')}.pt")
        save(trainer, *args, **rest)

    entry.save_student = saving
    forks.train(recipe)


def test_gradients_go_through_ddp(world: Path, tmp_path: Path) -> None:
    """After three steps two processes have bitwise the same weights, and those of one process to float32 rounding.

    jingyaogong/minimind#853: a loss through `.module` arms no hooks, and each process trains alone.
    """
    weights: dict[int, list[dict[str, Tensor]]] = {}
    for processes in (1, 2):
        entry = {"objective": "kd", "micro_batch_size": 2, "batch_size": 4, "max_steps": 3, "learning_rate": 1e-3}
        recipe = tiny.recipe(world, entry, name=f"ddp-{processes}")
        job = forks.start(
            train_and_save_own_weights, recipe, tmp_path, log=tmp_path / f"log-{processes}", processes=processes
        )
        assert not any(job.wait()), job.text()
        weights[processes] = [torch.load(tmp_path / f"weights-{rank}.pt") for rank in range(processes)]
    first, second = weights[2]
    start = load_model(Run(recipe).checkpoint("student"), dtype="float32", device="cpu").state_dict()
    for name, expected in weights[1][0].items():
        assert torch.equal(first[name], second[name])
        moved = (expected - start[name]).norm()
        assert moved > 0 and (first[name] - expected).norm() < 1e-2 * moved

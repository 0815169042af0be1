"""What ends a run early: signals, which save and say how to go on, and losses that are no numbers."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import train_step_ways as ways
from benchmarks.train_step import TINY, rows_of
from distill.errors import DistillError
from distill.model.load import load_tokenizer
from distill.records import INSTRUCTION, read_parquet, write_parquet
from distill.runs import Run
from distill.track import read_metrics
from distill.train.batches import read_sequences, row_order
from distill.train.checkpoints import newest_whole
from distill.train.finite import FiniteCheck
from distill.train.processes import Processes, _as_typed
from tests.train import forks, tiny

POISONED = 13  # the row whose token has no embedding


@pytest.fixture
def world(tmp_path: Path) -> Path:
    tiny.save_model(tmp_path / "teacher")
    tiny.save_data(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("number", "processes", "code"), [(signal.SIGTERM, 2, 143), (signal.SIGINT, 1, 130)])
def test_a_signal_to_one_process_saves_and_stops_all(world: Path, number: int, processes: int, code: int) -> None:
    entry = {"objective": "sft", "max_steps": 50, "save_steps": 1000}
    recipe, log = tiny.recipe(world, entry), world / "log"
    folder = Run(recipe).stage("train", "sft").path
    job = forks.start(forks.train, recipe, log=log, processes=processes)
    while job.processes[0].is_alive() and not (folder / "metrics.jsonl").exists():
        time.sleep(0.002)
    while job.processes[0].is_alive() and not read_metrics(folder / "metrics.jsonl"):
        time.sleep(0.002)
    pid = job.processes[-1].pid
    assert pid is not None
    os.kill(pid, number)
    assert job.wait() == [code] * processes, job.text()
    found = newest_whole(folder / "checkpoints")
    assert f"sft: stopped at step {found.step} of 50, checkpoint written; to go on: " in job.text()
    assert 0 < found.step < 50 and found.skipped == () and found.processes == processes
    again = forks.start(forks.train, recipe, log=log, processes=processes)
    assert not any(again.wait()) and f"sft: going on from step {found.step}\n" in again.text()
    assert len(read_metrics(folder / "metrics.jsonl")) == 50


def test_the_command_is_what_was_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "distill"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    words = [sys.executable, str(script), "train", "my recipe.yaml", "train.sft.epochs=2"]
    assert _as_typed(words) == f"{script} train 'my recipe.yaml' train.sft.epochs=2"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _as_typed(words) == "distill train 'my recipe.yaml' train.sft.epochs=2"
    monkeypatch.setattr(sys, "orig_argv", ["/usr/bin/python3", "-m", "distill", "train", "r.yaml"])
    assert Processes(0, 1).command == "/usr/bin/python3 -m distill train r.yaml"


def poison(world: Path) -> None:
    """A student in which one byte has no embedding, and one row that has this byte."""
    tiny.save_model(world / "student", tied=False)
    token = load_tokenizer(world / "student")("7", add_special_tokens=False)["input_ids"]
    weights = load_file(world / "student/model.safetensors")
    weights["model.embed_tokens.weight"][token] = float("nan")
    save_file(weights, world / "student/model.safetensors", metadata={"format": "pt"})
    rows = [{"messages": row["messages"]} for row in read_parquet(world / "chats.parquet", columns=("messages",))]
    rows[POISONED]["messages"][0]["content"] += " 7"
    write_parquet(world / "chats.parquet", rows, INSTRUCTION)


@pytest.mark.parametrize(("processes", "packing"), [(1, True), (2, False)])
def test_a_loss_that_is_no_number_names_its_rows_and_spoils_nothing(world: Path, processes: int, packing: bool) -> None:
    poison(world)
    settings = {"batch_size": 8, "micro_batch_size": 2}
    entry = {"objective": "sft", "max_steps": 5, "save_steps": 1, "packing": packing, "max_length": 64, **settings}
    recipe = tiny.recipe(world, entry, student={"model": str(world / "student"), "dtype": "float32"})
    job = forks.start(forks.train, recipe, log=world / "log", processes=processes)
    assert job.wait() == [1] * processes, job.text()
    line = next(line for line in job.text().splitlines() if line.startswith("distill.errors.DistillError"))
    folder = Run(recipe).stage("train", "sft").path
    steps = len(read_metrics(folder / "metrics.jsonl"))
    assert f"sft: loss nan in step {steps + 1}, from rows " in line
    assert f"of {world / 'chats.parquet'} (counted from 0); the weights are those of step {steps} -> " in line
    named = [int(row) for row in line.split("from rows ")[1].split(" of ")[0].split(", ")]
    assert POISONED in named and (packing or len(named) == 2)
    if not packing:
        rows = read_sequences(load_tokenizer(world / "student"), [world / "chats.parquet"], 64)
        order = row_order(rows.lengths, steps=5, seed=recipe.train[0].seed, **settings)
        batches = [order[i : i + 2] for i in range(8 * steps, 8 * steps + 8, 2)]
        assert named == next(batch for batch in batches if POISONED in batch)
    found = newest_whole(folder / "checkpoints")
    assert found.step == steps and Run(recipe).stage("train", "sft").manifest() is None
    if found.path is not None:
        weights = load_file(found.path / "model.safetensors")
        assert all(torch.isfinite(weight).all() for name, weight in weights.items() if "embed" not in name)


def test_a_gradient_that_is_no_number_names_the_rows_of_its_step() -> None:
    places = [[(row % 2, 10 * row)] for row in range(8)]
    check = FiniteCheck("kd", [3, 1, 2, 0, 4, 5, 6, 7], places, ["a.parquet", "b.parquet"])
    arguments: Any = SimpleNamespace(world_size=1, per_device_train_batch_size=2, deepspeed_plugin=None)
    state: Any = SimpleNamespace(global_step=1)
    control: Any = None
    for value in (1.0, float("inf")):
        check.on_step_begin(arguments, state, control)
        check.see(torch.tensor(0.5, requires_grad=True))
        check.see(torch.tensor(0.25))
        check.see_norm(torch.tensor(value))
        if value == 1.0:
            check.on_pre_optimizer_step(arguments, state, control)
            continue
        wanted = "kd: gradients of norm inf and a finite loss in step 2, from rows 40, 60 of a.parquet, rows 50, 70 of"
        with pytest.raises(DistillError, match=wanted):
            check.on_pre_optimizer_step(arguments, state, control)
    check.on_step_begin(arguments, state, control)
    check.see(torch.tensor(1.0))
    check.see(torch.tensor(float("nan")))
    check.see_norm(torch.tensor(float("nan")))
    with pytest.raises(DistillError, match="kd: loss nan in step 2, from rows 60 of a.parquet, rows 70 of b.parquet"):
        check.on_pre_optimizer_step(arguments, state, control)
    arguments.deepspeed_plugin = object()  # whose optimizer has stepped by then
    with pytest.raises(DistillError, match="; it is in the weights -> "):
        check.on_pre_optimizer_step(arguments, state, control)


def test_a_training_stops_before_a_gradient_that_is_no_number_reaches_the_weights() -> None:
    """The loss is finite, and so the norm that clipping computes has to tell."""
    torch.manual_seed(0)
    sizes = {"vocab_size": TINY.vocab, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2)
    student, teacher = LlamaForCausalLM(config), LlamaForCausalLM(config)
    rows = [ways.Row(*row) for row in rows_of(TINY, 24)]
    seen: list[dict[str, torch.Tensor]] = []

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        seen.append({name: weight.detach().clone() for name, weight in student.named_parameters()})
        return gradient if len(seen) < 4 else gradient * float("nan")  # two micro-batches a step

    student.model.norm.weight.register_hook(spoil)
    setting = ways.Setting(
        student, teacher, rows, 6, batch=4, micro_batch=2, max_new_tokens=0, bfloat16=False, triton=False
    )
    with pytest.raises(DistillError, match="ours: gradients of norm nan and a finite loss in step 2, from rows "):
        ways.ours_off_policy(setting).train()
    assert len(seen) == 4 and not torch.equal(seen[0]["lm_head.weight"], seen[3]["lm_head.weight"])
    for name, weight in student.named_parameters():
        assert torch.equal(weight, seen[3][name]) and weight.isfinite().all()

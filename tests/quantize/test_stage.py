"""The quantize stage on a tiny run: folders that load, manifests, skipping, refusals."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from distill.errors import DistillError
from distill.model.load import load_model, load_tokenizer
from distill.quantize import stage
from distill.recipe.schema import Recipe
from distill.records import INSTRUCTION, write_parquet
from distill.runs import Run

from .tiny import VOCABULARY, probe_ids, tiny_model, tiny_tokenizer

CALIBRATION = {"rows": 16, "max_length": 24}
ALL = (
    {"name": "nf4", "method": "nf4"},
    {"name": "int8", "method": "int8"},
    {"name": "gptq", "method": "gptq", "group_size": 32, "calibration": CALIBRATION},
    {"name": "awq", "method": "awq", "group_size": 32, "calibration": CALIBRATION},
)


def recipe_at(folder: Path, *quantize: dict[str, Any]) -> Recipe:
    sections = {
        "name": "tiny",
        "output_dir": str(folder),
        "student": {"model": "student"},
        "generate": [{"name": "chats", "kind": "instruction", "prompts": {"source": "tasks", "count": 1}}],
        "train": [{"name": "sft", "objective": "sft", "data": ["chats"]}],
        "quantize": quantize,
    }
    return Recipe.model_validate_json(json.dumps(sections))


def chat(generator: random.Random) -> list[dict[str, str]]:
    words = [[f"w{generator.randrange(3, VOCABULARY)}" for _ in range(6)] for _ in range(2)]
    return [{"role": role, "content": " ".join(said)} for role, said in zip(("user", "assistant"), words, strict=True)]


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A folder in which a recipe's generate and train stages are done."""
    recipe = recipe_at(tmp_path)
    run = Run(recipe)
    generator = random.Random(0)
    for name in ("generate-chats", "train-sft"):
        folder = run.stage(*name.split("-"))
        folder.begin({})
        if folder.stage == "generate":
            rows = [{"messages": chat(generator)} for _ in range(40)]
            write_parquet(folder.path / "data.parquet", rows, INSTRUCTION)
        else:
            tiny_model(dtype=torch.bfloat16).save_pretrained(folder.path / "model")
            tiny_tokenizer().save_pretrained(folder.path / "model")
        folder.finish(recipe, {}, metrics={})
    return tmp_path


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def test_every_method_makes_a_model_that_loads(trained: Path) -> None:
    recipe = recipe_at(trained, *ALL)
    run, console = Run(recipe), quiet()
    stage.run(recipe, run, console=console)
    with torch.no_grad():
        reference = load_model(run.checkpoint("sft"), device="cpu")(probe_ids()).logits
    for entry in recipe.quantize:
        manifest = run.stage("quantize", entry.name).require()
        folder = run.variants()[entry.name]
        assert folder == run.stage("quantize", entry.name).path / "model"
        model, tokenizer = load_model(folder, device="cpu"), load_tokenizer(folder)
        assert tokenizer.chat_template == tiny_tokenizer().chat_template
        with torch.no_grad():
            logits = model(probe_ids()).logits
        assert (logits - reference).norm() < 0.4 * reference.norm()
        metrics = manifest.metrics
        assert metrics["weight_bytes"] < metrics["weight_bytes_before"]
        assert 4 < metrics["bits_per_weight"] < 9
        assert len(metrics["linears"]) in (12, 14)
        if entry.method in ("gptq", "awq"):
            assert 0 < metrics["output_error"] < metrics["rtn_output_error"]
    assert "quantize-gptq" in console.file.getvalue()  # type: ignore[attr-defined]


def test_done_is_skipped_and_a_changed_setting_is_not(trained: Path) -> None:
    gptq = ALL[2]
    recipe = recipe_at(trained, gptq)
    run = Run(recipe)
    stage.run(recipe, run, console=quiet())
    first = run.stage("quantize", "gptq").require()
    stage.run(recipe, run, console=quiet())
    assert run.stage("quantize", "gptq").require() == first
    changed = recipe_at(trained, gptq | {"bits": 8})
    stage.run(changed, Run(changed), console=quiet())
    second = run.stage("quantize", "gptq").require()
    assert second.metrics["bits_per_weight"] > first.metrics["bits_per_weight"] + 3


def test_the_same_inputs_give_the_same_files(trained: Path) -> None:
    recipe = recipe_at(trained, ALL[3])
    run = Run(recipe)
    outputs = []
    for _ in range(2):
        stage.run(recipe, run, console=quiet())
        folder = run.stage("quantize", "awq")
        outputs.append(folder.require().outputs)
        (folder.path / "manifest.json").unlink()  # as if killed before the last step
    assert outputs[0] == outputs[1]


def test_refuses_before_training_is_done(tmp_path: Path) -> None:
    recipe = recipe_at(tmp_path, ALL[0])
    with pytest.raises(DistillError, match="train-sft is not finished"):
        stage.run(recipe, Run(recipe), console=quiet())

"""Quantization-aware distillation: the quantized student is the trained one, and better than rounding after."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from distill.errors import DistillError
from distill.model.load import load_model
from distill.quantize import stage as quantize
from distill.recipe.load import load_recipe
from distill.recipe.schema import Recipe
from distill.runs import Run
from distill.track import read_metrics
from distill.train import entry as entries
from distill.train import stage
from tests.train import tiny

IDS = torch.arange(5, 45).reshape(2, 20)


@pytest.fixture
def world(tmp_path: Path) -> Path:
    tiny.save_model(tmp_path / "teacher")
    tiny.save_data(tmp_path)
    return tmp_path


def recipe_of(world: Path, grid: dict[str, Any], **entry: Any) -> Recipe:
    """The student starts as the teacher itself, so that all there is to lose is lost by rounding."""
    return tiny.recipe(
        world,
        {"objective": "kd", "quantize": grid, **entry},
        student={"model": str(world / "teacher"), "dtype": "float32"},
        quantize=[{"name": "q", "method": "qat"}],
    )


def logits(folder: Path) -> Tensor:
    with torch.no_grad():
        found: Tensor = load_model(folder, device="cpu")(IDS).logits
    return found


@pytest.mark.parametrize(
    "grid", [{"bits": 3, "group_size": 16}, {"bits": 4, "group_size": 8, "symmetric": False}, {"bits": 8}]
)
def test_the_quantized_model_is_the_one_that_was_trained(
    world: Path, monkeypatch: pytest.MonkeyPatch, grid: dict[str, Any]
) -> None:
    """Logits of the fake-quantized student in training, of its folder, and of the packed model are the same."""
    trained: list[Tensor] = []
    save = entries.save_student

    def watching(trainer: Any, *args: Any, **rest: Any) -> None:
        with torch.no_grad():
            trained.append(trainer.model.eval()(IDS).logits)
        save(trainer, *args, **rest)

    monkeypatch.setattr(entries, "save_student", watching)
    recipe = recipe_of(world, grid)
    console = Console(file=io.StringIO())
    stage.run(recipe, Run(recipe), console=console)
    quantize.run(recipe, Run(recipe), console=console)
    exported = Run(recipe).checkpoint("kd")
    packed = Run(recipe).stage("quantize", "q")
    torch.testing.assert_close(logits(exported), trained[0], rtol=0, atol=0)
    torch.testing.assert_close(logits(packed.path / "model"), trained[0], rtol=0, atol=1e-6)
    metrics = packed.require().metrics
    assert metrics["weight_error"] == 0.0 and len(metrics["linears"]) == 14
    assert not (packed.path / "model/qat").exists() and (exported / "qat/grid.safetensors").exists()


def test_training_on_the_grid_buys_back_what_rounding_loses(world: Path) -> None:
    recipe = recipe_of(world, {"bits": 3, "group_size": 16}, max_steps=60, learning_rate=3e-3, batch_size=16)
    stage.run(recipe, Run(recipe), console=Console(file=io.StringIO()))
    curve = read_metrics(Run(recipe).stage("train", "kd").path / "metrics.jsonl")
    rounded, after = curve[0]["divergence"], sum(line["divergence"] for line in curve[-5:]) / 5
    assert rounded > 0.02 and after < 0.6 * rounded


def test_mistakes_are_named(tmp_path: Path) -> None:
    head = "name: r\nteacher: {kind: embedded, model: m}\nstudent: {model: m}\n"
    kd = "train: [{name: k, objective: kd, data: [a.parquet]%s}]\nquantize: [{name: q, method: qat}]\n"
    (tmp_path / "r.yaml").write_text(head + kd % "")
    with pytest.raises(DistillError, match="quantize.0.method: 'k' was not trained on a grid"):
        load_recipe(tmp_path / "r.yaml")
    (tmp_path / "r.yaml").write_text(head + kd % ", quantize: {bits: 4}, lora: {rank: 4}")
    with pytest.raises(DistillError, match="train.0.quantize: rounds the weights that are trained"):
        load_recipe(tmp_path / "r.yaml")
    (tmp_path / "r.yaml").write_text(head + kd % ", quantize: {bits: 4}")
    assert load_recipe(tmp_path / "r.yaml").trained_grid("k") is not None

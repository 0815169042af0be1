"""The student that a recipe cuts down by what its calibration rows say, and the report of it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from distill.errors import DataError
from distill.model.load import load_model
from distill.recipe.schema import Recipe
from distill.runs import Run
from distill.train.processes import Processes
from distill.train.student_base import make_student_base
from tests.train import tiny


def recipe_of(folder: Path, **calibration: object) -> Recipe:
    student = {
        "model": str(folder / "teacher"), "layers": 2, "heads": 2, "kv_heads": 1, "intermediate_size": 40,
        "hidden_size": 24, "dtype": "bfloat16",
        "prune": {"layers_by": "loss", "kv_pooling": "weighted", "calibration": {"rows": 10, **calibration}},
    }  # fmt: skip
    return tiny.recipe(folder, {"objective": "sft"}, student=student)


def make(recipe: Recipe) -> str:
    out = io.StringIO()
    assert recipe.student is not None
    make_student_base(recipe, recipe.student, Run(recipe), Processes(0, 1), Console(file=out, width=300))
    return out.getvalue()


def test_a_recipe_makes_it_once_and_says_by_which_scores(tmp_path: Path) -> None:
    tiny.save_model(tmp_path / "teacher", layers=4)
    tiny.save_data(tmp_path)
    recipe = recipe_of(tmp_path)
    said = make(recipe)
    assert "2 of 4 layers, 2 of 4 heads, 40 of 64 neurons, 24 of 32 channels, 1 of 4 KV heads" in said
    assert "loss without each layer measured" in said and "importance measured" in said
    folder = Run(recipe).stage("train", "student-base")
    manifest = folder.require()
    assert "calibration" in manifest.inputs and "importance.json" in manifest.outputs
    report = json.loads((folder.path / "importance.json").read_text())
    assert report["calibration"] == {"rows": 10, "tokens": report["calibration"]["tokens"]}
    first, second = report["layers"]["rounds"]
    assert set(first["scores"]) == {"1", "2"} and len(first["removed"]) == len(second["removed"]) == 1
    assert [len(layer["removed"]) for layer in report["heads"]["layers"]] == [2, 2]
    student = load_model(folder.path / "model", dtype="stored")
    assert sum(p.numel() for p in student.parameters()) == manifest.metrics["parameters"]
    assert str(student.dtype) == "torch.bfloat16"
    assert "done before" in make(recipe)
    assert "done before" not in make(recipe_of(tmp_path, max_length=16))
    tiny.save_data(tmp_path, rows=30)
    assert "done before" not in make(recipe)


def test_rows_that_are_not_there_are_named(tmp_path: Path) -> None:
    tiny.save_model(tmp_path / "teacher", layers=3)
    with pytest.raises(DataError, match=r"student.prune.calibration: no dataset at .*gone.parquet"):
        make(recipe_of(tmp_path, data=str(tmp_path / "gone.parquet")))

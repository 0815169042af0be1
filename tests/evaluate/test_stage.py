"""The stage over a run folder of tiny models: what it writes, skips, refuses and compares."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from distill.errors import DistillError
from distill.evaluate import session, stage
from distill.evaluate.accuracy import Answer
from distill.evaluate.compare import base_of
from distill.recipe.quantize import Nf4
from distill.recipe.schema import Evaluate, Recipe
from distill.recipe.teacher import EmbeddedTeacher, OpenAITeacher, Student
from distill.recipe.train import SftEntry
from distill.records import read_parquet
from distill.runs import Run
from distill.tasks.types import Task
from tests.evaluate.tiny import make_model, make_tokenizer, save

ROWS = 12


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """Teacher, untrained student, one trained entry and one quantized, all tiny Llamas."""
    tokenizer = make_tokenizer()
    teacher = save(make_model(tokenizer, seed=1, layers=2), tokenizer, tmp_path / "teacher")
    recipe = Recipe(
        name="tiny",
        output_dir=str(tmp_path / "runs"),
        teacher=EmbeddedTeacher(model=str(teacher)),
        student=Student(model="unused", dtype="float32"),
        train=(SftEntry(name="sft", objective="sft", data=("rows.parquet",)),),
        quantize=(Nf4(name="nf4", method="nf4"),),
        evaluate=Evaluate(rows=ROWS, divergence_rows=6, max_tokens=4, isolation="none"),
    )
    run = Run(recipe)
    for index, (kind, name) in enumerate((("train", "student-base"), ("train", "sft"), ("quantize", "nf4"))):
        folder = run.stage(kind, name)
        folder.begin({})
        save(make_model(tokenizer, seed=10 + index), tokenizer, folder.path / "model")
        folder.finish(recipe, {}, metrics={})
    return recipe


def _evaluate(recipe: Recipe) -> str:
    console = Console(file=io.StringIO(), width=200)
    stage.run(recipe, Run(recipe), console=console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def _metrics(recipe: Recipe, name: str) -> dict[str, Any]:
    return Run(recipe).stage("evaluate", name).require().metrics


def test_every_variant_is_measured_and_then_skipped(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    _evaluate(recipe)
    for name in ("teacher", "student-base", "sft", "nf4"):
        found = _metrics(recipe, name)
        assert found["accuracy"]["count"] == ROWS and found["fidelity_rows"] == 6
        assert found["perplexity"] > 1 and found["fidelity_skipped"] is None
        rows = read_parquet(Run(recipe).stage("evaluate", name).path / "answers.parquet")
        assert len(rows) == ROWS and all(row["reason"] for row in rows)
    assert _metrics(recipe, "teacher")["kl"] == pytest.approx(0, abs=1e-6)
    assert _metrics(recipe, "teacher")["agreement"] == 1
    assert _metrics(recipe, "sft")["kl"] > 0.01
    monkeypatch.setattr(session, "Session", None)
    assert _evaluate(recipe).count("done before") == 4


def test_accept_length_where_the_recipe_asks(recipe: Recipe) -> None:
    assert recipe.evaluate is not None
    section = recipe.evaluate.model_copy(update={"draft_tokens": 3, "max_tokens": 12})
    assert "accept length" in _evaluate(recipe.model_copy(update={"evaluate": section}))
    found = _metrics(recipe, "sft")
    assert 1 <= found["accept_length"] <= 4 and found["accept_length_draft_tokens"] == 3
    assert "accept_length" not in _metrics(recipe, "teacher")


def test_only_what_changed_is_measured_again(recipe: Recipe) -> None:
    _evaluate(recipe)
    folder = Run(recipe).stage("train", "sft")
    tokenizer = make_tokenizer()
    folder.begin({"changed": "yes"})
    save(make_model(tokenizer, seed=99), tokenizer, folder.path / "model")
    folder.finish(recipe, {"changed": "yes"}, metrics={})
    said = _evaluate(recipe)
    assert "evaluate sft: done before" not in said and said.count("done before") == 3
    fewer = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"variants": ("sft",)})})  # type: ignore[union-attr]
    assert _evaluate(fewer).count("done before") == 1  # which variants are evaluated changes none of them


def test_comparison_pairs_prompts_and_flags_lossy_quantization(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    order = iter(("teacher", "student-base", "sft", "nf4"))

    def perfect_but_for_nf4(_model: object, _tokenizer: object, tasks: list[Task], **_: object) -> list[Answer]:
        name = next(order)
        return [Answer("" if name == "nf4" and i % 3 == 0 else t.answer, 1, "stop") for i, t in enumerate(tasks)]

    monkeypatch.setattr(session, "answer_all", perfect_but_for_nf4)
    _evaluate(recipe)
    comparison = Run(recipe).stage("evaluate").require().metrics
    assert comparison["pairs"]["sft"]["teacher"]["accuracy"]["mean"] == 0
    lossy = comparison["pairs"]["nf4"]["sft"]["accuracy"]
    assert (lossy["mean"], lossy["only_other"], lossy["count"]) == (pytest.approx(-1 / 3), 4, ROWS)
    assert comparison["pairs"]["sft"]["teacher"]["kl"]["mean"] > 0
    assert comparison["flags"]["nf4"]["flagged"] and comparison["flags"]["nf4"]["of"] == "sft"


def test_variant_that_is_not_made_says_which_verb_makes_it(recipe: Recipe) -> None:
    for verb, folder in (("train", "train-sft"), ("quantize", "quantize-nf4")):
        model = Run(recipe).path / folder / "model" / "config.json"
        text = model.read_text()
        model.unlink()
        with pytest.raises(DistillError, match=rf"not made yet.*distill {verb}"):
            _evaluate(recipe)
        model.write_text(text)
    with pytest.raises(DistillError, match="no evaluate section"):
        _evaluate(recipe.model_copy(update={"evaluate": None}))


def test_teacher_without_weights_leaves_kl_unmeasured_with_the_reason(recipe: Recipe) -> None:
    served = recipe.model_copy(update={"teacher": OpenAITeacher(model="far-away"), "quantize": ()})
    _evaluate(served)
    found = _metrics(served, "sft")
    assert found["kl"] is None and "no weights of the teacher" in found["fidelity_skipped"]
    assert found["perplexity"] > 1
    notes = Run(served).stage("evaluate", "sft").require().notes
    assert any("agreement and KL are not measured" in note for note in notes)


def test_base_of_each_variant(recipe: Recipe) -> None:
    assert [base_of(recipe, name) for name in ("teacher", "student-base", "sft", "nf4")] == [
        None,
        None,
        "student-base",
        "sft",
    ]

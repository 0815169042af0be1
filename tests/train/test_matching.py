"""Hidden-state matching in a run: the loss by hand, a resume that is bitwise, and no projection in what comes out."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors import safe_open

from distill.errors import DistillError
from distill.model.load import load_model, load_tokenizer
from distill.objectives.matching import Matching
from distill.recipe.load import load_recipe
from distill.recipe.schema import Recipe
from distill.runs import Run, file_digest
from distill.track import read_metrics
from distill.train import stage
from distill.train.batches import read_sequences
from distill.train.saving import PROJECTIONS
from tests.train import tiny

MATCHING = {"layers": [{"student": 0, "teacher": 0}, {"student": 1, "teacher": 2}], "weight": 0.3}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher wider than the student."""
    folder = tmp_path_factory.mktemp("matching")
    tiny.save_model(folder / "teacher", width=48)
    tiny.save_model(folder / "student", layers=1, seed=1)
    tiny.save_data(folder)
    return folder


def recipe_of(world: Path, name: str, **entry: Any) -> Recipe:
    student = {"model": str(world / "student"), "dtype": "float32"}
    return tiny.recipe(world, {"objective": "kd", "matching": MATCHING, **entry}, name=name, student=student)


def train(recipe: Recipe) -> str:
    out = io.StringIO()
    stage.run(recipe, Run(recipe), console=Console(file=out, width=200))
    return out.getvalue()


def curve(recipe: Recipe) -> list[dict[str, Any]]:
    lines = read_metrics(Run(recipe).stage("train", "kd").path / "metrics.jsonl")
    return [{key: value for key, value in line.items() if "second" not in key} for line in lines]


def test_the_loss_of_a_step_by_hand(world: Path) -> None:
    """Forward KL + 0.3 x the mean over two pairs of the mean squared distance, over the tokens that predict a label."""
    recipe = recipe_of(world, "hand", batch_size=40, micro_batch_size=4, max_steps=1)
    train(recipe)
    line = curve(recipe)[0]
    student, teacher = (load_model(world / name, dtype="float32", device="cpu") for name in ("student", "teacher"))
    projections = Matching(((0, 0), (1, 2)), student=32, teacher=48, measure="mse", weight=0.3, seed=0).projections
    rows = read_sequences(load_tokenizer(world / "student"), [world / "chats.parquet"], 1024)
    distance = divergence = 0.0
    for ids, labels in zip(rows.input_ids, rows.labels, strict=True):
        places = [place - 1 for place, label in enumerate(labels) if label != -100]
        with torch.no_grad():
            ours, theirs = (model(torch.tensor([ids]), output_hidden_states=True) for model in (student, teacher))
            log_q, log_p = (torch.log_softmax(out.logits[0, places].double(), -1) for out in (ours, theirs))
            divergence += float((log_p.exp() * (log_p - log_q)).sum())
            for (a, b), projection in zip(((0, 0), (1, 2)), projections, strict=True):
                error = projection(ours.hidden_states[a][0, places]) - theirs.hidden_states[b][0, places]
                distance += float(error.double().square().mean(-1).sum()) / 2
    scored = sum(rows.trained)
    assert line["matching"] == pytest.approx(distance / scored, rel=1e-5)
    assert line["divergence"] == pytest.approx(divergence / scored, rel=1e-5)
    assert line["loss"] == pytest.approx((divergence + 0.3 * distance) / scored, rel=1e-5)


@pytest.mark.parametrize("lora", [False, True])
def test_resumed_equals_uninterrupted_and_nothing_of_it_is_exported(
    world: Path, monkeypatch: pytest.MonkeyPatch, lora: bool
) -> None:
    adapters: dict[str, Any] = {"lora": {"rank": 4, "merge": False}} if lora else {}
    whole, parts = (recipe_of(world, f"{name}-{lora}".lower(), **adapters) for name in ("whole", "parts"))
    train(whole)
    with tiny.stopped_after(3, monkeypatch), pytest.raises(SystemExit):
        train(parts)
    checkpoint = Run(parts).stage("train", "kd").path / "checkpoints/checkpoint-3"
    start = Matching(((0, 0), (1, 2)), student=32, teacher=48, measure="mse", weight=0.3, seed=0).weights()
    with safe_open(checkpoint / PROJECTIONS, "pt") as saved:
        assert len(start) == 2 and all(not torch.equal(saved.get_tensor(name), start[name]) for name in start)
    assert "going on from step 3" in train(parts)
    assert curve(parts) == curve(whole)
    assert curve(whole)[-1]["matching"] < 0.95 * curve(whole)[0]["matching"]
    folders = [Run(recipe).stage("train", "kd").path / "model" for recipe in (whole, parts)]
    weights = "adapter_model.safetensors" if lora else "model.safetensors"
    assert len({file_digest(folder / weights) for folder in folders}) == 1
    assert not (folders[0] / PROJECTIONS).exists()
    with safe_open(folders[0] / weights, "pt") as exported:
        assert not [name for name in exported.keys() if "matching" in name or "projection" in name]  # noqa: SIM118


def test_mistakes_are_named(world: Path, tmp_path: Path) -> None:
    wrong = {"matching": {"layers": [{"student": 2, "teacher": 2}]}}
    with pytest.raises(DistillError, match="matching names layer 2 of the student, which has 1 -> number layers"):
        train(recipe_of(world, "wrong", **wrong))
    (tmp_path / "r.yaml").write_text(
        "name: r\nteacher: {kind: embedded, model: m}\nstudent: {model: m}\n"
        "train: [{name: k, objective: kd, data: [a.parquet], signal: {kind: top_k}, "
        "matching: {layers: [{student: 1, teacher: 1}]}}]\n"
    )
    with pytest.raises(DistillError, match="matching: only a live teacher"):
        load_recipe(tmp_path / "r.yaml")

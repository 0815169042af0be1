"""Several teachers in runs: mixed, or each for its own rows, packed rows too; and what is refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from distill.errors import DataError, DistillError
from distill.model.load import load_model, load_tokenizer
from distill.recipe.load import load_recipe
from distill.recipe.schema import Recipe
from distill.records import INSTRUCTION, read_parquet, write_parquet
from distill.runs import Run
from distill.track import read_metrics
from distill.train import stage
from distill.train.batches import pack, read_sequences
from tests.train import tiny


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two teachers and a student; every third row is the second teacher's."""
    folder = tmp_path_factory.mktemp("several")
    tiny.save_model(folder / "teacher", width=48, seed=2)
    tiny.save_model(folder / "second", width=40, seed=3)
    tiny.save_model(folder / "student", layers=1, seed=1)
    tiny.save_data(folder)
    rows = read_parquet(folder / "chats.parquet")
    for number, row in enumerate(rows):
        row["teacher"] = "two" if number % 3 == 0 else "one"
    write_parquet(folder / "chats.parquet", rows, INSTRUCTION)
    return folder


def recipe_of(world: Path, name: str, scoring: dict[str, Any] | None, **entry: Any) -> Recipe:
    def teacher(label: str, folder: str) -> dict[str, Any]:
        return {"kind": "embedded", "id": label, "model": str(world / folder), "backend": "transformers"}

    return tiny.recipe(
        world,
        {"objective": "kd", "teachers": scoring, "max_steps": 1, "batch_size": 40, **entry},
        name=name,
        teacher=teacher("one", "teacher"),
        teachers=[teacher("two", "second"), teacher("again", "teacher")],
        student={"model": str(world / "student"), "dtype": "float32"},
    )


def train(recipe: Recipe) -> list[dict[str, Any]]:
    stage.run(recipe, Run(recipe), console=Console(file=io.StringIO(), width=200))
    return read_metrics(Run(recipe).stage("train", recipe.train[0].name).path / "metrics.jsonl")


@torch.no_grad()
def distributions(world: Path, ids: list[int], places: list[int]) -> dict[str, Tensor]:
    """log probabilities of each model of the tokens at `places`."""
    found = {}
    for name in ("student", "teacher", "second"):
        model = load_model(world / name, dtype="float32", device="cpu")
        found[name] = torch.log_softmax(model(torch.tensor([ids])).logits[0, places].double(), -1)
    return found


def by_hand(world: Path, mix: dict[str, float] | None) -> float:
    """Mean reverse KL over the dataset, of a mixture, or of each row's own teacher."""
    rows = read_sequences(load_tokenizer(world / "student"), [world / "chats.parquet"], 1024)
    total = 0.0
    for number, (ids, labels) in enumerate(zip(rows.input_ids, rows.labels, strict=True)):
        places = [place - 1 for place, label in enumerate(labels) if label != -100]
        told = distributions(world, ids, places)
        weights = mix or ({"second": 1.0} if number % 3 == 0 else {"teacher": 1.0})
        log_p = sum((weight * told[name].exp() for name, weight in weights.items()), torch.zeros(())).log()
        total += float((told["student"].exp() * (told["student"] - log_p)).sum())
    return total / sum(rows.trained)


def test_a_mixture_by_hand(world: Path) -> None:
    scoring = {"names": ["one", "two"], "weights": [3.0, 1.0]}
    line = train(recipe_of(world, "mix", scoring, divergence="reverse_kl"))[0]
    assert line["divergence"] == pytest.approx(by_hand(world, {"teacher": 0.75, "second": 0.25}), rel=1e-4)


@pytest.mark.parametrize("packing", [False, True])
def test_each_row_is_scored_by_its_own_teacher(world: Path, packing: bool) -> None:
    settings: dict[str, Any] = {}
    if packing:
        rows = read_sequences(load_tokenizer(world / "student"), [world / "chats.parquet"], 128)
        count = len(pack(rows, 128, 0).input_ids)
        settings = {"packing": True, "max_length": 128, "batch_size": count, "micro_batch_size": 1}
    scoring = {"names": ["two", "one"], "route": "rows"}
    recipe = recipe_of(world, f"rows-{packing}".lower(), scoring, divergence="reverse_kl", **settings)
    assert train(recipe)[0]["divergence"] == pytest.approx(by_hand(world, None), rel=1e-4)


def test_equal_teachers_are_one(world: Path) -> None:
    """Mixed, and routed to two of the same weights: the curve of the plain entry, from one gradient to the next."""
    settings = {"max_steps": 5, "batch_size": 8, "temperature": 2.0, "ce_weight": 0.1}
    plain = train(recipe_of(world, "plain", None, **settings))
    mixed = train(recipe_of(world, "mixed", {"names": ["one", "again"], "weights": [1.0, 3.0]}, **settings))
    data = [str(world / "chats.parquet")] * 2
    routed = train(recipe_of(world, "routed", {"names": ["one", "again"], "route": "data"}, data=data, **settings))
    twice = train(recipe_of(world, "twice", None, data=data, **settings))
    for one, other in ((plain, mixed), (twice, routed)):
        for expected, got in zip(one, other, strict=True):
            for key in ("loss", "divergence", "agreement", "grad_norm"):
                assert got[key] == pytest.approx(expected[key], rel=1e-3), key


def test_on_policy_takes_a_mixture(world: Path) -> None:
    scoring = {"names": ["one", "two"]}
    settings = {"objective": "on_policy", "rollout": {"max_new_tokens": 8, "kv_gib": 0.01}, "batch_size": 4}
    assert train(recipe_of(world, "own", scoring, **settings))[0]["divergence"] > 0


def test_mistakes_are_named(world: Path, tmp_path: Path) -> None:
    rows = read_parquet(world / "chats.parquet")
    write_parquet(tmp_path / "strange.parquet", [{**row, "teacher": "three"} for row in rows], INSTRUCTION)
    wrong = recipe_of(world, "wrong", {"names": ["one"], "route": "rows"}, data=[str(tmp_path / "strange.parquet")])
    with pytest.raises(DataError, match="row 0 of .* is of teacher 'three', which scores nothing here"):
        train(wrong)
    for scoring, extra, problem in (
        ("{names: [m, x]}", "", "teachers.names.1: no teacher 'x'"),
        ("{names: [m, far]}", "", "teachers.names.1: the distributions of 'far' are read: set its weights"),
        ("{names: [m, m]}", "", "teachers.names: a teacher is named twice"),
        ("{names: [m, n], weights: [1.0]}", "", "teachers.weights: needs a weight for each of the 2 names; got 1"),
        ("{names: [m, n], weights: [1.0, 2.0], route: rows}", "", "teachers.weights: with route rows each row has one"),
        (
            "{names: [m, n], route: data}",
            "",
            "teachers.names: route data needs a name for each of the 1 of data; got 2",
        ),
        ("{names: [m, n]}", "signal: {kind: hidden}", "teachers.route: only live teachers are several"),
        ("{names: [m, n], route: rows}", "signal: {shard: true}", "teachers.route: a teacher in shares"),
        ("{names: [m, n]}", "alignment: {}", "teachers.route: texts are aligned with one teacher"),
        ("{names: [m, n]}", "matching: {layers: [{student: 1, teacher: 1}]}", "teachers.route: hidden states"),
    ):
        (tmp_path / "r.yaml").write_text(
            "name: r\nteacher: {kind: embedded, model: m}\nstudent: {model: m}\n"
            "teachers: [{kind: embedded, model: n, backend: transformers}, {model: far}]\n"
            f"train: [{{name: k, objective: kd, data: [a.parquet], teachers: {scoring}, {extra}}}]\n"
        )
        with pytest.raises(DistillError, match=problem):
            load_recipe(tmp_path / "r.yaml")

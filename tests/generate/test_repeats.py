"""Rows that say what an earlier one says in other words: removed when all are there, kept aside, and named."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from distill.errors import CheckpointError
from distill.generate import embeddings
from distill.generate.merge import merge
from distill.generate.shards import all_shards
from distill.runs import Run
from tests.generate.conftest import Project
from tests.generate.test_educational import code_job, program, teaches
from tests.generate.test_shards import run_shard
from tests.teacher.mock import MockTeacher, completion
from tests.train.tiny import save_model


def job(project: Project, texts: Sequence[str], *, on: str = "answer", **embedding: Any) -> dict[str, Any]:
    duplicates = {"on": on, "near": False, "embedding": {"model": str(project.path / "model"), **embedding}}
    filters = {"duplicates": duplicates}
    return {"name": "inst", "kind": "instruction", "prompts": project.prompts(texts), "filters": filters}


@pytest.fixture
def angles(monkeypatch: pytest.MonkeyPatch, project: Project) -> list[list[str]]:
    """An embedder of texts that are angles in degrees; the texts of its batches."""
    batches: list[list[str]] = []

    def embed(self: embeddings.Embedder, texts: Sequence[str]) -> NDArray[np.float32]:
        batches.append(list(texts))
        turned = np.radians([float(text) for text in texts])
        return np.stack([np.cos(turned), np.sin(turned)], axis=1).astype(np.float32)

    monkeypatch.setattr(embeddings.Embedder, "embed", embed)
    save_model(project.path / "model")
    return batches


def test_a_repeat_goes_and_names_the_row_that_it_repeats(project: Project, angles: list[list[str]]) -> None:
    answers = {"a": "0", "b": "15", "c": "30", "d": "90", "e": "31"}
    with MockTeacher(lambda body, number: completion(answers[body["messages"][-1]["content"]])) as mock:
        section = job(project, list(answers), threshold=float(np.cos(np.radians(20))))
        printed = project.run(project.recipe(mock.base_url, section))
    assert angles == [["0", "15", "30", "90", "31"]]  # of the answers alone, as `on` says
    rows, rejected = project.data("inst"), project.rejected("inst")
    assert [row["messages"][-1]["content"] for row in rows] == ["0", "30", "90"]
    names = [row["request_hash"][:16] for row in rows]
    assert [(row["reason"], row["answer"], row["detail"]) for row in rejected] == [
        ("same_meaning", "15", f"of {names[0]}, cosine 0.966"),
        ("same_meaning", "31", f"of {names[1]}, cosine 1.000"),
    ]
    assert json.loads(rejected[0]["row"])["messages"][0]["content"] == "b"
    metrics = project.manifest("inst")["metrics"]
    assert (metrics["rows"], metrics["dropped"]) == (3, {"same_meaning": 2}) and "3 rows of 5 prompts" in printed
    folder = project.path / "runs/test/generate-inst"
    assert {path.name for path in folder.glob("*.parquet")} == {"data.parquet", "rejected.parquet"}
    card = (folder / "README.md").read_text()
    assert "| dropped: same_meaning | 2 |" in card and "| embedding of duplicates" in card.replace("file: ", "")


def test_shards_wait_for_the_merge(project: Project, angles: list[list[str]]) -> None:
    texts = [str(number) for number in range(0, 90, 3)]
    with MockTeacher(lambda body, number: completion(body["messages"][-1]["content"])) as mock:
        recipe = project.recipe(mock.base_url, job(project, texts, threshold=float(np.cos(np.radians(7)))))
        for shard in all_shards(2):
            run_shard(recipe, shard)
        assert not angles
        merge(recipe, Run(recipe), 2, console=Console(file=io.StringIO()))
    assert [row["messages"][-1]["content"] for row in project.data("inst")] == [str(n) for n in range(0, 90, 9)]


def test_repeats_go_before_educational_value_is_asked(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs of the two kinds are far apart; of each kind the first of three stays."""

    def embed(self: embeddings.Embedder, texts: Sequence[str]) -> NDArray[np.float32]:
        numbers = [int(text.split("program ")[1].split()[0]) for text in texts]
        return np.eye(100, dtype=np.float32)[[number // 2 for number in numbers]]

    monkeypatch.setattr(embeddings.Embedder, "embed", embed)
    save_model(project.path / "model")
    section = code_job(project, 150, sample=32, trees=20)
    section["filters"] = job(project, [f"program {n}" for n in range(150)], on="row")["filters"]
    with MockTeacher(teaches) as mock:
        project.run(project.recipe(mock.base_url, section))
        assert sum(text.startswith("Determine") for text in mock.prompts()) == 32
    kept = [row["messages"][0]["content"] for row in project.data("code")]
    assert kept == [f"program {n}" for n in range(0, 150, 2) if n % 3] and "def area_2(" in program(2)
    assert project.manifest("code")["metrics"]["dropped"] == {"same_meaning": 75, "not_educational": 25}


def test_end_to_end_with_a_model(project: Project) -> None:
    """Whole, with real hidden states: a text with one more full stop repeats the first, another text does not."""
    save_model(project.path / "model")
    answers = {"a": "the first of the small red count", "b": "the first of the small red count .", "c": "blue " * 9}
    with MockTeacher(lambda body, number: completion(answers[body["messages"][-1]["content"]])) as mock:
        recipe = project.recipe(mock.base_url, job(project, list(answers), threshold=0.9))
        project.run(recipe)
        first = project.manifest("inst")["outputs"]
        assert [row["answer"] for row in project.rejected("inst")] == [answers["b"]]
        assert [row["messages"][0]["content"] for row in project.data("inst")] == ["a", "c"]
        (project.path / "runs/test/generate-inst/manifest.json").unlink()
        project.run(recipe)
        assert project.manifest("inst")["outputs"] == first


def test_without_the_model_nothing_is_asked(project: Project) -> None:
    with MockTeacher(lambda body, number: completion("x")) as mock:
        problem = project.run_badly(project.recipe(mock.base_url, job(project, ["a"])))
        assert not mock.requests and isinstance(problem, CheckpointError)


def test_another_model_is_another_dataset(project: Project, angles: list[list[str]]) -> None:
    with MockTeacher(lambda body, number: completion(body["messages"][-1]["content"])) as mock:
        recipe = project.recipe(mock.base_url, job(project, ["0", "90"]))
        project.run(recipe)
        assert "done before" in project.run(recipe)
        config = Path(project.path / "model/config.json")
        config.write_text(config.read_text() + "\n")
        assert "done before" not in project.run(recipe) and len(mock.requests) == 2

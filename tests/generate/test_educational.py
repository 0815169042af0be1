"""phi-1's filter: what the teacher says of a sample, extended to all; measured on labels held out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill.errors import DistillError
from distill.generate.educational import read_opinion
from distill.generate.forest import train
from distill.recipe.filters import EducationalSample
from tests.generate.conftest import Project
from tests.teacher.mock import Body, MockTeacher, Reply, completion

WORTH = 'def area_{n}(width, height):\n    """Area of a rectangle, {n} times."""\n    return {n} * width * height\n'
JUNK = "CONFIG_{n} = {{'a': {n}, 'b': None, 'path': '/opt/{n}', 'flags': 0x{n}}}\n"


def program(n: int) -> str:
    """Two of three programs teach something."""
    return (JUNK if n % 3 == 0 else WORTH).format(n=n)


def teaches(body: Body, number: int) -> Reply:
    """Answers `program 7` with program 7, and affirms functions."""
    asked = str(body["messages"][-1]["content"])
    if asked.startswith("program "):
        return completion(f"```python\n{program(int(asked.split()[1]))}```")
    if asked.startswith("Determine the educational value"):
        return completion("Yes." if "def area" in asked else "no")
    return completion("[Problem Description]\nDouble a number.\n\n[Solution]\n```python\nx = 1\n```")


def code_job(project: Project, count: int, **educational: Any) -> dict[str, Any]:
    prompts = project.prompts([f"program {n}" for n in range(count)])
    return {"name": "code", "kind": "code", "verdict": "none", "prompts": prompts, "educational": educational}


def test_opinions_are_one_word() -> None:
    assert [read_opinion(text) for text in ("Yes.", " **no** ", "yes and no", "Maybe", "")] == [
        *(True, False),
        *(None, None, None),
    ]


def test_a_sample_is_labelled_and_the_rest_follows(project: Project) -> None:
    job = code_job(project, 150, sample=60, trees=40)
    with MockTeacher(teaches) as mock:
        recipe = project.recipe(mock.base_url, job, price={"input": 1.0, "output": 1.0})
        printed = project.run(recipe)
        assert sum(text.startswith("Determine") for text in mock.prompts()) == 60 and len(mock.requests) == 210
    rows, rejected = project.data("code"), project.rejected("code")
    assert [row["messages"][0]["content"] for row in rows] == [f"program {n}" for n in range(150) if n % 3]
    assert {row["reason"] for row in rejected} == {"not_educational"} and len(rejected) == 50
    assert all(row["row"] and "CONFIG" in row["answer"] for row in rejected)
    by_teacher = [row for row in rejected if row["detail"] == "by the teacher"]
    assert 0 < len(by_teacher) < 50 and all("forest: 0." in row["detail"] for row in rejected if row not in by_teacher)
    metrics = project.manifest("code")["metrics"]
    found = metrics["educational"]
    assert (found["labelled"], found["trained_on"], found["held_out"], found["auc"]) == (60, 45, 15, 1.0)
    assert (found["kept"], found["removed"], metrics["rows"]) == (100, 50, 100)
    assert metrics["answers"] == 210 and metrics["cost_usd"] == pytest.approx(210 * 15e-6)
    assert "held-out AUC 1.000" in printed and "100 rows of 150 prompts" in printed
    folder = project.path / "runs" / "test" / "generate-code"
    assert sorted(path.name for path in folder.glob("*.parquet")) == ["data.parquet", "rejected.parquet"]


def test_an_existing_corpus_is_sifted(project: Project) -> None:
    """Nothing is asked but the labels, and the rows say where they came from."""
    rows = [{"doc": f"program {n}", "code": program(n)} for n in range(90)]
    prompts = {**project.prompts(rows), "column": "doc", "answer": "code"}
    job = {"name": "code", "kind": "code", "verdict": "none", "prompts": prompts, "educational": {"sample": 45}}
    with MockTeacher(teaches) as mock:
        project.run(project.recipe(mock.base_url, job))
        assert len(mock.requests) == 45 and all(text.startswith("Determine") for text in mock.prompts())
    kept = project.data("code")
    assert [row["messages"][1]["content"] for row in kept] == [program(n) for n in range(90) if n % 3]
    assert {row["teacher"] for row in kept} == {"file:prompts.jsonl"} and kept[0]["created_at"] is None
    assert len({row["request_hash"] for row in kept}) == 60


def test_seeds_of_oss_instruct_are_sifted(project: Project) -> None:
    seeds = [{"content": program(n)} for n in range(90)]
    project.prompts(seeds, name="seeds.jsonl")
    path = str(project.path / "seeds.jsonl")
    prompts = {"source": "oss_instruct", "path": path, "count": 1, "educational": {"sample": 45, "trees": 40}}
    job = {"name": "oss", "kind": "code", "verdict": "none", "prompts": prompts}
    with MockTeacher(teaches) as mock:
        project.run(project.recipe(mock.base_url, job))
        assert not any("CONFIG" in text for text in mock.prompts() if text.startswith("Take inspiration"))
    assert len(project.data("oss")) == 1
    reasons = [row["reason"] for row in project.rejected("oss")]
    assert reasons == ["seed_not_educational"] * 30
    assert project.manifest("oss")["metrics"]["educational"]["auc"] == 1.0


def test_too_few_of_a_kind_is_said(project: Project) -> None:
    def respond(body: Body, number: int) -> Reply:
        asked = str(body["messages"][-1]["content"])
        return completion("yes") if asked.startswith("Determine") else teaches(body, number)

    with MockTeacher(respond) as mock:
        problem = project.run_badly(project.recipe(mock.base_url, code_job(project, 40, sample=32)))
    assert "of 32 programs the teacher affirms 32" in str(problem)


def test_without_scikit_learn_nothing_is_asked(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn", None)
    with MockTeacher(teaches) as mock:
        problem = project.run_badly(project.recipe(mock.base_url, code_job(project, 40, sample=32)))
        assert not mock.requests
    assert isinstance(problem, DistillError) and "distill[filters]" in str(problem.remedy)


def test_the_measure_sees_a_forest_that_learnt_nothing() -> None:
    """Labels that have nothing to do with the programs: the held-out area is near a half, not near 1."""
    texts = [f"value = {n * 7919 % 1000}" for n in range(400)]
    labels = [bool(n * n // 7 % 2) for n in range(400)]
    _, quality = train(EducationalSample(trees=30, held_out=0.5), texts, labels)
    assert 0.35 < quality.auc < 0.65 and (quality.trained_on, quality.held_out) == (200, 200)


def test_embeddings_are_means_of_hidden_states(tmp_path: Path) -> None:
    import torch

    from distill.generate.embeddings import Embedder
    from distill.model.load import load_model, load_tokenizer
    from tests.train.tiny import save_model

    save_model(tmp_path / "model")
    path = str(tmp_path / "model")
    texts = ["red blue", "the first of the small", "", "count " * 100]
    found = Embedder.load(path, max_tokens=16).embed(texts)
    model, tokenizer = load_model(path, device="cpu"), load_tokenizer(path)
    ids = tokenizer(texts[1], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        hidden = model(ids, output_hidden_states=True).hidden_states[-1][0]
    assert found.shape == (4, 32) and np.isfinite(found).all()
    np.testing.assert_allclose(found[1], hidden.mean(0).numpy(), atol=1e-5)
    section = EducationalSample(model=path, trees=20)
    forest, quality = train(section, [program(n) for n in range(60)], [n % 3 > 0 for n in range(60)])
    assert forest.features == "mean hidden state of model" and quality.auc > 0.9

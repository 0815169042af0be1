"""Killed at any moment, a job goes on: nothing lost, nothing doubled, at most the requests in flight asked again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from distill.recipe.schema import Recipe
from tests.generate.conftest import Project
from tests.teacher.mock import Body, MockTeacher, Reply, completion, error

GENERATE = """
import sys
from rich.console import Console
from distill.generate import stage
from distill.recipe.schema import Recipe
from distill.runs import Run
recipe = Recipe.model_validate_json(sys.argv[1])
stage.run(recipe, Run(recipe), base_url=lambda: None, console=Console())
"""
ROWS = 200
IN_FLIGHT = 16


def answer(body: Body, number: int) -> Reply:
    return completion(f"answer to {body['messages'][-1]['content']}", delay=0.01)


def start(recipe: Recipe) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", GENERATE, recipe.model_dump_json()]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dict(os.environ))


def job(project: Project, **more: Any) -> dict[str, Any]:
    return {"name": "inst", "kind": "instruction", "prompts": project.prompts([f"q{i}" for i in range(ROWS)]), **more}


def random_points(count: int) -> list[list[int]]:
    """Moments to kill at, a few in a row for one job: starting a process takes most of the time."""
    rng = random.Random(0)
    return [sorted(rng.sample(range(1, ROWS), 5)) for _ in range(count // 5)]


@pytest.mark.parametrize("kill_at", [[1], [100], [40, 45, 199], *random_points(20)])
def test_kill_9(kill_at: list[int], project: Project) -> None:
    with MockTeacher(answer) as mock:
        recipe = project.recipe(mock.base_url, job(project), max_concurrency=IN_FLIGHT)
        for at in kill_at:
            process = start(recipe)
            while mock.finished < at and process.poll() is None:
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            time.sleep(0.05)  # what was in flight arrives
            assert not (project.path / "runs/test/generate-inst/manifest.json").exists()
        project.run(recipe)
        asked = Counter(mock.prompts())
        assert len(asked) == ROWS
        assert sum(asked.values()) - ROWS <= IN_FLIGHT * len(kill_at)
    rows = project.data("inst")
    assert [row["messages"][-1]["content"] for row in rows] == [f"answer to q{i}" for i in range(ROWS)]
    folder = project.path / "runs/test/generate-inst"
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "data.parquet", "inputs.json", "manifest.json", "metrics.jsonl", "rejected.parquet"
    }  # fmt: skip


def test_a_changed_prompt_file_asks_only_for_what_changed(project: Project) -> None:
    texts = [f"q{i}" for i in range(50)]
    with MockTeacher(answer) as mock:

        def sent(prompts: list[str]) -> int:
            before = len(mock.requests)
            section = {"name": "inst", "kind": "instruction", "prompts": project.prompts(prompts)}
            project.run(project.recipe(mock.base_url, section))
            assert [row["messages"][0]["content"] for row in project.data("inst")] == prompts
            return len(mock.requests) - before

        assert sent(texts) == 50
        assert sent([*texts, "one more"]) == 1
        assert sent(["edited 0", *texts[1:7], "edited 7", *texts[8:]]) == 2
        assert sent([f"new {i}" for i in range(30)]) == 30
        assert sent(texts) == 0


def test_the_same_answers_make_the_same_dataset(project: Project) -> None:
    """Later stages are redone when a dataset's digest changes: a second making from the ledger must not change it."""
    with MockTeacher(answer) as mock:
        recipe = project.recipe(mock.base_url, job(project))
        project.run(recipe)
        first = project.manifest("inst")["outputs"]
        (project.path / "runs/test/generate-inst/manifest.json").unlink()
        project.run(recipe)
        assert project.manifest("inst")["outputs"] == first and set(first) >= {"data.parquet", "README.md"}


def test_a_stopped_job_says_why_and_goes_on(project: Project) -> None:
    with MockTeacher(lambda body, n: answer(body, n) if n < 80 else error(401, "expired")) as mock:
        recipe = project.recipe(mock.base_url, job(project))
        failure = project.run_badly(recipe)
        assert "refuses the key" in str(failure) and failure.exit_code == 1
        assert not (project.path / "runs/test/generate-inst/data.parquet").exists()  # nothing partial taken for whole
        asked = len(mock.requests)
        mock.respond = answer
        project.run(recipe)
        assert len(mock.requests) == asked + ROWS - 80


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder as bytes; of Parquet also the values, which are compressed in the file."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            found[str(path)] = path.read_bytes()
            if path.suffix == ".parquet":
                found[f"{path} (values)"] = repr(pq.read_table(path).to_pylist()).encode()
    return found


def test_the_key_is_in_no_file(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The provider even repeats the key in its errors."""
    canary = "sk-canary-5f2e81c07d"
    monkeypatch.setenv("TEACHER_KEY", canary)

    def respond(body: Body, number: int) -> Reply:
        if body["messages"][-1]["content"] == "q3":
            return error(400, f"request of {canary} is bad")
        if body["messages"][-1]["content"] == "q4":
            return Reply(raw=f"trace: Authorization: Bearer {canary}".encode(), status=500)
        if body["messages"][-1]["content"] == "q5":
            return Reply(raw=f"Bearer {canary}".encode())
        return completion("fine")

    with MockTeacher(respond, key=canary) as mock:
        recipe = project.recipe(mock.base_url, job(project), api_key_env="TEACHER_KEY", max_attempts=1)
        failure = project.run_badly(recipe)
        assert set(mock.keys) == {f"Bearer {canary}"}
    assert "3 requests failed (200 prompts)" in str(failure) and canary not in str(failure)
    assert len(project.rejected("inst")) == 3
    files = contents(project.path / "runs")
    assert any("ledger.sqlite" in name for name in files) and any("(values)" in name for name in files)
    for name, content in files.items():
        assert canary.encode() not in content, name

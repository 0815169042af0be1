"""A recipe on a mock teacher, run through the stage in a line."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from distill.errors import DistillError
from distill.generate import stage
from distill.recipe.schema import Recipe
from distill.records import read_parquet
from distill.runs import Run


@dataclass(frozen=True)
class Verdict:
    ok: bool
    reason: str


@dataclass
class Project:
    """A folder with recipes' runs in it."""

    path: Path

    def recipe(self, base_url: str, *jobs: dict[str, Any], **teacher: Any) -> Recipe:
        """A recipe with these generate jobs; keyword arguments are the teacher's settings."""
        fields = {
            "name": "test",
            "output_dir": str(self.path / "runs"),
            "teacher": {"model": "mock", "base_url": base_url, "max_concurrency": 8, **teacher},
            "generate": jobs,
        }
        return Recipe.model_validate_json(json.dumps(fields))

    def prompts(self, texts: Sequence[Any], name: str = "prompts.jsonl", **columns: Any) -> dict[str, Any]:
        """A prompt file and the section that reads it; texts may be whole rows."""
        path = self.path / name
        rows = [text if isinstance(text, dict) else {"prompt": text, **columns} for text in texts]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return {"source": "file", "path": str(path)}

    def run(self, recipe: Recipe, rows: int | None = None) -> str:
        """Run the stage; what it printed."""
        out = io.StringIO()
        console = Console(file=out, width=200)
        stage.run(recipe, Run(recipe), base_url=lambda: None, console=console, rows=rows)
        return out.getvalue()

    def run_badly(self, recipe: Recipe) -> DistillError:
        """Run the stage and hand back the error that ended it."""
        with pytest.raises(DistillError) as caught:
            self.run(recipe)
        return caught.value

    def data(self, job: str, name: str = "data.parquet") -> list[dict[str, Any]]:
        return read_parquet(self.path / "runs" / "test" / f"generate-{job}" / name)

    def rejected(self, job: str) -> list[dict[str, Any]]:
        return self.data(job, "rejected.parquet")

    def manifest(self, job: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            (self.path / "runs" / "test" / f"generate-{job}" / "manifest.json").read_text()
        )
        return found


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    return Project(tmp_path)


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A stand-in for the sandbox that runs the tests' own harmless programs here; the sizes of its batches."""
    batches: list[int] = []

    def run_many(jobs: Sequence[Any], **_: Any) -> list[Verdict]:
        batches.append(len(jobs))
        return [_run_here(job) for job in jobs]

    monkeypatch.setattr("distill.generate.verify.run_many", run_many)
    monkeypatch.setattr("distill.generate.verify.check_available", lambda isolation: None)
    return batches


def _run_here(job: Any) -> Verdict:
    scope: dict[str, Any] = {}
    try:
        exec(job.code, scope)
        for test in job.tests:
            exec(test, scope)
    except (AssertionError, NameError, SyntaxError) as error:
        return Verdict(False, type(error).__name__)
    return Verdict(True, "passed")

"""Parts of a job on their own, and joined: the same rows as a whole run, and nothing joined that is not whole."""

from __future__ import annotations

import io
import json
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from distill.errors import DistillError
from distill.generate import stage
from distill.generate.merge import merge
from distill.generate.shards import Shard, all_shards, parse_shard
from distill.recipe.schema import Recipe
from distill.runs import Run
from tests.generate.conftest import Project
from tests.teacher.mock import Body, MockTeacher, Reply, completion, error

TEXTS = [*(f"question {number}" for number in range(60)), "question 7", "bad question"]


def respond(body: Body, number: int) -> Reply:
    """Every third answer is the same text: a cross-shard duplicate. One prompt is refused for good."""
    text = str(body["messages"][-1]["content"])
    if text.startswith("bad"):
        return error(400, "cannot take this")
    return completion("all alike" if text.endswith("3") else f"about {text}")


def job(project: Project, **more: Any) -> dict[str, Any]:
    filters = {"duplicates": {"on": "answer", "near": False}}
    return {"name": "inst", "kind": "instruction", "prompts": project.prompts(TEXTS), "filters": filters, **more}


def run_shard(recipe: Recipe, shard: Shard) -> None:
    console = Console(file=io.StringIO(), width=200)
    stage.run(recipe, Run(recipe, shard=shard.folder), base_url=lambda: None, console=console, shard=shard)


def try_shard(recipe: Recipe, shard: Shard) -> None:
    """Run one that may end as partial: a refused prompt is somewhere."""
    try:
        run_shard(recipe, shard)
    except DistillError as failure:
        assert failure.exit_code == 3


def join(recipe: Recipe, count: int) -> None:
    console = Console(file=io.StringIO(), width=200)
    with pytest.raises(DistillError, match="1 request failed"):  # the permanent failure is in every whole, too
        merge(recipe, Run(recipe), count, console=console)


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without the moment of their answers, which also stands in the whole row that a filter removed."""
    found = []
    for row in rows:
        kept = {name: value for name, value in row.items() if name != "created_at"}
        if kept.get("row") is not None:
            kept["row"] = timeless([json.loads(kept["row"])])[0]
        found.append(kept)
    return found


def test_joined_shards_are_the_whole_run(project: Project) -> None:
    with MockTeacher(respond) as mock:
        whole = project.recipe(mock.base_url, job(project))
        assert project.run_badly(whole).exit_code == 3
        rows, rejected = timeless(project.data("inst")), timeless(project.rejected("inst"))
        metrics = project.manifest("inst")["metrics"]
        asked = Counter(mock.prompts())
        for path in (project.path / "runs/test").glob("ledger*"):
            path.unlink()
        (project.path / "runs/test/generate-inst/manifest.json").unlink()
        mock.requests.clear()
        for shard in all_shards(3):
            try_shard(whole, shard)
        assert Counter(mock.prompts()) == asked and max(asked.values()) == 1  # disjoint, and together the whole
        mock.requests.clear()
        join(whole, 3)
        assert not mock.requests
        assert timeless(project.data("inst")) == rows and timeless(project.rejected("inst")) == rejected
        joined = project.manifest("inst")
        for name in ("prompts", "rows", "dropped", "answers", "prompt_tokens", "failed"):
            assert joined["metrics"][name] == metrics[name]
        project.run(whole)  # a whole run finds all of it done
        assert not mock.requests
        manifests = [shard_manifest(project, shard) for shard in all_shards(3)]
        assert sum(manifest["metrics"]["prompts"] for manifest in manifests) == len(TEXTS)


def shard_manifest(project: Project, shard: Shard) -> dict[str, Any]:
    path = project.path / "runs/test/shards" / shard.folder / "generate-inst/manifest.json"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_what_is_missing_is_named(project: Project) -> None:
    with MockTeacher(lambda body, number: completion("x", delay=0.001)) as mock:
        recipe = project.recipe(mock.base_url, job(project, filters={}))
        run_shard(recipe, Shard(1, 4))
        edited = project.recipe(mock.base_url, job(project, samples=2, filters={}))
        run_shard(edited, Shard(3, 4))
        mock.respond = lambda body, number: error(500, "oops")
        flaky = project.recipe(mock.base_url, job(project, filters={}), max_attempts=1)
        with pytest.raises(DistillError):
            run_shard(flaky, Shard(4, 4))
        console = Console(file=io.StringIO())
        with pytest.raises(DistillError) as caught:
            merge(recipe, Run(recipe), 4, console=console)
        told = str(caught.value)
        assert "shard 1/4" not in told and "shard 2/4 is not there" in told
        assert "shard 3/4 made inst from another job" in told and "shard 4/4 has" in told
        assert "--shard i/4" in told
        assert not (project.path / "runs/test/generate-inst").exists()


def test_a_ledger_that_lost_answers_is_noticed(project: Project) -> None:
    with MockTeacher(lambda body, number: completion("x")) as mock:
        recipe = project.recipe(mock.base_url, job(project, filters={}))
        for shard in all_shards(2):
            run_shard(recipe, shard)
        path = project.path / "runs/test/shards/2-of-2/ledger.sqlite"
        with sqlite3.connect(path) as ledger:
            key = ledger.execute("SELECT key FROM answers").fetchone()[0]
            ledger.execute("DELETE FROM answers WHERE key = ?", (key,))
        with pytest.raises(DistillError, match="the shards' ledgers have no answer to row '.*--shard i/2"):
            merge(recipe, Run(recipe), 2, console=Console(file=io.StringIO()))
        asked = len(mock.requests)
        (project.path / "runs/test/shards/2-of-2/generate-inst/manifest.json").unlink()
        run_shard(recipe, Shard(2, 2))
        assert len(mock.requests) == asked + 1
        merge(recipe, Run(recipe), 2, console=Console(file=io.StringIO()))
        assert len(project.data("inst")) == 61


def test_what_the_whole_run_knows_is_not_asked_again(project: Project) -> None:
    with MockTeacher(lambda body, number: completion("x")) as mock:
        recipe = project.recipe(mock.base_url, job(project, filters={}))
        project.run(recipe, rows=20)
        for shard in all_shards(2):
            run_shard(recipe, shard)
        assert len(mock.requests) == 61


def test_a_shard_has_its_part_of_limits_and_budget(tmp_path: Path) -> None:
    recipe = Recipe.model_validate_json(
        json.dumps({"name": "x", "teacher": {"model": "m", "requests_per_minute": 600, "budget_usd": 8}})
    )
    part = Shard(2, 4).part_of(recipe).teacher
    assert (part.requests_per_minute, part.tokens_per_minute, part.budget_usd) == (150, None, 2)


def test_parts_are_written_as_fractions() -> None:
    assert parse_shard("2/8") == Shard(2, 8)
    for text in ("0/4", "5/4", "1", "a/b", "-1/4"):
        with pytest.raises(DistillError, match="not a part of a whole"):
            parse_shard(text)


def test_written_prompts_have_no_parts(project: Project) -> None:
    section = {"source": "self_instruct", "count": 10}
    recipe = project.recipe("http://127.0.0.1:9/v1", {"name": "self", "kind": "instruction", "prompts": section})
    with pytest.raises(DistillError, match="self_instruct have no parts"):
        run_shard(recipe, Shard(1, 2))


def test_a_forest_of_all_rows_has_no_parts(project: Project) -> None:
    section = {"name": "code", "kind": "code", "verdict": "none", "prompts": project.prompts(TEXTS), "educational": {}}
    recipe = project.recipe("http://127.0.0.1:9/v1", section)
    with pytest.raises(DistillError, match="has no parts"):
        run_shard(recipe, Shard(1, 2))

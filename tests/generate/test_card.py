"""The dataset card and the tracked run: what they say is what happened."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from distill.generate import alpaca
from distill.generate.templates import hashes_of, templates_of
from distill.generate.tracking import sample_table
from distill.judge.aspects import ASPECTS
from distill.recipe.schema import Recipe
from distill.runs import file_digest
from distill.track import read_metrics
from tests.generate.conftest import Project
from tests.teacher.mock import Body, MockTeacher, Reply, completion, error


def card(project: Project, job: str) -> str:
    return (project.path / "runs" / "test" / f"generate-{job}" / "README.md").read_text()


def sixteen(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


ANSWERS = {
    "a": "The sea rises | twice.",
    "b": "Sorry, I cannot help with that.",
    "c": "x",
    "d": "The sea rises | twice.",
    "e": "Ask kim@mail-of-kim.net about it.",
}


def test_the_card_accounts_for_every_row(project: Project) -> None:
    prompts = project.prompts([*ANSWERS, "a"])
    filters = {"length": {"min": 2}, "refusals": True, "personal_data": True, "duplicates": {"on": "answer"}}
    job = {"name": "inst", "kind": "instruction", "prompts": prompts, "filters": filters, "system": "Be | brief."}
    with MockTeacher(lambda body, n: completion(ANSWERS[str(body["messages"][-1]["content"])])) as mock:
        project.run(project.recipe(mock.base_url, job, id="the-teacher", price={"input": 1.0, "output": 2.0}))
    text = card(project, "inst")
    front = YAML(typ="safe").load(text.split("---\n")[1])
    assert front["pretty_name"] == "inst" and front["size_categories"] == ["n<1K"]
    assert front["configs"] == [{"config_name": "default", "data_files": "data.parquet"}]
    for line in (
        "| prompts | 6 |",
        "| dropped: duplicate_prompt | 1 |",
        "| rows kept | 1 |",
        "| cost | $0.0001 |",
        '| length | `{"min": 2, "max": null}` | 1 |',
        "| languages | off | 0 |",
        "| refusals | `on` | 1 |",
        "| personal data | `on` | 1 |",
        "| `the-teacher` | 5 | 50 | 25 | $0.0001 |",
        f"| file: file | `{file_digest(Path(prompts['path']))}` |",
        '| system message | `"Be \\| brief."` |',
        "## Licence",
    ):
        assert line in text, line
    asked = "".join(f"Be | brief.\0{prompt}\1" for prompt in [*ANSWERS, "a"])
    assert f"| the prompts of this job, in order | `{sixteen(asked)}` |" in text
    assert "| duplicates |" in text and text.count('"content": "The sea rises | twice."') == 1
    assert not [line for line in text.splitlines() if line.startswith("| template")]


def recipe_of(*jobs: dict[str, Any]) -> Recipe:
    return Recipe.model_validate_json(json.dumps({"name": "t", "generate": jobs}))


def test_templates_are_those_that_the_method_uses() -> None:
    seeds = {"source": "alpaca", "count": 1}
    file = {"source": "file", "path": "x.jsonl"}
    oss = {"source": "oss_instruct", "path": "x", "count": 1, "educational": {}}
    jobs = recipe_of(
        {"name": "a", "kind": "instruction", "prompts": seeds},
        {"name": "b", "kind": "preference", "prompts": file, "rank": "feedback", "feedback": {"binarize": "h4"}},
        {"name": "c", "kind": "code", "prompts": oss, "write_tests": 1},
        {"name": "d", "kind": "preference", "prompts": file},
        {"name": "e", "kind": "instruction", "prompts": file},
    ).generate
    assert hashes_of(jobs[0]) == {"new tasks": sixteen(alpaca.ASK)}
    ratings = [f"rating: {aspect}" for aspect in ASPECTS]
    assert [*templates_of(jobs[1])] == [*ratings, "overall score", "principles"]
    assert [*templates_of(jobs[2])] == ["new problems", "tests", "educational value"]
    assert [*templates_of(jobs[3])] == ["comparison of two answers"] and not templates_of(jobs[4])


def test_a_job_is_tracked_offline(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sessions: the first ends at a refused key, the second goes on; both leave lines, the last one the totals."""
    monkeypatch.setenv("WANDB_API_KEY", "")
    job = {"name": "inst", "kind": "instruction", "prompts": project.prompts([f"q{n}" for n in range(12)])}
    sick = True

    def respond(body: Body, number: int) -> Reply:
        if number == 4:
            return error(429, "slow down", headers={"retry-after": "0"})
        return error(401, "expired") if sick and number > 8 else completion(f"answer {body['messages'][-1]['content']}")

    with MockTeacher(respond) as mock:
        recipe = project.recipe(mock.base_url, job, max_concurrency=1, price={"input": 1.0, "output": 1.0})
        recipe = recipe.model_copy(update={"track": recipe.track.model_copy(update={"wandb": "offline"})})
        project.run_badly(recipe)
        sick = False
        project.run(recipe)
    lines = read_metrics(project.path / "runs" / "test" / "generate-inst" / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(len(lines))) and len(lines) >= 2
    last = lines[-1]
    assert (last["rows"], last["prompts"], last["tokens"], last["in_flight"]) == (12, 12, 4 * 15, 0)
    assert last["rows_per_second"] > 0 and last["spent_usd"] == pytest.approx(12 * 15e-6)
    assert lines[0]["rate_limited"] == 1 and lines[0]["rows"] == 8
    folder = project.path / "runs" / "test" / "wandb"
    assert len(list(folder.glob("offline-run-*/run-*.wandb"))) == 2
    (table,) = folder.glob("offline-run-*/files/media/table/*.json")
    shown = json.loads(table.read_text())
    assert shown["columns"] == ["prompt", "answer", "verdict"]
    assert shown["data"][0] == ["q0", "answer q0", "unchecked"] and len(shown["data"]) == 12


def test_samples_of_pairs_show_both_answers() -> None:
    pair = {
        "prompt": [{"role": "user", "content": "q"}],
        "chosen": [{"role": "assistant", "content": "good"}],
        "rejected": [{"role": "assistant", "content": "bad"}],
        "chosen_score": 4.125,
        "rejected_score": 2.0,
    }
    columns, cells = sample_table([pair])
    assert columns == ["prompt", "chosen", "rejected", "chosen_score", "rejected_score"]
    assert cells == [["q", "good", "bad", "4.12", "2.00"]]

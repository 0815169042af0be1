"""Several teachers in one job: each with its own endpoint, key, limits and prices; and what the ledger adds up to."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from distill.errors import RecipeError
from distill.recipe.load import load_recipe
from distill.recipe.schema import Recipe
from distill.recipe.teacher import EmbeddedTeacher
from distill.teacher.endpoint import Reply as Sent
from distill.teacher.ledger import Ledger
from distill.teacher.requests import Request
from tests.generate.conftest import Project
from tests.teacher.mock import Body, MockTeacher, Reply, completion, error


def two_teachers(project: Project, first: str, second: str, **job: Any) -> Recipe:
    """A job of 100 prompts for the teachers `main` and `other`."""
    section = {
        "name": "inst",
        "kind": "instruction",
        "prompts": project.prompts([f"q{number}" for number in range(100)]),
        "teachers": {"names": ["main", "other"]},
        **job,
    }
    recipe = project.recipe(first, section, id="main", price={"input": 1.0, "output": 2.0})
    fields = recipe.model_dump(mode="json")
    fields["teachers"] = [
        {
            "id": "other",
            "model": "mock",
            "base_url": second,
            "api_key_env": "OTHER_KEY",
            "max_concurrency": 3,
            "price": {"input": 10.0, "output": 20.0},
        }
    ]
    return Recipe.model_validate(fields, strict=False)


def test_rows_are_shared_and_a_resume_asks_the_same_teacher(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER_KEY", "sk-other")
    asked: dict[str, list[str]] = {"main": [], "other": []}

    def by(name: str, limit: int) -> Any:
        def respond(body: Body, number: int) -> Reply:
            text = body["messages"][-1]["content"]
            asked[name].append(text)
            return completion(f"{name}: {text}", delay=0.002) if len(asked[name]) <= limit else error(401, "expired")

        return respond

    with MockTeacher(by("main", 20)) as main, MockTeacher(by("other", 1000)) as other:
        recipe = two_teachers(project, main.base_url, other.base_url)
        assert "refuses the key" in str(project.run_badly(recipe))
        main.respond = by("main", 1000)
        refused = len(asked["main"]) - 20
        project.run(recipe)
        assert set(other.keys) == {"Bearer sk-other"} and "Bearer sk-other" not in main.keys and other.peak <= 3
    rows = project.data("inst")
    assert [row["messages"][0]["content"] for row in rows] == [f"q{number}" for number in range(100)]
    for row in rows:
        text = row["messages"][0]["content"]
        assert row["messages"][1]["content"] == f"{row['teacher']}: {text}"
        assert row["cost_usd"] == pytest.approx(20e-6 if row["teacher"] == "main" else 200e-6)
    counts = Counter(row["teacher"] for row in rows)
    assert 30 <= counts["main"] <= 70
    assert len(asked["main"]) == counts["main"] + refused and len(asked["other"]) == counts["other"]
    assert set(project.manifest("inst")["metrics"]["requests_by_teacher"]) == {"main", "other"}
    assert "`main, other`" in (project.path / "runs/test/generate-inst/README.md").read_text()


def test_samples_go_round_and_weights_are_shares(project: Project) -> None:
    def by(name: str) -> Any:
        return lambda body, number: completion(f"{name}: {number}")

    with MockTeacher(by("main")) as main, MockTeacher(by("other")) as other:
        project.run(two_teachers(project, main.base_url, other.base_url, samples=2))
        assert len(main.requests) == len(other.requests) == 100
        weighted = {"names": ["other", "main"], "weights": [4.0, 1.0]}
        recipe = two_teachers(project, main.base_url, other.base_url, name="weighted", teachers=weighted)
        project.run(recipe)
        counts = Counter(row["teacher"] for row in project.data("weighted"))
    assert 65 <= counts["other"] <= 95


def test_each_budget_counts_its_own_teacher(project: Project) -> None:
    """`other` costs $200e-6 an answer: the ledger holds more than `main`'s budget of $3e-3, `main` may still go on."""
    with MockTeacher() as main, MockTeacher() as other:
        recipe = two_teachers(project, main.base_url, other.base_url)
        teacher = recipe.teacher.model_copy(update={"budget_usd": 3e-3})
        project.run(recipe.model_copy(update={"teacher": teacher}))
        poor = recipe.teacher.model_copy(update={"budget_usd": 5e-4})
        more = two_teachers(project, main.base_url, other.base_url, samples=2).model_copy(update={"teacher": poor})
        failure = project.run_badly(more)
    assert "the budget of $0.0005 is spent" in str(failure)


def test_a_local_teacher_is_loaded_once_for_all_jobs(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []

    class Fake:
        def __init__(self, teacher: EmbeddedTeacher, *, kv_gib: float) -> None:
            loaded.append(teacher.model)

        async def send(self, request: Request) -> Sent:
            return Sent("hello", None, "stop", 3, 1, 0)

        async def close(self) -> None:
            pass

        def stop(self) -> None:
            loaded.append("stopped")

    monkeypatch.setattr("distill.teacher.local.LocalTeacher", Fake)
    section = project.prompts(["a", "b"])
    jobs = [{"name": name, "kind": "instruction", "prompts": section, "samples": 2} for name in ("one", "two")]
    fields = project.recipe("http://127.0.0.1:9/v1", *jobs).model_dump(mode="json")
    fields["teacher"] = {"kind": "embedded", "model": "somewhere", "backend": "transformers"}
    project.run(Recipe.model_validate(fields, strict=False))
    assert loaded == ["somewhere", "stopped"]
    assert [row["teacher"] for row in project.data("two")] == ["somewhere"] * 2


def test_mistakes_are_named(tmp_path: Any) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        "name: bad\n"
        "teacher: {model: a}\n"
        "teachers: [{model: a}, {kind: embedded}]\n"
        "generate:\n"
        "- name: x\n"
        "  kind: instruction\n"
        "  prompts: {source: file, path: p.jsonl}\n"
        "  teachers: {names: [a, b, a], weights: [1.0]}\n"
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    for problem in ("the name of another teacher", "only 'teacher' is served", "no teacher 'b'"):
        assert problem in str(caught.value)
    assert "'a' is named twice" in str(caught.value) and "a weight for each of the 3 names; got 1" in str(caught.value)


def test_the_ledger_costs_what_the_provider_counts(project: Project) -> None:
    """Cached and hidden tokens at their own rates, failures, a resume: within 0.1% of what the mock counts."""
    rng = random.Random(0)
    billed = 0.0
    failed: set[str] = set()

    def respond(body: Body, number: int) -> Reply:
        nonlocal billed
        text = body["messages"][-1]["content"]
        if text not in failed and rng.random() < 0.2:
            failed.add(text)
            return error(500, "oops")
        asked, cached = rng.randrange(100, 5000), rng.randrange(0, 100)
        answered, hidden = rng.randrange(50, 900), rng.randrange(0, 50)
        billed += ((asked - cached) * 2.5 + cached * 1.25 + (answered - hidden) * 10.0 + hidden * 12.0) / 1e6
        usage = {
            "prompt_tokens": asked,
            "completion_tokens": answered,
            "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens_details": {"reasoning_tokens": hidden},
        }
        reply = completion(f"about {text}")
        assert reply.body is not None
        return Reply(body={**reply.body, "usage": usage})

    job = {"name": "inst", "kind": "instruction", "prompts": project.prompts([f"q{n}" for n in range(300)])}
    price = {"input": 2.5, "output": 10.0, "cached_input": 1.25, "reasoning": 12.0}
    with MockTeacher(respond) as mock:
        recipe = project.recipe(mock.base_url, job, price=price)
        project.run(recipe, rows=50)
        project.run(recipe)
        with Ledger(project.path / "runs/test/ledger.sqlite") as ledger:
            assert ledger.spent_usd() == pytest.approx(billed, rel=1e-3)
    assert project.manifest("inst")["cost_usd"] == pytest.approx(billed, rel=1e-3) and failed

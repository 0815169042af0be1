"""Shards on workers, without Ray: what is ordered, what it may use, and what is made of what comes back."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distill.errors import RecipeError
from distill.generate import orders, ray_tasks
from distill.generate.inputs import job_inputs
from distill.generate.orders import End, Order, carry_out
from distill.generate.shards import Shard
from distill.generate.spread import divide, progress
from distill.recipe.generate import RayExecutor
from distill.recipe.load import load_recipe
from distill.recipe.schema import Recipe
from distill.runs import Run
from distill.teacher.ledger import Asker, Ledger
from distill.teacher.requests import Answer
from tests.generate.conftest import Project
from tests.generate.test_shards import TEXTS, job, respond, timeless
from tests.teacher.mock import Body, MockTeacher, Reply, completion, error

THREE = {"kind": "ray", "shards": 3}


class Workers:
    """In place of a cluster: orders are carried out here, one after the other; `lost` says which never are."""

    def __init__(self) -> None:
        self.rounds: list[list[Order]] = []
        self.lost: set[int] = set()

    def carry_out_all(self, executor: RayExecutor, orders: Sequence[Order], *, tell: Any, tick: Any) -> Iterator[End]:
        self.rounds.append(list(orders))
        for order in orders:
            tick()
            if order.shard.index in self.lost:
                yield End(order.shard, problem="its worker died", remedy="run again")
            else:
                yield carry_out(order)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Workers:
    found = Workers()
    monkeypatch.setattr(ray_tasks, "carry_out_all", found.carry_out_all)
    monkeypatch.setattr("distill.generate.stage.require_ray", lambda: None)
    return found


def test_spread_shards_are_the_whole_run(project: Project, workers: Workers, tmp_path: Path) -> None:
    with MockTeacher(respond) as mock:
        assert project.run_badly(project.recipe(mock.base_url, job(project))).exit_code == 3
        rows, rejected = timeless(project.data("inst")), timeless(project.rejected("inst"))
        card = (tmp_path / "runs/test/generate-inst/README.md").read_text()
        asked = Counter(mock.prompts())
        (tmp_path / "runs/test").rename(tmp_path / "runs/before")
        mock.requests.clear()
        recipe = project.recipe(mock.base_url, job(project, executor=THREE))
        problem = project.run_badly(recipe)  # the prompt that is refused for good
        assert problem.exit_code == 3 and "1 request failed" in str(problem)
        assert Counter(mock.prompts()) == asked and max(asked.values()) == 1
        assert timeless(project.data("inst")) == rows and timeless(project.rejected("inst")) == rejected
        assert (tmp_path / "runs/test/generate-inst/README.md").read_text() == card
        mock.requests.clear()
        assert "done before" in project.run(recipe) and not mock.requests
        assert len(workers.rounds) == 1 and [order.shard.index for order in workers.rounds[0]] == [1, 2, 3]
        assert "done before" in project.run(project.recipe(mock.base_url, job(project)))  # no other dataset


def test_finished_shards_are_not_ordered_again(project: Project, workers: Workers) -> None:
    with MockTeacher(lambda body, number: completion("x")) as mock:
        recipe = project.recipe(mock.base_url, job(project, filters={}, executor=THREE))
        workers.lost = {2}
        problem = project.run_badly(recipe)
        assert "1 of 3 shards stopped; 2/3: its worker died" in str(problem) and problem.remedy == "run again"
        assert not (project.path / "runs/test/generate-inst").exists()
        asked = len(mock.requests)
        workers.lost = set()
        assert "2 shards done before" in project.run(recipe)
        assert len(mock.requests) == 61 > asked  # 62 texts, one of them twice
        assert [[order.shard.index for order in orders] for orders in workers.rounds] == [[1, 2, 3], [2]]
        assert [orders[0].part.rates for orders in workers.rounds] == [1 / 3, 1]  # who is left has all of it
        assert len(project.data("inst")) == 61


def test_another_number_of_shards_pays_nothing_twice(project: Project, workers: Workers) -> None:
    with MockTeacher(lambda body, number: completion("x")) as mock:
        workers.lost = {1}
        project.run_badly(project.recipe(mock.base_url, job(project, filters={}, executor=THREE)))
        workers.lost = set()
        project.run(project.recipe(mock.base_url, job(project, filters={}, executor={"kind": "ray", "shards": 2})))
        assert len(mock.requests) == 61 and len(project.data("inst")) == 61


def test_what_may_yet_succeed_is_asked_by_the_next_run(project: Project, workers: Workers) -> None:
    def flaky(body: Body, number: int) -> Reply:
        return error(500, "oops") if body["messages"][-1]["content"] == "question 5" else completion("x")

    with MockTeacher(flaky) as mock:
        recipe = project.recipe(mock.base_url, job(project, filters={}, executor="ray"), max_attempts=1)
        problem = project.run_badly(recipe)
        assert problem.exit_code == 3 and "1 failed requests in inst that may yet succeed" in str(problem)
        assert not (project.path / "runs/test/generate-inst").exists()
        mock.respond = lambda body, number: completion("x")
        mock.requests.clear()
        project.run(recipe)
        assert mock.prompts() == ["question 5"] and len(project.data("inst")) == 61


def test_jobs_without_an_executor_run_here(project: Project, workers: Workers) -> None:
    with MockTeacher(lambda body, number: completion("x")) as mock:
        here = {**job(project, filters={}), "name": "here"}
        there = job(project, filters={}, samples=2, executor="ray")
        project.run(project.recipe(mock.base_url, there, here))
        assert len(project.data("here")) == 61 and len(workers.rounds[0]) == 4
        assert len(mock.requests) == 61 * 2  # the shards read the answers that the run's ledger has


def answer(key: str, teacher: str, dollars: float) -> Answer:
    return Answer(key * 64, "x", "stop", 1, 1, 0, dollars, 1, 0.1, 1.0, teacher=teacher)


def test_dollars_that_are_left_are_divided(tmp_path: Path) -> None:
    """Of $10 the run spent 1, shard 1 another 2 and a shard of another division 1: 6 are left for two shards."""

    def put(path: Path, *answers: Answer) -> None:
        with Ledger(path) as ledger:
            for each in answers:
                asyncio.run(ledger.put_answer(each, Asker(each.teacher, "m", "r", 0)))

    teacher = {"model": "m", "requests_per_minute": 600, "tokens_per_minute": 90, "budget_usd": 10}
    recipe = Recipe.model_validate_json(
        json.dumps({"name": "x", "output_dir": str(tmp_path), "teacher": teacher, "teachers": [{"model": "n"}]})
    )
    shards = [Shard(1, 4), Shard(3, 4)]
    put(Run(recipe).ledger_path, answer("a", "m", 1.0), answer("b", "n", 5.0))
    put(Run(recipe, shard="1-of-4").ledger_path, answer("c", "m", 2.0))
    put(Run(recipe, shard="2-of-2").ledger_path, answer("d", "m", 1.0), answer("a", "m", 1.0))
    parts = divide(recipe, Run(recipe), shards)
    assert [parts[shard].budgets_usd for shard in shards] == [{"m": 2 + 3}, {"m": 3}]
    part = parts[shards[1]].of(recipe)
    assert (part.teacher.requests_per_minute, part.teacher.tokens_per_minute, part.teacher.budget_usd) == (300, 45, 3)
    assert part.teachers == recipe.teachers
    put(Run(recipe).ledger_path, answer("e", "m", 7.0))  # 11 are spent: more than there was
    assert divide(recipe, Run(recipe), shards)[shards[1]].budgets_usd == {"m": 0.0}


def test_a_spent_budget_stops_the_shards_before_they_ask(project: Project, workers: Workers) -> None:
    price = {"input": 1e6, "output": 0.0}  # 10 prompt tokens: $10 an answer
    with MockTeacher(lambda body, number: completion("x")) as mock:
        first = project.recipe(mock.base_url, job(project, filters={}), price=price)
        project.run(first, rows=2)
        recipe = project.recipe(
            mock.base_url, job(project, filters={}, executor="ray"), price=price, budget_usd=20, max_concurrency=1
        )
        problem = project.run_badly(recipe)
        assert "4 of 4 shards stopped" in str(problem) and "budget" in str(problem)
        assert len(mock.requests) == 2


def test_a_worker_that_sees_another_disk_says_so(project: Project, workers: Workers) -> None:
    with MockTeacher(lambda body, number: completion("x")) as mock:
        project.run(project.recipe(mock.base_url, job(project, filters={}, executor="ray")))
    order = workers.rounds[0][0]
    assert carry_out(order).problem is None
    for other in (replace(order, token="another"), replace(order, folder="/no/such/folder")):
        end = carry_out(other)
        assert end.problem is not None and "does not see" in end.problem and "runs/test" in end.problem
        assert "file system that all workers share" in str(end.remedy)
    (project.path / "runs/test/shards" / orders.TOKEN).unlink()
    assert carry_out(order).problem is not None


def test_without_ray_nothing_is_asked(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with MockTeacher(lambda body, number: completion("x")) as mock:
        here = {**job(project, filters={}), "name": "here"}
        problem = project.run_badly(project.recipe(mock.base_url, here, job(project, executor="ray")))
        assert not mock.requests
    assert "needs Ray" in str(problem) and problem.remedy == "pip install 'distill[ray]'"


def test_where_a_job_runs_is_not_what_it_makes(project: Project) -> None:
    recipes = [project.recipe("http://127.0.0.1:9/v1", job(project, **more)) for more in ({}, {"executor": "ray"})]
    first, second = (job_inputs(recipe, recipe.generate[0]) for recipe in recipes)
    assert first == second
    assert recipes[1].generate[0].executor == RayExecutor(kind="ray") and recipes[0].generate[0].executor is None


@pytest.mark.parametrize(
    ("teacher", "prompts", "executor", "told"),
    [
        ("{model: m}", "{source: self_instruct, count: 1}", "ray", "5:3: generate.0.executor: prompts of source self_"),
        ("{kind: embedded}", "{source: tasks, count: 1}", "{kind: ray, address: auto}", "on this machine alone"),
        ("{kind: embedded, backend: transformers}", "{source: tasks, count: 1}", "ray", "load the teacher's weights"),
        ("{model: m}", "{source: tasks, count: 1}", "{kind: ray, shard: 2}", "did you mean 'shards'?"),
        ("{model: m}", "{source: tasks, count: 1}", "{kind: ray, shards: 0}", "greater than or equal to 1"),
    ],
)
def test_a_recipe_that_cannot_be_spread_is_refused(
    teacher: str, prompts: str, executor: str, told: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.yaml"
    lines = ["name: x", f"teacher: {teacher}", "generate:", "- name: a", f"  executor: {executor}"]
    path.write_text("\n".join([*lines, "  kind: instruction", f"  prompts: {prompts}", ""]))
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert told in str(caught.value)


def test_an_embedded_teacher_serves_shards_on_this_machine(tmp_path: Path) -> None:
    path = tmp_path / "good.yaml"
    entry = "{name: a, kind: code, prompts: {source: tasks, kinds: [code], count: 1}, executor: ray}"
    path.write_text(f"name: x\ngenerate:\n- {entry}\n")
    assert load_recipe(path).generate[0].executor == RayExecutor(kind="ray", shards=4)


def test_progress_is_the_sum_of_the_shards(tmp_path: Path) -> None:
    for number, lines in enumerate([['{"rows": 1, "in_flight": 9}', '{"rows": 5, "in_flight": 2, "spent_usd": 0.5}']]):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "metrics.jsonl").write_text("\n".join([*lines, '{"ro']))
    told = progress([tmp_path / "0", tmp_path / "1"])
    assert told == "1 of 2 shards at work or done, 5 rows, 2 in flight, $0.5000"
    assert progress([tmp_path / "1"]) == "0 of 1 shards at work or done, 0 rows, 0 in flight"


def test_texts_hold_one_twice() -> None:
    assert len(TEXTS) - len(set(TEXTS)) == 1

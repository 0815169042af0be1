"""Projections by hand, against tables, and against simulated jobs; what the bar and the log say."""

from __future__ import annotations

import io
import math
import random

import pytest
from rich.console import Console

from distill.generate import stage
from distill.generate.outcome import Outcome
from distill.generate.progress import Done, remaining
from distill.generate.projection import Estimate, project, t_quantile
from distill.runs import Run
from distill.teacher.requests import Answer
from tests.generate.conftest import Project
from tests.teacher.mock import MockTeacher, completion


@pytest.mark.parametrize(
    ("degrees", "value"), [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (19, 2.09302), (1000, 1.96234)]
)
def test_t_quantiles_of_the_tables(degrees: int, value: float) -> None:
    assert t_quantile(degrees) == pytest.approx(value, rel=2e-3)


def test_a_projection_by_hand() -> None:
    """1, 2, 3 of 12 prompts: mean 2, s 1, half width 4.30265 x sqrt(9 x 12 / 3) = 25.8; what is seen is the floor."""
    found = project([1.0, 2.0, 3.0], 12, fixed=5.0)
    assert found.total == 29.0 and found.low == 11.0
    assert found.high == pytest.approx(29 + 4.30265 * math.sqrt(9 * 12 / 3), rel=1e-5)
    assert project([1.0, 2.0, 3.0], 12, fixed=5.0, most=3.0).high == 5 + 6 + 9 * 3


def test_what_is_seen_whole_is_certain_and_one_value_says_nothing_of_the_spread() -> None:
    assert project([1.0, 3.0], 2) == Estimate(4.0, 4.0, 4.0)
    assert project([2.0], 10) == Estimate(20.0, None, None)
    assert "interval unknown" in project([2.0], 10).shown(".0f")
    assert project([2.0, 2.0], 10).scaled(0.5).shown(".1f") == "10.0 (10.0 to 10.0)"


def test_the_interval_holds_95_percent_of_jobs() -> None:
    """2,000 jobs of 200 skewed prompts, 20 seen: about 95% (a t-interval of skewed values holds a little less)."""
    rng = random.Random(0)
    held = 0
    for _ in range(2000):
        job = [rng.gammavariate(4.0, 50.0) for _ in range(200)]
        found = project(job[:20], 200)
        assert found.low is not None and found.high is not None
        held += found.low <= sum(job) <= found.high
    assert 0.92 <= held / 2000 <= 0.97


def answer(cost: float | None) -> Answer:
    return Answer("k", "text", "stop", 10, 5, 0, cost, 1, 0.1, 0.0)


def test_the_bar_projects_the_dollars_of_the_whole() -> None:
    done = Done(written_usd=1.0)
    assert done.dollars(10) == "$1.0000"
    done.add(Outcome(answers=[answer(0.25), answer(0.25)]))
    assert done.dollars(10) == "$1.5000 of about $6.0000" and done.dollars(None) == "$1.5000"
    done.add(Outcome(answers=[answer(None)]))
    assert done.dollars(10) == "cost unknown"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_running_job_says_what_it_costs_and_how_long_it_takes(
    terminal: bool, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bar on a terminal, lines elsewhere. An answer costs $20e-6, all 30 of them $0.0006."""
    monkeypatch.setattr("distill.generate.progress._REFRESH_SECONDS", 0.01)
    monkeypatch.setattr("distill.generate.progress._SECONDS_A_LINE", 0.01)
    job = {"name": "inst", "kind": "instruction", "prompts": project.prompts([f"q{n}" for n in range(30)])}
    with MockTeacher(lambda body, number: completion("x", delay=0.02)) as mock:
        price = {"input": 1.0, "output": 2.0}
        recipe = project.recipe(mock.base_url, job, max_concurrency=2, price=price, budget_usd=1.0)
        out = io.StringIO()
        console = Console(file=out, force_terminal=terminal, width=250)
        stage.run(recipe, Run(recipe), base_url=lambda: None, console=console)
    printed = out.getvalue()
    assert "of about $0.0006" in printed and "2 in flight" in printed
    assert "of mock's budget of $1" in printed
    assert ("-:--:--" if terminal else " left") in printed


def test_the_time_left() -> None:
    assert remaining(900, 100 / 60) == "about 0:09:00 left"
    assert remaining(7201, 1.0) == "about 2:00:01 left"
    assert remaining(None, 1.0) == remaining(10, 0.0) == "time left unknown"

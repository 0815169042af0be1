"""Projections by hand, against tables, and against simulated jobs; what the bar and the log say."""

from __future__ import annotations

import math
import random

import pytest

from distill.generate.outcome import Outcome
from distill.generate.progress import Done, remaining
from distill.generate.projection import Estimate, project, t_quantile
from distill.teacher.requests import Answer


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


def test_the_time_left() -> None:
    assert remaining(Done(prompts=100), 1000, 60.0) == "about 0:09:00 left"
    assert remaining(Done(prompts=1), 7202, 1.0) == "about 2:00:01 left"
    assert remaining(Done(), 1000, 60.0) == "time left unknown"

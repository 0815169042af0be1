"""Prices: the file, the recipe's override, and honest ignorance."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.errors import DistillError
from distill.recipe.teacher import EmbeddedTeacher, OpenAITeacher, Price
from distill.teacher.pricing import FREE, PRICES_PATH, Rates, blended, rates_of


@pytest.fixture
def prices(tmp_path: Path) -> Path:
    path = tmp_path / "prices.toml"
    path.write_text('["big-1"]\ninput = 2.0\ncached_input = 0.5\noutput = 8\n')
    return path


def test_cost_counts_cached_tokens_at_their_own_rate(prices: Path) -> None:
    rates = rates_of(OpenAITeacher(model="big-1"), prices)
    assert rates == Rates(2.0, 8.0, 0.5)
    # 1,000 fresh at $2, 500 cached at $0.50 and 250 written at $8 a million: 0.002 + 0.00025 + 0.002
    assert rates is not None and rates.cost_usd(1500, 250, 500) == pytest.approx(0.00425)
    assert Rates(2.0, 8.0).cost_usd(1500, 0, 500) == pytest.approx(0.003)


def test_a_batch_has_rates_of_its_own() -> None:
    """1,000 prompt tokens (500 of them cached) and 100 answered, at $1 and $4 in a batch; online they are $2 and $8."""
    rates = Rates(2.0, 8.0, cached_input=0.5, batch_input=1.0, batch_output=4.0)
    assert rates.in_batch().cost_usd(1000, 100, 500) == pytest.approx(0.0014)
    online_too = Rates(2.0, 8.0, cached_input=0.5)
    assert online_too.in_batch() == online_too
    listed = rates_of(OpenAITeacher(model="gpt-4.1"))
    assert listed is not None and listed.in_batch() == Rates(listed.input / 2, listed.output / 2)


def test_several_teachers_cost_the_mean_of_their_shares() -> None:
    assert blended([(Rates(1.0, 2.0), 0.75), (Rates(5.0, 10.0), 0.25)]) == Rates(2.0, 4.0)
    assert blended([(Rates(1.0, 2.0), 0.5), (None, 0.5)]) is None


def test_reasoning_tokens_have_their_own_rate() -> None:
    # 100 of the 250 completion tokens are hidden, at $20 a million: 150 x 8 + 100 x 20 = 3,200 millionths
    assert Rates(0.0, 8.0, reasoning=20.0).cost_usd(0, 250, 0, 100) == pytest.approx(0.0032)
    assert Rates(0.0, 8.0).cost_usd(0, 250, 0, 100) == pytest.approx(0.002)


def test_a_file_of_the_users_own_comes_first(prices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own.toml"
    own.write_text('["big-1"]\ninput = 1.0\noutput = 3.0\n')
    monkeypatch.setenv("DISTILL_PRICES", str(own))
    assert rates_of(OpenAITeacher(model="big-1"), prices) == Rates(1.0, 3.0)
    monkeypatch.setenv("DISTILL_PRICES", str(tmp_path / "missing.toml"))
    assert rates_of(OpenAITeacher(model="big-1"), prices) == Rates(2.0, 8.0, 0.5)
    cached = OpenAITeacher(model="big-1", price=Price(input=1.0, output=2.0, cached_input=0.1))
    assert rates_of(cached, prices) == Rates(1.0, 2.0, 0.1)


@pytest.mark.parametrize("model", ["big-1", "vendor/big-1", "big-1-2025-01-31", "vendor/big-1-2025-01-31"])
def test_prefix_and_date_are_ignored(model: str, prices: Path) -> None:
    assert rates_of(OpenAITeacher(model=model), prices) is not None


def test_unknown_is_not_free(prices: Path) -> None:
    assert rates_of(OpenAITeacher(model="big-1-mini"), prices) is None
    half = OpenAITeacher(model="big-1-mini", price=Price(input=1.0))
    assert rates_of(half, prices) is None


def test_the_recipe_overrides(prices: Path) -> None:
    assert rates_of(OpenAITeacher(model="big-1", price=Price(output=4.0)), prices) == Rates(2.0, 4.0)
    assert rates_of(OpenAITeacher(model="x", price=Price(input=1.0, output=2.0)), prices) == Rates(1.0, 2.0)


def test_a_teacher_of_our_own_is_free(prices: Path) -> None:
    assert rates_of(EmbeddedTeacher(), prices) == FREE


@pytest.mark.parametrize("text", ["[a", '["big-1"]\ninput = 1.0\n', '["big-1"]\ninput = "1"\noutput = 2\n'])
def test_a_broken_file_says_so(text: str, prices: Path) -> None:
    prices.write_text(text)
    with pytest.raises(DistillError, match="prices.toml"):
        rates_of(OpenAITeacher(model="big-1"), prices)


def test_every_line_of_our_own_file_is_readable() -> None:
    names = [line[2:-2] for line in PRICES_PATH.read_text().splitlines() if line.startswith("[")]
    assert len(names) > 5
    assert all(rates_of(OpenAITeacher(model=name)) is not None for name in names)

"""Rates by hand-computed values: headers, backoff, and what refusals teach."""

from __future__ import annotations

import random

import pytest

from distill.teacher.rates import (
    LearnedRate,
    RateNews,
    backoff_seconds,
    parse_duration,
    parse_rate_news,
    parse_retry_after,
)

NOW = 1_700_000_000.0  # Tue, 14 Nov 2023 22:13:20 GMT


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("1", 1.0),
        ("0.25", 0.25),
        ("0", 0.0),
        ("Tue, 14 Nov 2023 22:13:50 GMT", 30.0),
        ("Tue, 14 Nov 2023 22:12:00 GMT", 0.0),  # has passed
        ("999999999", 120.0),  # absurd
        ("Fri, 31 Dec 9999 23:59:59 GMT", 120.0),
        ("-3", None),
        ("nan", None),
        ("inf", None),
        ("soon", None),
        ("", None),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value, now_unix_seconds=NOW) == seconds


def test_backoff_doubles_and_is_bounded() -> None:
    rng = random.Random(0)
    for failed, ceiling in ((1, 0.125), (2, 0.25), (5, 2.0), (20, 30.0), (5000, 30.0)):
        waits = [backoff_seconds(failed, rng) for _ in range(200)]
        assert ceiling / 2 <= min(waits) and max(waits) <= ceiling
        assert max(waits) - min(waits) > ceiling / 4  # spread, so that waiters do not return together


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("1s", 1.0),
        ("6m0s", 120.0),  # cut
        ("1m30s", 90.0),
        ("20ms", 0.02),
        ("1h2m3s", 120.0),
        ("0.5s", 0.5),
        ("1s500ms", 1.5),
        ("7", 7.0),
        ("", None),
        ("soon", None),
        ("-1", None),
        ("nan", None),
        ("5m", 120.0),
    ],
)
def test_durations(value: str, seconds: float | None) -> None:
    assert parse_duration(value) == seconds


def test_rate_news() -> None:
    headers = {"x-ratelimit-remaining-requests": "59", "x-ratelimit-reset-requests": "1s"}
    assert parse_rate_news(headers) == RateNews(59, 1.0, None, 0.0)
    tokens = {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "20ms"}
    assert parse_rate_news({**headers, **tokens}) == RateNews(59, 1.0, 0, 0.02)
    assert parse_rate_news({"x-ratelimit-remaining-requests": "many", "x-ratelimit-reset-requests": "1s"}) is None
    assert parse_rate_news({}) is None


def test_a_rate_is_what_was_accepted_between_two_refusals() -> None:
    """30 go at 0 s, ten are refused; from 1 s on 20 more, of which the last is refused at 2 s: 19 in 2 s."""
    learned = LearnedRate()
    for _ in range(30):
        learned.want(0.0)
        assert learned.wait_seconds(0.0) == 0.0
        learned.start(0.0)
    for _ in range(10):
        learned.refused(0.0, 0.0)
    for number in range(20):
        now = 1.0 + number / 19
        learned.want(now)
        assert learned.wait_seconds(now) == 0.0
        learned.start(now)
    learned.refused(2.0, 2.0)
    learned.want(3.0)
    assert learned.wait_seconds(3.0) == 0.0
    assert learned.rate == pytest.approx(19 / 2 * 0.995)
    for _ in range(9):  # a second's worth has gathered during the cool-down
        assert learned.wait_seconds(3.0) == 0.0
        learned.start(3.0)
    assert learned.wait_seconds(3.0) == pytest.approx((1 - (19 / 2 * 0.995 - 9)) / (19 / 2 * 0.995))


def test_time_in_which_nobody_asked_does_not_count() -> None:
    def measured(pause: float) -> float | None:
        learned = LearnedRate()
        for start in (0.0, 10.0 + pause):
            for number in range(11):
                learned.want(start + number)
                learned.wait_seconds(start + number)
                learned.start(start + number)
            learned.refused(start + 10, start + 10)
        learned.want(pause + 21)
        learned.wait_seconds(pause + 21)
        return learned.rate

    assert measured(1.0) == pytest.approx(measured(1000.0))

"""The client against a mock that misbehaves in every way a provider does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distill.errors import DistillError, TeacherError
from distill.recipe.generate import Sampling
from distill.recipe.teacher import EmbeddedTeacher, OpenAITeacher, Price
from distill.teacher.accounts import Usage
from distill.teacher.client import FAILURES_IN_A_ROW, TeacherClient
from distill.teacher.ledger import Ledger
from distill.teacher.logprobs import Position, unpack
from distill.teacher.requests import Answer, ChatRequest, CompletionRequest
from tests.teacher.mock import Body, MockTeacher, Reply, Respond, completion, error

MakeTeacher = Callable[..., OpenAITeacher]
Ask = Callable[..., ChatRequest]
Outcome = Answer | TeacherError


def run(teacher: Any, path: Path, requests: list[ChatRequest]) -> tuple[list[Outcome], Usage]:
    """Stream the requests; outcomes in order and what it took. Raises what stops the client."""

    async def main(ledger: Ledger) -> tuple[list[Outcome], Usage]:
        async with TeacherClient(teacher, ledger) as client:
            return [outcome async for _, outcome in client.stream(requests)], client.usage

    with Ledger(path) as ledger:
        return asyncio.run(main(ledger))


def text_of(outcome: Outcome) -> str:
    assert isinstance(outcome, Answer), outcome
    return outcome.text


def first_times(bad: Reply, times: int = 1) -> Respond:
    """Each question gets `bad` so many times, then its echo."""
    seen: dict[str, int] = {}

    def respond(body: Body, number: int) -> Reply:
        question = body["messages"][-1]["content"]
        seen[question] = seen.get(question, 0) + 1
        return bad if seen[question] <= times else completion(f"echo: {question}")

    return respond


def test_answers_come_in_order_and_are_asked_once(make_teacher: MakeTeacher, ask: Ask, ledger_path: Path) -> None:
    requests = [ask(f"q{i}") for i in range(50)]
    with MockTeacher(lambda body, n: completion(body["messages"][-1]["content"], delay=0.02 * (n % 3))) as mock:
        teacher = make_teacher(mock.base_url, max_concurrency=10)
        outcomes, usage = run(teacher, ledger_path, requests)
        assert [text_of(outcome) for outcome in outcomes] == [f"q{i}" for i in range(50)]
        assert mock.peak <= 10 and usage.sent == 50
        again, usage = run(teacher, ledger_path, [*requests, ask("q0", sample=1)])
        assert [text_of(outcome) for outcome in again] == [f"q{i}" for i in range(50)] + ["q0"]
        assert (usage.sent, usage.from_ledger, len(mock.requests)) == (1, 50, 51)


def test_the_request_is_what_the_recipe_says(make_teacher: MakeTeacher, ask: Ask, ledger_path: Path) -> None:
    with MockTeacher() as mock:
        run(make_teacher(mock.base_url), ledger_path, [ask("hello", temperature=0.25, top_p=0.5, max_tokens=99)])
        assert mock.requests == [
            {
                "model": "mock",
                "messages": [{"role": "user", "content": "hello"}],
                "temperature": 0.25,
                "top_p": 0.5,
                "max_tokens": 99,
            }
        ]


def test_equal_requests_under_way_are_asked_once(make_teacher: MakeTeacher, ask: Ask, ledger_path: Path) -> None:
    with MockTeacher(lambda body, n: completion("x", delay=0.05)) as mock:
        outcomes, usage = run(make_teacher(mock.base_url), ledger_path, [ask("same")] * 20)
        assert len(mock.requests) == usage.sent == 1
        assert len({text_of(outcome) for outcome in outcomes}) == 1


@pytest.mark.parametrize(
    "bad",
    [
        error(500, "oops"),
        error(502, "bad gateway"),
        Reply(raw=b"<html>busy</html>", status=500),
        error(408, "slow"),
        Reply(reset=True),
        Reply(raw=b'{"choices": [{"message": {"con'),
        Reply(raw=b""),
        Reply(body={"choices": []}),
        Reply(body={"error": "none"}),
        Reply(raw=b"[1]"),
        error(429, "slow down", headers={"Retry-After": "0.01"}),
        error(429, "slow down", headers={"Retry-After": "a moment"}),
        error(503, "busy", headers={"Retry-After": "Tue, 14 Nov 2023 22:13:20 GMT"}),
    ],
    ids=lambda reply: f"{reply.status}-{(reply.raw or json.dumps(reply.body).encode())[:20]!r}-{reply.headers}",
)
def test_what_may_pass_is_tried_again(bad: Reply, make_teacher: MakeTeacher, ask: Ask, ledger_path: Path) -> None:
    with MockTeacher(first_times(bad)) as mock:
        outcomes, usage = run(make_teacher(mock.base_url), ledger_path, [ask("a"), ask("b")])
        assert [text_of(outcome) for outcome in outcomes] == ["echo: a", "echo: b"]
        assert [outcome.attempts for outcome in outcomes if isinstance(outcome, Answer)] == [2, 2]
        assert usage.sent == len(mock.requests) == 4


def test_a_hang_ends_at_the_timeout(make_teacher: MakeTeacher, ask: Ask, ledger_path: Path) -> None:
    with MockTeacher(first_times(Reply(hang=True))) as mock:
        outcomes, _ = run(make_teacher(mock.base_url, timeout_seconds=0.1), ledger_path, [ask("a")])
        assert text_of(outcomes[0]) == "echo: a"


def test_a_refused_rate_is_no_failed_attempt(make_teacher: MakeTeacher, ask: Ask, ledger_path: Path) -> None:
    slow_down = error(429, "slow down", headers={"Retry-After": "0.01"})
    with MockTeacher(first_times(slow_down, times=5)) as mock:
        outcomes, usage = run(make_teacher(mock.base_url, max_attempts=1), ledger_path, [ask("a")])
        assert text_of(outcomes[0]) == "echo: a" and usage.refusals == 5


def test_the_deadline_ends_the_waiting(make_teacher: MakeTeacher, ask: Ask, ledger_path: Path) -> None:
    with MockTeacher(lambda body, n: error(429, "not today", headers={"Retry-After": "3600"})) as mock:
        outcomes, usage = run(make_teacher(mock.base_url, deadline_seconds=5), ledger_path, [ask("a")])
        assert isinstance(outcomes[0], TeacherError) and "not today" in str(outcomes[0]) and usage.sent == 1


def test_the_cool_down_holds_everybody(make_teacher: MakeTeacher, ask: Ask, ledger_path: Path) -> None:
    """One refusal with 0.3 s: of the nine others at most those in flight go out before that."""
    times: list[float] = []

    def respond(body: Body, number: int) -> Reply:
        times.append(asyncio.get_running_loop().time())
        return error(429, "x", headers={"Retry-After": "0.3"}) if number == 0 else completion("x", delay=0.01)

    with MockTeacher(respond) as mock:
        run(make_teacher(mock.base_url, max_concurrency=2), ledger_path, [ask(f"q{i}") for i in range(10)])
    assert sum(time - times[0] < 0.28 for time in times) <= 3


def test_a_bad_request_is_one_try_recorded_for_good(make_teacher: MakeTeacher, ask: Ask, ledger_path: Path) -> None:
    def respond(body: Body, number: int) -> Reply:
        question = body["messages"][-1]["content"]
        return error(400, f"cannot take {question}") if question.startswith("bad") else completion(question)

    requests = [ask(f"{'bad' if i % 11 == 5 else 'good'} {i}") for i in range(100)]
    with MockTeacher(respond) as mock:
        teacher = make_teacher(mock.base_url, max_concurrency=8)
        for session in range(2):
            outcomes, _ = run(teacher, ledger_path, requests)
            bad = [outcome for outcome in outcomes if isinstance(outcome, TeacherError)]
            assert len(bad) == 9 and len(outcomes) == 100, session
            assert "cannot take bad 5" in str(bad[0]) and not bad[0].retryable
        assert len(mock.requests) == 100


def test_a_failed_row_is_asked_again_next_time(make_teacher: MakeTeacher, ask: Ask, ledger_path: Path) -> None:
    with MockTeacher(first_times(error(500, "oops"), times=2)) as mock:
        teacher = make_teacher(mock.base_url, max_attempts=2)
        outcomes, _ = run(teacher, ledger_path, [ask("a")])
        assert isinstance(outcomes[0], TeacherError) and outcomes[0].retryable
        outcomes, _ = run(teacher, ledger_path, [ask("a")])
        assert text_of(outcomes[0]) == "echo: a"


def test_a_wrong_key_stops_everything_and_is_never_shown(
    make_teacher: MakeTeacher, ask: Ask, ledger_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-canary-123")
    with MockTeacher(key="another") as mock:
        teacher = make_teacher(mock.base_url, api_key_env="MY_KEY", max_concurrency=4)
        with pytest.raises(TeacherError) as caught:
            run(teacher, ledger_path, [ask(f"q{i}") for i in range(100)])
    assert "MY_KEY is set, but not to a key that is valid there" in str(caught.value)
    assert "sk-canary-123" not in str(caught.value)


def test_the_key_is_sent_and_a_missing_one_is_named(
    make_teacher: MakeTeacher, ask: Ask, ledger_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with MockTeacher(key="sk-right") as mock:
        with pytest.raises(TeacherError, match="MY_KEY is not set"):
            run(make_teacher(mock.base_url, api_key_env="MY_KEY"), ledger_path, [ask("a")])
        monkeypatch.setenv("MY_KEY", "sk-right")
        run(make_teacher(mock.base_url, api_key_env="MY_KEY"), ledger_path, [ask("a")])
        assert mock.keys == ["Bearer sk-right"]
    with pytest.raises(TeacherError, match="the environment has no OPENAI_API_KEY"):
        run(OpenAITeacher(model="gpt-4o-mini"), ledger_path, [ask("a")])


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (error(404, "The model `mock` does not exist"), "has no model 'mock'"),
        (error(403, "no access"), "refuses the key"),
        (error(402, "no credit"), "wants payment"),
        (error(429, "You exceeded your current quota", code="insufficient_quota"), "wants payment"),
    ],
)
def test_what_fails_for_all_stops_at_once(
    reply: Reply, message: str, make_teacher: MakeTeacher, ask: Ask, ledger_path: Path
) -> None:
    with MockTeacher(lambda body, n: reply) as mock:
        with pytest.raises(TeacherError, match=message):
            run(make_teacher(mock.base_url, max_concurrency=4), ledger_path, [ask(f"q{i}") for i in range(100)])
        assert len(mock.requests) <= 4


def test_an_unreachable_teacher_stops_at_once(make_teacher: MakeTeacher, ask: Ask, ledger_path: Path) -> None:
    with MockTeacher() as mock:
        url = mock.base_url
    with pytest.raises(TeacherError, match="cannot reach the teacher at http://127.0.0.1.*run again to go on"):
        run(make_teacher(url, max_attempts=2), ledger_path, [ask(f"q{i}") for i in range(1000)])


def test_failure_after_failure_opens_the_breaker(make_teacher: MakeTeacher, ask: Ask, ledger_path: Path) -> None:
    """A teacher that breaks after 30 answers: the first run stops with the reason, the next one goes on."""
    broken = True

    def respond(body: Body, number: int) -> Reply:
        return error(500, "disk full there") if broken and number >= 30 else completion("x")

    requests = [ask(f"q{i}") for i in range(200)]
    with MockTeacher(respond) as mock:
        teacher = make_teacher(mock.base_url, max_concurrency=2, max_attempts=1)
        with pytest.raises(TeacherError, match=f"{FAILURES_IN_A_ROW} failed requests in a row.*disk full there"):
            run(teacher, ledger_path, requests)
        assert len(mock.requests) <= 30 + FAILURES_IN_A_ROW + 2
        broken = False
        outcomes, usage = run(teacher, ledger_path, requests)
        assert len(outcomes) == 200 and (usage.from_ledger, usage.sent) == (30, 170)


def test_the_budget_is_a_hard_stop_over_all_sessions(make_teacher: MakeTeacher, ask: Ask, ledger_path: Path) -> None:
    """Each answer costs 10 x $1,000 + 5 x $2,000 a million = $0.02; $1 buys 50, and at most 3 more are in flight."""
    requests = [ask(f"q{i}") for i in range(200)]
    price = Price(input=1000.0, output=2000.0)
    with MockTeacher(lambda body, n: completion("x", delay=0.002)) as mock:
        teacher = make_teacher(mock.base_url, max_concurrency=4, budget_usd=1.0, price=price)
        with pytest.raises(TeacherError, match=r"the budget of \$1 is spent"):
            run(teacher, ledger_path, requests)
        with Ledger(ledger_path) as ledger:
            assert 50 <= ledger.count() == len(mock.requests) <= 53  # what was paid for is kept
            assert ledger.spent_usd() == pytest.approx(0.02 * len(mock.requests))
        asked = len(mock.requests)
        with pytest.raises(TeacherError, match="the budget"):
            run(teacher, ledger_path, requests)
        assert len(mock.requests) == asked
        more = make_teacher(mock.base_url, max_concurrency=4, budget_usd=10.0, price=price)
        outcomes, _ = run(more, ledger_path, requests)
        assert len(outcomes) == len(mock.requests) == 200


def test_a_budget_without_a_price_is_refused(make_teacher: MakeTeacher, ask: Ask, ledger_path: Path) -> None:
    with pytest.raises(TeacherError, match="price of 'mock' is unknown"):
        run(make_teacher("http://127.0.0.1:9/v1", budget_usd=1.0), ledger_path, [ask("a")])


def test_unknown_prices_are_unknown_costs(make_teacher: MakeTeacher, ask: Ask, ledger_path: Path) -> None:
    with MockTeacher() as mock:
        outcomes, _ = run(make_teacher(mock.base_url), ledger_path, [ask("a")])
    assert isinstance(outcomes[0], Answer) and outcomes[0].cost_usd is None
    assert (outcomes[0].prompt_tokens, outcomes[0].completion_tokens) == (10, 5)


def test_half_a_surrogate_pair_does_no_harm(make_teacher: MakeTeacher, ask: Ask, ledger_path: Path) -> None:
    with MockTeacher(lambda body, n: completion("a\ud83d b")) as mock:
        outcomes, _ = run(make_teacher(mock.base_url), ledger_path, [ask("a")])
    assert text_of(outcomes[0]) == "a? b"


def test_an_embedded_teacher_needs_its_server(ask: Ask, ledger_path: Path) -> None:
    with pytest.raises(DistillError, match="embedded teacher is not running"):
        run(EmbeddedTeacher(), ledger_path, [ask("a")])


def test_memory_is_bounded_by_pulling_requests_as_room_comes_free(
    make_teacher: MakeTeacher, ask: Ask, ledger_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distill.teacher.flow.HELD_BACK", 32)
    pulled = 0

    async def main(ledger: Ledger, teacher: OpenAITeacher) -> None:
        def requests() -> Iterator[ChatRequest]:
            nonlocal pulled
            for number in range(10**9):
                pulled = number + 1
                yield ask(f"q{number}")

        async with TeacherClient(teacher, ledger) as client:
            taken = 0
            stream = client.stream(requests())
            async for _ in stream:
                taken += 1
                assert pulled <= taken + 32 + 1
                if taken == 100:
                    break
            await stream.aclose()  # type: ignore[attr-defined]

    with MockTeacher() as mock, Ledger(ledger_path) as ledger:
        asyncio.run(main(ledger, make_teacher(mock.base_url, max_concurrency=8)))


def test_a_completion_goes_on_from_raw_text(make_teacher: MakeTeacher, ledger_path: Path) -> None:
    """Its own endpoint and body, and a key that a chat of the same text does not have."""

    def respond(body: Body, number: int) -> Reply:
        usage = {"prompt_tokens": 2, "completion_tokens": 3}
        return Reply(body={"choices": [{"text": f"{body['prompt']}!", "finish_reason": "stop"}], "usage": usage})

    request = CompletionRequest("<|user|>", Sampling(max_tokens=9), stop=("<|end|>",))
    with MockTeacher(respond) as mock:
        teacher = make_teacher(mock.base_url)
        for _ in range(2):
            outcomes, _ = run(teacher, ledger_path, [request])  # type: ignore[list-item]
            assert text_of(outcomes[0]) == "<|user|>!"
        assert mock.requests == [
            {
                "model": "mock",
                "prompt": "<|user|>",
                "temperature": 0.7,
                "top_p": 1.0,
                "max_tokens": 9,
                "stop": ["<|end|>"],
            }
        ]


def test_log_probabilities_are_asked_for_and_kept(make_teacher: MakeTeacher, ask: Ask, ledger_path: Path) -> None:
    top = [{"token": "a", "logprob": -0.5, "bytes": [97]}, {"token": "?", "logprob": -1.25, "bytes": [226, 130]}]
    content = [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": top}]

    def respond(body: Body, number: int) -> Reply:
        reply = completion("a").body
        assert reply is not None
        reply["choices"][0]["logprobs"] = {"content": content}
        return Reply(body=reply)

    with MockTeacher(respond) as mock:
        asked = replace(ask("q"), logprobs=2)
        for _ in range(2):  # from the teacher, then from the ledger
            outcomes, _ = run(make_teacher(mock.base_url), ledger_path, [asked])
            assert isinstance(outcomes[0], Answer) and outcomes[0].logprobs is not None
            assert unpack(outcomes[0].logprobs) == [Position(b"a", -0.5, ((b"a", -0.5), (b"\xe2\x82", -1.25)))]
        assert len(mock.requests) == 1 and mock.requests[0]["top_logprobs"] == 2
        run(make_teacher(mock.base_url), ledger_path, [ask("q")])
        assert len(mock.requests) == 2  # without them it is another question


def test_a_redirect_does_not_carry_the_key_away(make_teacher: MakeTeacher, ask: Ask, ledger_path: Path) -> None:
    moved = Reply(status=301, raw=b"moved", headers={"Location": "https://elsewhere.example/v1"})
    with MockTeacher(lambda body, n: moved) as mock:
        teacher = make_teacher(mock.base_url, transport="auto")
        with pytest.raises(TeacherError, match="redirects .301. to https://elsewhere.example/v1"):
            run(teacher, ledger_path, [ask("a")])
        assert len(mock.requests) == 1

"""The Batch API over the same ledger: merged, resumed, and never paid twice, wherever it is cut off."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distill.errors import TeacherError
from distill.recipe.generate import Sampling
from distill.recipe.teacher import Batch, OpenAITeacher, Price
from distill.teacher.accounts import Usage
from distill.teacher.client import TeacherClient
from distill.teacher.ledger import Ledger
from distill.teacher.requests import Answer, ChatRequest, CompletionRequest, Request
from tests.generate.conftest import Project, project
from tests.teacher.mock import Body, Reply, completion, error
from tests.teacher.mock_batches import MockBatches, complete, question

__all__ = ["project"]  # a fixture of the generate tests
PRICE = Price(input=1000.0, output=2000.0, batch_input=500.0, batch_output=1000.0)  # $0.02 online, $0.01 in a batch


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr("distill.teacher.batch_queue._SETTLE_SECONDS", 0.05)


def teacher(url: str, **settings: Any) -> OpenAITeacher:
    """A teacher in batch mode, in a hurry."""
    quick = Batch(requests=settings.pop("requests", 1000), poll_seconds=0.01, gather_seconds=0.05)
    return OpenAITeacher(model="mock", base_url=url, **{"mode": "batch", "batch": quick, "price": PRICE, **settings})


def chats(count: int) -> list[Request]:
    return [ChatRequest(({"role": "user", "content": f"q{number}"},), Sampling()) for number in range(count)]


def run(who: OpenAITeacher, path: Path, requests: list[Request]) -> tuple[list[Answer | TeacherError], Usage]:
    async def main(ledger: Ledger) -> tuple[list[Answer | TeacherError], Usage]:
        async with TeacherClient(who, ledger) as client:
            return [outcome async for _, outcome in client.stream(requests)], client.usage

    with Ledger(path) as ledger:
        return asyncio.run(main(ledger))


def texts(outcomes: list[Answer | TeacherError]) -> list[str]:
    assert all(isinstance(outcome, Answer) for outcome in outcomes), outcomes
    return [outcome.text for outcome in outcomes if isinstance(outcome, Answer)]


def open_batches(path: Path) -> int:
    with sqlite3.connect(path) as ledger:
        return int(ledger.execute("SELECT COUNT(*) FROM batches").fetchone()[0])


@pytest.mark.parametrize("transport", ["auto", "sdk"])
def test_a_batch_answers_at_its_price(transport: str, ledger_path: Path) -> None:
    with MockBatches(looks=3) as mock:
        outcomes, usage = run(teacher(mock.base_url, transport=transport), ledger_path, chats(50))
        assert texts(outcomes) == [f"echo: q{number}" for number in range(50)]
        assert mock.created == 1 and not mock.requests and usage.sent == usage.answered == 50
        assert usage.spent_usd == pytest.approx(50 * 0.01)
        again, usage = run(teacher(mock.base_url), ledger_path, chats(50))
        assert texts(again) == texts(outcomes) and usage.from_ledger == 50 and mock.created == 1
        online, usage = run(teacher(mock.base_url, mode="online"), ledger_path, chats(51))
        assert len(online) == 51 and usage.sent == len(mock.requests) == 1  # the keys are the same
    assert open_batches(ledger_path) == 0


def test_batches_are_as_large_as_asked_and_one_endpoint_each(ledger_path: Path) -> None:
    def finish(number: int, lines: list[Body]) -> tuple[str, dict[str, Reply | None]]:
        body = completion("hello").body
        assert body is not None
        raw = Reply(body={**body, "choices": [{"index": 0, "text": "raw", "finish_reason": "stop"}]})
        return "completed", {one["custom_id"]: raw if "prompt" in one["body"] else completion("hello") for one in lines}

    requests = [*chats(25), *(CompletionRequest(f"p{number}", Sampling()) for number in range(5))]
    with MockBatches(finish) as mock:
        outcomes, _ = run(teacher(mock.base_url, requests=10), ledger_path, requests)
        assert texts(outcomes) == ["hello"] * 25 + ["raw"] * 5
        assert mock.created >= 3
        assert {batch["endpoint"] for batch in mock.batches.values()} == {"/v1/chat/completions", "/v1/completions"}


def test_expired_and_failed_rows_are_asked_online(ledger_path: Path) -> None:
    """Of 30: 10 expired, 10 failed with 500 there, one refused for good, 9 answered."""

    def finish(number: int, lines: list[Body]) -> tuple[str, dict[str, Reply | None]]:
        found: dict[str, Reply | None] = {}
        for index, line in enumerate(lines):
            group = (None, error(500, "oops"), completion(f"batch: {question(line)}"))[index % 3]
            found[line["custom_id"]] = error(400, "bad") if question(line) == "q2" else group
        return "expired", found

    with MockBatches(finish) as mock:
        mock.respond = lambda body, number: (
            error(400, "bad") if body["messages"][-1]["content"] == "q2" else completion("online")
        )
        outcomes, usage = run(teacher(mock.base_url), ledger_path, chats(30))
        refused = [outcome for outcome in outcomes if isinstance(outcome, TeacherError)]
        assert len(refused) == 1 and "bad" in str(refused[0])
        told = [outcome.text for outcome in outcomes if isinstance(outcome, Answer)]
        assert told.count("online") == 20 and sum(text.startswith("batch: ") for text in told) == 9
        assert len(mock.requests) == 21
        assert usage.spent_usd == pytest.approx(9 * 0.01 + 20 * 0.02)
        asked = len(mock.requests)
        run(teacher(mock.base_url), ledger_path, chats(30))
        assert len(mock.requests) == asked and mock.created == 1


@pytest.mark.parametrize(
    ("status", "message"), [("cancelled", "was cancelled there with 20"), ("failed", "token limit")]
)
def test_a_cancelled_or_refused_batch_stops_and_keeps_what_came(status: str, message: str, ledger_path: Path) -> None:
    def finish(number: int, lines: list[Body]) -> tuple[str, dict[str, Reply | None]]:
        if number:
            return complete(number, lines)
        some = lines[:10] if status == "cancelled" else []
        return status, {line["custom_id"]: completion("x") for line in some}

    with MockBatches(finish) as mock:
        with pytest.raises(TeacherError, match=message):
            run(teacher(mock.base_url), ledger_path, chats(30))
        assert open_batches(ledger_path) == 0 and not mock.requests
        outcomes, _ = run(teacher(mock.base_url), ledger_path, chats(30))
        assert len(texts(outcomes)) == 30 and max(mock.billed.values()) == 1 and len(mock.billed) == 30


def test_lost_connections_and_busy_servers_are_borne(ledger_path: Path) -> None:
    """Every call fails once, the creation after it was done: no second batch."""

    def flaky(call: str, number: int) -> Reply | None:
        if number > 1:
            return None
        return Reply(status=299) if call == "POST /batches" else error(503, "busy", headers={"Retry-After": "0"})

    with MockBatches() as mock:
        mock.flaky = flaky
        outcomes, _ = run(teacher(mock.base_url), ledger_path, chats(5))
        assert len(texts(outcomes)) == 5 and mock.created == 1
        assert mock.calls.count("GET /batches") == 2  # busy, then found by its token


def test_a_batch_is_found_on_a_later_page_by_its_token(ledger_path: Path) -> None:
    with MockBatches(page=2) as mock:
        for number in range(5):
            run(teacher(mock.base_url), ledger_path.with_name(f"{number}.sqlite"), chats(2))
        with Ledger(ledger_path) as ledger, sqlite3.connect(ledger_path.with_name("0.sqlite")) as other:
            key = other.execute("SELECT key FROM answers").fetchone()[0]
            token = mock.batches["batch-0"]["metadata"]["distill"]
            asyncio.run(
                ledger.commit(
                    [
                        (
                            "INSERT INTO batches VALUES (?,?,?,?,?,?)",
                            (token, "mock", "/chat/completions", None, None, 0),
                        ),
                        ("INSERT INTO batch_requests VALUES (?,?,?,?,?)", (key, token, "", "", 0)),
                    ]
                )
            )
        outcomes, usage = run(teacher(mock.base_url), ledger_path, chats(2))
        assert len(texts(outcomes)) == 2 and usage.answered == 2
        # five runs paid both keys; here one is found in the oldest batch, on the last page, and only the other asked
        assert mock.created == 6 and sorted(mock.billed.values()) == [5, 6] and mock.billed[key] == 5
        assert mock.calls.count("GET /batches") == 3


def test_a_provider_without_batches_is_named(ledger_path: Path) -> None:
    with MockBatches() as mock:
        mock.flaky = lambda call, number: error(404, "not found")
        with pytest.raises(TeacherError, match="has no Batch API.*mode: online"):
            run(teacher(mock.base_url), ledger_path, chats(3))


def test_the_budget_ends_it_between_batches(ledger_path: Path) -> None:
    """Each batch of 10 costs $0.10; $0.15 buys two."""
    with MockBatches() as mock:
        who = teacher(mock.base_url, requests=10, max_concurrency=1, budget_usd=0.15)
        with pytest.raises(TeacherError, match="the budget"):
            run(who, ledger_path, chats(200))
        assert mock.created <= 4 and len(mock.billed) <= 40


def test_a_preview_asks_online_and_projects_the_batch_price(project: Project) -> None:
    """10 rows online cost $0.20; the 100 of the whole, in a batch, $1."""
    job = {"name": "inst", "kind": "instruction", "prompts": project.prompts([f"q{n}" for n in range(100)])}
    batch = {"poll_seconds": 0.01, "gather_seconds": 0.05}
    with MockBatches() as mock:
        recipe = project.recipe(mock.base_url, job, mode="batch", batch=batch, price=PRICE.model_dump())
        printed = project.run(recipe, rows=10)
        assert len(mock.requests) == 10 and not mock.created
        assert "cost    about $1.0000" in printed and "within a day for each batch" in printed
        project.run(recipe)
        assert len(mock.requests) == 10 and len(mock.billed) == 90
    assert project.manifest("inst")["cost_usd"] == pytest.approx(10 * 0.02 + 90 * 0.01)


def test_each_round_of_a_job_is_a_batch(project: Project) -> None:
    """Two answers for each of five prompts, then both orders of each pair before the judge: 10 and 10 requests."""

    def finish(number: int, lines: list[Body]) -> tuple[str, dict[str, Reply | None]]:
        found: dict[str, Reply | None] = {}
        for line in lines:
            pair = re.search(r"Answer A:\n(.*)\n\nAnswer B:\n(.*)\n\nFirst write", question(line))
            if pair is None:
                text = line["custom_id"]
            else:
                first = pair[1] > pair[2]
                grades = "Grade A: 5\nGrade B: 1\nBetter: A" if first else "Grade A: 1\nGrade B: 5\nBetter: B"
                text = f"Expected: {max(pair.groups())}\n{grades}"
            found[line["custom_id"]] = completion(text)
        return "completed", found

    prompts = project.prompts([f"q{number}" for number in range(5)])
    job = {"name": "pref", "kind": "preference", "prompts": prompts, "samples": 2}
    batch = {"poll_seconds": 0.01, "gather_seconds": 0.2}
    with MockBatches(finish) as mock:
        project.run(project.recipe(mock.base_url, job, mode="batch", batch=batch))
        assert mock.created == 2 and not mock.requests and len(mock.billed) == 20
    rows = project.data("pref")
    assert len(rows) == 5
    assert all(row["chosen"][0]["content"] > row["rejected"][0]["content"] for row in rows)


def test_an_earlier_batch_is_collected_in_online_mode_too(ledger_path: Path) -> None:
    """Cut off while the batch is under way; the next run is online and waits for those keys alone."""
    with MockBatches(looks=10**6) as mock:

        async def cut_off(ledger: Ledger) -> None:
            async with TeacherClient(teacher(mock.base_url), ledger) as client:
                asks = [asyncio.create_task(client.ask(request)) for request in chats(10)]
                while mock.calls.count("GET /batches/ID") < 2:
                    await asyncio.sleep(0.01)
                for ask in asks:
                    ask.cancel()

        with Ledger(ledger_path) as ledger:
            asyncio.run(cut_off(ledger))
        assert open_batches(ledger_path) == 1
        mock.left["batch-0"] = 1
        outcomes, usage = run(teacher(mock.base_url, mode="online"), ledger_path, chats(12))
        assert len(texts(outcomes)) == 12 and len(mock.requests) == 2 and mock.created == 1
        assert usage.spent_usd == pytest.approx(10 * 0.01 + 2 * 0.02)


ASK = """
import asyncio, os, signal, sys
from pathlib import Path
from distill.recipe.teacher import OpenAITeacher
from distill.teacher import batch_queue, client, endpoint, ledger
from tests.teacher.test_batches import chats, run
batch_queue._SETTLE_SECONDS = 0.05
left = int(sys.argv[3])

def step(done):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)

def cut(kind, name):
    inner = getattr(kind, name)
    async def around(*args, **kwargs):
        step("before")
        result = await inner(*args, **kwargs)
        step("after")
        return result
    setattr(kind, name, around)

cut(endpoint.Endpoint, "exchange")
cut(ledger.Ledger, "commit")
outcomes, _ = run(OpenAITeacher.model_validate_json(sys.argv[1]), Path(sys.argv[2]), chats(6))
print("done", len(outcomes))
"""


def killed_at(step: int, who: OpenAITeacher, path: Path) -> bool:
    """Run in a process that kills itself at this step; False where it ended before."""
    command = [sys.executable, "-c", ASK, who.model_dump_json(), str(path), str(step)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0


@pytest.mark.slow
def test_kill_9_between_any_two_steps_pays_nothing_twice(tmp_path: Path) -> None:
    """Before and after every exchange and every commit: one batch is made and billed once, one ledger has all."""
    step = 0
    while True:
        with MockBatches() as mock:
            path = tmp_path / f"{step}.sqlite"
            killed = killed_at(step, teacher(mock.base_url), path)
            outcomes, _ = run(teacher(mock.base_url), path, chats(6))
            assert texts(outcomes) == [f"echo: q{number}" for number in range(6)], step
            assert set(mock.billed.values()) == {1} and len(mock.billed) == 6, step
            assert not mock.requests and open_batches(path) == 0, step
        if not killed:
            break
        step += 1
    assert step >= 14  # begin, upload, note, create, note, two looks, download, commit: each before and after


@pytest.mark.parametrize("step", [5, 7, 8])
def test_kill_9_around_the_creation_of_a_batch(step: int, tmp_path: Path) -> None:
    with MockBatches() as mock:
        path = tmp_path / "ledger.sqlite"
        assert killed_at(step, teacher(mock.base_url), path)
        outcomes, _ = run(teacher(mock.base_url), path, chats(6))
        assert len(texts(outcomes)) == 6 and set(mock.billed.values()) == {1}

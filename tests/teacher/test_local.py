"""A teacher in this process answers what the same weights answer behind HTTP, under the same keys."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from distill.engine.runner import Engine, EngineConfig
from distill.errors import TeacherError
from distill.recipe.generate import Sampling
from distill.recipe.teacher import EmbeddedTeacher
from distill.teacher.client import TeacherClient
from distill.teacher.ledger import Ledger
from distill.teacher.local import LocalTeacher
from distill.teacher.logprobs import unpack
from distill.teacher.requests import Answer, ChatRequest, CompletionRequest, Request
from tests.engine.models import byte_tokenizer, chat_model
from tests.serve.conftest import start

GREEDY = Sampling(temperature=0.0, max_tokens=12)
REQUESTS: list[Request] = [
    *(ChatRequest(({"role": "user", "content": f"say {number}"},), GREEDY) for number in range(20)),
    ChatRequest(({"role": "user", "content": "with likelihoods"},), GREEDY, logprobs=3),
    CompletionRequest("Once upon", GREEDY),
    CompletionRequest("Once upon", GREEDY, stop=("a",)),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    tokenizer = byte_tokenizer()
    chat_model(tokenizer).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def local(folder: Path) -> Iterator[LocalTeacher]:
    teacher = LocalTeacher(EmbeddedTeacher(model=str(folder), max_concurrency=8))
    yield teacher
    teacher.stop()


def ask_all(client: TeacherClient, requests: list[Request]) -> list[Answer | TeacherError]:
    async def main() -> list[Answer | TeacherError]:
        async with client:
            return [outcome async for _, outcome in client.stream(requests)]

    return asyncio.run(main())


def test_it_answers_as_the_server_does_and_shares_its_ledger(folder: Path, local: LocalTeacher, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    engine = Engine(chat_model(tokenizer), tokenizer, EngineConfig(max_batch=8, block_size=8))
    server, url = start(engine, model_name=str(folder))
    served = EmbeddedTeacher(model=str(folder), max_concurrency=8)
    here = EmbeddedTeacher(model=str(folder), max_concurrency=8, backend="transformers")
    with Ledger(tmp_path / "served.sqlite") as ledger, Ledger(tmp_path / "local.sqlite") as own:
        first = ask_all(TeacherClient(served, ledger, base_url=url), REQUESTS)
        client = TeacherClient(here, own, sender=local)
        second = ask_all(client, REQUESTS)
        assert client.usage.sent == len(REQUESTS)
        again = TeacherClient(here, ledger, sender=local)  # what the server answered is not asked here
        assert len(ask_all(again, REQUESTS)) == len(REQUESTS) and again.usage.sent == 0
    server.should_exit = True
    for one, other in zip(first, second, strict=True):
        assert isinstance(one, Answer) and isinstance(other, Answer)
        assert (one.key, one.text, one.finish_reason) == (other.key, other.text, other.finish_reason)
        assert (one.prompt_tokens, one.completion_tokens) == (other.prompt_tokens, other.completion_tokens)
        assert other.cost_usd == 0.0
        assert (one.logprobs is None) == (other.logprobs is None)
        if one.logprobs is not None and other.logprobs is not None:
            for left, right in zip(unpack(one.logprobs), unpack(other.logprobs), strict=True):
                assert left.token == right.token and left.logprob == pytest.approx(right.logprob, abs=1e-5)
                assert [token for token, _ in left.top] == [token for token, _ in right.top]


def test_what_can_never_run_is_recorded_for_good(folder: Path, local: LocalTeacher, tmp_path: Path) -> None:
    teacher = EmbeddedTeacher(model=str(folder), backend="transformers")
    too_long = CompletionRequest("x" * 5000, GREEDY)
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        for session, sent in ((0, 1), (1, 0)):
            client = TeacherClient(teacher, ledger, sender=local)
            (outcome,) = ask_all(client, [too_long])
            assert isinstance(outcome, TeacherError) and "the prompt has" in str(outcome), session
            assert client.usage.sent == sent


def test_a_request_that_nobody_waits_for_frees_the_engine(local: LocalTeacher) -> None:
    async def main() -> None:
        long = CompletionRequest("Once", Sampling(temperature=0.0, max_tokens=200))
        task = asyncio.create_task(local.send(long))
        while not local._engine.num_running:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await local.send(REQUESTS[0])

    asyncio.run(main())
    assert local._engine.num_running == 0


def test_an_engine_that_breaks_stops_everything_with_its_reason(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = EmbeddedTeacher(model=str(folder), backend="transformers")
    broken = LocalTeacher(teacher)

    def step() -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(broken._engine, "step", step)
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        with pytest.raises(TeacherError, match="the engine of .* failed: out of memory"):
            ask_all(TeacherClient(teacher, ledger, sender=broken), REQUESTS)
        with pytest.raises(TeacherError, match="out of memory"):
            ask_all(TeacherClient(teacher, ledger, sender=broken), REQUESTS)
    broken.stop()

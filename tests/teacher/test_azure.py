"""Azure OpenAI: the header, path and query of either form of its API, keys and Entra ID tokens, and their renewal."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Literal

import pytest

from distill.errors import TeacherError
from distill.recipe.generate import Sampling
from distill.recipe.teacher import AzureTeacher
from distill.teacher import azure
from distill.teacher.credentials import Key, RenewedToken, Token
from distill.teacher.requests import Answer, CompletionRequest, teacher_identity
from tests.teacher.mock import MockTeacher, Reply, completion, error, raw_completion
from tests.teacher.test_client import Ask, run

KEY, TOKEN = "azure-key-0a1b", "eyJ.entra.token"
TRANSPORTS: tuple[Literal["auto", "sdk"], ...] = ("auto", "sdk")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", KEY)
    for name in ("AZURE_OPENAI_ENDPOINT", "AZURE_OPENAI_AD_TOKEN", "OPENAI_API_KEY", "OPENAI_ORG_ID"):
        monkeypatch.delenv(name, raising=False)


def deployment(base_url: str | None, **settings: Any) -> AzureTeacher:
    return AzureTeacher(kind="azure", model="gpt 4/mine", base_url=base_url, **settings)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(
    ("version", "target"),
    [
        (None, "/openai/v1/chat/completions"),
        ("preview", "/openai/v1/chat/completions?api-version=preview"),
        ("2024-10-21", "/openai/deployments/gpt%204%2Fmine/chat/completions?api-version=2024-10-21"),
    ],
)
def test_the_key_is_in_its_own_header_and_the_version_in_the_query(
    transport: Literal["auto", "sdk"], version: str | None, target: str, ask: Ask, ledger_path: Path
) -> None:
    with MockTeacher(key=KEY) as mock:
        root = mock.base_url.removesuffix("/v1")
        outcomes, usage = run(deployment(root, api_version=version, transport=transport), ledger_path, [ask("q")])
    assert isinstance(outcomes[0], Answer) and outcomes[0].text == "echo: q" and usage.sent == 1
    assert mock.targets == [target]
    assert mock.headers[0]["api-key"] == KEY and "authorization" not in mock.headers[0]
    assert mock.requests[0]["model"] == "gpt 4/mine"


@pytest.mark.parametrize("ending", ["", "/", "/openai", "/openai/v1", "/openai/v1/"])
def test_a_url_may_be_copied_from_anywhere_in_the_portal(ending: str) -> None:
    url = f"https://me.openai.azure.com{ending}"
    assert azure.api_url(deployment(url)) == "https://me.openai.azure.com/openai/v1"
    assert azure.api_url(deployment(url, api_version="2025-01-01-preview")) == "https://me.openai.azure.com/openai"
    assert azure.api_url(deployment(None), None, {"AZURE_OPENAI_ENDPOINT": url}).endswith(
        "me.openai.azure.com/openai/v1"
    )
    assert teacher_identity(deployment(url)) == "azure:https://me.openai.azure.com:gpt 4/mine"


def test_either_form_finds_what_the_other_paid_for(ask: Ask, ledger_path: Path) -> None:
    with MockTeacher() as mock:
        root = mock.base_url.removesuffix("/v1")
        run(deployment(root), ledger_path, [ask("q")])
        _, usage = run(deployment(f"{root}/openai/", api_version="2024-10-21"), ledger_path, [ask("q")])
    assert len(mock.requests) == 1 and usage.from_ledger == 1


def test_raw_completions_have_their_path(ledger_path: Path) -> None:
    with MockTeacher(lambda body, n: raw_completion("on")) as mock:
        teacher = deployment(mock.base_url.removesuffix("/v1"), api_version="2024-10-21")
        asked: Any = [CompletionRequest("go", Sampling())]
        run(teacher, ledger_path, asked)
    assert mock.targets == ["/openai/deployments/gpt%204%2Fmine/completions?api-version=2024-10-21"]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_token_of_the_environment_is_a_bearer(
    transport: Literal["auto", "sdk"], ask: Ask, ledger_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_OPENAI_AD_TOKEN", TOKEN)
    with MockTeacher() as mock:
        root = mock.base_url.removesuffix("/v1")
        run(deployment(root, auth="entra", transport=transport), ledger_path, [ask("q")])
    assert mock.keys == [f"Bearer {TOKEN}"] and "api-key" not in mock.headers[0]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_tokens_of_azure_identity_are_renewed_under_way(
    transport: Literal["auto", "sdk"], ask: Ask, ledger_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each token is over at once, so every request brings the next; none of them reaches the ledger."""
    fetched: list[str] = []

    def fetch(teacher: AzureTeacher) -> Token:
        fetched.append(f"{TOKEN}-{len(fetched)}")
        return Token(fetched[-1], time.time())

    monkeypatch.setattr(azure, "identity_token", fetch)
    with MockTeacher() as mock:
        root = mock.base_url.removesuffix("/v1")
        teacher = deployment(root, auth="entra", transport=transport, max_concurrency=1)
        run(teacher, ledger_path, [ask("a"), ask("b"), ask("c")])
    assert mock.keys == [f"Bearer {TOKEN}-{number}" for number in range(3)]
    assert TOKEN.encode() not in ledger_path.read_bytes()


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_token_is_renewed_five_minutes_before_it_expires() -> None:
    clock, lives = Clock(), [Token("one", 4600.0), Token("two", 8200.0), Token("three", 5000.0)]
    token = RenewedToken(lambda: lives.pop(0), clock)

    async def at(now: float) -> str:
        clock.now = now
        await asyncio.gather(token.renew(), token.renew(), token.renew())  # one of them fetches
        return token.value

    async def main() -> list[str]:
        return [await at(now) for now in (1000.0, 4299.0, 4300.0, 7899.0)]

    assert asyncio.run(main()) == ["Bearer one", "Bearer one", "Bearer two", "Bearer two"]
    assert lives == [Token("three", 5000.0)]


def test_a_renewal_that_fails_matters_once_the_old_token_is_over() -> None:
    clock, tries = Clock(), 0

    def fetch() -> Token:
        nonlocal tries
        tries += 1
        if tries == 1:
            return Token("one", 1600.0)
        raise TeacherError("no network")

    token = RenewedToken(fetch, clock)

    async def main() -> None:
        for now in (1000.0, 1400.0, 1410.0):  # two minutes are over at 1300; the second try is at 1400
            clock.now = now
            await token.renew()
        assert (token.value, tries) == ("Bearer one", 2)
        clock.now = 1600.0
        with pytest.raises(TeacherError, match="no network"):
            await token.renew()

    asyncio.run(main())


class FakeCredential:
    """What azure-identity's DefaultAzureCredential is used for."""

    asked: list[str] = []
    fails: Exception | None = None

    def __enter__(self) -> FakeCredential:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        pass

    def get_token(self, scope: str) -> Any:
        self.asked.append(scope)
        if self.fails is not None:
            raise self.fails
        found = ModuleType("AccessToken")
        found.token, found.expires_on = TOKEN, 12345  # type: ignore[attr-defined]
        return found


def test_azure_identity_is_asked_for_the_scope_of_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    exceptions, identity = ModuleType("azure.core.exceptions"), ModuleType("azure.identity")
    exceptions.AzureError = OSError  # type: ignore[attr-defined]
    identity.DefaultAzureCredential = FakeCredential  # type: ignore[attr-defined]
    for name, module in {"azure.core.exceptions": exceptions, "azure.identity": identity}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "azure", ModuleType("azure"))
    monkeypatch.setitem(sys.modules, "azure.core", ModuleType("azure.core"))
    teacher = deployment("https://me", auth="entra", scope="https://ai.azure.us/.default")
    assert azure.identity_token(teacher) == Token(TOKEN, 12345.0)
    assert FakeCredential.asked == ["https://ai.azure.us/.default"]
    monkeypatch.setattr(FakeCredential, "fails", OSError("not signed in\nat all\nsee https://aka.ms"))
    with pytest.raises(TeacherError, match="no token for https://ai.azure.us/.default: not signed in ->"):
        azure.identity_token(teacher)


def test_without_azure_identity_the_extra_is_named(
    ask: Ask, ledger_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "azure", None)
    with MockTeacher() as mock:
        teacher = deployment(mock.base_url.removesuffix("/v1"), auth="entra")
        with pytest.raises(TeacherError) as caught:
            run(teacher, ledger_path, [ask("q")])
        assert not mock.requests
    assert "distill[azure]" in (caught.value.remedy or "")


def test_what_is_missing_is_named_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TeacherError) as caught:
        azure.api_url(deployment(None))
    assert "AZURE_OPENAI_ENDPOINT" in (caught.value.remedy or "")
    monkeypatch.delenv("AZURE_OPENAI_API_KEY")
    with pytest.raises(TeacherError, match="no AZURE_OPENAI_API_KEY"):
        azure.credential_of(deployment("https://me"))


@pytest.mark.parametrize("auth", ["key", "entra"])
def test_refusals_stop_everything_and_repeat_no_secret(
    auth: str, ask: Ask, ledger_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_OPENAI_AD_TOKEN", TOKEN)
    with MockTeacher(lambda body, n: error(401, f"{KEY} {TOKEN} is wrong")) as mock:
        teacher = deployment(mock.base_url.removesuffix("/v1"), auth=auth)
        with pytest.raises(TeacherError, match="refuses the key") as caught:
            run(teacher, ledger_path, [ask("q")])
    sent = KEY if auth == "key" else TOKEN
    assert sent not in str(caught.value) and "*** " in str(caught.value)
    assert ("AZURE_OPENAI_API_KEY" if auth == "key" else "AZURE_OPENAI_AD_TOKEN") in (caught.value.remedy or "")


def test_a_missing_deployment_is_named(ask: Ask, ledger_path: Path) -> None:
    with (
        MockTeacher(lambda body, n: error(404, "none", code="DeploymentNotFound")) as mock,
        pytest.raises(TeacherError) as caught,
    ):
        run(deployment(mock.base_url.removesuffix("/v1")), ledger_path, [ask("q")])
    assert "teacher.api_version" in (caught.value.remedy or "")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_redirect_does_not_carry_the_key_away(transport: Literal["auto", "sdk"], ask: Ask, ledger_path: Path) -> None:
    with MockTeacher() as other:
        moved = Reply(status=307, raw=b"moved", headers={"Location": f"{other.base_url}/chat/completions"})
        with MockTeacher(lambda body, n: moved) as mock, pytest.raises(TeacherError, match="redirects .307."):
            run(deployment(mock.base_url.removesuffix("/v1"), transport=transport), ledger_path, [ask("q")])
        assert not other.requests


def test_a_filtered_prompt_is_a_refused_answer(ask: Ask, ledger_path: Path) -> None:
    """Azure answers 400 where its content filter stops the prompt: the provider refuses, nothing is broken."""
    filtered = error(400, "The prompt triggered the content policy", code="content_filter")
    with MockTeacher(lambda body, n: filtered if n else completion("fine")) as mock:
        teacher = deployment(mock.base_url.removesuffix("/v1"), max_concurrency=1)
        outcomes, usage = run(teacher, ledger_path, [ask("a"), ask("b")])
        refused = outcomes[1]
        assert isinstance(refused, Answer) and "content policy" in (refused.refusal or "")
        assert (refused.finish_reason, usage.failed) == ("content_filter", 0)
        run(teacher, ledger_path, [ask("b")])
        assert len(mock.requests) == 2


def test_which_header_a_key_stands_in() -> None:
    assert (Key("k").value, Key("").value, Key("k", "api-key").value) == ("Bearer k", "Bearer no-key", "k")

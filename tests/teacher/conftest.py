"""A client on a mock teacher, in a line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill.recipe.generate import Sampling
from distill.recipe.teacher import OpenAITeacher
from distill.teacher.requests import ChatRequest


@pytest.fixture(params=["auto", "sdk"])
def make_teacher(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., OpenAITeacher]:
    """An OpenAI teacher with the mock's model name, over each transport; keyword arguments override its settings."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)

    def make(base_url: str, **settings: Any) -> OpenAITeacher:
        return OpenAITeacher(model="mock", base_url=base_url, **{"transport": request.param, **settings})

    return make


@pytest.fixture
def ask() -> Callable[..., ChatRequest]:
    """A one-turn request."""

    def request(text: str, sample: int = 0, **sampling: Any) -> ChatRequest:
        return ChatRequest(({"role": "user", "content": text},), Sampling(**sampling), sample)

    return request


@pytest.fixture
def ledger_path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"

"""Where an attempt at a request goes: an endpoint, or nobody at all."""

from __future__ import annotations

from typing import Protocol

from distill.errors import TeacherError
from distill.recipe.teacher import EmbeddedTeacher, OpenAITeacher
from distill.teacher.endpoint import Attempt, AttemptFailed, Endpoint, Reply
from distill.teacher.requests import Request


class Sender(Protocol):
    """One attempt at a time for each caller; many callers at once."""

    async def send(self, request: Request) -> Reply:
        """Raises AttemptFailed."""

    async def close(self) -> None:
        """Let go of connections or weights."""


class Nobody:
    """Nobody to ask: what is not in the ledger is missing, and the first such request stops everything."""

    def __init__(self, why: str, remedy: str) -> None:
        self.why = why
        self.remedy = remedy

    async def send(self, request: Request) -> Reply:
        message = f"{self.why} to row '{request.seed_row}' (sample {request.sample})"
        raise AttemptFailed(Attempt(TeacherError(message, remedy=self.remedy), fatal=True))

    async def close(self) -> None:
        """Nothing to let go of."""


def open_sender(
    teacher: OpenAITeacher | EmbeddedTeacher, base_url: str | None = None, *, api_key: str | None = None
) -> Sender:
    """The way to a teacher that its recipe section says."""
    return Endpoint(teacher, base_url, api_key=api_key)

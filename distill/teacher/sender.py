"""Where an attempt at a request goes: an endpoint, weights in this process, or nobody at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from distill.errors import TeacherError
from distill.recipe.teacher import EmbeddedTeacher, Teacher
from distill.teacher.endpoint import Attempt, AttemptFailed, Endpoint, Reply
from distill.teacher.requests import Request, teacher_label

if TYPE_CHECKING:
    from distill.teacher.local import LocalTeacher


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


def open_sender(teacher: Teacher, base_url: str | None = None, *, api_key: str | None = None) -> Sender:
    """The endpoint that a teacher's recipe section says."""
    return Endpoint(teacher, base_url, api_key=api_key)


class Senders:
    """The ways to all teachers of a run. Local weights are loaded once, whichever jobs need them. A context manager.

    `nobody`: instead of all of them.
    """

    def __init__(self, *, kv_gib: float = 1.0, nobody: Nobody | None = None) -> None:
        self.nobody = nobody
        self._kv_gib = kv_gib
        self._local: dict[str, LocalTeacher] = {}

    def __enter__(self) -> Senders:
        return self

    def __exit__(self, *_: object) -> None:
        for teacher in self._local.values():
            teacher.stop()

    def open(self, teacher: Teacher, base_url: str | None = None) -> Sender:
        """The way to this one."""
        if self.nobody is not None:
            return self.nobody
        if not isinstance(teacher, EmbeddedTeacher) or teacher.backend == "server":
            return open_sender(teacher, base_url)
        label = teacher_label(teacher)
        if label not in self._local:
            from distill.teacher.local import LocalTeacher  # brings torch, which no other teacher needs

            self._local[label] = LocalTeacher(teacher, kv_gib=self._kv_gib)
        return self._local[label]

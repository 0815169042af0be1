"""What the ledger knows of batches under way at a provider: written before they are made, gone with their answers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from distill.teacher.ledger import Asker, Ledger, Statement

_PUT_BATCH = "INSERT INTO batches VALUES (?,?,?,?,?,?)"
_PUT_REQUEST = "INSERT OR REPLACE INTO batch_requests VALUES (?,?,?,?,?)"
_SET_FILE = "UPDATE batches SET file_id = ? WHERE token = ?"
_SET_BATCH = "UPDATE batches SET batch_id = ? WHERE token = ?"
_GET_BATCHES = (
    "SELECT token, path, file_id, batch_id, created_at FROM batches WHERE teacher = ? ORDER BY created_at, token"
)
_GET_REQUESTS = "SELECT key, method, seed_row, sample FROM batch_requests WHERE token = ?"


@dataclass(frozen=True, slots=True)
class OpenBatch:
    """A batch that was begun and not collected. Without `batch_id` nobody knows whether the provider has it."""

    token: str  # ours: the provider keeps it as metadata, so that a batch can be found again
    path: str  # /chat/completions or /completions
    askers: dict[str, Asker]  # by request key
    file_id: str | None = None
    batch_id: str | None = None
    created_at: float = 0.0


class BatchStore:
    """The open batches of one teacher."""

    def __init__(self, ledger: Ledger, teacher: str) -> None:
        self._ledger = ledger
        self._teacher = teacher

    def open(self) -> list[OpenBatch]:
        """All of them, the oldest first."""
        found = []
        for token, path, file_id, batch_id, created_at in self._ledger.rows(_GET_BATCHES, (self._teacher,)):
            askers = {
                key: Asker(self._teacher, method, seed_row, sample)
                for key, method, seed_row, sample in self._ledger.rows(_GET_REQUESTS, (token,))
            }
            found.append(OpenBatch(token, path, askers, file_id, batch_id, created_at))
        return found

    async def begin(self, token: str, path: str, askers: dict[str, Asker]) -> OpenBatch:
        """From here on these keys are asked in this batch and nowhere else."""
        now = time.time()
        requests: list[Statement] = [
            (_PUT_REQUEST, (key, token, asker.method, asker.seed_row, asker.sample)) for key, asker in askers.items()
        ]
        await self._ledger.commit([(_PUT_BATCH, (token, self._teacher, path, None, None, now)), *requests])
        return OpenBatch(token, path, askers, created_at=now)

    async def uploaded(self, token: str, file_id: str) -> None:
        """Note the provider's name of the requests' file."""
        await self._ledger.commit([(_SET_FILE, (file_id, token))])

    async def created(self, token: str, batch_id: str) -> None:
        """Note the provider's name of the batch."""
        await self._ledger.commit([(_SET_BATCH, (batch_id, token))])

    async def close(self, token: str, answers: Sequence[Statement] = ()) -> None:
        """Commit the answers and forget the batch, in one transaction."""
        forget: list[Statement] = [
            ("DELETE FROM batch_requests WHERE token = ?", (token,)),
            ("DELETE FROM batches WHERE token = ?", (token,)),
        ]
        await self._ledger.commit([*answers, *forget])

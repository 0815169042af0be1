"""Errors meant for users: what happened and what to do. Our own invariants are `assert`s instead."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

EXIT_FAILURE = 1
EXIT_BAD_RECIPE = 2
EXIT_PARTIAL = 3


class DistillError(Exception):
    """A failure with a remedy; the CLI prints it as one line and exits with `exit_code`."""

    exit_code = EXIT_FAILURE

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} -> {self.remedy}" if self.remedy else self.message


class RecipeError(DistillError):
    """All problems of a recipe at once, each `file:line:col: key: problem`."""

    exit_code = EXIT_BAD_RECIPE

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class DataError(DistillError):
    """A dataset that is missing, corrupt, or lacks a column."""


class CheckpointError(DistillError):
    """A model folder that is missing, torn, or lacks a tokenizer."""


class TeacherError(DistillError):
    """Any failure of a teacher's endpoint; `retryable` says whether the same request may yet succeed."""

    def __init__(
        self, message: str, *, remedy: str | None = None, retryable: bool = False, status: int | None = None
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.retryable = retryable
        self.status = status


class EngineError(DistillError):
    """A model or request that the inference engine cannot serve."""


class PartialError(DistillError):
    """A job that delivered less than asked for; what it delivered is kept."""

    exit_code = EXIT_PARTIAL


_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# safetensors (Rust), SQLite, and torch.save, none of which raises an OSError
_DISK_FULL_TEXTS = ("No space left on device", "File too large", "Disk quota exceeded", "os error 28", "disk is full")
_TORCH_CANNOT_WRITE = ("PytorchStreamWriter failed", "inline_container.cc", "iostream error")  # it gives no reason


def system_trouble(error: BaseException, folder: Path | None = None) -> DistillError | None:
    """What the operating system refused (room, permission, a file), as a user's error; None for a bug of ours.

    `folder` is named where the error does not say what was being written.
    """
    where = f" ({folder})" if folder is not None else ""
    for cause in _causes(error):
        text = str(cause)
        named = f" ({cause.filename})" if isinstance(cause, OSError) and cause.filename else where
        full = isinstance(cause, OSError) and cause.errno in _DISK_FULL
        if full or any(mark in text for mark in _DISK_FULL_TEXTS):
            return DistillError(f"the disk is full{named}", remedy="make room on it and run the same command again")
        if any(mark in text for mark in _TORCH_CANNOT_WRITE):
            return DistillError(f"a checkpoint cannot be written{where}", remedy="make room on the disk and run again")
    if isinstance(error, OSError) and error.filename is not None:
        what = error.strerror or type(error).__name__
        return DistillError(f"{error.filename}: {what}", remedy="mend the path or its permissions and run again")
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__

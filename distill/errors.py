"""Errors meant for users: what happened and what to do. Our own invariants are `assert`s instead."""

from __future__ import annotations

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

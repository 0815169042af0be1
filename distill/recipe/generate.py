"""Jobs that ask the teacher for datasets."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from distill.recipe.base import Section
from distill.recipe.filters import Filters
from distill.recipe.prompts import (
    FilePrompts,
    InventedPrompts,
    Prompts,
    Sampling,
    SelfInstructPrompts,
    TaskKind,
    TaskPrompts,
)

__all__ = [
    "Answering",
    "CodeJob",
    "FilePrompts",
    "InstructionJob",
    "InventedPrompts",
    "Isolation",
    "Job",
    "PreferenceJob",
    "Prompts",
    "Sampling",
    "SelfInstructPrompts",
    "TaskKind",
    "TaskPrompts",
    "Unusable",
]


Isolation = Literal["bubblewrap", "none"]
OnUnusable = Literal["drop", "keep", "retry"]


class Unusable(Section):
    """What becomes of answers that are none. `retry` draws another sample, then drops."""

    truncated: OnUnusable = Field(default="drop", description="stopped at max_tokens")
    refused: OnUnusable = Field(default="drop", description="by the provider: a refusal or its content filter")
    empty: OnUnusable = Field(default="drop", description="nothing but white space")
    retries: int = Field(default=2, ge=1, le=16, description="further samples for one answer, at most")


class Answering(Section):
    """Several teachers that answer one job's prompts. Each row's key says who, so that a resume asks the same one."""

    names: tuple[str, ...] = Field(min_length=1, description="ids (else models) of the recipe's teachers")
    weights: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        default=None, description="of the names in turn; null: they take turns"
    )


class JobCommon(Section):
    """What every generation job has."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    prompts: Prompts
    system: str | None = None
    sampling: Sampling = Sampling()
    unusable: Unusable = Unusable()
    teachers: Answering | None = Field(default=None, description="who answers; null: teacher")
    filters: Filters = Filters()


class InstructionJob(JobCommon):
    """One answer a prompt (or several): rows of `messages`."""

    kind: Literal["instruction"]
    samples: int = Field(default=1, ge=1, le=64)
    keep: Literal["all", "verified"] = Field(default="all", description="verified: only answers the task accepts")


class PreferenceJob(JobCommon):
    """Several answers a prompt, ranked: rows of `prompt`, `chosen`, `rejected`."""

    kind: Literal["preference"]
    samples: int = Field(default=4, ge=2, le=64)
    rank: Literal["verifier", "judge"] = Field(
        default="judge", description="verifier: right against wrong; judge: the teacher compares, in both orders"
    )


class CodeJob(JobCommon):
    """Functions written from a docstring, kept when their tests pass in the sandbox."""

    kind: Literal["code"]
    samples: int = Field(default=1, ge=1, le=64)
    isolation: Isolation = "bubblewrap"
    verdict: Literal["tests", "none"] = Field(default="tests", description="none: prompts without tests, kept unrun")
    write_tests: int = Field(
        default=0, ge=0, le=32, description="for prompts without tests the teacher writes so many, unseen by solutions"
    )
    educational: bool = Field(
        default=False, description="keep only rows whose educational value for a learner the teacher affirms (phi-1)"
    )


Job = Annotated[InstructionJob | PreferenceJob | CodeJob, Field(discriminator="kind")]

"""Jobs that ask the teacher for datasets."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from distill.recipe.base import Section

TaskKind = Literal["instruction", "code", "judge"]
Isolation = Literal["bubblewrap", "none"]


class TaskPrompts(Section):
    """Prompts drawn from the verifiable task families (`distill.tasks`), so that answers can be checked."""

    source: Literal["tasks"]
    kinds: tuple[TaskKind, ...] = Field(default=("instruction",), min_length=1)
    families: tuple[str, ...] | None = None
    count: int = Field(ge=1)
    seed: int = 0


class FilePrompts(Section):
    """Prompts read from a JSONL or Parquet file, a column of texts or of messages."""

    source: Literal["file"]
    path: str
    column: str = "prompt"
    count: int | None = Field(default=None, ge=1, description="only the first so many")


class SelfInstructPrompts(Section):
    """New prompts that the teacher writes from a few of the seed tasks shown to it (Self-Instruct, 2212.10560)."""

    source: Literal["self_instruct"]
    path: str = "data/seed_tasks.jsonl"
    column: str = "prompt"
    count: int = Field(ge=1)
    examples: int = Field(default=8, ge=1, le=32, description="seed tasks shown in each request")
    seed: int = 0


Prompts = Annotated[TaskPrompts | FilePrompts | SelfInstructPrompts, Field(discriminator="source")]


class Sampling(Section):
    """How the teacher's answers are drawn."""

    temperature: float = Field(default=0.7, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(default=512, ge=1)


class JobCommon(Section):
    """What every generation job has."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    prompts: Prompts
    system: str | None = None
    sampling: Sampling = Sampling()


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
    educational: bool = Field(
        default=False, description="keep only rows whose educational value for a learner the teacher affirms (phi-1)"
    )


Job = Annotated[InstructionJob | PreferenceJob | CodeJob, Field(discriminator="kind")]

"""Jobs that ask the teacher for datasets."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from distill.recipe.base import Section
from distill.recipe.filters import EducationalSample, Filters
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
    "BinarizeRule",
    "Chat",
    "CodeJob",
    "Feedback",
    "FilePrompts",
    "InstructionJob",
    "InventedPrompts",
    "Isolation",
    "Job",
    "PreferenceJob",
    "Principles",
    "Prompts",
    "PushToHub",
    "Sampling",
    "SelfInstructPrompts",
    "TaskKind",
    "TaskPrompts",
    "Unusable",
]


Isolation = Literal["bubblewrap", "none"]
BinarizeRule = Literal["argilla", "h4", "max_min"]
OnUnusable = Literal["drop", "keep", "retry"]


class PushToHub(Section):
    """A finished dataset goes to the Hugging Face hub, as one commit."""

    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$", description="owner/name of a dataset; made where it is not there")
    private: bool = Field(default=True, description="where it is made")
    rejected: bool = Field(default=False, description="also what was dropped, with the reasons")
    token_env: str = Field(default="HF_TOKEN", description="name of the variable that holds the token")


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
    push: PushToHub | None = Field(default=None, description="publish the finished dataset; null: it stays here")


class AnswersJob(JobCommon):
    """What jobs share whose rows are answers."""

    samples: int = Field(default=1, ge=1, le=64)
    logprobs: int = Field(
        default=0, ge=0, le=20, description="keep the teacher's so many most likely tokens at each place, for kd"
    )


class Chat(Section):
    """UltraChat (2305.14233): the teacher plays the user too, by prompts of its own, over several rounds."""

    least_rounds: int = Field(default=3, ge=1, le=64)
    most_rounds: int = Field(default=7, ge=1, le=64, description="a round is a user's turn and its answer")
    user: Sampling | None = Field(default=None, description="how the user's turns are drawn; null: as the answers")
    broken: Literal["end", "drop"] = Field(
        default="end",
        description="at a turn that is none; end: the rounds before it are the row if enough; drop: there is no row",
    )
    seed: int = 0

    @model_validator(mode="after")
    def _some_rounds(self) -> Chat:
        if self.least_rounds > self.most_rounds:
            raise ValueError(f"least_rounds {self.least_rounds} is over most_rounds {self.most_rounds}")
        return self


class InstructionJob(AnswersJob):
    """One answer a prompt (or several), or whole chats: rows of `messages`."""

    kind: Literal["instruction"]
    keep: Literal["all", "verified"] = Field(default="all", description="verified: only answers the task accepts")
    chat: Chat | None = Field(default=None, description="go on with the teacher as the user; null: one answer")

    @model_validator(mode="after")
    def _chats_are_kept_whole(self) -> InstructionJob:
        if self.chat is not None and self.keep == "verified":
            raise ValueError("'keep: verified' looks at one answer: leave 'chat' out")
        if self.chat is not None and self.logprobs:
            raise ValueError("'logprobs' are kept of one answer a row: leave 'chat' out")
        return self


class Principles(Section):
    """Shares of UltraFeedback's principles in the answers' system prompts; the defaults are published for chats."""

    helpfulness: float = Field(default=0.6, ge=0)
    truthfulness: float = Field(default=0.2, ge=0)
    honesty: float = Field(default=0.18, ge=0)
    verbalized_calibration: float = Field(default=0.02, ge=0)

    @model_validator(mode="after")
    def _some_share(self) -> Principles:
        if not any(share for _, share in self):
            raise ValueError("all shares are 0; set principles to null for answers without one")
        return self


class Feedback(Section):
    """UltraFeedback (2310.01377): a principle for each answer, a judge on four aspects, a pair by a rule."""

    principles: Principles | None = Principles()
    temperatures: tuple[Annotated[float, Field(ge=0, le=2)], ...] = Field(
        default=(), description="of the answers in turn; empty: as sampling says"
    )
    orders: int = Field(default=2, ge=2, le=24, description="in which the texts are shown to the judge")
    binarize: BinarizeRule = Field(default="argilla", description="how chosen and rejected are picked")
    judge_tokens: int = Field(default=1024, ge=1, description="longest judgement of all texts on one aspect")
    seed: int = 0


class PreferenceJob(JobCommon):
    """Several answers a prompt, ranked: rows of `prompt`, `chosen`, `rejected`."""

    kind: Literal["preference"]
    samples: int = Field(default=4, ge=2, le=64)
    rank: Literal["verifier", "judge", "feedback"] = Field(
        default="judge",
        description="verifier: right against wrong; judge: the teacher compares pairs; feedback: UltraFeedback",
    )
    feedback: Feedback | None = Field(default=None, description="settings of rank feedback; null: its defaults")

    @model_validator(mode="after")
    def _feedback_is_used(self) -> PreferenceJob:
        if self.feedback is not None and self.rank != "feedback":
            raise ValueError(f"'feedback' belongs to rank: feedback, this job has rank: {self.rank}")
        return self


class CodeJob(AnswersJob):
    """Functions written from a docstring, kept when their tests pass in the sandbox."""

    kind: Literal["code"]
    isolation: Isolation = "bubblewrap"
    verdict: Literal["tests", "none"] = Field(default="tests", description="none: prompts without tests, kept unrun")
    write_tests: int = Field(
        default=0, ge=0, le=32, description="for prompts without tests the teacher writes so many, unseen by solutions"
    )
    educational: bool | EducationalSample = Field(
        default=False,
        description="keep only rows of educational value (phi-1); true: the teacher is asked about each; "
        "a section: about a sample, and a random forest extends its word",
    )


Job = Annotated[InstructionJob | PreferenceJob | CodeJob, Field(discriminator="kind")]
